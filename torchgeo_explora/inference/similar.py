"""Places like those that a user points at: heat maps of similarity, and the best places."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray

from torchgeo_explora import __version__
from torchgeo_explora._files import replacing
from torchgeo_explora.errors import ConfigError, ExploraError, ImageError
from torchgeo_explora.inference.codecs import ByteCodec, Codec, FloatCodec
from torchgeo_explora.inference.cog import TILE, Picture, write_cog
from torchgeo_explora.inference.maps import refusing
from torchgeo_explora.inference.places import ChosenCells, Places
from torchgeo_explora.inference.ranking import Ranking, grown, write_places
from torchgeo_explora.inference.raster import SETTINGS, opened
from torchgeo_explora.inference.similarity import (
    BINS,
    HEAT_TAG,
    EmbeddingRaster,
    MeanDirection,
    Spread,
    list_embeddings,
    query_of,
    read_embedding,
)
from torchgeo_explora.inference.sources import Source
from torchgeo_explora.inference.style import write_heat_qml
from torchgeo_explora.inference.windows import Block, Interval
from torchgeo_explora.inference.work import WorkFolder

DTYPES = ('float32', 'int8')

LARGEST_SIDE = 1001
"""Of a place, in patches: what is around a tile of the raster is kept in memory to that width."""

DARKEST, BRIGHTEST = 0.5, 0.999
"""Shares of all patches that are less similar than the ends of the colours."""

PLACES = 'places.gpkg'


@dataclass(frozen=True)
class SimilarSettings:
    """What is looked for, and how it is written.

    Args:
        like: Positions and vector files of what is looked for.
        unlike: The same of what is not.
        top: Places that are listed; 0 for none.
        side: Side of a place in patches.
        dtype: ``float32``, or ``int8`` with a scale: a quarter of the size, and an error of at most
            1/254.

    Raises:
        ConfigError: If a value is not possible.
    """

    like: tuple[str, ...]
    unlike: tuple[str, ...] = ()
    top: int = 20
    side: int = 3
    dtype: str = 'float32'

    def __post_init__(self) -> None:
        """Check the values."""
        if not self.like:
            raise ConfigError('Nothing is looked for: give a place with --like.')
        if self.top < 0 or not 1 <= self.side <= LARGEST_SIDE:
            raise ConfigError(
                f'top is {self.top} and side {self.side}: give 0 or more places, of 1 to '
                f'{LARGEST_SIDE} patches a side.'
            )
        if self.dtype not in DTYPES:
            raise ConfigError(f'dtype is {self.dtype!r}: choose from {", ".join(DTYPES)}.')


@dataclass
class Found:
    """What became of a search.

    Args:
        written: Files, by raster.
        failed: Reasons, by raster.
        chosen: Patches that the places took.
        avoided: Patches that the counter-examples took.
        places: The best places: rank, similarity, file, row, column, longitude, latitude.
        table: File of the places; None where there is none.
    """

    written: dict[str, list[str]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    chosen: int = 0
    avoided: int = 0
    places: list[dict[str, Any]] = field(default_factory=list)
    table: str | None = None


def find_similar(
    embeddings: Sequence[str | os.PathLike[str] | Source],
    out: str | Path,
    settings: SimilarSettings,
    *,
    resume: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Found:
    """Compare every patch of rasters with the patches at some places.

    ``<name>_similarity.tif`` has the cosine of each patch's embedding to the mean of those chosen,
    and ``places.gpkg`` the most similar squares that neither overlap one another nor what was
    chosen. A raster that cannot be read is named, and the others go on.

    Args:
        embeddings: Rasters that ``embed`` wrote: files, folders (pictures beside them are left
            out), globs, lists in text files.
        out: Folder of the results.
        settings: What is looked for.
        resume: Whether results in ``out`` may be replaced by those of the same search.
        progress: Told how many patches are through, of how many.

    Returns:
        What became of it.

    Raises:
        ExploraError: If nothing at all can be done.
    """
    with rasterio.Env(**SETTINGS):
        search = _Search(Path(out).expanduser(), settings, progress)
        search.open(list_embeddings(embeddings, search.folder.path))
        search.look()
        search.begin(resume)
        with search.folder.recorded():
            search.compare()
            return search.conclude()


@dataclass
class _Raster:
    """A raster of embeddings, and what the user points at in it."""

    number: int
    source: Source
    embedding: EmbeddingRaster
    like: ChosenCells | None
    unlike: ChosenCells | None


class _Search:
    """The work of one call."""

    def __init__(
        self, out: Path, settings: SimilarSettings, progress: Callable[[int, int], None] | None
    ) -> None:
        self.out, self.settings, self.progress = out, settings, progress
        self.like = Places(settings.like)
        self.unlike = Places(settings.unlike) if settings.unlike else None
        self.folder = WorkFolder(out, (), '.torchgeo-explora-similar')
        self.rasters: list[_Raster] = []
        self.found = Found()
        self.ranking = Ranking(settings.top, settings.side)
        self.spread = Spread()
        self._done = 0

    def open(self, sources: Sequence[Source]) -> None:
        """Read the headers, and bring the places to each raster."""
        for number, source in enumerate(sources):
            try:
                if source.reason is not None:
                    raise ImageError(source.reason)
                embedding = read_embedding(source.path)
                self._check_origin(embedding)
                like = self._within(self.like, embedding)
                unlike = None if self.unlike is None else self._within(self.unlike, embedding)
                self.rasters.append(_Raster(number, source, embedding, like, unlike))
            except ExploraError as error:
                self.found.failed[source.path] = str(error)
        if not self.rasters:
            reasons = next(iter(self.found.failed.values()), 'no raster was given')
            raise ConfigError(f'No raster of embeddings can be read: {reasons}')

    def _within(self, places: Places, embedding: EmbeddingRaster) -> ChosenCells | None:
        placed = embedding.info.place.placed
        return places.within(embedding.info) if placed else None

    def _check_origin(self, embedding: EmbeddingRaster) -> None:
        first = self.rasters[0].embedding if self.rasters else embedding
        if embedding.origin != first.origin:
            raise ImageError(
                f'{embedding.info.path} holds embeddings of another model, other blocks or other '
                f'components than {first.info.path}: compare those of one.'
            )

    def look(self) -> None:
        """Take the mean of the embeddings at the places."""
        like, unlike = MeanDirection(), MeanDirection()
        for raster in list(self.rasters):
            try:
                self._add(raster, like, unlike)
            except ImageError as error:
                self._fail(raster, error)
        self.found.chosen, self.found.avoided = like.count, unlike.count
        if like.count == 0:
            raise ConfigError(
                f'{", ".join(self.settings.like)} lies on no patch with data of any raster: point '
                'at a place inside one (longitude before latitude).'
            )
        if self.unlike is not None and unlike.count == 0:
            raise ConfigError(
                f'{", ".join(self.settings.unlike)} lies on no patch with data of any raster: '
                'point at a place inside one, or leave --unlike out.'
            )
        self.query = query_of(like, unlike)

    def _add(self, raster: _Raster, like: MeanDirection, unlike: MeanDirection) -> None:
        if raster.like is None and raster.unlike is None:
            return
        with opened(raster.embedding.info.path) as source:
            for block in raster.embedding.tiles():
                masks = [
                    (mean, cells.mask(block))
                    for mean, cells in ((like, raster.like), (unlike, raster.unlike))
                    if cells is not None
                ]
                if any(mask.any() for _, mask in masks):
                    directions = raster.embedding.directions(source, block)
                    for mean, mask in masks:
                        mean.add(directions, mask)

    def _fail(self, raster: _Raster, error: ExploraError) -> None:
        self.found.failed[raster.source.path] = str(error)
        self.rasters.remove(raster)
        self.ranking.forget(raster.number)

    def target(self, raster: _Raster) -> Path:
        """Where the heat map of a raster goes."""
        stem = raster.source.target.removesuffix('_embedding')
        return self.out / f'{stem}_similarity.tif'

    def begin(self, resume: bool) -> None:
        """Begin the work in the folder, or do the same work again."""
        if self.out.exists() and not self.out.is_dir():
            raise ConfigError(f'{self.out} is a file: give a folder for the results.')
        there = [path for path in map(self.target, self.rasters) if path.exists()]
        if there and not resume:
            raise ConfigError(
                f'{there[0]} exists already: choose another folder for another search, or finish '
                'the same one with --resume.'
            )
        manifest = {
            'sources': [raster.source.path for raster in self.rasters],
            'settings': asdict(self.settings),
            'places': self.like.description,
            'embeddings': list(self.rasters[0].embedding.origin),
            'version': __version__,
        }
        self.folder.start(manifest, resume, command='similar')

    def compare(self) -> None:
        """Write the heat map of every raster."""
        self.folder.path.mkdir(parents=True, exist_ok=True)
        total = sum(raster.embedding.info.extent.area for raster in self.rasters)
        for raster in list(self.rasters):
            try:
                self._compare(raster, total)
            except ImageError as error:
                self._fail(raster, error)

    def _compare(self, raster: _Raster, total: int) -> None:
        path, info = self.target(raster), raster.embedding.info
        picture = Picture(
            extent=info.extent,
            place=info.place,
            names=('similarity',),
            codec=self._codec(),
            tags=self._tags(raster),
        )
        before = self.spread
        with opened(info.path) as source, refusing(path):
            scratch = self.folder.path / f'{raster.number:06d}.tif'

            def read(part: Block) -> NDArray[np.float32]:
                similarity = self._part(raster, source, part)
                self._count(raster, part, similarity, total)
                return similarity[None]

            try:
                write_cog(scratch, picture, list(raster.embedding.squares(TILE)), read)
            except ImageError:
                self.spread = before
                raise
            path.parent.mkdir(parents=True, exist_ok=True)
            scratch.replace(path)
        self.found.written[raster.source.path] = [str(path)]

    def _codec(self) -> Codec:
        if self.settings.dtype == 'int8':
            return ByteCodec(np.array([-1.0]), np.array([1.0]))
        return FloatCodec(1, half=False)

    def _tags(self, raster: _Raster) -> dict[str, str]:
        hashed, blocks = raster.embedding.origin[1:3]
        return {
            'TIFFTAG_SOFTWARE': f'torchgeo_explora {__version__}',
            'MODEL_WEIGHTS_SHA256': hashed,
            'EMBEDDING_BLOCKS': blocks,
            HEAT_TAG: json.dumps(list(self.settings.like)),
            'SIMILAR_NOT_TO': json.dumps(list(self.settings.unlike)),
        }

    def _part(
        self, raster: _Raster, source: rasterio.io.DatasetReader, part: Block
    ) -> NDArray[np.float32]:
        """Cosines of a tile, some rows at a time."""
        result = np.empty((part.rows.length, part.columns.length), dtype=np.float32)
        for block in raster.embedding.slices(part):
            directions = raster.embedding.directions(source, block)
            result[block.rows.within(part.rows.first)] = directions @ self.query
        return np.clip(result, -1, 1)

    def _count(
        self, raster: _Raster, part: Block, similarity: NDArray[np.float32], total: int
    ) -> None:
        self.spread = self.spread.with_values(similarity)
        if self.settings.top > 0:
            self.ranking.add(raster.number, part, similarity, self._taken(raster, part))
        self._done += part.area
        if self.progress is not None:
            self.progress(self._done, total)

    def _taken(self, raster: _Raster, part: Block) -> NDArray[np.bool_]:
        """Cells whose square would hold a patch that was chosen."""
        around = self.settings.side // 2
        rows = Interval(part.rows.first - around, part.rows.stop + around)
        columns = Interval(part.columns.first - around, part.columns.stop + around)
        wide = np.zeros((rows.length, columns.length), dtype=np.bool_)
        for cells in (raster.like, raster.unlike):
            if cells is not None:
                wide |= cells.mask(Block(rows, columns))
        inner = np.s_[around : around + part.rows.length, around : around + part.columns.length]
        return grown(wide, around)[inner]

    def conclude(self) -> Found:
        """Write the styles and the places."""
        low, high = (self.spread.quantile(share) for share in (DARKEST, BRIGHTEST))
        for raster in self.rasters:
            style = self.target(raster).with_suffix('.qml')
            write_heat_qml(style, low, max(high, low + 2 / BINS))
            self.found.written[raster.source.path].append(str(style))
        if self.settings.top > 0:
            self._write_places()
        shutil.rmtree(self.folder.path, ignore_errors=True)
        with replacing(self.folder.report) as temporary:
            temporary.write_text(json.dumps(asdict(self.found), indent=1), encoding='utf-8')
        return self.found

    def _write_places(self) -> None:
        infos = {raster.number: raster.embedding.info for raster in self.rasters}
        names = {raster.number: raster.source.path for raster in self.rasters}
        frame = self.ranking.places(infos)
        frame.insert(2, 'file', [names[number] for number in frame.pop('raster')])
        path = self.out / PLACES
        scratch = self.folder.path / PLACES
        modified = max(_modified(raster.source.path) for raster in self.rasters)
        with refusing(path):
            scratch.unlink(missing_ok=True)
            write_places(frame, scratch, modified)
            scratch.replace(path)
        self.found.places = json.loads(frame.drop(columns='geometry').to_json(orient='records'))
        self.found.table = str(path)


def _modified(path: str) -> float:
    file = Path(path)
    return file.stat().st_mtime if file.is_file() else 0.0
