"""Names of bands, and SatMAE's scaling against a plain reference."""

import numpy as np
import pytest
from torchgeo.datasets import EuroSAT

from torchgeo_explora.datasets import (
    SATMAE_BANDS,
    SENTINEL2_BANDS,
    canonical_band,
    satmae_scale,
)
from torchgeo_explora.datasets._bands import SATMAE_STATISTICS, band_positions
from torchgeo_explora.errors import ConfigError


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        ('B1', 'B1'), ('B01', 'B1'), ('b01', 'B1'), (' B8 ', 'B8'), ('B08', 'B8'), ('B8A', 'B8A'),
        ('b8a', 'B8A'), ('B08A', 'B8A'), ('B10', 'B10'), ('B012', 'B12'), ('red', 'red'),
        ('B8B', 'B8B'), ('SR_B1', 'SR_B1'),
    ],
)  # fmt: skip
def test_spellings(name: str, expected: str) -> None:
    assert canonical_band(name) == expected


def test_orders_name_the_same_thirteen_bands() -> None:
    eurosat = [canonical_band(name) for name in EuroSAT.all_band_names]
    assert sorted(eurosat) == sorted(SENTINEL2_BANDS) and tuple(eurosat) != SENTINEL2_BANDS
    assert eurosat.index('B8A') == 12 and SENTINEL2_BANDS.index('B8A') == 8
    dropped = [name for name in SENTINEL2_BANDS if name not in SATMAE_BANDS]
    assert [SENTINEL2_BANDS.index(name) for name in dropped] == [0, 9, 10]  # spec of SatMAE


def test_both_orders_give_the_same_tensor() -> None:
    values = np.random.default_rng(0).integers(0, 5000, (13, 6, 5))
    eurosat = values[[SENTINEL2_BANDS.index(canonical_band(b)) for b in EuroSAT.all_band_names]]
    wanted = ('B8A', 'B04', 'B11', 'B2', 'B08')
    first = values[list(band_positions(SENTINEL2_BANDS, wanted, 'x'))]
    second = eurosat[list(band_positions(EuroSAT.all_band_names, wanted, 'x'))]
    assert np.array_equal(satmae_scale(first, wanted), satmae_scale(second, wanted))
    assert np.array_equal(first[0], values[8])


def test_scaling_is_satmaes_with_its_bytes() -> None:
    values = np.random.default_rng(1).integers(-500, 9000, (13, 40, 40)).astype(np.float32)
    scaled = satmae_scale(values, EuroSAT.all_band_names)
    for place, name in enumerate(EuroSAT.all_band_names):
        band = SATMAE_STATISTICS[canonical_band(name)]
        for value, byte in zip(values[place, 0], scaled[place, 0], strict=True):
            exact = 255 * (float(value) - (band.mean - 2 * band.std)) / (4 * band.std)
            assert int(byte) == int(min(max(exact, 0), 255))  # int() drops the fraction
    assert scaled.dtype == np.uint8


def test_statistics_are_those_of_the_published_order() -> None:
    assert SATMAE_STATISTICS['B1'].mean == 1370.19151926
    assert SATMAE_STATISTICS['B8A'].mean == 1972.62420416
    assert SATMAE_STATISTICS['B10'].std == 14.3114637
    assert SATMAE_STATISTICS['B12'].std == 1087.6020813


def test_values_that_are_none_become_zero() -> None:
    values = np.full((1, 1, 4), 1500.0)
    values[0, 0, :3] = np.nan, np.inf, -np.inf
    scaled = satmae_scale(values, ['B2'])
    assert scaled[0, 0, :3].tolist() == [0, 0, 0] and scaled[0, 0, 3] > 0


@pytest.mark.parametrize(
    ('available', 'wanted', 'word'),
    [
        (('B1', 'B2'), ('B3',), "no band 'B3'"),
        (('B1', 'B2'), (), 'no band: choose'),
        (('B1', 'B2'), ('B1', 'B01'), 'one twice: choose'),
        (('B1', 'B01'), ('B1',), 'name one twice'),
    ],
)
def test_impossible_choices(available: tuple[str, ...], wanted: tuple[str, ...], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        band_positions(available, wanted, 'the file')


def test_other_sensors_have_no_scaling() -> None:
    with pytest.raises(ConfigError, match="no band 'red'"):
        satmae_scale(np.zeros((1, 2, 2)), ['red'])
