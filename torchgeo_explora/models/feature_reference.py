"""How far an image is from those that a model was fitted on, by the features of a middle block.

The distance is Mahalanobis' (Lee et al. 2018, "A simple unified framework for detecting
out-of-distribution samples and adversarial attacks", section 2.1), with one Gaussian for all images,
since adaptation knows no classes. Its covariance is shrunk (Ledoit & Wolf 2004, "A well-conditioned
estimator for large-dimensional covariance matrices"), so that fewer images than features will do.
Features are mean patch tokens of length 1. They are of a middle block, because the last ones are
trained to see past what sets one sensor apart from another: `tests/benchmarks/distance.py` compares
the blocks.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from torchgeo_explora import __version__
from torchgeo_explora._files import write_tensors
from torchgeo_explora.adapters.state import base_fingerprint
from torchgeo_explora.errors import ConfigError, WeightsError
from torchgeo_explora.layers.tokens import embed_tokens, patch_tokens, run_blocks
from torchgeo_explora.models._checkpoint import Checkpoint, read_checkpoint
from torchgeo_explora.models.fitted import tensors_hash

REFERENCE = 'features.safetensors'
"""Name of the file beside a model."""

FORMAT = 'torchgeo-explora-features'

FEWEST_IMAGES = 20
"""Images below which nothing is said about what is far."""

UNIT_QUANTILE = 0.99
"""Share of held-out images whose distance is at most 1."""

LEAST_SHRINKAGE = 1e-6
"""Keeps covariances of samples in a plane, for which the estimator may be 0, invertible."""

_TENSORS = ('mean', 'whitening', 'held_out')


@dataclass(frozen=True)
class FeatureOrigin:
    """Which features a reference is of.

    Args:
        model: timm name of the backbone.
        backbone: SHA-256 of the merged backbone's weights, from :func:`backbone_fingerprint`.
        image_size: Side in pixels of the images.
    """

    model: str
    backbone: str
    image_size: int


@dataclass(frozen=True)
class FeatureReference:
    """A summary of the features of the images that a model was fitted on.

    Args:
        mean: Mean feature (dim,).
        whitening: Lower triangle (dim, dim) that turns deviations from the mean into ones of unit
            covariance, over the unit of the distance.
        held_out: Distances of images that were held out, ascending (images,).
        count: Number of images that mean and covariance are of.
        origin: Which features they are.
    """

    mean: Tensor
    whitening: Tensor
    held_out: Tensor
    count: int
    origin: FeatureOrigin

    def distance(self, features: Tensor) -> Tensor:
        """Return how far images are from those of the reference.

        Args:
            features: Pooled features (n, dim), on the reference's device.

        Returns:
            (n,) float32, not negative; 1 is the 99th percentile of images that were held out.

        Raises:
            ConfigError: If the features are of another width.
        """
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ConfigError(
                f'The features are of shape {tuple(features.shape)}, and the reference of width '
                f'{len(self.mean)}: give those of the model that it belongs to.'
            )
        return scaled_distance(features, self.mean, self.whitening)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what the distance hangs on, in hexadecimal."""
        return tensors_hash({'mean': self.mean, 'whitening': self.whitening})

    def to(self, device: torch.device | str) -> 'FeatureReference':
        """Return the same reference on another device."""
        mean, whitening, held_out = (getattr(self, name).to(device) for name in _TENSORS)
        return FeatureReference(mean, whitening, held_out, self.count, self.origin)

    def save(self, path: str | Path) -> Path:
        """Write the reference as safetensors, whole or not at all.

        Args:
            path: The file, by custom ``features.safetensors`` beside the model.

        Returns:
            The path.

        Raises:
            OutputError: If it cannot be written.
        """
        tensors = {name: getattr(self, name).cpu().contiguous() for name in _TENSORS}
        texts = {
            'format': FORMAT,
            'version': __version__,
            'count': str(self.count),
            'origin': json.dumps(asdict(self.origin)),
        }
        return write_tensors(Path(path).expanduser(), tensors, texts)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what :meth:`save` wrote.

        Raises:
            WeightsError: If the file cannot be read or is something else.
        """
        checkpoint = read_checkpoint(path)
        _check_file(checkpoint)
        try:
            origin = FeatureOrigin(**json.loads(checkpoint.metadata['origin']))
            count = int(checkpoint.metadata['count'])
        except (KeyError, TypeError, ValueError) as error:
            raise WeightsError(
                f'{checkpoint.source} does not say what its features are of ({error}): write it '
                'again with this version of torchgeo_explora.'
            ) from error
        mean, whitening, held_out = (checkpoint.tensors[name] for name in _TENSORS)
        return cls(mean, whitening, held_out, count, origin)


def scaled_distance(features: Tensor, mean: Tensor, whitening: Tensor) -> Tensor:
    """Return Mahalanobis' distance of features of length 1.

    Args:
        features: (n, dim), of any length.
        mean: (dim,).
        whitening: (dim, dim), as of :class:`FeatureReference`.

    Returns:
        (n,).
    """
    deviation = F.normalize(features.float(), dim=1) - mean
    result: Tensor = (deviation @ whitening.T).norm(dim=1)
    return result


def _check_file(checkpoint: Checkpoint) -> None:
    if checkpoint.metadata.get('format') != FORMAT:
        raise WeightsError(
            f'{checkpoint.source} is no reference of features: give the {REFERENCE} that an '
            'adaptation or fine-tuning wrote beside its model.'
        )
    tensors = checkpoint.tensors
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    width = shapes.get('mean', (0,))[0]
    whole = {'mean': (width,), 'whitening': (width, width), 'held_out': shapes.get('held_out')}
    if shapes != whole or not all(bool(t.isfinite().all()) for t in tensors.values()):
        raise WeightsError(
            f'{checkpoint.source} is damaged: it holds {shapes}, not a finite mean, whitening and '
            'distances of one width; write or copy it again.'
        )


def fit_feature_reference(
    features: Tensor,
    origin: FeatureOrigin,
    held_out: Tensor | None = None,
    folds: int = 5,
    seed: int = 0,
) -> FeatureReference:
    """Summarise the features of the images that a model was fitted on.

    Args:
        features: Pooled features (images, dim), as :func:`pooled_features` gives them.
        origin: Which features they are.
        held_out: Features of images of the same kind that the model was not fitted on (images,
            dim), which give the unit of the distance. Without them, or with fewer than 20, the
            images are divided into parts, and each part's distances are to the others.
        folds: Number of these parts.
        seed: Divides them.

    Returns:
        The reference, on the CPU.

    Raises:
        ConfigError: If there are fewer than 20 images, or their features are all the same or not
            finite.
    """
    x = _unit_length(features, FEWEST_IMAGES)
    if held_out is None or len(held_out) < FEWEST_IMAGES:
        distances = _between_folds(x, min(folds, len(x)), seed)
    else:
        distances = _Gaussian.fit(x).distance(_unit_length(held_out, FEWEST_IMAGES))
    unit = distances.quantile(UNIT_QUANTILE)
    fitted = _Gaussian.fit(x)
    return FeatureReference(
        fitted.mean.float(),
        (fitted.whitening / unit).float(),
        (distances / unit).sort().values.float(),
        len(x),
        origin,
    )


def _unit_length(features: Tensor, fewest: int) -> Tensor:
    x = features.detach().cpu().double()
    if x.ndim != 2 or len(x) < fewest:
        raise ConfigError(
            f'The features are of shape {tuple(x.shape)}: a reference needs a row for each of at '
            f'least {fewest} images.'
        )
    if not bool(x.isfinite().all()):
        raise ConfigError('Some features are not finite: the model has diverged.')
    return F.normalize(x, dim=1)


def _between_folds(x: Tensor, folds: int, seed: int) -> Tensor:
    """Distance of every image to those of the other parts."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    parts = order.chunk(max(folds, 2))
    kept = (torch.cat([*parts[:i], *parts[i + 1 :]]) for i in range(len(parts)))
    pairs = zip(parts, kept, strict=True)
    return torch.cat([_Gaussian.fit(x[others]).distance(x[part]) for part, others in pairs])


