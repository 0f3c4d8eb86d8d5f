"""Groups of bands by name, for any sensor and any order."""

import warnings

import pytest
import torch

from torchgeo_explora.errors import ConfigError
from torchgeo_explora.models import SATMAE_BANDS, SENTINEL2_GROUPS, resolve_groups

SATMAE = ((0, 1, 2, 6), (3, 4, 5, 7), (8, 9))
EUROSAT = (
    'B01',
    'B02',
    'B03',
    'B04',
    'B05',
    'B06',
    'B07',
    'B08',
    'B09',
    'B10',
    'B11',
    'B12',
    'B8A',
)


def test_satmaes_groups() -> None:
    assert resolve_groups(SATMAE_BANDS, SENTINEL2_GROUPS) == SATMAE
    assert resolve_groups(SATMAE_BANDS, list(SENTINEL2_GROUPS.values())) == SATMAE


def test_names_give_the_same_bands_in_every_order() -> None:
    bands = {f'B{int(name[1:])}' if name != 'B8A' else name: i for i, name in enumerate(EUROSAT)}
    values = torch.arange(13.0)
    first, second = (
        [values[[bands[names[i]] if own else i for i in group]] for group in groups]
        for names, own, groups in (
            (SATMAE_BANDS, True, resolve_groups(SATMAE_BANDS, SENTINEL2_GROUPS)),
            (EUROSAT, False, resolve_groups(EUROSAT, SENTINEL2_GROUPS)),
        )
    )
    for mine, theirs in zip(first, second, strict=True):
        assert torch.equal(mine, theirs)
    assert resolve_groups(EUROSAT, SENTINEL2_GROUPS)[1] == (4, 5, 6, 12), 'B8A stands last'


def test_any_sensor() -> None:
    bands = ['red', 'green', 'blue', 'nir', 'DSM']
    groups = {'colour': ['blue', 'green', 'red'], 'vegetation': ['nir'], 'height': ['DSM']}
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert resolve_groups(bands, groups) == ((2, 1, 0), (3,), (4,))
    with pytest.warns(UserWarning, match='Band nir is in the groups a and b'):
        assert resolve_groups(bands, {'a': ['nir'], 'b': ['red', 'nir']}) == ((3,), (0, 3))


@pytest.mark.parametrize(
    ('groups', 'said'),
    [
        ({'a': ['nirr']}, r'did you mean nir\?'),
        ([['red'], ['swir']], 'Group 1 names band swir'),
        ({'a': []}, 'Group a of bands is empty'),
        ({'a': 'red'}, "the text 'red'"),
        ({}, 'no group of bands'),
        ([], 'no group of bands'),
        ([['red', 'red']], 'twice'),
        ([['B2', 'B02']], 'twice'),
    ],
)
def test_bad_groups(groups: dict[str, list[str]] | list[list[str]], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        resolve_groups(['red', 'nir', 'B02'], groups)


def test_bands_of_one_name() -> None:
    with pytest.raises(ConfigError, match='Bands 0 and 2 of the images are both named b2'):
        resolve_groups(['B02', 'red', 'b2'], [['red']])
