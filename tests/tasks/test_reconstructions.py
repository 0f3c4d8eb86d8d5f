"""Pictures and curves: what they show, when they are written, and that they change nothing."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from tests.tasks.dinov2_runs import SaveEveryBatch, make_trainer, weights
from tests.tasks.dinov2_runs import make_task as make_dinov2
from tests.tasks.mae_runs import KINDS, make_data, make_root, make_task
from tests.tasks.test_dinov2 import assert_equal
from torchgeo_explora.errors import ConfigError
from torchgeo_explora.models import SATMAE_BANDS
from torchgeo_explora.objectives import mae_learning_rate
from torchgeo_explora.tasks import ExPLoRAMAE, LossCurve, Reconstructions
from torchgeo_explora.tasks._autoencoder import find_channels
from torchgeo_explora.tasks._pictures import (
    HIDDEN,
    Composite,
    Reconstruction,
    draw_dates,
    draw_images,
)
from torchgeo_explora.tasks.reconstructions import date_labels, find_composites, reconstruct


@pytest.fixture(scope='module')
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Images for every kind of model."""
    return {kind: make_root(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


def _fit(
    kind: str, root: Path, out: Path, callbacks: list[Any], resume: Path | None = None, **trainer: Any  # noqa: ANN401
) -> ExPLoRAMAE:  # fmt: skip
    task = make_task(kind)
    ckpt = None if resume is None else str(resume)
    options = {'max_epochs': 4, 'limit_val_batches': 1, **trainer}
    made = make_trainer(out, callbacks=callbacks, **options)
    made.fit(task, make_data(kind, root), ckpt_path=ckpt)
    return task


def _sample(dates: int, bands: int, side: int = 12) -> Reconstruction:
    generator = np.random.default_rng(0)
    image = generator.random((dates, bands, side, side), np.float32)
    hidden = generator.random((dates, bands, side, side)) < 0.5
    output = np.where(hidden, 1 - image, image).astype(np.float32)
    return Reconstruction(image, hidden, output, tuple(f'20{d:02d}-01' for d in range(dates)))


@pytest.mark.parametrize(('dates', 'bands'), [(1, 3), (1, 7), (3, 3), (2, 5)])
def test_panels(dates: int, bands: int) -> None:
    """Grey where a band is hidden, and the same stretch in all three panels."""
    picture, composite = _sample(dates, bands), Composite('', bands - 1, 0, 1)
    for date in range(dates):
        shown, masked, made = picture.panels(composite, date)
        hidden = picture.hidden[date][composite.bands].transpose(1, 2, 0)
        assert shown.shape == (12, 12, 3)
        assert min(x.min() for x in (shown, masked, made)) >= 0
        assert max(x.max() for x in (shown, masked, made)) <= 1
        np.testing.assert_array_equal(masked[hidden], np.float32(HIDDEN))
        np.testing.assert_array_equal(masked[~hidden], shown[~hidden])
        np.testing.assert_array_equal(made[~hidden], shown[~hidden])
        assert np.abs(made[hidden] - shown[hidden]).mean() > 0.2


def test_stretch_keeps_photographs_and_evens_bands() -> None:
    ramp = np.linspace(0, 1, 144, dtype=np.float32).reshape(12, 12)
    bands = np.stack([ramp, 0.2 * ramp, 0.5 * ramp])
    nothing = np.zeros_like(bands, dtype=np.bool_)
    photograph = Reconstruction(bands[None], nothing[None], bands[None])
    shown = photograph.panels(Composite('', 0, 1, 2))[0]
    assert shown[..., 0].max() == 1 and shown[..., 1].max() < 0.3
    more = np.concatenate([bands, bands])[None]
    none = np.zeros_like(more, dtype=np.bool_)
    shown = Reconstruction(more, none, more).panels(Composite('', 0, 1, 2))[0]
    assert [shown[..., band].max() for band in range(3)] == [1, 1, 1]
    flat = np.full((1, 3, 4, 4), 0.3, np.float32)
    constant = Reconstruction(flat, np.zeros_like(flat, dtype=np.bool_), flat)
    assert not np.isnan(constant.panels(Composite('', 0, 1, 2))[0]).any()


def test_figures_have_a_panel_for_everything() -> None:
    composites = [Composite('true', 2, 1, 0), Composite('false', 3, 2, 1)]
    figure = draw_images([_sample(1, 4)] * 5, composites, 'title')
    assert len(figure.axes) == 5 * 2 * 3
    titles = [axes.get_title(loc='left') for axes in figure.axes]
    assert [t for t in titles if t] == ['true\ninput', 'masked', 'output', 'false\ninput',
                                        'masked', 'output']  # fmt: skip
    strip = draw_dates([_sample(3, 3)] * 3, Composite('', 0, 1, 2), 'title')
    assert len(strip.axes) == 3 * 3 * 3
    found = [axes.get_title(loc='left') for axes in strip.axes]
    assert found.count('2001-01') == 3


def test_dates_are_written_out() -> None:
    stamps = torch.tensor([[0.0, 0.0, 3.0], [15.0, 11.0, 23.0]])
    assert date_labels(stamps) == ('2002-01', '2017-12')


def _titles(found: list[Composite]) -> list[tuple[str, list[int]]]:
    return [(composite.title, composite.bands) for composite in found]


def test_composites_are_found_by_name() -> None:
    channels = find_channels(SATMAE_BANDS, None, None)
    found = find_composites(channels, 10, None)
    names = [[SATMAE_BANDS[band] for band in composite.bands] for composite in found]
    assert names == [['B4', 'B3', 'B2'], ['B8', 'B4', 'B3'], ['B12', 'B8A', 'B4']]
    mixed = find_channels(['B04', 'B8A', 'B12', 'B03', 'B02'], None, None)
    assert [c.bands for c in find_composites(mixed, 5, None)] == [[0, 3, 4], [2, 1, 0]]
    bands = ['blue', 'green', 'red', 'nir']
    other = find_channels(bands, {'visible': ['blue', 'green', 'red'], 'nir': ['nir']}, None)
    assert _titles(find_composites(other, 4, None)) == [('visible', [2, 1, 0]), ('nir', [3, 3, 3])]
    chosen = find_composites(other, 4, {'infrared': ['nir', 'red', 'green']})
    assert _titles(chosen) == [('infrared', [3, 2, 1])]
    assert find_composites(find_channels(None, None, 3), 3, None)[0].bands == [0, 1, 2]
    assert find_composites(find_channels(None, None, 1), 1, None)[0].bands == [0, 0, 0]
    assert find_composites(find_channels(None, None, 8), 8, None)[0].bands == [2, 1, 0]


@pytest.mark.parametrize(
    ('bands', 'names', 'words'),
    [
        (['a', 'b', 'c'], ['a', 'b'], 'names of three'),
        (['a', 'b', 'c'], ['a', 'b', 'd'], 'names band d'),
        (None, ['a', 'b', 'c'], 'the task has no names of bands'),
    ],
)
def test_impossible_composites(bands: list[str] | None, names: list[str], words: str) -> None:
    channels = find_channels(bands, None, None if bands else 3)
    with pytest.raises(ConfigError, match=words):
        find_composites(channels, 3, {'mine': names})


@pytest.mark.parametrize('kind', KINDS)
def test_pictures_and_curve_change_nothing(
    kind: str, roots: dict[str, Path], tmp_path: Path
) -> None:
    plain = _fit(kind, roots[kind], tmp_path / 'plain', [])
    torch.manual_seed(3)
    shown = _fit(kind, roots[kind], tmp_path / 'shown', [Reconstructions(2, 2), LossCurve(1)])
    assert_equal(weights(shown), weights(plain))
    found = {path.name for path in (tmp_path / 'shown' / 'reconstructions').iterdir()}
    assert found == {f'step_{step:08d}.png' for step in (0, 2, 4)}
    first, last = (_read(tmp_path / 'shown' / 'reconstructions' / f'step_{step:08d}.png')
                   for step in (0, 4))  # fmt: skip
    assert first.shape == last.shape and first.std() > 20
    assert (first != last).any()


def _read(path: Path) -> NDArray[np.uint8]:
    return np.asarray(Image.open(path).convert('RGB'))


@pytest.mark.parametrize('kind', KINDS)
def test_reconstructions_are_in_units_of_the_images(kind: str, roots: dict[str, Path]) -> None:
    task, data = make_task(kind).eval(), make_data(kind, roots[kind])
    data.setup('test')
    batch = next(iter(data.test_dataloader()))
    rows = reconstruct(task, batch, 1)
    for row, image in zip(rows, batch['image'], strict=True):
        dated = image if kind == 'dates' else image[None]
        np.testing.assert_allclose(row.image, dated.numpy(), atol=1e-5)
        np.testing.assert_allclose(row.output[~row.hidden], row.image[~row.hidden], atol=1e-5)
        assert 0.5 < row.hidden.mean() < 0.95
        assert len(row.labels) == (3 if kind == 'dates' else 0)


def test_curve_is_that_of_the_run(roots: dict[str, Path], tmp_path: Path) -> None:
    root = roots['groups']
    task = _fit('groups', root, tmp_path, [LossCurve(), SaveEveryBatch(tmp_path)])
    with (tmp_path / 'curve.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row['step']) for row in rows] == [1, 2, 3, 4]
    assert all(float(row['train_loss']) > 0 for row in rows)
    curve = mae_learning_rate(task.recipe.optimization, 12, 3 * 4)
    assert [float(row['lr']) for row in rows] == pytest.approx([curve(s) for s in (0, 3, 6, 9)])
    assert [row['val_loss'] != '' for row in rows] == [True] * 4
    assert _read(tmp_path / 'curve.png').std() > 5
    for cut in (4, 5, 9):  # within a window too
        again = tmp_path / 'again'
        _fit('groups', root, again, [LossCurve()], resume=tmp_path / f'{cut}.ckpt')
        with (again / 'curve.csv').open() as file:
            found = list(csv.DictReader(file))
        if cut == 9:  # written before the validation of its epoch, which is not made up for
            assert found[2].pop('val_loss') == '' != rows[2].pop('val_loss')
        assert found == rows, cut


def test_nothing_is_written_where_a_run_is_only_tried(
    roots: dict[str, Path], tmp_path: Path
) -> None:
    _fit('plain', roots['plain'], tmp_path, [Reconstructions(), LossCurve(1)], fast_dev_run=True)
    assert list(tmp_path.iterdir()) == []


def test_impossible_arguments(roots: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='at least 1'):
        Reconstructions(every_n_steps=0)
    with pytest.raises(ConfigError, match='at least 1'):
        LossCurve(0)
    with pytest.raises(ConfigError, match='ExPLoRADINOv2 reconstructs nothing'):
        make_trainer(tmp_path, callbacks=[Reconstructions()]).fit(
            make_dinov2(), make_data('plain', roots['plain'])
        )
    data = make_data('plain', roots['plain'])
    data.setup('fit')
    with pytest.raises(ConfigError, match='no data module'):
        make_trainer(tmp_path, callbacks=[Reconstructions()]).fit(
            make_task('plain'), data.train_dataloader()
        )
    with pytest.raises(ConfigError, match='names band B2'):
        trainer = make_trainer(tmp_path, callbacks=[Reconstructions(composites={'x': ['B2'] * 3})])
        trainer.fit(make_task('plain', bands=['r', 'g', 'b']), make_data('plain', roots['plain']))


def test_a_test_without_images_is_refused(tmp_path: Path) -> None:
    from tests.data.folder.data import write_picture

    for number in range(4):
        write_picture(tmp_path / 'flat' / f'{number}.png', seed=number, size=32)
    with pytest.raises(ConfigError, match='FolderDataModule has no test images'):
        make_trainer(tmp_path).test(make_task('plain'), make_data('plain', tmp_path / 'flat'))
