"""What a test and a prediction write: numbers against references, pictures, files, two ranks."""

import csv
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from matplotlib.image import imread
from PIL import Image
from rasterio.transform import Affine
from sklearn.metrics import confusion_matrix, f1_score, jaccard_score, precision_score, recall_score
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset, TensorDataset

from tests.processes import run_ranks
from tests.tasks import report_runs
from tests.tasks.report_runs import COUNT, MaskDataModule, Masks, MaskTask, OddColours, colours
from tests.tasks.toy import CLASSES, trainer
from torchgeo_explora.datasets import ImageFolder
from torchgeo_explora.errors import ConfigError
from torchgeo_explora.tasks import PredictionWriter, TestReport
from torchgeo_explora.tasks._reports.classes import ClassInfo
from torchgeo_explora.tasks._reports.collect import Collector, Predicted, read_batch
from torchgeo_explora.tasks._reports.colors import class_colors, photograph, shown_bands
from torchgeo_explora.tasks._reports.examples import Example, Top
from torchgeo_explora.tasks._reports.files import sample_file
from torchgeo_explora.tasks._reports.grids import error_map, overlay
from torchgeo_explora.tasks._reports.loaders import positions
from torchgeo_explora.tasks._reports.scores import (
    class_scores,
    count_pairs,
    largest_confusions,
    overall,
)
from torchgeo_explora.tasks._reports.tables import draw_classes, draw_confusion
from torchgeo_explora.tasks.report import report_callbacks

FILES = {
    'classes.csv', 'classes.png', 'confusion.csv', 'confusion.png', 'examples.png', 'report.json',
}  # fmt: skip


def _info(count: int = 3, dense: bool = False, ignore: int | None = None) -> ClassInfo:
    names = tuple(f'class {index}' for index in range(count))
    return ClassInfo(names, tuple(class_colors(names)), None, ignore, 'multiclass', dense)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding='utf-8') as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize('classes', [2, 7])
def test_scores_are_those_of_scikit_learn(classes: int) -> None:
    generator = torch.Generator().manual_seed(classes)
    truth = torch.randint(classes, (400,), generator=generator)
    predicted = torch.where(
        torch.rand(400, generator=generator) < 0.6, truth, torch.randint(classes, (400,))
    )
    truth[truth == 5], predicted[predicted == 6] = 4, 3  # one never there, one never predicted
    counts = count_pairs(truth, predicted, classes).numpy()
    labels = range(classes)
    assert np.array_equal(counts, confusion_matrix(truth, predicted, labels=labels))
    scores = class_scores(counts, [str(label) for label in labels])
    found: dict[str, Any] = {'precision': precision_score, 'recall': recall_score, 'f1': f1_score}
    for name, function in found.items():
        expected = function(truth, predicted, labels=labels, average=None, zero_division=np.nan)
        mine = [np.nan if (v := getattr(s, name)) is None else float(v) for s in scores]
        np.testing.assert_allclose(mine, expected, err_msg=name)
    expected = jaccard_score(truth, predicted, labels=labels, average=None, zero_division=0)
    np.testing.assert_allclose([s.iou or 0.0 for s in scores], expected)
    sums = overall(scores)
    assert sums['accuracy'] == pytest.approx(float((truth == predicted).float().mean()))
    assert sums['classes_present'] == len(truth.unique())
    seen = [score.recall for score in scores if score.support > 0]
    assert sums['mean_recall'] == pytest.approx(np.mean(seen))  # type: ignore[arg-type]


def test_a_class_that_is_ignored_is_not_scored() -> None:
    counts = np.array([[0, 0, 0], [2, 8, 0], [1, 0, 4]])
    every, some = class_scores(counts, 'abc'), class_scores(counts, 'abc', ignored=0)
    assert every[1:] == some  # being taken for the ignored class is still a mistake
    assert overall(some)['mean_iou'] == pytest.approx((8 / 10 + 4 / 5) / 2)


def test_confusions_are_ranked() -> None:
    counts = np.array([[5, 3, 0], [1, 9, 0], [0, 10, 10]])
    pairs = largest_confusions(counts, 'abc', 2)
    assert [(p.truth, p.prediction, p.count, p.share) for p in pairs] == [
        ('c', 'b', 10, 0.5), ('a', 'b', 3, 3 / 8),
    ]  # fmt: skip
    assert len(largest_confusions(counts, 'abc', 9)) == 3


