"""Which rasters a model takes, and what of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rasterio import Affine

from tests.inference.conftest import segmentation_spec, write_raster
from torchgeo_explora.errors import ConfigError, ImageError
from torchgeo_explora.inference import fit_raster, read_info
from torchgeo_explora.inference.fit import pixel_sizes
from torchgeo_explora.inference.sources import find_rasters

SENTINEL2: dict[str, Any] = {'bands': ('B02', 'B03', 'B8A'), 'scale': ((0.0, 10000.0),) * 3}


def _info(folder: Path, values: Any, **profile: Any) -> Any:  # noqa: ANN401
    return read_info(write_raster(folder / 'scene.tif', values, **profile))


def _noise(bands: int, dtype: str = 'uint8', top: int = 255) -> Any:  # noqa: ANN401
    return np.random.default_rng(0).integers(1, top, (bands, 30, 40)).astype(dtype)


def test_bands_are_found_by_name_in_any_order_and_spelling(tmp_path: Path) -> None:
    info = _info(tmp_path, _noise(5, 'uint16', 9000), descriptions=['B8A', 'B4', 'b3', 'B2', 'B11'])
    assert fit_raster(info, replace(segmentation_spec(), **SENTINEL2)).selection.indexes == (
        4,
        3,
        1,
    )


def test_colours_are_names(tmp_path: Path) -> None:
    info = _info(tmp_path, _noise(4), colorinterp=['blue', 'green', 'red', 'undefined'])
    spec = replace(segmentation_spec(), bands=('red', 'green', 'blue'))
    assert fit_raster(info, spec).selection.indexes == (3, 2, 1)


def test_as_many_bands_without_names_are_taken_in_order(tmp_path: Path) -> None:
    assert fit_raster(_info(tmp_path, _noise(3)), segmentation_spec()).selection.indexes == (
        1,
        2,
        3,
    )


def test_bands_can_be_chosen_by_index_or_name(tmp_path: Path) -> None:
    info = _info(tmp_path, _noise(5), descriptions=['a', 'b', 'c', 'd', 'e'])
    assert fit_raster(info, segmentation_spec(), [5, 'a', 3]).selection.indexes == (5, 1, 3)


@pytest.mark.parametrize(
    ('bands', 'names', 'reason'),
    [
        (8, [], 'names do not tell which'),
        (2, [], 'needs 3'),
        (3, ['b1', 'b0', 'x'], 'the order differs'),
    ],
)
def test_unclear_bands_are_refused(
    bands: int, names: list[str], reason: str, tmp_path: Path
) -> None:
    info = _info(tmp_path, _noise(bands), descriptions=names)
    with pytest.raises(ImageError, match=reason):
        fit_raster(info, segmentation_spec())
    if bands > 2:
        forced = fit_raster(info, segmentation_spec(), force=True)
        assert forced.selection.indexes == (1, 2, 3)
        assert reason in forced.overridden[0]


@pytest.mark.parametrize(
    ('dtype', 'top', 'scale', 'fits'),
    [
        ('uint8', 255, (0.0, 255.0), True),
        ('uint8', 255, (0.0, 10000.0), False),  # another sensor's
        ('uint16', 9000, (0.0, 10000.0), True),
        ('uint16', 250, (0.0, 255.0), True),
        ('uint16', 9000, (0.0, 255.0), False),  # nearly all would be cut off
        ('int16', 3000, (300.0, 2800.0), True),
        ('float32', 9000, (0.0, 10000.0), True),
        ('float32', 2, (0.0, 10000.0), False),  # reflectance from 0 to 1
        ('uint8', 255, (255.0, 0.0), True),
    ],
)
def test_values_of_another_unit_are_refused(
    dtype: str, top: int, scale: tuple[float, float], fits: bool, tmp_path: Path
) -> None:
    info = _info(tmp_path, _noise(3, dtype, top))
    spec = segmentation_spec(scale=(scale,) * 3)
    if fits:
        assert fit_raster(info, spec).overridden == ()
        return
    with pytest.raises(ImageError, match='override with --force'):
        fit_raster(info, spec)
    assert fit_raster(info, spec, force=True).overridden != ()
    own = (0.0, 255.0 if dtype == 'uint8' else float(top))
    assert fit_raster(info, spec, scale=own).overridden == ()


def test_without_a_scale_only_bytes_and_unit_floats_are_clear(tmp_path: Path) -> None:
    spec = segmentation_spec(scale=None)
    assert fit_raster(_info(tmp_path, _noise(3)), spec).high.tolist() == [255.0] * 3
    unit = np.random.default_rng(0).random((3, 9, 9), dtype=np.float32)
    assert fit_raster(_info(tmp_path, unit), spec).high.tolist() == [1.0] * 3
    with pytest.raises(ImageError, match='--scale'):
        fit_raster(_info(tmp_path, _noise(3, 'uint16')), spec)


def test_a_raster_without_data_fits(tmp_path: Path) -> None:
    info = _info(tmp_path, np.zeros((3, 9, 9), dtype=np.uint16), nodata=0)
    assert fit_raster(info, segmentation_spec(scale=((0.0, 1e4),) * 3)).overridden == ()


@pytest.mark.parametrize(
    ('place', 'metres'),
    [
        ({'transform': Affine(10, 0, 0, 0, -10, 0)}, 10.0),
        ({'crs': 'EPSG:4326', 'transform': Affine(1e-4, 0, 5, 0, -1e-4, 60.0015)}, 7.87),
        ({'crs': 'EPSG:2263', 'transform': Affine(10, 0, 0, 0, -10, 0)}, 3.048),  # feet
    ],
)
def test_pixels_are_measured_in_metres(
    place: dict[str, Any], metres: float, tmp_path: Path
) -> None:
    info = _info(tmp_path, _noise(3), **place)
    assert pixel_sizes(info)[0] == pytest.approx(metres, rel=1e-3)
    if metres == 3.048:
        return  # a model's resolution may be in feet as well
    for factor, fits in ((1.9, True), (2.1, False), (1 / 1.9, True), (1 / 2.1, False)):
        spec = segmentation_spec(resolution=metres * factor)
        if fits:
            fit_raster(info, spec)
        else:
            with pytest.raises(ImageError, match='more than 2 times apart'):
                fit_raster(info, spec)


@pytest.mark.filterwarnings('ignore::rasterio.errors.NotGeoreferencedWarning')
def test_without_a_place_the_resolution_cannot_tell(tmp_path: Path) -> None:
    info = _info(tmp_path, _noise(3), crs=None, transform=Affine.identity())
    assert fit_raster(info, segmentation_spec(resolution=0.3)).overridden == ()


def test_complex_values_are_refused(tmp_path: Path) -> None:
    path = write_raster(tmp_path / 'c.tif', np.ones((1, 5, 5), dtype=np.complex64))
    with pytest.raises(ImageError, match='complex'):
        read_info(path)


def _touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_rasters_are_found_in_every_kind_of_source(tmp_path: Path) -> None:
    folder, out = tmp_path / 'f', tmp_path / 'f' / 'out'
    _touch(folder / 'b.TIF', folder / 'a' / 'x.tiff', folder / '.h' / 'y.tif', folder / 'z.txt')
    _touch(out / 'b_pred.tif')
    found = [(Path(s.path).name, s.target) for s in find_rasters([folder], out)]
    assert found == [('x.tiff', 'a/x'), ('b.TIF', 'b')]
    globbed = find_rasters([str(folder / '**' / '*.tiff')], out)
    assert [s.target for s in globbed] == ['x']
    (tmp_path / 'list.txt').write_text('# scenes\n\nf/b.TIF\nf/a\n/vsicurl/https://e.org/q.tif\n')
    listed = find_rasters([tmp_path / 'list.txt', folder / 'b.TIF'], out)
    assert [s.target for s in listed] == ['b', 'x', 'q']


def test_results_of_one_name_are_refused(tmp_path: Path) -> None:
    _touch(tmp_path / 'a' / 'x.tif', tmp_path / 'b' / 'x.tif', tmp_path / 'empty' / 'n.txt')
    with pytest.raises(ConfigError, match='would both give'):
        find_rasters([tmp_path / 'a' / 'x.tif', tmp_path / 'b' / 'x.tif'], tmp_path / 'out')
    with pytest.raises(ConfigError, match='no raster'):
        find_rasters([tmp_path / 'empty'], tmp_path / 'out')
