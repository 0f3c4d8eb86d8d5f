"""Random-resized cropping of a batch as two matrix products, equal to torchvision's resized crop.

Kornia resamples crops without antialiasing, so a crop that shrinks aliases where PIL and torchvision
would average. Antialiased bicubic resampling is separable and linear: an output row is a weighted
mean of input rows. Here those weights are written as one matrix per crop and axis, and all crops of
all images are resampled by two batched matrix products, on whatever device the images are.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

CUBIC_A = -0.5
"""Keys' cubic coefficient in PIL and in PyTorch's antialiased resize (-0.75 without antialias)."""

ATTEMPTS = 10
"""Tries of torchvision's ``RandomResizedCrop.get_params`` before it takes the central crop."""


@dataclass(frozen=True)
class CropBoxes:
    """Crop windows in pixels, one entry per crop; the window of entry i is ``top:top + height``.

    Args:
        top: First row, int64 of any shape.
        left: First column, same shape.
        height: Rows, at least 1.
        width: Columns, at least 1.
        flip: Whether the crop is mirrored from left to right, bool of the same shape.
    """

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    flip: Tensor

    def column(self, index: int) -> 'CropBoxes':
        """Window ``index`` of every image, from windows of shape (B, N)."""
        fields = (self.top, self.left, self.height, self.width, self.flip)
        return CropBoxes(*(field[:, index] for field in fields))

    def to(self, device: torch.device) -> 'CropBoxes':
        """Copy to a device."""
        fields = (self.top, self.left, self.height, self.width, self.flip)
        return CropBoxes(*(field.to(device, non_blocking=True) for field in fields))


def draw_boxes(
    shape: tuple[int, ...],
    height: int,
    width: int,
    scale: tuple[float, float],
    generator: torch.Generator,
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip_p: float = 0.5,
) -> CropBoxes:
    """Draw crop windows as ``torchvision.transforms.RandomResizedCrop`` does, all at once.

    Area uniform in ``scale``, aspect ratio log-uniform in ``ratio``; the first of ten tries that fits
    into the image, else the largest central crop whose ratio is allowed.

    Args:
        shape: Shape of the drawn parameters, for example (images, crops).
        height: Image height in pixels.
        width: Image width in pixels.
        scale: Smallest and largest share of the image's area.
        generator: CPU generator, the only source of randomness.
        ratio: Smallest and largest width / height.
        flip_p: Probability of a horizontal flip.

    Returns:
        Windows on the CPU.
    """
    tries = (ATTEMPTS, *shape)
    area = height * width * _uniform(tries, scale, generator)
    aspect = _uniform(tries, (math.log(ratio[0]), math.log(ratio[1])), generator).exp()
    crop_h, crop_w = (area / aspect).sqrt().round(), (area * aspect).sqrt().round()
    fits = (crop_h > 0) & (crop_h <= height) & (crop_w > 0) & (crop_w <= width)
    first = fits.int().argmax(dim=0, keepdim=True)  # argmax takes the first of equal maxima
    central_h, central_w = _central_size(height, width, ratio)
    fitted = fits.any(dim=0)
    crop_h = torch.where(fitted, crop_h.gather(0, first)[0], central_h)
    crop_w = torch.where(fitted, crop_w.gather(0, first)[0], central_w)
    place = torch.rand((2, *shape), generator=generator, dtype=torch.float64)
    place = torch.where(fitted, place, 0.5)
    return CropBoxes(
        top=_offset(place[0], height - crop_h, fitted),
        left=_offset(place[1], width - crop_w, fitted),
        height=crop_h.long(),
        width=crop_w.long(),
        flip=torch.rand(shape, generator=generator) < flip_p,
    )


def _uniform(
    shape: tuple[int, ...], bounds: tuple[float, float], generator: torch.Generator
) -> Tensor:
    unit = torch.rand(shape, generator=generator, dtype=torch.float64)
    return bounds[0] + (bounds[1] - bounds[0]) * unit