@pytest.mark.parametrize('classes', [2, 10, 62, 182])
def test_tables_can_be_read(classes: int) -> None:
    generator = np.random.default_rng(0)
    counts = generator.integers(0, 40, (classes, classes))
    counts[1] = 0
    names = [f'a long name of class number {index}' for index in range(classes)]
    figure = draw_confusion(counts, names, 'Title', 'images')
    axes = figure.axes[0]
    labels = [*axes.get_yticklabels(), *axes.get_xticklabels()]
    assert len(labels) == 2 * classes
    assert min(float(label.get_fontsize()) for label in labels) >= 5
    boxes = [label.get_window_extent() for label in axes.get_yticklabels()]
    apart = [a.y0 - b.y1 for a, b in itertools.pairwise(boxes)]
    assert min(apart) > -3  # pixels; letters that reach below a line
    table = draw_classes(class_scores(counts, names), 'Title', 'f1')
    shown = [text.get_text() for axes in table.axes for text in axes.get_yticklabels()]
    assert len(shown) == classes
    width, height = table.get_size_inches()
    assert width < 30
    assert height < 15


def _example(index: int) -> Example:
    none = np.zeros(0, np.int64)
    return Example(index, np.zeros((1, 1, 3), np.uint8), none, none, None, 0.0)


def test_top_keeps_the_highest_and_makes_no_others() -> None:
    ranks = np.random.default_rng(0).random(500).round(2)  # with ties
    made: list[int] = []

    def make(index: int) -> Example:
        made.append(index)
        return _example(index)

    top = Top(7)
    for index, rank in enumerate(ranks.tolist()):
        top.offer(rank, index, lambda index=index: make(index))  # type: ignore[misc]
    kept = [item.example.index for item in top.ranked()]
    assert kept == sorted(range(500), key=lambda index: (-ranks[index], index))[:7]
    assert len(made) < 100


@pytest.mark.parametrize('dense', [False, True])
def test_shares_of_a_test_join_to_the_whole(dense: bool) -> None:
    info, count = _info(3, dense, 255), 40
    generator = torch.Generator().manual_seed(0)
    shape = (count, 6, 6) if dense else (count,)
    images = torch.rand(count, 3, 6, 6, generator=generator)
    truth = torch.randint(3, shape, generator=generator)
    truth[0] = 255
    logits = torch.randn(count, 3, *shape[1:], generator=generator)
    key = 'mask' if dense else 'label'

    def collected(rows: list[int]) -> Collector:
        collector = Collector(info, 5, 4, seed=3)
        for part in (rows[:7], rows[7:]):
            batch = {'image': images[part], key: truth[part]}
            collector.add(read_batch(batch, logits[part], info), part)
        return collector

    whole = collected(list(range(count))).outcome()
    shares = [collected(list(range(rank, count, 3))) for rank in range(3)]
    joined = shares[0].joined([share.outcome() for share in shares])
    assert np.array_equal(joined.counts, whole.counts)
    assert whole.counts.sum() == (truth != 255).sum()
    assert joined.unscored == whole.unscored == (truth == 255).sum()
    assert joined.images == count
    for mine, theirs in ((joined.drawn, whole.drawn), (joined.worst, whole.worst)):
        assert [item.example.index for item in mine] == [item.example.index for item in theirs]
    assert len({item.example.index for item in whole.drawn}) == 5
    errors = [item.example for item in whole.worst]
    assert all(not example.right for example in errors)
    assert 0 not in {example.index for example in errors}  # it is not scored


def test_lots_differ_with_the_seed() -> None:
    images = torch.zeros(50, 3, 2, 2)
    batch = Predicted(images, torch.zeros(50).long(), torch.zeros(50).long(), torch.ones(50))
    drawn = []
    for seed in (0, 0, 1):
        collector = Collector(_info(), 6, 0, seed)
        collector.add(batch, range(50))
        drawn.append([item.example.index for item in collector.outcome().drawn])
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize('count', [1, 7, 8])
def test_every_sample_counts_once_on_several_ranks(count: int) -> None:
    dataset = TensorDataset(torch.arange(count))
    found: list[int] = []
    for rank in range(3):
        sampler: DistributedSampler[Any] = DistributedSampler(dataset, 3, rank, shuffle=False)
        loader = DataLoader(dataset, 2, sampler=sampler)
        seen = 0
        for (values,) in loader:
            places = positions(loader, seen, len(values))
            assert all(p is None or p == v for p, v in zip(places, values.tolist(), strict=True))
            found += [place for place in places if place is not None]
            seen += len(values)
    assert sorted(found) == list(range(count))