@dataclass(frozen=True)
class _Gaussian:
    """A mean (dim,) and the inverse root (dim, dim) of a covariance, float64."""

    mean: Tensor
    whitening: Tensor

    @classmethod
    def fit(cls, x: Tensor) -> Self:
        mean = x.mean(dim=0)
        root = torch.linalg.cholesky(shrunk_covariance(x - mean))
        identity = torch.eye(len(root), dtype=root.dtype)
        return cls(mean, torch.linalg.solve_triangular(root, identity, upper=False))

    def distance(self, x: Tensor) -> Tensor:
        result: Tensor = ((x - self.mean) @ self.whitening.T).norm(dim=1)
        return result


def shrunk_covariance(x: Tensor) -> Tensor:
    """Return the covariance of centred samples, shrunk towards a multiple of the identity.

    Args:
        x: Samples of mean 0 (samples, dim).

    Returns:
        (dim, dim), positive definite.

    Raises:
        ConfigError: If all samples are the same.

    Source: Ledoit & Wolf 2004, section 3.3: the estimator ``S*`` with m, d, b of lemmas 3.2 to 3.4.
    """
    count, width = x.shape
    sample = x.T @ x / count
    scale = sample.trace() / width
    if not scale > 0:
        raise ConfigError('The features of all images are the same: give other images.')
    target = scale * torch.eye(width, dtype=x.dtype)
    dispersion = (sample - target).square().sum()
    fourth = x.square().sum(dim=1).square().mean()
    error = ((fourth - sample.square().sum()) / count).clamp(min=0)
    # a covariance that is the target already needs no shrinkage, and no share is defined
    share = (error / dispersion).clamp(LEAST_SHRINKAGE, 1) if dispersion > 0 else 1.0
    return share * target + (1 - share) * sample