def _central_size(height: int, width: int, ratio: tuple[float, float]) -> tuple[float, float]:
    """Size of torchvision's fallback crop: the image, trimmed to the nearest allowed ratio."""
    if width / height < ratio[0]:
        return float(round(width / ratio[0])), float(width)
    if width / height > ratio[1]:
        return float(height), float(round(height * ratio[1]))
    return float(height), float(width)


def _offset(place: Tensor, free: Tensor, fitted: Tensor) -> Tensor:
    """Uniform integer in [0, free], or half of ``free`` for the central crop."""
    uniform = (place * (free + 1)).floor().clamp(max=free)
    return torch.where(fitted, uniform, (free / 2).floor()).long()


def resample_weights(
    start: Tensor, length: Tensor, size: int, extent: int, reverse: Tensor | None = None
) -> Tensor:
    """Weights of antialiased bicubic resampling along one axis, for many windows.

    Equal to PIL's and PyTorch's ``antialias=True``: the kernel is widened by the shrinking factor,
    only pixels inside the window count, and weights are normalised to sum to one.

    Args:
        start: First pixel of each window, (...), int64.
        length: Pixels in each window, (...), int64.
        size: Output pixels.
        extent: Pixels of the image along this axis.
        reverse: Whether the output runs backwards (a flip), (...), bool.

    Returns:
        (..., size, extent) float32.
    """
    index = torch.arange(size, device=start.device, dtype=torch.float64)
    if reverse is not None:
        index = torch.where(reverse.unsqueeze(-1), size - 1 - index, index)
    factor = length.double().unsqueeze(-1) / size
    centre = start.unsqueeze(-1) + factor * (index + 0.5)  # (..., size)
    base = centre.floor()
    pixel = torch.arange(extent, device=start.device)
    # integer and fractional parts apart: exact in float32 however large the image
    whole = (pixel - base.long().unsqueeze(-1)).float()  # (..., size, extent)
    distance = whole + (0.5 - (centre - base)).float().unsqueeze(-1)
    weights = cubic(distance / factor.clamp(min=1.0).float().unsqueeze(-1))
    last = (start + length).unsqueeze(-1)
    inside = (pixel >= start.unsqueeze(-1)) & (pixel < last)
    weights = weights * inside.unsqueeze(-2)
    return weights / weights.sum(dim=-1, keepdim=True)


def cubic(x: Tensor) -> Tensor:
    """Keys' cubic convolution kernel with a = -0.5 (IEEE TASSP 29(6), 1981, eq. 15)."""
    x = x.abs()
    near = ((CUBIC_A + 2) * x - (CUBIC_A + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * CUBIC_A - 4 * CUBIC_A
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def crop_and_resize(
    images: Float[Tensor, 'B C H W'], boxes: CropBoxes, size: int
) -> Float[Tensor, 'N B C S S']:
    """Cut several windows out of every image and resample each to a square, clamped to [0, 1].

    Args:
        images: (B, C, H, W) in [0, 1].
        boxes: Windows of shape (B, N), on the images' device.
        size: Side S of the crops in pixels.

    Returns:
        (N, B, C, S, S), crop-major.
    """
    batch, channels, height, width = images.shape
    lines = images.permute(0, 2, 1, 3).reshape(batch, height, channels * width)
    crops = [
        _one_crop(lines, boxes.column(index), size, channels) for index in range(boxes.top.shape[1])
    ]
    return torch.stack(crops)


def _one_crop(lines: Tensor, boxes: CropBoxes, size: int, channels: int) -> Tensor:
    """One window of every image: (B, H, C W) lines to (B, C, S, S).

    A crop at a time, so that on a CPU the weights and products stay in the cache.
    """
    batch, height, _ = lines.shape
    width = lines.shape[2] // channels
    rows = resample_weights(boxes.top, boxes.height, size, height)  # (B, S, H)
    columns = resample_weights(boxes.left, boxes.width, size, width, boxes.flip)  # (B, S, W)
    out = torch.bmm(rows, lines).view(batch, size * channels, width)
    out = torch.bmm(out, columns.transpose(1, 2)).view(batch, size, channels, size)
    return out.clamp_(0, 1).permute(0, 2, 1, 3)