@pytest.mark.parametrize(
    ('truth', 'ignore', 'said'),
    [(3, None, r'\[3\].*classes 0 to 2'), (-1, None, r'\[-1\]'), (7, 255, r'\[7\]')],
)
def test_unknown_classes_are_refused(truth: int, ignore: int | None, said: str) -> None:
    batch = {'image': torch.zeros(2, 3, 4, 4), 'label': torch.tensor([0, truth])}
    with pytest.raises(ConfigError, match=said):
        read_batch(batch, torch.zeros(2, 3), _info(ignore=ignore))


def test_labels_that_are_missing_or_misshapen_are_refused() -> None:
    images = {'image': torch.zeros(2, 3, 4, 4)}
    with pytest.raises(ConfigError, match='needs image and label'):
        read_batch(images, torch.zeros(2, 3), _info())
    with pytest.raises(ConfigError, match=r'\(2, 3\)'):
        read_batch({**images, 'label': torch.zeros(2, 3)}, torch.zeros(2, 3), _info())


def test_pictures_show_named_bands() -> None:
    assert shown_bands(['B02', 'B03', 'B04', 'B08'], 4) == [2, 1, 0]
    assert shown_bands(['blue', 'green', 'red', 'nir'], 4) == [2, 1, 0]
    assert shown_bands(['x', 'y'], 2) == [0, 1, 1]
    assert shown_bands(None, 5) == [0, 1, 2]
    image = np.random.default_rng(0).random((3, 20, 20)).astype(np.float32)
    assert np.array_equal(photograph(image, [0, 1, 2]), (255 * image).round().transpose(1, 2, 0))
    bands = np.concatenate([image, image])
    assert photograph(bands, [3, 4, 5]).max() == 255  # stretched
    assert photograph(np.stack([bands, 0 * bands]), [0, 1, 2]).max() == 255  # the first date
    assert photograph(np.full((4, 9, 9), np.nan, np.float32), [0, 1, 2]).max() == 0
    assert max(photograph(np.zeros((3, 2000, 700), np.float32), [0, 1, 2]).shape) <= 512


def test_colours_tell_classes_apart() -> None:
    for count in (2, 10, 62, 182):
        assert len(set(class_colors([str(i) for i in range(count)]))) == count
    assert class_colors(['background', 'building'])[0] == (0, 0, 0)
    assert class_colors(['a', 'b'], [(1, 2, 3, 255), (4, 5, 6, 255)]) == [(1, 2, 3), (4, 5, 6)]
    with pytest.raises(ConfigError, match='1 colours are given for 2'):
        class_colors(['a', 'b'], [(0, 0, 0)])


def test_overlays_tint_what_they_should() -> None:
    picture = np.full((1, 4, 3), 100, np.uint8)
    truth, prediction = np.array([[0, 1, 1, -1]]), np.array([[1, 1, 0, 0]])
    laid = overlay(picture, truth, [(0, 0, 0), (200, 0, 0)])
    assert laid[0].tolist() == [[100] * 3, [160, 40, 40], [160, 40, 40], [117] * 3]
    example = Example(0, picture, truth, prediction, None, 2 / 3)
    errors = error_map(example, 2)[0]
    assert errors[0, 0] > 150 > errors[0, 2]  # a false alarm is red
    assert errors[1].tolist() == [100] * 3  # right
    assert errors[2, 1] > 130 > errors[2, 2]  # a miss is amber


def test_report_of_a_classification(tmp_path: Path) -> None:
    run = trainer(tmp_path, callbacks=[TestReport()])
    (logged,) = run.test(colours(), datamodule=OddColours(batch_size=4), verbose=False)
    folder = tmp_path / 'test_report'
    assert {path.name for path in folder.iterdir()} == FILES
    report = json.loads((folder / 'report.json').read_text(encoding='utf-8'))
    assert report['images'] == report['overall']['samples'] == COUNT
    assert 0.4 < report['overall']['accuracy'] < 1
    for mine, theirs in {'accuracy': 'OverallAccuracy', 'mean_f1': 'AverageF1Score'}.items():
        assert report['overall'][mine] == pytest.approx(logged[f'test_{theirs}'], abs=1e-6)
    assert report['metrics']['test_loss'] == pytest.approx(logged['test_loss'])
    rows = _rows(folder / 'classes.csv')
    assert [row['class'] for row in rows] == CLASSES
    assert sum(int(row['support']) for row in rows) == COUNT
    matrix = _rows(folder / 'confusion.csv')
    assert sum(int(row[row['true class']]) for row in matrix) == round(
        COUNT * report['overall']['accuracy']
    )
    for name in ('classes', 'confusion', 'examples'):
        assert imread(folder / f'{name}.png').std() > 0.05


