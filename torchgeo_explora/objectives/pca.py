"""Principal components of features: one basis for many images, files and models' pictures.

The covariance is summed up batch by batch in float64, so that memory does not grow with the number
of features. Colours of pictures come from quantiles of a sample that the features choose
themselves, by a hash of their bits, so that the order in which they come does not matter.

Source: Pearson 1901; the sums as in Chan, Golub and LeVeque 1979, equations 2.1; pictures of the
first three components as in Oquab et al. 2024 (DINOv2), figure 1.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor

from torchgeo_explora._files import write_tensors
from torchgeo_explora.errors import ConfigError, WeightsError

FORMAT = 'torchgeo_explora.pca'

LOW, HIGH = 0.02, 0.98
"""Quantiles of the projections that are black and full in pictures."""

SAMPLE = 4096
"""Rows that the quantiles are taken of: their shares of 2 % are then known to 0.2 %."""

TENSORS = ('mean', 'components', 'variances', 'low', 'high')

ORTHONORMAL = 1e-6
"""How far products of components may be from those of orthonormal ones."""


@dataclass(frozen=True, eq=False)
class PCABasis:
    """Directions of largest variance, and how pictures of them are coloured. All float64.

    Args:
        mean: Mean of the features.
        components: Orthonormal rows, by falling variance; of each the entry that is largest in
            absolute value is positive.
        variances: Variance of the features along each component (divided by count - 1).
        low: 2nd percentile of the projections on each component.
        high: 98th percentile of them.
        count: Features that the basis was fitted on.
    """

    mean: Float[Tensor, ' d']
    components: Float[Tensor, 'k d']
    variances: Float[Tensor, ' k']
    low: Float[Tensor, ' k']
    high: Float[Tensor, ' k']
    count: int

    def project(self, features: Float[Tensor, '*axes d']) -> Float[Tensor, '*axes k']:
        """Return coordinates in the basis, float32, on the features' device.

        Args:
            features: With the dimensions last.

        Raises:
            ConfigError: If they have another number of dimensions.
        """
        if features.shape[-1] != len(self.mean):
            raise ConfigError(
                f'The features have {features.shape[-1]} dimensions and the basis '
                f'{len(self.mean)}: take the basis of the same model, blocks and tokens.'
            )
        mean, components = (x.to(features.device) for x in (self.mean, self.components))
        return ((features.double() - mean) @ components.T).float()

    def to_rgb(self, projection: Float[Tensor, '*axes k']) -> Float[Tensor, '*axes 3']:
        """Return colours in [0, 1]: the first three components, from ``low`` to ``high``.

        A component that does not vary is grey (0.5).

        Args:
            projection: What :meth:`project` returned.

        Raises:
            ConfigError: If there are fewer than three components.
        """
        if projection.shape[-1] < 3:
            raise ConfigError(
                f'A picture in colour takes three components, and the basis has '
                f'{projection.shape[-1]}: fit one with 3 or more.'
            )
        low, high = (x[:3].to(projection.device) for x in (self.low, self.high))
        span = high - low
        unit = (projection[..., :3].double() - low) / torch.where(span > 0, span, 1)
        return torch.where(span > 0, unit.clamp(0, 1), 0.5).float()

    def save(self, path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None) -> Path:
        """Write the basis as safetensors, complete or not at all.

        Args:
            path: The file; an existing one is replaced.
            metadata: Texts to store with it, for instance of which model it is.

        Raises:
            OutputError: If it cannot be written.
        """
        texts = {} if metadata is None else dict(metadata)
        own = {'format': FORMAT, 'count': str(self.count)}
        return write_tensors(path, {name: getattr(self, name) for name in TENSORS}, texts | own)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> 'PCABasis':
        """Read a basis that :meth:`save` wrote.

        Raises:
            WeightsError: If the file cannot be read or holds something else.
        """
        texts, tensors = _read(path)
        count = texts['count']
        if set(tensors) != set(TENSORS) or not count.isdecimal():
            raise _damaged(path, f'it holds {", ".join(sorted(tensors))}')
        _check(path, tensors)
        return PCABasis(**tensors, count=int(count))


def basis_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Read the texts that were stored with a basis.

    Raises:
        WeightsError: If the file cannot be read or holds something else.
    """
    return _read(path)[0]


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(Path(path), 'pt') as file:
            texts = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise _damaged(path, str(error)) from error
    if texts is None or texts.get('format') != FORMAT or 'count' not in texts:
        raise _damaged(path, 'it is another kind of file')
    return texts, tensors


def _damaged(path: str | os.PathLike[str], why: str) -> WeightsError:
    return WeightsError(
        f'{path} holds no basis of principal components ({why}): give the file pca.safetensors '
        'that an earlier command wrote.'
    )


