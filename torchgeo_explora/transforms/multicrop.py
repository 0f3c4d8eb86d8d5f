"""DINOv2's multi-crop augmentation, batched and on the images' device."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchgeo_explora.errors import ConfigError, ImageError

from ._resample import crop_and_resize, draw_boxes
from .normalize import IMAGENET_MEAN, IMAGENET_STD, Normalize, check_images, normalize
from .photometric import PhotometricSpec, apply_photometric, draw_photometric

N_GLOBAL = 2
"""Global crops of every image: the objective pairs the two."""


@dataclass(frozen=True)
class Crops:
    """Augmented crops of a batch of B images, normalised, crop-major.

    Row ``k * B + i`` is crop k of image i.

    Args:
        global_: The two global crops, (2 B, C, G, G).
        local: The local crops, (n_local B, C, L, L).
    """

    global_: Float[Tensor, 'views C G G']
    local: Float[Tensor, 'views C L L']


class MultiCrop(nn.Module):
    """Two global and several local views of every image, as DINOv2 makes them.

    In this order: random-resized crop (antialiased bicubic), horizontal flip, colour jitter,
    grayscale, Gaussian blur, solarisation (second global crop only), normalisation (DINOv2,
    https://arxiv.org/abs/2304.07193; `dinov2/data/augmentations.py`).

    Differences from the official pipeline, which runs on 8-bit PIL images: values are float32 and
    never rounded; the four steps of the jitter come in an order that is drawn once for each of the
    ``2 + n_local`` crops and shared by the images of the batch, while all factors are each image's
    own. The crops come from the image as it is; it need not be resized first.

    Args:
        global_size: Side G of the global crops in pixels.
        local_size: Side L of the local crops in pixels.
        n_local: Number of local crops of every image; may be 0.
        global_scale: Share of the image's area that a global crop covers, smallest and largest.
        local_scale: The same for local crops.
        color_jitter: Largest change of brightness, contrast, saturation (relative) and of the hue
            (in turns of the colour circle).
        jitter_p: Probability of the colour jitter.
        grayscale_p: Probability of dropping the colour.
        blur_p: Probability of a Gaussian blur for the first global, the second global and the
            local crops. DINOv2 documents (1.0, 0.1, 0.5), but its wrapper hands ``1 - p`` to an
            argument that is the probability of *applying* the blur; (0.0, 0.9, 0.5) is what DINOv2
            and ExPLoRA trained with, and the default here.
        blur_sigma: Range of the blur's standard deviation in pixels.
        blur_kernel: Side of the blur's window in pixels, odd.
        solarize_p: Probability of solarising, for the first global, the second global and the
            local crops.
        flip_p: Probability of a horizontal flip.
        bands: ``rgb``, or ``any`` for other bands, however many: no hue, no saturation and no
            grayscale; brightness and contrast change all bands of an image together.
        mean: Mean of every band after scaling to [0, 1]; None for ImageNet's, which only RGB has.
        std: Standard deviation of every band, likewise.

    Raises:
        ConfigError: If an argument is not possible.
    """

    def __init__(
        self,
        global_size: int = 224,
        local_size: int = 98,
        n_local: int = 8,
        global_scale: tuple[float, float] = (0.32, 1.0),
        local_scale: tuple[float, float] = (0.05, 0.32),
        color_jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1),
        jitter_p: float = 0.8,
        grayscale_p: float = 0.2,
        blur_p: tuple[float, float, float] = (0.0, 0.9, 0.5),
        blur_sigma: tuple[float, float] = (0.1, 2.0),
        blur_kernel: int = 9,
        solarize_p: tuple[float, float, float] = (0.0, 0.2, 0.0),
        flip_p: float = 0.5,
        bands: Literal['rgb', 'any'] = 'rgb',
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        _check_sizes(global_size, local_size, n_local, blur_kernel)
        _check_scale('global_scale', global_scale)
        _check_scale('local_scale', local_scale)
        self.global_size, self.local_size, self.n_local = global_size, local_size, n_local
        self.global_scale, self.local_scale = global_scale, local_scale
        self.flip_p = flip_p
        self.rgb = _is_rgb(bands)
        self.normalize = _normalization(self.rgb, mean, std)
        brightness, contrast, saturation, hue = color_jitter
        spec = PhotometricSpec(
            brightness, contrast, saturation, hue, jitter_p, grayscale_p,
            blur_sigma=blur_sigma, blur_kernel=blur_kernel,
        )  # fmt: skip
        self.specs = tuple(
            replace(spec, blur_p=blur, solarize_p=solarize)
            for blur, solarize in zip(blur_p, solarize_p, strict=True)
        )

    @torch.no_grad()
    def forward(self, images: Float[Tensor, 'B C H W'], seed: int) -> Crops:
        """Augment a batch.

        Args:
            images: (B, C, H, W) in [0, 1], not normalised.
            seed: Seed of everything that is drawn. The same seed gives the same crops, on every
                device up to rounding; the global random state is neither read nor changed.

        Returns:
            The crops, float32, on the images' device.

        Raises:
            ImageError: If the number of channels is wrong or an image is smaller than 2 pixels.
        """
        check_images(images, self.normalize.num_channels)
        if images.ndim != 4 or min(images.shape[-2:]) < 2:
            raise ImageError(
                f'The images have the shape {tuple(images.shape)}: give (batch, channels, height, '
                'width) with sides of at least 2 pixels.'
            )
        generator = torch.Generator().manual_seed(seed)
        first, second, local = self.specs
        with torch.autocast(images.device.type, enabled=False):
            images = images.float()
            global_ = self._views(
                images, self.global_size, self.global_scale, (first, second), generator
            )
            local_specs = (local,) * self.n_local
            locals_ = self._views(images, self.local_size, self.local_scale, local_specs, generator)
        return Crops(global_, locals_)

    def _views(
        self,
        images: Tensor,
        size: int,
        scale: tuple[float, float],
        specs: tuple[PhotometricSpec, ...],
        generator: torch.Generator,
    ) -> Tensor:
        """One view of every image for each entry of ``specs``, (N B, C, size, size)."""
        batch, channels, height, width = images.shape
        if len(specs) == 0:
            return images.new_zeros((0, channels, size, size))
        boxes = draw_boxes((batch, len(specs)), height, width, scale, generator, flip_p=self.flip_p)
        views = crop_and_resize(images, boxes.to(images.device), size)
        for view, spec in zip(views, specs, strict=True):
            apply_photometric(view, draw_photometric(batch, spec, generator), spec, self.rgb)
        return normalize(views.flatten(0, 1), self.normalize.mean, self.normalize.std)

    def extra_repr(self) -> str:
        """Sizes and probabilities, for the printed module."""
        blur = tuple(spec.blur_p for spec in self.specs)
        return (
            f'global={N_GLOBAL}x{self.global_size}, local={self.n_local}x{self.local_size}, '
            f'rgb={self.rgb}, blur_p={blur}'
        )


def _check_sizes(global_size: int, local_size: int, n_local: int, blur_kernel: int) -> None:
    smallest = blur_kernel // 2 + 1  # the blur mirrors half its window at the rim
    if min(global_size, local_size) < smallest or n_local < 0:
        raise ConfigError(
            f'global_size {global_size}, local_size {local_size}, n_local {n_local}: give sides of '
            f'at least {smallest} pixels and a number of local crops of at least 0.'
        )


def _check_scale(name: str, scale: tuple[float, float]) -> None:
    if not 0 < scale[0] <= scale[1] <= 1:
        raise ConfigError(
            f'{name} is {tuple(scale)}: give two shares of the area, 0 < smallest <= largest <= 1.'
        )


def _is_rgb(bands: str) -> bool:
    if bands not in {'rgb', 'any'}:
        raise ConfigError(
            f"bands is {bands!r}: give 'rgb' for red, green, blue, or 'any' for other bands."
        )
    return bands == 'rgb'


def _normalization(
    rgb: bool, mean: Sequence[float] | None, std: Sequence[float] | None
) -> Normalize:
    """Normalisation with the given values, or with ImageNet's for RGB."""
    if not rgb and (mean is None or std is None):
        raise ConfigError(
            "bands is 'any' but mean or std is missing: give one mean and one standard deviation "
            'per band, of values scaled to [0, 1].'
        )
    module = Normalize(
        IMAGENET_MEAN if mean is None else mean, IMAGENET_STD if std is None else std
    )
    if rgb and module.num_channels != 3:
        raise ConfigError(
            f"bands is 'rgb' but mean has {module.num_channels} values: give three, or bands 'any'."
        )
    return module
