"""The loss of masked autoencoders: squared error of predicted pixels at masked patches.

Source: He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners", section 3; for groups
of bands Cong et al. 2022, "SatMAE", section 3.3.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from torchgeo_explora._typing import GridSize, PatchSize
from torchgeo_explora.errors import ImageError

# Added to the variance of a patch (MAE's ``norm_pix_loss``).
EPS = 1e-6


def patchify(
    images: Float[Tensor, 'b c h w'], patch: PatchSize, channels_last: bool = True
) -> Float[Tensor, 'b patches values']:
    """Cut images into patches, row by row.

    Args:
        images: Images whose sides are multiples of the patch's.
        patch: Size of a patch.
        channels_last: Whether a patch lists all bands of its first pixel, then of the next
            (MAE), or all pixels of its first band, then of the next (SatMAE's groups).

    Raises:
        ImageError: If the images do not divide into patches.
    """
    if images.shape[2] % patch.height or images.shape[3] % patch.width:
        raise ImageError(
            f'Images of {images.shape[2]} x {images.shape[3]} pixels do not divide into patches of '
            f'{patch.height} x {patch.width}: choose a multiple of the patch size.'
        )
    # (b, c, rows * p, columns * q) -> (b, c, rows, p, columns, q)
    x = images.unflatten(3, (-1, patch.width)).unflatten(2, (-1, patch.height))
    order = (0, 2, 4, 3, 5, 1) if channels_last else (0, 2, 4, 1, 3, 5)
    out: Tensor = x.permute(order).flatten(3).flatten(1, 2)
    return out


def unpatchify(
    patches: Float[Tensor, 'b patches values'],
    grid: GridSize,
    patch: PatchSize,
    channels_last: bool = True,
) -> Float[Tensor, 'b c h w']:
    """Put patches together again, the inverse of :func:`patchify`.

    Args:
        patches: Patches, row by row.
        grid: Number of patches along the sides.
        patch: Size of a patch.
        channels_last: As in :func:`patchify`.
    """
    x = patches.unflatten(1, (grid.height, grid.width))
    if channels_last:  # (b, rows, columns, p, q, c) -> (b, c, rows, p, columns, q)
        x = x.unflatten(3, (patch.height, patch.width, -1)).permute(0, 5, 1, 3, 2, 4)
    else:  # (b, rows, columns, c, p, q) -> (b, c, rows, p, columns, q)
        x = x.unflatten(3, (-1, patch.height, patch.width)).permute(0, 3, 1, 4, 2, 5)
    out: Tensor = x.flatten(4).flatten(2, 3)
    return out


@dataclass(frozen=True)
class PatchStatistics:
    """Mean and standard deviation of every patch over all its values.

    Args:
        mean: Mean.
        std: Root of the variance (divisor n - 1) plus 1e-6.
    """

    mean: Float[Tensor, '*patches 1']
    std: Float[Tensor, '*patches 1']


def patch_statistics(patches: Float[Tensor, '*patches values']) -> PatchStatistics:
    """Return what :func:`normalize_patches` takes out of patches."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return PatchStatistics(mean, (variance + EPS).sqrt())


def normalize_patches(
    patches: Float[Tensor, '*patches values'],
) -> Float[Tensor, '*patches values']:
    """Give every patch zero mean and unit variance over all its values (MAE, ``norm_pix_loss``).

    Args:
        patches: Patches of any range; constant ones become zero.
    """
    statistics = patch_statistics(patches)
    return (patches - statistics.mean) / statistics.std


def mae_loss(
    prediction: Float[Tensor, 'b n values'],
    target: Float[Tensor, 'b n values'],
    masked: Bool[Tensor, 'b n'],
) -> Float[Tensor, '']:
    """Return the mean squared error of the masked patches.

    Args:
        prediction: Predicted values of all patches.
        target: True values.
        masked: True at the patches that count; at least one.
    """
    return masked_patch_loss([prediction[masked]], [target[masked]])


def group_mae_loss(
    predictions: Sequence[Float[Tensor, 'b n _']],
    targets: Sequence[Float[Tensor, 'b n _']],
    masked: Bool[Tensor, 'b groups n'],
) -> Float[Tensor, '']:
    """Return the mean squared error of the masked tokens of several groups of bands.

    A token's error is the mean over its own group's bands and pixels; groups of different sizes
    weigh the same.

    Args:
        predictions: For every group the predicted values at all locations.
        targets: True values, likewise.
        masked: True at the tokens that count; at least one.
    """
    masks = masked.unbind(dim=1)
    pairs = [zip(x, masks, strict=True) for x in (predictions, targets)]
    rows = [[values[mask] for values, mask in pair] for pair in pairs]
    return masked_patch_loss(rows[0], rows[1])


def masked_patch_loss(
    predictions: Sequence[Float[Tensor, '_ _']], targets: Sequence[Float[Tensor, '_ _']]
) -> Float[Tensor, '']:
    """Return the mean over tokens of their mean squared error, from masked tokens only.

    The same as :func:`mae_loss` and :func:`group_mae_loss` where nothing else was predicted.

    Args:
        predictions: For every prediction head the values of its masked tokens, one row a token.
        targets: True values, likewise.
    """
    errors = [
        (prediction.to(target.dtype) - target).square().mean(dim=1)
        for prediction, target in zip(predictions, targets, strict=True)
    ]
    return torch.cat(errors).mean()
