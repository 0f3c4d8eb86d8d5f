"""Divide windows among training, validation and test so that no ground is in two of them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import shapely
from numpy.typing import NDArray

from torchgeo_explora.errors import ConfigError, ImageError

from ._grids import RasterWindow, Size, boxes, by_file, grid, widened
from ._ground import Ground, Place
from ._vectors import Geometries

type Split = Literal['train', 'val', 'test']

SPLITS: tuple[Split, ...] = ('train', 'val', 'test')

type Metres = NDArray[np.float64]
"""One distance for each of something."""

BLOCK_WINDOWS = (8, 4, 2, 1)
"""Windows along a block's side, from which the first is taken that gives enough blocks."""

ENOUGH_BLOCKS = 6
"""Blocks that leave the draw some choice, and validation and test more than one place."""


SAME_AREA = 0.01
"""Share by which areas on the ground may differ where windows have as many pixels."""


@dataclass(frozen=True)
class SplitOptions:
    """How ground is divided.

    Args:
        val_fraction: Share of the windows for validation, from 0 to below 1.
        test_fraction: Share of the windows for testing, likewise.
        block_size: Side of the square blocks that are drawn, in metres; None for 8, 4, 2 or 1
            windows, the first that gives 6 blocks with data.
        gap: Metres between a training window and any other split's; None for as much as the training
            windows of the same raster overlap, which is 0 where there is only one.
        overlap: Share of a training window that its neighbour shares, from 0 to below 1.
        seed: Seed of the draw.

    Raises:
        ConfigError: If a number is out of range.
    """

    val_fraction: float = 0.15
    test_fraction: float = 0.15
    block_size: float | None = None
    gap: float | None = None
    overlap: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers."""
        shares = (self.val_fraction, self.test_fraction)
        if min(shares) < 0 or sum(shares) >= 1:
            raise ConfigError(
                f'val_fraction {shares[0]} and test_fraction {shares[1]}: give two numbers of at '
                'least 0 with a sum below 1.'
            )
        if self.block_size is not None and self.block_size <= 0:
            raise ConfigError(f'block_size is {self.block_size}: give metres above 0, or null.')
        if self.gap is not None and self.gap < 0:
            raise ConfigError(f'gap is {self.gap}: give metres of at least 0, or null.')
        if not 0 <= self.overlap < 1:
            raise ConfigError(f'overlap is {self.overlap}: give a share from 0 to below 1.')


@dataclass(frozen=True)
class SpatialSplit:
    """Windows of every split.

    Args:
        windows: By split; training windows may overlap one another.
        block_size: Side of a block in metres.
        gap: Most metres that other splits have to keep from a training window.
        dropped: How many of the windows that cover the rasters lie too near to another split.
    """

    windows: dict[Split, list[RasterWindow]]
    block_size: float
    gap: float
    dropped: int


def footprints(
    windows: Sequence[RasterWindow], places: Sequence[Place], ground: Ground
) -> Geometries:
    """Ground that windows of different rasters cover, (N,) of polygons."""
    shapes = np.empty(len(windows), dtype=np.object_)
    for file, positions in by_file(windows).items():
        chosen = boxes(windows[position] for position in positions)
        shapes[positions] = ground.footprints(places[file], chosen)
    return shapes


def divide(
    windows: Sequence[RasterWindow],
    places: Sequence[Place],
    ground: Ground,
    sizes: Sequence[Size],
    options: SplitOptions,
) -> SpatialSplit:
    """Draw square blocks of ground for validation and test, and keep the others away from them.

    A window belongs to the block of its middle. Where a validation and a test window share ground,
    the larger one is dropped, and so are training windows nearer than the gap to either; footprints
    are compared on the ground, so that it does not matter how files overlap each other.

    Args:
        windows: Windows with data that cover all rasters; those of one raster do not share pixels
            that count.
        places: The rasters.
        ground: Projection to compare in.
        sizes: Size of a window in each raster.
        options: How to divide.

    Returns:
        The windows of every split. Those for training have been moved closer together, and may lie
        where there are no data.

    Raises:
        ImageError: If there is too little ground for the splits that were asked for.
    """
    shapes = footprints(windows, places, ground)
    block_size = _block_size(shapes) if options.block_size is None else options.block_size
    blocks = _blocks(shapes, block_size)
    split_of = _draw(blocks, block_size, options)
    part = np.array([split_of[block] for block in blocks])
    kept = ~_conflicts(shapes, part)
    others = shapes[(part != 'train') & kept]
    gaps = _gaps(places, sizes, ground, options)
    near = _near(shapes, others, _of_files(gaps, windows)) & (part == 'train')
    found: dict[Split, list[RasterWindow]] = {
        'train': _training(
            _candidates(places, sizes, options.overlap), places, ground, others, gaps
        ),
        'val': [windows[index] for index in np.flatnonzero((part == 'val') & kept).tolist()],
        'test': [windows[index] for index in np.flatnonzero((part == 'test') & kept).tolist()],
    }
    dropped = int(near.sum() + (~kept).sum())
    return SpatialSplit(found, block_size, float(gaps.max()), dropped)


def _block_size(shapes: Geometries) -> float:
    """Side of a block, from the usual side of a window."""
    side = float(np.median(np.sqrt(shapely.area(shapes))))
    for count in BLOCK_WINDOWS:
        if len(set(_blocks(shapes, count * side))) >= ENOUGH_BLOCKS:
            return count * side
    return BLOCK_WINDOWS[-1] * side


def _blocks(shapes: Geometries, side: float) -> list[tuple[int, int]]:
    """Column and row of the block that the middle of every shape lies in."""
    middles = shapely.get_coordinates(shapely.centroid(shapes))
    corner = shapely.total_bounds(shapes)[:2]
    return [(int(column), int(row)) for column, row in np.floor((middles - corner) / side)]


def _draw(
    blocks: Sequence[tuple[int, int]], side: float, options: SplitOptions
) -> dict[tuple[int, int], Split]:
    """Split of every block, drawn until each has about its share of the windows."""
    counts = Counter(blocks)
    names = sorted(counts)
    order = [names[index] for index in np.random.default_rng(options.seed).permutation(len(names))]
    shares: dict[Split, float] = {'test': options.test_fraction, 'val': options.val_fraction}
    wanted = [split for split, share in shares.items() if share > 0]
    if len(names) <= len(wanted):
        raise ImageError(
            f'The rasters hold data in {len(names)} blocks of {side:.4g} m only, too few for '
            f'{" and ".join(("train", *reversed(wanted)))}: give a smaller block_size or image_size, '
            'or val_fraction or test_fraction 0.'
        )
    split_of: dict[tuple[int, int], Split] = {}
    for split in wanted:
        left = [block for block in order if block not in split_of]
        # one block has to remain for every split that is still to come, and for training
        spare = len(left) - (len(wanted) - wanted.index(split))
        chosen = _share(left, counts, shares[split] * len(blocks))[:spare]
        split_of |= dict.fromkeys(chosen, split)
    return {block: split_of.get(block, 'train') for block in order}


def _share(
    blocks: Sequence[tuple[int, int]], counts: Mapping[tuple[int, int], int], target: float
) -> list[tuple[int, int]]:
    """The first blocks that together come closest to a number of windows; at least one."""
    chosen, total = [], 0
    for block in blocks:
        if abs(total + counts[block] - target) <= abs(total - target):
            chosen.append(block)
            total += counts[block]
    return chosen if chosen else [min(blocks, key=lambda block: counts[block])]


def _conflicts(shapes: Geometries, part: NDArray[np.str_]) -> NDArray[np.bool_]:
    """Which shapes to drop so that no validation shape shares ground with a test shape."""
    val, test = np.flatnonzero(part == 'val'), np.flatnonzero(part == 'test')
    dropped = np.zeros(len(shapes), dtype=bool)
    pairs = shapely.STRtree(shapes[test]).query(shapes[val], predicate='intersects')
    first, second = val[pairs[0]], test[pairs[1]]
    larger = shapely.area(shapes[second]) > (1 + SAME_AREA) * shapely.area(shapes[first])
    dropped[np.where(larger, second, first)] = True
    return dropped


def _candidates(
    places: Sequence[Place], sizes: Sequence[Size], overlap: float
) -> list[RasterWindow]:
    """Overlapping windows of all rasters, whose pixels are all their own."""
    found = []
    for file, (place, size) in enumerate(zip(places, sizes, strict=True)):
        stride = Size(*(max(round(side * (1 - overlap)), 1) for side in size))
        slack = max(min(stride) // 2, 1)
        found += [
            replace(window, covered_rows=0, covered_columns=0, slack=slack)
            for window in grid(file, place, size, stride)
        ]
    return found


def _gaps(
    places: Sequence[Place], sizes: Sequence[Size], ground: Ground, options: SplitOptions
) -> Metres:
    """Gap that the training windows of every raster need."""
    if options.gap is not None:
        return np.full(len(places), options.gap)
    pixels = np.array([ground.pixel(place) for place in places])
    sides = np.array([(place.height, place.width) for place in places])
    overlaps = options.overlap * np.where(sides > np.array(sizes), sizes, 0) * pixels
    gaps: Metres = overlaps.max(axis=1)
    return gaps


def _of_files(values: Metres, windows: Sequence[RasterWindow]) -> Metres:
    """Value of the raster of every window."""
    return values[np.array([window.file for window in windows], dtype=np.int64)]


def _near(shapes: Geometries, others: Geometries, gaps: float | Metres) -> NDArray[np.bool_]:
    """Which shapes come nearer than ``gaps`` metres to any of the others."""
    near = np.zeros(len(shapes), dtype=bool)
    if len(others) and len(shapes):
        hits = shapely.STRtree(others).query(shapes, predicate='dwithin', distance=gaps)
        near[hits[0]] = True
    return near


def _training(
    candidates: Sequence[RasterWindow],
    places: Sequence[Place],
    ground: Ground,
    others: Geometries,
    gaps: Metres,
) -> list[RasterWindow]:
    """Windows far enough from the others; they keep their slack where that is so all over it."""
    shapes = footprints(candidates, places, ground)
    free = ~_near(shapes, others, _of_files(gaps, candidates))
    kept = [window for window, is_free in zip(candidates, free, strict=True) if is_free]
    wide = [widened(window, places[window.file], window.slack) for window in kept]
    tight = _near(footprints(wide, places, ground), others, _of_files(gaps, kept))
    return [
        replace(window, slack=0) if is_tight else window
        for window, is_tight in zip(kept, tight, strict=True)
    ]
