"""How a synthetic scene looks to a sensor: palette, haze, contrast, blur, stripes, noise."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ._scenes import Structure, noise


@dataclass(frozen=True)
class Domain:
    """A place and a sensor.

    Args:
        epsg: Code of the coordinate reference system that scenes are written in.
        palette: Colours of vegetation, soil, built-up land and water, in [0, 1].
        spread: Standard deviation of a scene's own colours around the palette.
        illumination: Largest relative change of a scene's brightness.
        scale: Size of structures relative to the source domain's.
        haze: Share of the light that haze replaces by its own colour, smallest and largest.
        haze_color: Colour of the haze.
        contrast: Contrast about the scene's mean.
        blur: Standard deviation of the sensor's point spread in pixels.
        stripes: Standard deviation of the columns' gains.
        noise: Standard deviation of the pixel noise.
        shadow: Standard deviation of slow changes of brightness over the scene.
    """

    epsg: int
    palette: tuple[tuple[float, float, float], ...]
    spread: float
    illumination: float
    scale: float
    haze: tuple[float, float]
    haze_color: tuple[float, float, float]
    contrast: float
    blur: float
    stripes: float
    noise: float
    shadow: float


DOMAINS = {
    'source': Domain(
        epsg=32632,  # UTM zone 32 north
        palette=((0.24, 0.42, 0.20), (0.55, 0.46, 0.34), (0.58, 0.57, 0.58), (0.10, 0.20, 0.34)),
        spread=0.045,
        illumination=0.12,
        scale=1.0,
        haze=(0.0, 0.05),
        haze_color=(0.80, 0.84, 0.90),
        contrast=1.0,
        blur=0.45,
        stripes=0.0,
        noise=0.012,
        shadow=0.03,
    ),
    'target': Domain(
        epsg=32736,  # UTM zone 36 south
        palette=((0.44, 0.44, 0.26), (0.68, 0.48, 0.34), (0.78, 0.71, 0.63), (0.33, 0.36, 0.36)),
        spread=0.06,
        illumination=0.25,
        scale=0.8,
        haze=(0.1, 0.35),
        haze_color=(0.82, 0.76, 0.66),
        contrast=0.8,
        blur=0.7,
        stripes=0.02,
        noise=0.025,
        shadow=0.07,
    ),
}
"""The source resembles a temperate summer through a clean sensor, the target a dry, hazy season
through a coarser and noisier one. Both are inventions: no place or instrument is modelled."""


def observe(rng: np.random.Generator, structure: Structure, domain: Domain) -> NDArray[np.uint8]:
    """Image of a structure in a domain.

    Args:
        rng: Generator.
        structure: Surfaces and relief.
        domain: Place and sensor.

    Returns:
        (3, size, size) bytes.
    """
    size = structure.relief.shape[0]
    image: NDArray[np.floating]
    palette = np.asarray(domain.palette) + domain.spread * rng.standard_normal((4, 3))
    colors = palette.astype(np.float32)
    image = colors[structure.cover].transpose(2, 0, 1)
    light = 1 + domain.illumination * rng.uniform(-1, 1) + domain.shadow * noise(rng, size, 2)
    image = image * (1 + structure.relief) * light
    mean = image.mean(axis=(1, 2), keepdims=True)
    image = mean + domain.contrast * (image - mean)
    haze = rng.uniform(*domain.haze)
    image = (1 - haze) * image + haze * np.asarray(domain.haze_color)[:, None, None]
    image = _blur(image, domain.blur)
    image = image * (1 + domain.stripes * rng.standard_normal((3, 1, size)))
    image = image + domain.noise * rng.standard_normal((3, size, size))
    return np.round(255 * image.clip(0, 1)).astype(np.uint8)


def _blur(image: NDArray[np.floating], sigma: float) -> NDArray[np.floating]:
    """Gaussian point spread, separable, mirrored at the rim."""
    taps = np.arange(-3, 4)
    weights = np.exp(-(taps**2) / (2 * sigma**2))
    weights /= weights.sum()
    for axis in (1, 2):
        pad = [(0, 0)] * 3
        pad[axis] = (3, 3)
        padded = np.pad(image, pad, mode='symmetric')
        length = image.shape[axis]
        parts = [padded.take(range(k, k + length), axis) for k in range(7)]
        image = np.tensordot(weights, np.stack(parts), axes=1)
    return image
