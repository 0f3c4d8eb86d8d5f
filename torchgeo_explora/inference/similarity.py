"""Cosines of patch embeddings to the mean of some of them, tile by tile."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import ColorInterp
from rasterio.io import DatasetReader
from rasterio.windows import Window

from torchgeo_explora.errors import ConfigError, ImageError
from torchgeo_explora.inference.raster import (
    READ_ERRORS,
    RasterInfo,
    opened,
    read_info,
    unreadable,
)
from torchgeo_explora.inference.sources import Source, find_rasters
from torchgeo_explora.inference.windows import Block, Interval

PATCH_TAG = 'EMBEDDING_PATCH'
"""Tag by which a raster of embeddings, or a picture of one, says how large its patches are."""

HEAT_TAG = 'SIMILAR_TO'
"""Tag of heat maps."""

ORIGIN_TAGS = (
    'MODEL_WEIGHTS_SHA256',
    'EMBEDDING_BLOCKS',
    'EMBEDDING_NORM',
    'EMBEDDING_PCA_FITTED_ON',
)
"""Tags that tell what embeddings mean."""

TILE = 128
"""Side of what is read at once, in cells."""

BINS = 4000
"""Of a histogram of cosines, from -1 to 1."""

READ_MEMORY = 32 * 2**20
"""Bytes of embeddings that are read at once."""

type Vector = NDArray[np.float64]


@dataclass(frozen=True)
class EmbeddingRaster:
    """A raster whose bands are the embedding of a patch.

    Args:
        info: Its header.
        width: Length of an embedding.
        origin: Weights, blocks and components that made it; embeddings of others mean something
            else.
        nodata: Value of cells without data.
        scales: (width,) factors of what is stored.
        offsets: (width,) what is added to it.
    """

    info: RasterInfo
    width: int
    origin: tuple[str, ...]
    nodata: float | None
    scales: NDArray[np.float64] = field(repr=False)
    offsets: NDArray[np.float64] = field(repr=False)

    def squares(self, side: int) -> Iterator[Block]:
        """Cut the raster into squares, row by row.

        Args:
            side: In cells; squares at the ends may be smaller.
        """
        extent = self.info.extent
        for top in range(0, extent.height, side):
            for left in range(0, extent.width, side):
                rows = Interval(top, min(top + side, extent.height))
                yield Block(rows, Interval(left, min(left + side, extent.width)))

    def tiles(self) -> Iterator[Block]:
        """Cut the raster into parts that can be read at once, row by row."""
        extent = self.info.extent
        for left in range(0, extent.width, TILE):
            across = Interval(left, min(left + TILE, extent.width))
            yield from self.slices(Block(Interval(0, extent.height), across))

    def slices(self, part: Block) -> Iterator[Block]:
        """Cut a part of the raster into rows that can be read at once.

        Args:
            part: Which, of as many columns as a tile.
        """
        rows = min(max(READ_MEMORY // (4 * TILE * self.width), 1), TILE)
        for top in range(part.rows.first, part.rows.stop, rows):
            yield Block(Interval(top, min(top + rows, part.rows.stop)), part.columns)

    def directions(self, source: DatasetReader, block: Block) -> NDArray[np.float32]:
        """Read embeddings, each of length 1.

        Args:
            source: The open raster.
            block: Which part.

        Returns:
            (height, width, length of an embedding); NaN where there is no data.

        Raises:
            ImageError: If it cannot be read.
        """
        rows, columns = block.rows, block.columns
        window = Window(columns.first, rows.first, columns.length, rows.length)
        try:
            stored = source.read(window=window).transpose(1, 2, 0)
        except READ_ERRORS as error:
            raise unreadable(self.info.path, error) from error
        values = (stored * self.scales + self.offsets).astype(np.float32)
        if self.nodata is not None and not np.isnan(self.nodata):
            values[stored == self.nodata] = np.nan
        with np.errstate(invalid='ignore', divide='ignore'):
            unit: NDArray[np.float32] = values / np.linalg.norm(values, axis=2, keepdims=True)
        return unit


def _holds_embeddings(source: DatasetReader) -> bool:
    picture = ColorInterp.alpha in source.colorinterp
    return PATCH_TAG in source.tags() and not picture


@dataclass(frozen=True)
class Sorted:
    """Rasters by what they hold.

    Args:
        ready: Those of embeddings.
        others: Those of something else.
        unreadable: Those that cannot be opened; whoever has to read them says why.
    """

    ready: tuple[Source, ...]
    others: tuple[Source, ...]
    unreadable: tuple[Source, ...]


def sort_sources(sources: Sequence[Source]) -> Sorted:
    """Look at what rasters hold.

    Args:
        sources: The rasters; heat maps among them are results, and left out.
    """
    kinds: dict[str, list[Source]] = {'ready': [], 'others': [], 'unreadable': []}
    for source in sources:
        kind = _kind(source)
        if kind is not None:
            kinds[kind].append(source)
    return Sorted(**{kind: tuple(found) for kind, found in kinds.items()})


def _kind(source: Source) -> str | None:
    if source.reason is not None:
        return 'unreadable'
    try:
        with opened(source.path) as raster:
            tags, embeddings = raster.tags(), _holds_embeddings(raster)
    except ImageError:
        return 'unreadable'
    if HEAT_TAG in tags:
        return None
    return 'ready' if embeddings else 'others'


def list_embeddings(items: Sequence[str | os.PathLike[str] | Source], work: Path) -> list[Source]:
    """List rasters of embeddings.

    Args:
        items: Rasters, or what :func:`find_rasters` takes; of the latter, rasters of something else
            are left out where there is one of embeddings.
        work: Folder of unfinished work, in which there are none.

    Raises:
        ConfigError: If there is none.
    """
    sources = [item for item in items if isinstance(item, Source)]
    named = [item for item in items if not isinstance(item, Source)]
    found = sort_sources(find_rasters(named, work) if named else [])
    wanted = (*found.ready, *found.unreadable)
    return [*sources, *(wanted if found.ready else (*wanted, *found.others))]


def read_embedding(path: str) -> EmbeddingRaster:
    """Read the header of a raster of embeddings.

    Args:
        path: Of anything that GDAL opens.

    Raises:
        ImageError: If it cannot be opened, or is no such raster.
    """
    info = read_info(path)
    with opened(path) as source:
        tags = source.tags()
        if not _holds_embeddings(source):
            raise ImageError(
                f'{path} is no raster of embeddings: make one with `torchgeo-explora embed`, or '
                'give --weights to have it made.'
            )
        return EmbeddingRaster(
            info,
            source.count,
            (str(source.count), *(tags.get(name, '') for name in ORIGIN_TAGS)),
            source.nodata,
            np.asarray(source.scales),
            np.asarray(source.offsets),
        )


@dataclass
class MeanDirection:
    """The mean of embeddings of length 1, which are added some at a time.

    Args:
        total: Their sum.
        count: How many they are.
    """

    total: Vector | float = 0.0
    count: int = 0

    def add(self, directions: NDArray[np.float32], chosen: NDArray[np.bool_]) -> int:
        """Add embeddings.

        Args:
            directions: (height, width, length of an embedding), NaN where there is no data.
            chosen: (height, width).

        Returns:
            How many were added.
        """
        taken = directions[chosen & np.isfinite(directions).all(axis=2)].astype(np.float64)
        self.total = self.total + taken.sum(axis=0)
        self.count += len(taken)
        return len(taken)

    @property
    def mean(self) -> Vector:
        """The mean (length of an embedding,)."""
        return np.asarray(self.total) / max(self.count, 1)


def query_of(like: MeanDirection, unlike: MeanDirection | None) -> NDArray[np.float32]:
    """Return the direction that embeddings are compared with.

    With counter-examples it is the difference of the two means (Rocchio 1971, "Relevance feedback
    in information retrieval", with equal weights): what sets the one apart from the other.

    Args:
        like: Mean of what is looked for.
        unlike: Mean of what is not; None without.

    Returns:
        (length of an embedding,), of length 1.

    Raises:
        ConfigError: If the means point nowhere, or are the same.
    """
    query = like.mean if unlike is None or unlike.count == 0 else like.mean - unlike.mean
    length = float(np.linalg.norm(query))
    if not length > 1e-6:  # of means of directions, whose lengths are at most 1
        raise ConfigError(
            'The chosen places have no direction in common, or that of the places to be avoided: '
            'choose others.'
        )
    unit: NDArray[np.float32] = (query / length).astype(np.float32)
    return unit


@dataclass(frozen=True)
class Spread:
    """How often cosines occur.

    Args:
        counts: In bins of equal width from -1 to 1.
    """

    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, dtype=np.int64))

    def with_values(self, cosines: NDArray[np.float32]) -> 'Spread':
        """Return the spread of these cosines too.

        Args:
            cosines: Of any shape, NaN where there is no data.
        """
        finite = cosines[np.isfinite(cosines)]
        bins = np.clip(((finite + 1) / 2 * BINS).astype(np.int64), 0, BINS - 1)
        return Spread(self.counts + np.bincount(bins, minlength=BINS))

    def quantile(self, share: float) -> float:
        """Return the cosine below which a share of all lies, to the width of a bin.

        Args:
            share: From 0 to 1.
        """
        total = self.counts.cumsum()
        reached = min(int(np.searchsorted(total, share * total[-1])), BINS - 1)
        return (reached + 0.5) * 2 / BINS - 1
