"""What is said of energy: measured, estimated, or not known; never one for the other."""

import sys
import time
from types import SimpleNamespace

import pytest
import torch

from torchgeo_explora.cli.energy import (
    COUNTRY,
    NOT_INSTALLED,
    Energy,
    EnergyMeter,
    describe_source,
    gpu_ids,
)

CPU = torch.device('cpu')
GRAMS = 250.0


def test_without_codecarbon_nothing_is_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'codecarbon', None)  # an import of it fails
    with EnergyMeter(CPU) as meter:
        time.sleep(0.02)
    assert meter.energy.seconds >= 0.02
    assert (meter.energy.kwh, meter.energy.kg_co2) == (None, None)
    assert meter.energy.source == NOT_INSTALLED
    assert 'not known' in meter.energy.sentence()


def test_emissions_are_energy_times_the_intensity_that_was_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip('codecarbon')
    monkeypatch.setenv('CODECARBON_FORCE_CARBON_INTENSITY_G_CO2E_KWH', str(GRAMS))
    with EnergyMeter(CPU) as meter:
        time.sleep(0.3)
        first = meter.energy
        time.sleep(0.3)
    last = meter.energy
    assert first.kwh is not None and last.kwh is not None and last.kg_co2 is not None
    assert 0 < first.kwh < last.kwh
    assert last.kg_co2 == pytest.approx(last.kwh * GRAMS / 1000)
    assert meter.energy == last  # what is read after the block does not grow
    assert f'{GRAMS:g} g a kWh' in last.source


@pytest.mark.parametrize('country', [None, 'ZZZ'])
def test_emissions_without_a_known_country_are_not_known(
    monkeypatch: pytest.MonkeyPatch, country: str | None
) -> None:
    pytest.importorskip('codecarbon')
    monkeypatch.delenv(COUNTRY, raising=False)
    if country is not None:
        monkeypatch.setenv(COUNTRY, country)
    with EnergyMeter(CPU) as meter:
        time.sleep(0.1)
    assert meter.energy.kg_co2 is None
    assert COUNTRY in meter.energy.source


def test_an_error_inside_goes_through() -> None:
    with pytest.raises(ZeroDivisionError), EnergyMeter(CPU):
        1 / 0  # noqa: B018


def test_nothing_that_is_estimated_is_called_measured() -> None:
    estimated = describe_source('codecarbon 3', ['RAM()', 'CPU(Cpu Load)'], 'the mean mix of Chad')
    assert 'processor estimated' in estimated and ' measured by' not in estimated
    read = describe_source('codecarbon 3', ['CPU(Intel Rapl)', 'GPU(H100)'], None)
    assert 'processor measured' in read and 'GPU measured' in read and 'estimated' not in read
    constant = describe_source('codecarbon 3', ['CPU(AMD EPYC > 85W [generic])'], None)
    assert 'processor estimated' in constant


def test_parts_of_a_run_add_up() -> None:
    one, other = Energy(10.0, 0.5, 0.1, 'meter'), Energy(5.0, 0.25, None, 'meter')
    total = one + other
    assert (total.seconds, total.kwh, total.kg_co2) == (15.0, 0.75, None)
    assert total.source == 'meter'
    assert Energy.from_dict(total.to_dict()) == total
    assert (one + Energy(1.0, None, None, 'none')).kwh is None


def test_gpus_do_not_count_for_work_on_the_cpu() -> None:
    assert gpu_ids(CPU) == []


def test_the_gpu_that_is_used_is_found_by_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = {'GPU-b': 5}  # the driver counts all of them, torch only those that it may see
    library = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda name: name,
        nvmlDeviceGetIndex=lambda handle: driver[handle],
    )
    monkeypatch.setitem(sys.modules, 'pynvml', library)
    for uuid, found in (('b', [5]), ('part-of-one', None)):
        properties = SimpleNamespace(uuid=uuid)
        monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda _, p=properties: p)
        assert gpu_ids(torch.device('cuda', 0)) == found
