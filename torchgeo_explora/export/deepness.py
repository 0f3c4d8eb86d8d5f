"""What the QGIS plugin Deepness reads in an ONNX file.

Every value is JSON. Deepness divides what it reads from a raster by 255, whatever its type, then
subtracts ``standardization_mean`` and divides by ``standardization_std`` (version 0.7 and later).
"""

import json

from torchgeo_explora.export.portable import PortableSpec

BYTES = 255.0
"""What Deepness divides by."""

MODEL_TYPES = {'segmentation': 'Segmentor', 'embedding': 'Recognition'}
"""Deepness' names of what a model does; it has none for one class a tile."""

OVERLAP = 25
"""Percent of a tile that neighbours share, as ``predict`` has it."""

SMALLEST_RESOLUTION = 1e-3
"""A pixel that is said to be smaller, in metres, is rather one of degrees."""


def deepness_metadata(spec: PortableSpec, resolution: float | None = None) -> dict[str, str]:
    """Return the metadata of an ONNX file.

    Args:
        spec: Describes the model.
        resolution: Size of a pixel in metres; that of ``spec`` by default, where it is one.

    Returns:
        Texts: ``model_type`` (where Deepness has one), ``class_names``, ``tile_size`` and, as older
        versions and the documentation spell it, ``tiles_size``, ``tiles_overlap`` (percent),
        ``resolution`` (centimetres), ``standardization_mean`` and ``standardization_std`` (of
        values divided by 255), and for segmentation ``seg_thresh`` and ``seg_small_segment``: 0,
        so that every pixel has the likeliest class.
    """
    mean, std = standardization(spec)
    values: dict[str, object] = {
        'tile_size': spec.side,
        'tiles_size': spec.side,
        'tiles_overlap': OVERLAP,
        'standardization_mean': mean,
        'standardization_std': std,
    }
    if spec.task in MODEL_TYPES:
        values['model_type'] = MODEL_TYPES[spec.task]
    if spec.classes:
        values['class_names'] = dict(enumerate(spec.classes))
    if spec.task == 'segmentation':
        values |= {'seg_thresh': 0.0, 'seg_small_segment': 0}
    metres = metres_of(spec) if resolution is None else resolution
    if metres is not None:
        values['resolution'] = round(metres * 100, 6)
    return {name: json.dumps(value) for name, value in values.items()}


def standardization(spec: PortableSpec) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of raw values divided by 255.

    Where the model does not tell the raw values of its images, they are taken for bytes.
    """
    if spec.images.scale is None:
        return list(spec.images.mean), list(spec.images.std)
    mean, std = spec.raw_statistics()
    return [value / BYTES for value in mean], [value / BYTES for value in std]


def metres_of(spec: PortableSpec) -> float | None:
    """Return the size of a pixel in metres, or None where it is not known or rather in degrees."""
    resolution = spec.images.resolution
    known = resolution is not None and resolution >= SMALLEST_RESOLUTION
    return resolution if known else None
