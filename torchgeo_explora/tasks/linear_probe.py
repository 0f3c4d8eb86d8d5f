"""The paper's linear probe as a TorchGeo task."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torchvision.models._api import WeightsEnum

from torchgeo_explora.errors import ConfigError
from torchgeo_explora.objectives.probing import (
    ClassifierScore,
    Features,
    LinearProbeConfig,
    LinearProbeResult,
    ProbeBank,
    cosine_to_zero,
    image_features,
    logistic_regression,
    train_bank,
    with_test_scores,
)
from torchgeo_explora.objectives.probing.linear import PAPER_LEARNING_RATES
from torchgeo_explora.tasks._frozen import FrozenFeatureTask, RandomViews, check_batch
from torchgeo_explora.tasks._reports.classes import class_info
from torchgeo_explora.tasks._reports.collect import Outcome
from torchgeo_explora.tasks._reports.scores import count_pairs
from torchgeo_explora.tasks._reports.write import write_report
from torchgeo_explora.tasks._results import ProgressReport, write_result
from torchgeo_explora.tasks.metrics import official_metrics

TABLES = 'linear_probe_test_report'
"""Folder of the confusion matrix and the scores of every class."""


class LinearProbe(FrozenFeatureTask):
    """Linear classifiers on a frozen backbone: 28 at once, the best and all of them reported.

    ``torchgeo validate`` does everything: features of the training images are extracted once, the
    classifiers trained on them for ``iterations`` and scored on the validation images. The best is
    chosen on the images it is scored on, as in the paper, which is slightly optimistic.
    ``torchgeo test`` chooses on the validation images and scores on the test images.
    ``torchgeo fit`` is the paper's own loop instead: a new random-resized crop of every image in
    every epoch of the trainer, with the data module's batch size; its checkpoint can then be
    scored with ``torchgeo test --ckpt_path``, and ``torchgeo predict --ckpt_path`` writes the
    predictions of the classifier that was best in its last validation.

    Logs ``val/linear_acc_best``, ``val/linear_acc/4_blocks_avg_lr_0.01`` and so on, and what the data
    set's benchmark reports of the best classifier (``val/official_macro_f1``); writes
    ``linear_probe_val.json`` and ``.csv`` beside the run, and in a test the confusion matrix and the
    scores of every class. Accuracies are shares in [0, 1].

    Batches hold ``image`` in [0, 1], as those of this package's data modules do. For a data module
    of TorchGeo, which normalises, give ``mean`` and ``std`` that leave its images alone (0 and 1).

    Args:
        model: Name of any timm vision transformer.
        weights: ``True`` for timm's own weights, a file, an enum or its name, a checkpoint of this
            package's tasks; ``None`` for random weights.
        num_classes: Number of classes; from the data module or the labels by default.
        in_channels: Number of bands.
        eval_size: Side of the images that the model sees, in pixels.
        resize: Length of the shorter side before the centre is cut out; ``eval_size`` by default.
            The paper resizes to 256 for 224.
        mean: Mean of each band in [0, 1]; that of the weights by default.
        std: Standard deviation of each band; that of the weights by default.
        iterations: SGD steps on extracted features; the paper's 15,000 belong to 363,000 images.
        batch_size: Images a step on extracted features.
        learning_rates: Rates for a batch of 256; scaled with the batch.
        blocks: Numbers of last blocks whose class tokens are concatenated.
        average_pool: Whether the mean patch token is appended; a set of classifiers for each.
        views: Random-resized crops of each training image whose features are extracted; 1 for the
            evaluation transform instead.
        logistic: Whether a logistic regression on class and mean patch tokens is fitted and
            reported beside (C = 1): less noisy than SGD.
        seed: Draws the initial classifiers, the order of images and the crops.
        eval_batch_size: Training images a batch when features are extracted.
        cache_dir: Folder that keeps the features of the training images between runs.
        output_dir: Folder of the result files; the run's own by default.

    Raises:
        ConfigError: If an argument is not possible.
        WeightsError: If the weights cannot be read or do not fit.
    """

    monitor = 'val/linear_acc_best'
    predicts = True

    def __init__(
        self,
        model: str = 'vit_small_patch14_dinov2',
        weights: WeightsEnum | str | bool | None = None,
        num_classes: int | None = None,
        in_channels: int = 3,
        eval_size: int = 224,
        resize: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        iterations: int = 2000,
        batch_size: int = 256,
        learning_rates: Sequence[float] = PAPER_LEARNING_RATES,
        blocks: Sequence[int] = (1, 4),
        average_pool: Sequence[bool] = (False, True),
        views: int = 1,
        logistic: bool = True,
        seed: int = 0,
        eval_batch_size: int = 64,
        cache_dir: str | None = None,
        output_dir: str | None = None,
    ) -> None:
        self.weights = weights
        self.config = LinearProbeConfig(
            tuple(learning_rates),
            tuple(blocks),
            tuple(average_pool),
            batch_size,
            iterations,
            seed=seed,
        )
        if views < 1:
            raise ConfigError(f'views is {views}: give at least 1.')
        self.n_last_blocks = max(blocks)
        super().__init__()
        self.bank: ProbeBank | None = None
        self.chosen: tuple[int, bool, int] | None = None

    def _build_bank(self, num_classes: int) -> ProbeBank:
        dim = self.model.embed_dim
        return ProbeBank(self.config, dim, num_classes, self.n_last_blocks).to(self.device)

    def _num_classes(self) -> int | None:
        known: int | None = self.hparams['num_classes']
        if known is not None:
            return known
        datamodule = self._datamodule()
        for holder in (datamodule, datamodule.train_dataset):
            classes = getattr(holder, 'classes', None)
            if classes is not None:
                return len(classes)
        return None

    def setup(self, stage: str) -> None:
        """Build the classifiers before a fit, so that its optimizer and checkpoint hold them.

        Raises:
            ConfigError: If the number of classes is not known, or the precision is not possible.
        """
        super().setup(stage)
        if stage != 'fit' or self.bank is not None:
            return
        count = self._num_classes()
        if count is None:
            raise ConfigError(
                f'{type(self._datamodule()).__name__} does not name its classes, and a fit has to '
                'know how many there are: set num_classes.'
            )
        if self.trainer.precision == '16-mixed':
            raise ConfigError(
                'precision is 16-mixed, whose gradient scaling stops all classifiers when one '
                'diverges: use 32-true or bf16-mixed.'
            )
        self.bank = self._build_bank(count)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make room for the classifiers that a checkpoint of a fit holds."""
        biases = [v for k, v in checkpoint['state_dict'].items() if k.startswith('bank.biases.')]
        if biases and self.bank is None:
            self.bank = self._build_bank(biases[0].shape[1])
        self.chosen = checkpoint.get('chosen')

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep which classifier was best in the last validation."""
        checkpoint['chosen'] = self.chosen

    def train(self, mode: bool = True) -> 'LinearProbe':
        """Set the mode; the backbone stays in evaluation mode."""
        super().train(mode)
        self.model.eval()
        return self

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """SGD with a cosine to 0 over the whole fit; a rate for each classifier."""
        assert self.bank is not None, 'setup builds the classifiers of a fit'
        total = int(self.trainer.estimated_stepping_batches)
        batch = self._datamodule().train_batch_size or self._datamodule().batch_size
        effective = batch * self.trainer.accumulate_grad_batches
        self.bank.config = replace(self.config, batch_size=effective, iterations=total)
        optimizer = self.bank.optimizer()
        schedule = cosine_to_zero(optimizer, total)
        return {
            'optimizer': optimizer,
            'lr_scheduler': {'scheduler': schedule, 'interval': 'step'},
        }

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """One step of all classifiers on fresh crops; returns the sum of their cross-entropies."""
        assert self.bank is not None, 'setup builds the classifiers of a fit'
        check_batch(batch)
        step = self.trainer.fit_loop.epoch_loop.total_batch_idx
        with torch.no_grad():
            crops = RandomViews(self.eval_transform, self.config.seed * 10_000_019 + step)
            features = image_features(
                self.model, crops(batch['image']), self.n_last_blocks, batch.get('timestamps')
            )
        with torch.autocast(self.device.type, enabled=False):
            loss: Tensor = self.bank(self.bank.stack(features), batch['label'])
        self.log('train/loss', loss / len(self.config.inputs) / len(self.config.learning_rates))
        return loss

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the probability of every class (B, classes), of the best classifier of a fit.

        Raises:
            ConfigError: Without a checkpoint of a fit whose classifiers were validated.
        """
        if self.bank is None or self.chosen is None:
            raise ConfigError(
                'There are no classifiers to predict with: fit the probe with validation images, '
                'and give its checkpoint as --ckpt_path.'
            )
        images = self.eval_transform(batch['image'])
        times = batch.get('timestamps')
        features = image_features(self.model, images, self.n_last_blocks, times)
        blocks, pooled, rate = self.chosen
        logits = self.bank.logits(self.bank.stack(features), blocks, pooled)[:, rate]
        return logits.float().softmax(dim=1)

    def _fitted_bank(self, largest_label: int) -> ProbeBank:
        """Classifiers of the fit or checkpoint; without one, train them on extracted features."""
        if self.bank is not None:
            return self.bank
        train = self.split_features('train', self.hparams['views'])
        known = self._num_classes()
        seen = max(largest_label, int(train.require_labels().max())) + 1
        # autograd and parameters of its own, whatever mode the trainer evaluates in
        with torch.inference_mode(False):
            bank = self._build_bank(seen if known is None else max(known, seen))
            train_bank(bank, _plain(train), ProgressReport('Probe iterations'))
        return bank

    def report(self, stage: str, features: Features) -> None:
        """Train where needed, score, log and write the result.

        Args:
            stage: ``val`` or ``test``.
            features: Of the evaluated images.
        """
        bank = self._fitted_bank(int(features.require_labels().max()))
        choosing = features if stage == 'val' else self.split_features('val')
        scores = bank.score(choosing)
        if stage == 'test':
            scores = with_test_scores(scores, bank.score(features))
        result = LinearProbeResult(scores, bank)
        best = result.best
        rate = bank.config.learning_rates.index(best.learning_rate)
        self.chosen = (best.blocks, best.average_pool, rate)
        metrics = {f'{stage}/linear_acc/{s.name}': _scored(s, stage) for s in scores}
        self.log_dict(metrics)
        self.log(f'{stage}/linear_acc_best', _scored(result.best, stage), prog_bar=True)
        logistic = self._logistic(stage, features)
        official = self._official(stage, features, result)
        for line in table(result, stage):
            rank_zero_info(line)
        if self.writes:
            self._write(stage, features, result, logistic, official)
        if self.writes and stage == 'test':
            self._write_tables(features, result)

    def _write_tables(self, features: Features, result: LinearProbeResult) -> None:
        """Write the confusion matrix and the scores of every class, of the best classifier."""
        predicted, truth = self._predicted(features, result), features.require_labels().cpu()
        classes = next(iter(result.bank.biases.values())).shape[1]
        counts = count_pairs(truth, predicted, classes).numpy()
        info = class_info(self.trainer, self, torch.empty(0, classes))
        about = {'task': type(self).__name__, 'classifier': result.best.name}
        outcome = Outcome(counts, [], [], 0, len(features))
        for path in write_report(self.result_folder() / TABLES, outcome, info, about):
            rank_zero_info(f'Wrote {path}')

    def _predicted(self, features: Features, result: LinearProbeResult) -> Tensor:
        """Classes that the best classifier predicts."""
        assert self.chosen is not None, 'the report chooses first'
        blocks, pooled, rate = self.chosen
        return result.bank.predict(features, (blocks, pooled))[:, rate].cpu()

    def _official(
        self, stage: str, features: Features, result: LinearProbeResult
    ) -> dict[str, float]:
        """What the data set's benchmark reports, of the best classifier."""
        names: Sequence[str] = getattr(self._datamodule(), 'official_metrics', ())
        if not names:
            return {}
        classes = next(iter(result.bank.biases.values())).shape[1]
        metrics = official_metrics(names, classes)
        metrics.update(self._predicted(features, result), features.require_labels().cpu())
        found = {name: float(value) for name, value in metrics.compute().items()}
        self.log_dict({f'{stage}/{name}': value for name, value in found.items()})
        return found

    def _logistic(self, stage: str, features: Features) -> float | None:
        if not self.hparams['logistic'] or self.bank is not None:
            return None
        train = self.split_features('train', self.hparams['views'])
        with torch.inference_mode(False), torch.enable_grad():
            result = logistic_regression(_plain(train), _plain(features), device=self.device)
        self.log(f'{stage}/logistic_acc', result.accuracy)
        rank_zero_info(f'Logistic regression: {100 * result.accuracy:.2f} %')
        return result.accuracy

    def _write(
        self,
        stage: str,
        features: Features,
        result: LinearProbeResult,
        logistic: float | None,
        official: dict[str, float],
    ) -> None:
        rows = [{'name': score.name, **asdict(score)} for score in result.scores]
        train = self._kept.get('train')
        content = {
            **self.describe(stage, features),
            'train_features': None if train is None else len(train),
            'views': self.hparams['views'],
            'config': asdict(result.bank.config),
            'chosen_on': 'val',
            'best': {'name': result.best.name, **asdict(result.best)},
            'logistic_regression': logistic,
            **official,
            'classifiers': rows,
        }
        write_result(self.result_folder() / f'linear_probe_{stage}', content, rows)


