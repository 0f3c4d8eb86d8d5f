"""WILDS' metrics: the values of its package on the same predictions."""

import pytest
import torch
from torch import Tensor

from torchgeo_explora.errors import ConfigError
from torchgeo_explora.objectives.metrics import confusion_counts
from torchgeo_explora.tasks.metrics import OfficialMetric, official_metrics

NAMES = ('accuracy', 'macro_recall', 'macro_f1')


def _scores(images: int, classes: int, present: int, seed: int) -> tuple[Tensor, Tensor]:
    """Scores that are often right, and labels of some classes only."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(present, (images,), generator=generator) * (classes // present)
    scores = torch.randn(images, classes, generator=generator)
    scores[torch.arange(images), labels] += 1.5
    return scores, labels


@pytest.mark.parametrize(
    ('images', 'classes', 'present'), [(500, 2, 2), (400, 182, 20), (300, 182, 182), (1, 5, 1)]
)
def test_values_are_those_of_wilds(images: int, classes: int, present: int) -> None:
    pytest.importorskip('wilds')
    from wilds.common.metrics.all_metrics import F1, Accuracy, Recall

    scores, labels = _scores(images, classes, present, seed=classes)
    predicted = scores.argmax(dim=1)
    theirs = {
        'accuracy': Accuracy(), 'macro_recall': Recall(average='macro'),
        'macro_f1': F1(average='macro'),
    }  # fmt: skip
    metrics = official_metrics(NAMES, classes, 'val_')
    for part in torch.arange(images).split(37):
        metrics.update(scores[part], labels[part])
    found = metrics.compute()
    assert set(found) == {f'val_official_{name}' for name in NAMES}
    for name, metric in theirs.items():
        expected = metric.compute(predicted, labels, return_dict=False)
        assert float(found[f'val_official_{name}']) == pytest.approx(float(expected), abs=1e-6)


def test_the_data_set_itself_scores_the_same(tmp_path: object) -> None:
    """What IWildCamDataset.eval returns, from classes instead of scores."""
    wilds = pytest.importorskip('wilds.datasets.iwildcam_dataset')
    scores, labels = _scores(200, 182, 30, seed=1)
    dataset = wilds.IWildCamDataset.__new__(wilds.IWildCamDataset)
    expected, _ = dataset.eval(scores.argmax(dim=1), labels, None)
    metrics = official_metrics(NAMES, 182)
    metrics.update(scores.argmax(dim=1), labels)
    found = metrics.compute()
    assert float(found['official_accuracy']) == pytest.approx(expected['acc_avg'], abs=1e-6)
    recall = expected['recall-macro_all']
    assert float(found['official_macro_recall']) == pytest.approx(recall, abs=1e-6)
    assert float(found['official_macro_f1']) == pytest.approx(expected['F1-macro_all'], abs=1e-6)


def test_classes_that_do_not_occur_are_not_averaged_over() -> None:
    labels, predicted = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 7, 1, 1])
    metric = OfficialMetric('macro_recall', 10)
    metric.update(predicted, labels)
    assert float(metric.compute()) == 0.75  # 1/2 and 2/2; class 7 is never true
    f1 = OfficialMetric('macro_f1', 10)
    f1.update(predicted, labels)
    assert float(f1.compute()) == pytest.approx((2 / 3 + 1) / 2)


def test_nothing_counted_and_starting_anew() -> None:
    metrics = official_metrics(NAMES, 3)
    metrics.update(torch.tensor([1]), torch.tensor([1]))
    assert [float(value) for value in metrics.compute().values()] == [1, 1, 1]
    metrics.reset()
    metrics.update(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64))
    assert [float(value) for value in metrics.compute().values()] == [0, 0, 0]


def test_bad_input() -> None:
    with pytest.raises(ConfigError, match="'auroc' of 3 classes: give one of accuracy"):
        OfficialMetric('auroc', 3)
    with pytest.raises(ConfigError, match=r'true classes are 0 to 3, but there are 3'):
        confusion_counts(torch.tensor([0, 0]), torch.tensor([0, 3]), 3)
    with pytest.raises(ConfigError, match=r'predicted classes are -1 to 0'):
        confusion_counts(torch.tensor([0, -1]), torch.tensor([0, 2]), 3)