def _check(path: str | os.PathLike[str], tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are no basis."""
    if not all(x.dtype == torch.float64 and bool(x.isfinite().all()) for x in tensors.values()):
        raise _damaged(path, 'values are not finite or not float64')
    components = tensors['components']
    shapes = [tuple(tensors[name].shape) for name in TENSORS]
    k, d = len(components), tensors['mean'].numel()
    if shapes != [(d,), (k, d), (k,), (k,), (k,)]:
        raise _damaged(path, f'shapes {shapes} do not belong together')
    identity = torch.eye(k, dtype=torch.float64)
    if not torch.allclose(components @ components.T, identity, rtol=0, atol=ORTHONORMAL):
        raise _damaged(path, 'its components are not orthonormal')
    if bool((tensors['high'] < tensors['low']).any()):
        raise _damaged(path, 'high lies below low')


class PCAAccumulator:
    """Sums up features for a basis; memory is that of a covariance and of a sample.

    Args:
        sample: Rows that are kept for the quantiles of pictures.
    """

    def __init__(self, sample: int = SAMPLE) -> None:
        self.sample = sample
        self.count = 0
        self._mean: Tensor | None = None
        self._scatter = torch.zeros(0, 0, dtype=torch.float64)
        self._rows = torch.zeros(0, 0)
        self._keys = torch.zeros(0, dtype=torch.int64)

    def add(self, features: Float[Tensor, '*axes d']) -> None:
        """Add features.

        Args:
            features: Finite, with the dimensions last; on any device.

        Raises:
            ConfigError: If they have another number of dimensions than those before, or some
                are not finite.
        """
        rows = features.detach().flatten(0, -2).to('cpu', torch.float32)
        if len(rows) == 0:
            return
        if not bool(rows.isfinite().all()):
            raise ConfigError(
                'Some features are not finite numbers: compute them in float32 or bfloat16.'
            )
        self._begin(rows.shape[1])
        self._add_moments(rows.double())
        self._add_sample(rows)

    def _begin(self, dim: int) -> None:
        if self._mean is None:
            self._mean = torch.zeros(dim, dtype=torch.float64)
            self._scatter = torch.zeros(dim, dim, dtype=torch.float64)
            self._rows = torch.zeros(0, dim)
        if dim != len(self._mean):
            raise ConfigError(
                f'Features of {dim} dimensions were added to those of {len(self._mean)}: one basis '
                'is of one model, with the same blocks and tokens.'
            )

    def _add_moments(self, rows: Float[Tensor, 'n d']) -> None:
        assert self._mean is not None, 'the first features decide the dimensions'
        mean = rows.mean(dim=0)
        centred, step = rows - mean, mean - self._mean
        total = self.count + len(rows)
        self._scatter += centred.T @ centred
        self._scatter += torch.outer(step, step) * (self.count * len(rows) / total)
        self._mean += step * (len(rows) / total)
        self.count = total

    def _add_sample(self, rows: Float[Tensor, 'n d']) -> None:
        keys = torch.cat([self._keys, row_keys(rows)])
        kept = torch.sort(keys, stable=True).indices[: self.sample]
        self._rows, self._keys = torch.cat([self._rows, rows])[kept], keys[kept]

    def fit(self, k: int) -> PCABasis:
        """Return the basis of what was added. Components beyond the features' rank have variance 0.

        Args:
            k: Number of components.

        Raises:
            ConfigError: If nothing was added, or there are not as many dimensions.
        """
        if self._mean is None:
            raise ConfigError('No feature was added: principal components take at least one.')
        if not 1 <= k <= len(self._mean):
            raise ConfigError(
                f'{k} principal components were asked for and the features have '
                f'{len(self._mean)} dimensions: choose 1 to {len(self._mean)}.'
            )
        covariance = self._scatter / max(self.count - 1, 1)
        values, vectors = torch.linalg.eigh(covariance)  # ascending
        components = _positive(vectors.flip(1).T[:k]).contiguous()
        variances = values.flip(0)[:k].clamp(min=0).contiguous()
        projections = (self._rows.double() - self._mean) @ components.T
        low, high = torch.quantile(projections, torch.tensor([LOW, HIGH]).double(), dim=0)
        return PCABasis(self._mean.clone(), components, variances, low.clone(), high.clone(),
                        self.count)  # fmt: skip


def _positive(components: Float[Tensor, 'k d']) -> Float[Tensor, 'k d']:
    """Turn components so that the entry of largest absolute value is positive."""
    largest = components.abs().argmax(dim=1, keepdim=True)
    return components * components.gather(1, largest).sign()


def row_keys(rows: Float[Tensor, 'n d']) -> Int[Tensor, ' n']:
    """Return a number for each row that depends on its bits alone and is evenly spread.

    Args:
        rows: float32.

    Source: multiply-shift hashing of vectors (Dietzfelbinger 1996); the last step is that of
    SplitMix64 (Steele, Lea and Flood 2014, figure 14).
    """
    bits = rows.contiguous().view(torch.int32).to(torch.int64)
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(-(2**62), 2**62, (rows.shape[1],), generator=generator) * 2 + 1
    key = (bits * factors).sum(dim=1)  # (n,), modulo 2**64
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        key = (key ^ _shifted(key, shift)) * factor
    return key ^ _shifted(key, 31)


def _shifted(key: Int[Tensor, ' n'], by: int) -> Int[Tensor, ' n']:
    """Shift to the right as if there were no sign."""
    return (key >> by) & ((1 << (64 - by)) - 1)