def _plain(features: Features) -> Features:
    """Copy features made in inference mode into tensors that autograd may keep."""
    labels = features.require_labels().clone()
    return Features(features.cls.clone(), features.patch_mean.clone(), labels)


def _scored(score: ClassifierScore, stage: str) -> float:
    if stage == 'val':
        return score.accuracy
    assert score.test_accuracy is not None, 'test scores were entered'
    return score.test_accuracy


def table(result: LinearProbeResult, stage: str) -> list[str]:
    """Lay all accuracies out: a row a learning rate, a column a set of inputs; best marked.

    Args:
        result: Scores.
        stage: ``val`` or ``test``, whose accuracies are shown.
    """
    config = result.bank.config
    heads = [f'last {n}{" + avg" if pooled else ""}' for n, pooled in config.inputs]
    lines = [f'{"rate":>8s}' + ''.join(f'{head:>15s}' for head in heads)]
    for rate in config.learning_rates:
        row = [score for score in result.scores if score.learning_rate == rate]
        cells = [
            f'{100 * _scored(score, stage):.2f} %{" *" if score == result.best else "  "}'
            for score in row
        ]
        lines.append(f'{rate:8g}' + ''.join(f'{cell:>15s}' for cell in cells))
    best = 100 * _scored(result.best, stage)
    lines.append(f'Best on the validation images (*): {result.best.name}, {stage} {best:.2f} %')
    return lines
