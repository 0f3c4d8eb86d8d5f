"""Colours of classes, and the files beside a map that let other programs show its names."""

import colorsys
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree as XML

from torchgeo_explora._files import replacing

type Color = tuple[int, int, int]

# Turns of the colour circle that keep neighbours in the list far apart.
_GOLDEN = 0.618033988749895


def class_colors(count: int, given: Sequence[Color] | None = None) -> tuple[Color, ...]:
    """Return a colour for every class.

    Args:
        count: Number of classes.
        given: Those of the model; None to make some that are told apart well.

    Returns:
        Red, green and blue from 0 to 255.
    """
    if given is not None:
        return tuple(given)
    colors = []
    for index in range(count):
        hue, light = (0.58 + index * _GOLDEN) % 1, (0.95, 0.75, 0.55)[index // 7 % 3]
        red, green, blue = colorsys.hsv_to_rgb(hue, (0.75, 0.5)[index % 2], light)
        colors.append((round(255 * red), round(255 * green), round(255 * blue)))
    return tuple(colors)


def write_qml(path: Path, classes: Sequence[str], colors: Sequence[Color]) -> None:
    """Write a QGIS style: classes by name in their colours.

    Args:
        path: ``<name of the raster>.qml``, which QGIS opens with it.
        classes: Names, by value.
        colors: Of the classes.

    Raises:
        OutputError: If it cannot be written.
    """
    root = XML.Element('qgis', version='3.22', styleCategories='Symbology')
    pipe = XML.SubElement(root, 'pipe')
    renderer = XML.SubElement(
        pipe, 'rasterrenderer', type='paletted', band='1', opacity='1', alphaBand='-1'
    )
    palette = XML.SubElement(renderer, 'colorPalette')
    for value, (name, color) in enumerate(zip(classes, colors, strict=True)):
        hexadecimal = '#{:02x}{:02x}{:02x}'.format(*color)
        XML.SubElement(
            palette, 'paletteEntry', value=str(value), color=hexadecimal, label=name, alpha='255'
        )
    _write(path, root, "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n")


# Five colours of matplotlib's viridis, dark to bright: told apart by people who see few colours
_RAMP = ('#440154', '#3b528b', '#21918c', '#5ec962', '#fde725')


def write_heat_qml(path: Path, low: float, high: float) -> None:
    """Write a QGIS style: a ramp of colours between two values.

    Args:
        path: ``<name of the raster>.qml``, which QGIS opens with it.
        low: Value of the darkest colour.
        high: Value of the brightest.

    Raises:
        OutputError: If it cannot be written.
    """
    root = XML.Element('qgis', version='3.22', styleCategories='Symbology')
    pipe = XML.SubElement(root, 'pipe')
    renderer = XML.SubElement(
        pipe, 'rasterrenderer', type='singlebandpseudocolor', band='1', opacity='1',
        alphaBand='-1', classificationMin=f'{low:.6g}', classificationMax=f'{high:.6g}',
    )  # fmt: skip
    shader = XML.SubElement(renderer, 'rastershader')
    ramp = XML.SubElement(
        shader, 'colorrampshader', colorRampType='INTERPOLATED', classificationMode='1', clip='0',
        minimumValue=f'{low:.6g}', maximumValue=f'{high:.6g}',
    )  # fmt: skip
    for index, color in enumerate(_RAMP):
        value = f'{low + (high - low) * index / (len(_RAMP) - 1):.6g}'
        XML.SubElement(ramp, 'item', value=value, label=value, color=color, alpha='255')
    _write(path, root, "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n")


def write_names(path: Path, classes: Sequence[str]) -> None:
    """Write class names where GDAL looks for them.

    Args:
        path: ``<file name of the raster>.aux.xml``.
        classes: Names, by value.

    Raises:
        OutputError: If it cannot be written.
    """
    root = XML.Element('PAMDataset')
    band = XML.SubElement(root, 'PAMRasterBand', band='1')
    names = XML.SubElement(band, 'CategoryNames')
    for name in classes:
        XML.SubElement(names, 'Category').text = name
    _write(path, root)


def _write(path: Path, root: XML.Element, head: str = '') -> None:
    XML.indent(root)
    with replacing(path) as temporary:
        text = XML.tostring(root, encoding='unicode')
        temporary.write_text(f'{head}{text}\n', encoding='utf-8')