def reference_block(vit: VisionTransformer) -> int:
    """Return the block whose tokens are pooled: the last of the first half, 5 of 12."""
    return max(len(vit.blocks) // 2 - 1, 0)


def _pool(vit: VisionTransformer, tokens: Tensor) -> Tensor:
    return patch_tokens(vit, vit.norm(tokens)).float().mean(dim=1)  # (b, tokens, d) -> (b, d)


def pooled_features(
    vit: VisionTransformer, images: Tensor, timestamps: Tensor | None = None
) -> Tensor:
    """Return the features that references are of, computing no block after the middle one.

    Args:
        vit: The merged backbone, in evaluation mode.
        images: Normalised images (b, c, h, w), or (b, dates, c, h, w) of a temporal model.
        timestamps: Of the dates (b, dates, 3), for a temporal model.

    Returns:
        Mean patch tokens of the middle block after the final norm (b, dim).
    """
    blocks = list(vit.blocks)[: reference_block(vit) + 1]
    return _pool(vit, run_blocks(vit, blocks, embed_tokens(vit, images, timestamps=timestamps)))


@contextmanager
def tapped_features(vit: VisionTransformer) -> Iterator[list[Tensor]]:
    """Keep the features of every forward pass of a model, which costs next to nothing.

    Args:
        vit: The backbone inside the model.

    Yields:
        A list to which every forward pass adds what :func:`pooled_features` returns.
    """
    kept: list[Tensor] = []

    def keep(module: nn.Module, arguments: tuple[Tensor, ...], tokens: Tensor) -> None:
        kept.append(_pool(vit, tokens))

    handle = vit.blocks[reference_block(vit)].register_forward_hook(keep)
    try:
        yield kept
    finally:
        handle.remove()


def backbone_fingerprint(vit: VisionTransformer) -> str:
    """Hash the weights of a merged backbone, position embeddings apart.

    Args:
        vit: The backbone.

    Returns:
        A SHA-256 in hexadecimal over names, shapes and float32 values.
    """
    return base_fingerprint(vit, ())


def check_reference(reference: FeatureReference, vit: VisionTransformer, source: str) -> None:
    """Check that a reference is of a backbone's features.

    Args:
        reference: The reference.
        vit: The merged backbone.
        source: Where the reference comes from, for the message.

    Raises:
        WeightsError: If it is of another one's.
    """
    if reference.origin.backbone != backbone_fingerprint(vit):
        raise WeightsError(
            f'{source} is of the features of other weights ({reference.origin.model}): give the '
            f'{REFERENCE} that was written together with this model.'
        )