def test_report_of_a_segmentation(tmp_path: Path) -> None:
    task = MaskTask(num_classes=3, ignore_index=255)
    run = trainer(tmp_path, callbacks=[TestReport(examples=2, mistakes=1)])
    (logged,) = run.test(task, datamodule=MaskDataModule(), verbose=False)
    report = json.loads((tmp_path / 'test_report' / 'report.json').read_text(encoding='utf-8'))
    assert report['unit'] == 'pixels'
    assert report['images'] == 5
    assert report['unscored'] == 5 * 9
    assert report['overall']['accuracy'] == pytest.approx(logged['test_OverallAccuracy'], abs=1e-6)
    assert report['overall']['mean_iou'] == pytest.approx(
        logged['test_AverageJaccardIndex'], abs=1e-6
    )
    assert [row['class'] for row in report['classes']] == ['a', 'b', 'c']


def test_a_class_of_padding_is_left_out(tmp_path: Path) -> None:
    task = MaskTask(num_classes=3, ignore_index=0)
    trainer(tmp_path, callbacks=[TestReport()]).test(
        task, datamodule=MaskDataModule(value=0), verbose=False
    )
    rows = _rows(tmp_path / 'test_report' / 'classes.csv')
    assert [row['class'] for row in rows] == ['b', 'c']


def test_tasks_without_one_class_are_refused(tmp_path: Path) -> None:
    task = colours(task='multilabel', num_labels=3, num_classes=None)
    with pytest.raises(ConfigError, match='multilabel'):
        trainer(tmp_path, callbacks=[TestReport()]).test(task, datamodule=OddColours())


def test_nothing_listens_after_a_test_that_failed(tmp_path: Path) -> None:
    task, report = colours(num_classes=3), TestReport()
    datamodule = OddColours()
    datamodule.setup('test')
    assert datamodule.test_dataset is not None
    datamodule.test_dataset.labels[0] = 9  # type: ignore[attr-defined]
    datamodule.setup = lambda stage: None  # type: ignore[method-assign]
    with pytest.raises((ConfigError, IndexError, RuntimeError)):
        trainer(tmp_path, callbacks=[report]).test(task, datamodule=datamodule, verbose=False)
    assert len(task._forward_hooks) == 0


def test_the_users_own_callbacks_count(tmp_path: Path) -> None:
    mine = TestReport(examples=1)
    run = trainer(tmp_path, callbacks=[mine])
    assert [type(callback) for callback in report_callbacks(run)] == [PredictionWriter]
    assert [type(c) for c in report_callbacks(trainer(tmp_path))] == [TestReport, PredictionWriter]


def test_predictions_of_images(tmp_path: Path) -> None:
    task, datamodule = colours(), OddColours(batch_size=4)
    run = trainer(tmp_path, callbacks=[PredictionWriter(probabilities=True)])
    batches = run.predict(task, datamodule=datamodule)
    assert batches is not None
    probabilities = torch.cat(batches)  # type: ignore[arg-type]
    rows = _rows(tmp_path / 'predictions' / 'predictions.csv')
    assert [int(row['index']) for row in rows] == list(range(COUNT))
    assert [int(row['class_index']) for row in rows] == probabilities.argmax(dim=1).tolist()
    assert [row['class'] for row in rows] == [CLASSES[int(row['class_index'])] for row in rows]
    for column, name in enumerate(CLASSES):
        found = [float(row[f'probability of {name}']) for row in rows]
        np.testing.assert_allclose(found, probabilities[:, column], rtol=1e-5)


def test_predictions_name_the_files(tmp_path: Path) -> None:
    for name in ('a', 'b'):
        (tmp_path / name).mkdir()
        Image.new('RGB', (8, 8)).save(tmp_path / name / f'{name}.png')
    folder = ImageFolder(tmp_path)
    assert sample_file(Subset(folder, [1]), 0) == str(tmp_path / 'b' / 'b.png')
    assert sample_file(TensorDataset(torch.zeros(1)), 0) == ''


