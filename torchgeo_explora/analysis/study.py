"""Measure every block of a model on a set of images: spectra, ranks, and probes of single patches."""

import hashlib
import json
import math
import tempfile
import time
from collections.abc import Callable, Sequence, Sized
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.utils.data import Dataset

from torchgeo_explora._files import replacing
from torchgeo_explora.analysis._parts import (
    Plan,
    Runner,
    Transform,
    has_labels,
    read_parts,
    read_scores,
    write_parts,
)
from torchgeo_explora.analysis.features import check_single_date
from torchgeo_explora.analysis.probes import TokenProbeConfig, TokenProbeScore, token_probe
from torchgeo_explora.analysis.spectra import covariance_eigenvalues, spectral_rank
from torchgeo_explora.errors import ConfigError, ImageError
from torchgeo_explora.objectives.probing import Progress, weights_hash

COMPARED_IMAGES = 1000
"""Images whose mean patches are kept to compare blocks by; as many Gram matrices fit in memory."""

Values = NDArray[np.float64]


@dataclass(frozen=True)
class AnalysisConfig:
    """What is measured.

    Args:
        blocks: Blocks from 0, negative ones from the end; None for all.
        leading: Leading eigenvalues whose mean and spread are reported.
        tokens: Patch tokens that the probes see of all images together, at least one an image.
        held_out: Share of the images that the probes are scored on.
        probe: How probes are trained.
        batch_size: Images at once.
        seed: Draws tokens, and which images are held out.

    Raises:
        ConfigError: If a value is out of range.
    """

    blocks: tuple[int, ...] | None = None
    leading: int = 10
    tokens: int = 40_000
    held_out: float = 0.2
    probe: TokenProbeConfig = field(default_factory=TokenProbeConfig)
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        numbers = (self.leading, self.tokens, self.batch_size)
        if min(numbers) < 1 or not 0 < self.held_out < 1:
            raise ConfigError(
                f'An analysis was configured with leading, tokens and batch_size {numbers} and '
                f'held_out {self.held_out}: give at least 1, and a share between 0 and 1.'
            )

    def chosen(self, depth: int) -> tuple[int, ...]:
        """Return the blocks to measure, from 0, ascending.

        Args:
            depth: Blocks of the model.

        Raises:
            ConfigError: If one does not exist.
        """
        wanted = range(depth) if self.blocks is None else self.blocks
        wrong = [block for block in wanted if not -depth <= block < depth]
        if wrong or len(wanted) == 0:
            raise ConfigError(
                f'The blocks {list(wanted)} were asked for and the model has {depth}: choose from '
                f'0 to {depth - 1}, or from the end -1 to -{depth}.'
            )
        return tuple(sorted({block % depth for block in wanted}))


