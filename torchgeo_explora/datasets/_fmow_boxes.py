"""What fMoW's JSON files say of an image, and the part of it that is about its class."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchgeo_explora.errors import ImageError

from ._crops import Box
from ._csv import parse_hours

SMALLEST_BOX = 2
"""Boxes with a side of so many pixels or fewer are no images (fMoW's baseline)."""

# Share of a box' side that is added to it, by the side's share of the image from which on it is
# (fMoW's baseline, `dataFunctions.py`): small places are shown with more of what is around them.
_CONTEXT = ((0.5, 0.15), (0.4, 0.2), (0.3, 0.3), (0.2, 0.5), (0.1, 1.0), (0.0, 2.0))


@dataclass(frozen=True)
class ImageNotes:
    """What is known of an image.

    Args:
        boxes: Its boxes, in pixels of the image.
        categories: Class of each box.
        timestamp: When it was taken, in UTC.
    """

    boxes: tuple[Box, ...]
    categories: tuple[str, ...]
    timestamp: str


def read_notes(path: Path) -> ImageNotes:
    """Read a JSON file of fMoW.

    Args:
        path: ``<image>.json``.

    Returns:
        Boxes and time.

    Raises:
        OSError: If there is no such file.
        ImageError: If it has no boxes that can be read.
    """
    try:
        notes: dict[str, Any] = json.loads(path.read_text(encoding='utf-8'))
        found = notes['bounding_boxes']
        boxes = found if isinstance(found, list) else [found]
        sides = [[int(side) for side in box['box']] for box in boxes]
        return ImageNotes(
            tuple(Box(top, left, height, width) for left, top, width, height in sides),
            tuple(str(box.get('category', '')) for box in boxes),
            str(notes.get('timestamp', '')),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ImageError(
            f'{path.name} has no bounding_boxes with a box [left, top, width, height] ({error!r})'
        ) from error


def context_window(notes: ImageNotes, category: str, height: int, width: int) -> Box:
    """The part of an image that a class is about, with context, as fMoW's baseline cuts it.

    Of several boxes of the class the largest is taken. A box' width is compared with the image's
    height and its height with the image's width, as the baseline does it: published results were
    trained on such crops.

    Args:
        notes: What is known of the image.
        category: The class.
        height: Rows of the image.
        width: Columns of the image.

    Returns:
        A part of the image.

    Raises:
        ImageError: If no box of the class is large enough and inside the image.
    """
    boxes = [
        box
        for box, name in zip(notes.boxes, notes.categories, strict=True)
        if name in {category, ''} and min(box.height, box.width) > SMALLEST_BOX
    ]
    if not boxes:
        raise ImageError(f'it has no box of {category} of more than {SMALLEST_BOX} pixels')
    box = max(boxes, key=lambda box: box.height * box.width)
    across, down = _margin(box.width, height), _margin(box.height, width)
    top, bottom = max(box.top - down, 0), min(box.top + box.height + down, height)
    left, right = max(box.left - across, 0), min(box.left + box.width + across, width)
    if top >= bottom or left >= right:
        raise ImageError(f'its box of {category} lies outside of its {width}x{height} pixels')
    return Box(top, left, bottom - top, right - left)


def _margin(side: int, extent: int) -> int:
    """Pixels of context on either side of a box."""
    share = side / extent
    multiple = next(multiple for least, multiple in _CONTEXT if share >= least)
    return int(side * multiple / 2)


def hours_of(notes: ImageNotes) -> int:
    """When an image was taken.

    Args:
        notes: What is known of the image.

    Returns:
        Hours since 1970.

    Raises:
        ImageError: If the timestamp cannot be read.
    """
    hours, valid = parse_hours([notes.timestamp])
    if not valid[0]:
        raise ImageError(
            f'its timestamp {notes.timestamp!r} is none: give one like 2016-05-09T07:54:11Z'
        )
    return int(hours[0])