def test_masks_become_pictures(tmp_path: Path) -> None:
    run = trainer(tmp_path, callbacks=[PredictionWriter()])
    run.predict(MaskTask(num_classes=3), datamodule=MaskDataModule(), return_predictions=False)
    rows = _rows(tmp_path / 'predictions' / 'predictions.csv')
    for index, image in enumerate(Masks().images):
        picture = Image.open(tmp_path / 'predictions' / 'masks' / f'{index:06d}.png')
        assert np.array_equal(np.array(picture), image.argmax(dim=0).numpy())
        assert picture.getpalette()[:9] == [v for color in class_colors('abc') for v in color]  # type: ignore[index]
        share = float((image.argmax(dim=0) == 1).float().mean())
        assert float(rows[index]['share of b']) == pytest.approx(share, abs=1e-4)


class Windows(Dataset[dict[str, Any]]):
    """Two windows of a raster, the second of which reaches over its edge."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.windows = [(2, 3, 8, 8), (12, 14, 4, 6)]
        self.images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> dict[str, Any]:
        window = torch.tensor(self.windows[index])
        return {'image': self.images[index], 'file': self.path, 'window': window}


def test_masks_of_rasters_lie_in_their_grid(tmp_path: Path) -> None:
    path = tmp_path / 'scene.tif'
    # rotated, and with steps that binary fractions do not hold
    grid = Affine(0.1, 0.03, 500_000.7, 0.02, -0.1, 4_000_000.3)
    pixels = np.full((1, 16, 20), 7, np.uint8)
    pixels[:, 4, 5] = 0
    with rasterio.open(
        path, 'w', driver='GTiff', height=16, width=20, count=1, dtype='uint8', nodata=0,
        crs='EPSG:32633', transform=grid,
    ) as file:  # fmt: skip
        file.write(pixels)
    dataset = Windows(path)
    run = trainer(tmp_path, callbacks=[PredictionWriter()])
    task = MaskTask(num_classes=3)
    run.predict(task, datamodule=MaskDataModule(dataset), return_predictions=False)
    for index, (row, column, height, width) in enumerate(dataset.windows):
        image = dataset.images[index]
        mask = tmp_path / 'predictions' / 'masks' / f'{index:06d}_scene_{row}_{column}.tif'
        with rasterio.open(mask) as file:
            assert file.transform == grid @ Affine.translation(column, row)
            assert file.crs.to_epsg() == 32633
            assert file.nodata == 255
            assert file.tags()['class_1'] == 'b'
            assert file.colormap(1)[2] == (*class_colors('abc')[2], 255)
            values = file.read(1)
        expected = image.argmax(dim=0).numpy()[:height, :width].copy()
        if row == 2:
            expected[4 - row, 5 - column] = 255  # there is no data
        assert np.array_equal(values, expected)
    rows = _rows(tmp_path / 'predictions' / 'predictions.csv')
    assert [row['file'] for row in rows] == [str(path)] * 2


def test_nothing_is_written_where_a_run_is_only_tried_out(tmp_path: Path) -> None:
    run = trainer(tmp_path, fast_dev_run=True, callbacks=[TestReport(), PredictionWriter()])
    run.test(colours(), datamodule=OddColours(), verbose=False)
    run.predict(MaskTask(num_classes=3), datamodule=MaskDataModule(), return_predictions=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_two_ranks_write_what_one_writes(tmp_path: Path) -> None:
    run_ranks(report_runs, tmp_path / 'two', output=tmp_path / 'ranks')
    one = trainer(tmp_path / 'one', callbacks=[TestReport(), PredictionWriter()])
    one.test(colours(), datamodule=OddColours(batch_size=4), verbose=False)
    one.predict(colours(), datamodule=OddColours(batch_size=4), return_predictions=False)
    for name in ('test_report/classes.csv', 'test_report/confusion.csv',
                 'predictions/predictions.csv'):  # fmt: skip
        first, second = (tmp_path / folder / name for folder in ('one', 'two'))
        assert first.read_text(encoding='utf-8') == second.read_text(encoding='utf-8')
    examples = [imread(tmp_path / folder / 'test_report' / 'examples.png') for folder in
                ('one', 'two')]  # fmt: skip
    assert np.array_equal(examples[0], examples[1])