@dataclass(frozen=True, eq=False)
class BlockMeasures:
    """What was measured of every block of a model. Arrays have one entry a block.

    Args:
        blocks: The blocks, from 0.
        spectrum: Mean over the images of each leading eigenvalue (blocks, leading).
        eigenvalue_mean: Mean of the leading eigenvalues over images and components.
        eigenvalue_std: Their standard deviation over images and components.
        patch_rank: Effective rank of the patches of an image, mean over the images.
        patch_rank_std: Its standard deviation over the images.
        image_rank: Effective rank of the images' mean patches.
        position: Scores of the probe of a patch's position.
        classes: Scores of the probe of the image's class from one patch; None without labels.
        sample: Mean patches of up to 1,000 images, the same for all models (blocks, images, dim).
        images: Number of images.
        held_out: How many of them the probes were scored on.
    """

    blocks: tuple[int, ...]
    spectrum: Values
    eigenvalue_mean: Values
    eigenvalue_std: Values
    patch_rank: Values
    patch_rank_std: Values
    image_rank: Values
    position: tuple[TokenProbeScore, ...]
    classes: tuple[TokenProbeScore, ...] | None
    sample: NDArray[np.float32]
    images: int
    held_out: int

    @property
    def position_accuracy(self) -> Values:
        """Share of held-out patches whose position is found, in [0, 1]."""
        return np.array([score.accuracy for score in self.position])

    @property
    def class_accuracy(self) -> Values | None:
        """Share of held-out patches from which the class of their image is found, or None."""
        if self.classes is None:
            return None
        return np.array([score.accuracy for score in self.classes])

    def rows(self) -> list[dict[str, float]]:
        """Return one row a block, for a table; NaN stands for a probe that there is none of."""
        known = self.class_accuracy
        return [
            {
                'block': block,
                'eigenvalue_mean': float(self.eigenvalue_mean[i]),
                'eigenvalue_std': float(self.eigenvalue_std[i]),
                'patch_rank': float(self.patch_rank[i]),
                'patch_rank_std': float(self.patch_rank_std[i]),
                'image_rank': float(self.image_rank[i]),
                'position_accuracy': self.position[i].accuracy,
                'class_accuracy': math.nan if known is None else float(known[i]),
            }
            for i, block in enumerate(self.blocks)
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the sample, for JSON."""
        arrays = ('spectrum', 'eigenvalue_mean', 'eigenvalue_std', 'patch_rank', 'patch_rank_std',
                  'image_rank')  # fmt: skip
        classes = None if self.classes is None else [asdict(score) for score in self.classes]
        return {
            'blocks': list(self.blocks),
            'images': self.images,
            'held_out': self.held_out,
            **{name: getattr(self, name).tolist() for name in arrays},
            'position': [asdict(score) for score in self.position],
            'classes': classes,
        }


def hold_out(count: int, share: float, seed: int) -> list[int]:
    """Draw the images that probes are scored on.

    Args:
        count: Number of images.
        share: Of them that is held out, at least one image.
        seed: Draws them.
    """
    order = np.random.default_rng([seed, count]).permutation(count)
    return sorted(order[: max(round(share * count), 1)].tolist())


def measure_model(
    model: VisionTransformer,
    dataset: Dataset[dict[str, Tensor]],
    transform: Transform | None = None,
    config: AnalysisConfig | None = None,
    *,
    folder: Path | None = None,
    key: str = '',
    held_out: Sequence[int] | None = None,
    device: torch.device | str = 'cpu',
    dtype: torch.dtype = torch.float32,
    workers: int = 0,
    progress: Callable[[str, Progress], None] | None = None,
) -> BlockMeasures:
    """Measure every block of a model on a set of images.

    Memory does not grow with the images beyond 160 bytes a token and dimension: what is measured of
    each image goes to disk in parts. With ``folder`` a run that broke off goes on where it was, and
    ends with the same numbers.

    Args:
        model: Any plain or group-channel vision transformer; moved to ``device``, modes restored.
        dataset: Samples with ``image`` and perhaps ``label``, of a known length, in a fixed order.
        transform: Normalises a batch of images on the device.
        config: What is measured; None stands for the defaults.
        folder: Where parts are kept; None for a temporary folder.
        key: Text that tells these images and this transform from others, for ``folder``.
        held_out: Images that probes are scored on; None to draw a share of them.
        device: Where to compute.
        dtype: float32, or the half precision of autocast.
        workers: Processes that load images.
        progress: Called with ``images`` or ``blocks`` and the state.

    Raises:
        ConfigError: If a block does not exist, or the folder holds another analysis.
        ImageError: If there are fewer than two images, or the model cannot take them.
        OutputError: If parts cannot be written.

    Source: ExPLoRA, section 6.3 and the project page (per-block eigenvalues, position, class).
    """
    check_single_date(model)
    settings = AnalysisConfig() if config is None else config
    assert isinstance(dataset, Sized), 'an analysis needs to know how many images there are'
    count = len(dataset)
    if count < 2:
        raise ImageError(f'There are {count} images: an analysis takes at least 2.')
    place = torch.device(device)
    scored = hold_out(count, settings.held_out, settings.seed) if held_out is None else held_out
    runner = Runner(model.to(place), transform, place, dtype, workers)
    temporary: AbstractContextManager[str] = (
        tempfile.TemporaryDirectory() if folder is None else nullcontext(str(folder))
    )
    with temporary as name:
        blocks = settings.chosen(len(model.blocks))
        facts = (weights_hash(model), str(dtype), key, count, blocks, settings.leading,
                 settings.tokens, settings.batch_size, settings.seed)  # fmt: skip
        plan = Plan(
            Path(name), _digest(facts), blocks, count, settings.leading,
            math.ceil(settings.tokens / count), settings.batch_size, settings.seed,
        )  # fmt: skip
        write_parts(plan, runner, dataset, _named(progress, 'images'))
        study = _Study(plan, model.embed_dim, settings, sorted(scored))
        return study.result(_named(progress, 'blocks'))


def _digest(facts: object) -> str:
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _named(
    progress: Callable[[str, Progress], None] | None, name: str
) -> Callable[[Progress], None] | None:
    return None if progress is None else lambda state: progress(name, state)


@dataclass(frozen=True)
class _Study:
    """Turns parts into measures.

    Args:
        plan: Of the parts.
        dim: Width of the model.
        settings: What is measured.
        held_out: Images that probes are scored on, ascending.
    """

    plan: Plan
    dim: int
    settings: AnalysisConfig
    held_out: list[int]

    def read(self, name: str) -> Tensor:
        """Read a tensor of all images."""
        return read_parts(self.plan, self.dim, name)

    def result(self, progress: Callable[[Progress], None] | None) -> BlockMeasures:
        """Measure block after block."""
        blocks, start = self.plan.blocks, time.monotonic()
        scores: list[dict[str, TokenProbeScore]] = []
        ranks: list[float] = []
        sample: list[NDArray[np.float32]] = []
        compared = self._compared()
        for done, block in enumerate(blocks, start=1):
            means = self.read(f'mean.{block}')
            ranks.append(float(spectral_rank(covariance_eigenvalues(means))))
            sample.append(means[compared].numpy())
            scores.append(self._scores(block))
            if progress is not None:
                progress(Progress(done, len(blocks), time.monotonic() - start))
        known = all('class' in score for score in scores)
        return BlockMeasures(
            blocks=blocks,
            **self._spectra(),
            image_rank=np.array(ranks),
            position=tuple(score['position'] for score in scores),
            classes=tuple(score['class'] for score in scores) if known else None,
            sample=np.stack(sample),
            images=self.plan.count,
            held_out=len(self.held_out),
        )

    def _spectra(self) -> dict[str, Values]:
        values = [self.read(f'eigenvalues.{block}').double() for block in self.plan.blocks]
        ranks = [self.read(f'rank.{block}').double() for block in self.plan.blocks]
        return {
            'spectrum': np.stack([x.mean(dim=0).numpy() for x in values]),
            'eigenvalue_mean': np.array([float(x.mean()) for x in values]),
            'eigenvalue_std': np.array([float(x.std(correction=0)) for x in values]),
            'patch_rank': np.array([float(x.mean()) for x in ranks]),
            'patch_rank_std': np.array([float(x.std(correction=0)) for x in ranks]),
        }

    def _compared(self) -> list[int]:
        order = np.random.default_rng([self.plan.seed, 1]).permutation(self.plan.count)
        return sorted(order[:COMPARED_IMAGES].tolist())

    def _scores(self, block: int) -> dict[str, TokenProbeScore]:
        """Scores of the probes of a block, read where an earlier run wrote them."""
        path = self.plan.folder / f'block-{block:03d}.json'
        key = _digest((self.plan.key, self.settings.probe, self.held_out))
        found = read_scores(path, key)
        if found is None:
            found = {name: asdict(score) for name, score in self._probe(block).items()}
            with replacing(path) as temporary:
                temporary.write_text(json.dumps({'key': key, 'scores': found}), encoding='utf-8')
        return {name: TokenProbeScore(**values) for name, values in found.items()}

    def _probe(self, block: int) -> dict[str, TokenProbeScore]:
        tokens, cells = self.read(f'tokens.{block}'), self.read('cells')
        answers = {'position': cells}
        if has_labels(self.plan, self.dim):
            answers['class'] = self.read('label')[:, None].expand(-1, cells.shape[1])
        outside = torch.zeros(self.plan.count, dtype=torch.bool)
        outside[self.held_out] = True
        inside = outside.logical_not()
        train, test = tokens[inside].flatten(0, 1), tokens[outside].flatten(0, 1)
        del tokens
        return {
            name: token_probe(
                train, y[inside].flatten(), test, y[outside].flatten(), int(y.max()) + 1,
                self.settings.probe,
            )
            for name, y in answers.items()
        }  # fmt: skip
