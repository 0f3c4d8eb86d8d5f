"""Write an analysis: a picture a figure, the numbers as CSV and JSON, and one page of all of it."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from torchgeo_explora._figures import save_png
from torchgeo_explora._files import replacing
from torchgeo_explora.analysis import plots
from torchgeo_explora.analysis.html import Page
from torchgeo_explora.analysis.similarity import cka_matrix
from torchgeo_explora.analysis.study import BlockMeasures

PAGE = 'report.html'
NUMBERS = 'analysis.json'
TABLE = 'blocks.csv'

Maps = NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures of features of some images; empty where there are none.

    Args:
        images: (h, w, 3) in [0, 1].
        names: Of the images.
        attention: By model, attention of the class token (images, heads, h, w).
        components: By model, colours of the patches (images, gh, gw, 3).
        notes: What could not be drawn, and why.
    """

    images: Sequence[Maps]
    names: Sequence[str]
    attention: Mapping[str, Maps]
    components: Mapping[str, Maps]
    notes: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class Similarity:
    """How alike the blocks of two models are.

    Args:
        first: Name of a model.
        second: Name of another.
        matrix: Linear CKA of every pair of blocks, rows for the first model.
        blocks: Of the two models.
    """

    first: str
    second: str
    matrix: NDArray[np.float64]
    blocks: tuple[tuple[int, ...], tuple[int, ...]]

    @property
    def name(self) -> str:
        """Names of both."""
        return f'{self.first} and {self.second}'

    @property
    def same(self) -> plots.Curve:
        """Similarity of the blocks of one number."""
        shared = [block for block in self.blocks[0] if block in self.blocks[1]]
        rows, columns = ([part.index(block) for block in shared] for part in self.blocks)
        return plots.Curve(shared, self.matrix[rows, columns])


def compare_blocks(models: Mapping[str, BlockMeasures]) -> list[Similarity]:
    """Compare every block of the first model with every block of the others.

    Args:
        models: What was measured on the same images, by name.
    """
    (first, base), *others = models.items()
    rows = [torch.from_numpy(x) for x in base.sample]
    return [
        Similarity(
            first, name, cka_matrix(rows, [torch.from_numpy(x) for x in other.sample]).numpy(),
            (base.blocks, other.blocks),
        )
        for name, other in others
    ]  # fmt: skip


_TOLD = 'What a single patch tells'
_ALIKE = 'How alike the models are'


@dataclass(frozen=True)
class _Drawing:
    """A figure of the report."""

    file: str
    figure: Figure
    heading: str
    alt: str
    caption: str


def write_analysis(
    folder: Path,
    models: Mapping[str, BlockMeasures],
    pictures: Pictures,
    facts: Mapping[str, object],
    title: str,
) -> list[Path]:
    """Write the report of an analysis.

    Args:
        folder: Where it goes; created.
        models: What was measured of each model, by name; the first is what others are compared with.
        pictures: Pictures of features.
        facts: What was analysed, and how; for people and for JSON.
        title: Of the page.

    Returns:
        The paths written, the page first.

    Raises:
        OutputError: If they cannot be written.
    """
    similar = compare_blocks(models)
    drawings = [*_curves(models, similar), *_maps(pictures)]
    page = Page(title, _lead(models)).heading('In short').items(sentences(models, similar))
    for heading in dict.fromkeys(drawing.heading for drawing in drawings):
        shown = [item for item in drawings if item.heading == heading]
        page.heading(heading).pictures([(x.figure, x.caption, x.alt) for x in shown])
    if pictures.notes:
        page.items(pictures.notes)
    page.heading('Numbers').text('Also in blocks.csv and analysis.json.')
    for name, measures in models.items():
        page.table(_cells(measures), _HEADER, name)
    page.heading('What was analysed').table([[k, str(v)] for k, v in facts.items()], ['', ''])
    content = {
        'facts': {key: str(value) for key, value in facts.items()},
        'models': {name: measures.to_dict() for name, measures in models.items()},
        'similarity': {item.name: _finite(item.matrix) for item in similar},
        'pictures': list(pictures.names),
    }
    saved = [save_png(item.figure, folder / item.file) for item in drawings]
    return [page.write(folder / PAGE), *saved, _write_json(folder / NUMBERS, content),
            _write_table(folder / TABLE, models)]  # fmt: skip


def _lead(models: Mapping[str, BlockMeasures]) -> str:
    first = next(iter(models.values()))
    return (
        f'{" and ".join(models)}, block by block, on {first.images:,} images '
        f'({first.held_out:,} of them held out from the probes).'
    )


def sentences(models: Mapping[str, BlockMeasures], similar: Sequence[Similarity]) -> list[str]:
    """Say what the curves show, in numbers.

    Args:
        models: What was measured, by name.
        similar: Comparisons with the first model.
    """
    (first, base), *others = models.items()
    lines = [_peak('position of a patch', models)]
    if all(m.class_accuracy is not None for m in models.values()):
        lines.append(_peak('class of the image', models))
    for name, m in others:
        was, now = base.eigenvalue_mean[-1], m.eigenvalue_mean[-1]
        lines.append(
            f'Mean of the leading eigenvalues after the last block: {first} {was:.3g}, {name} '
            f'{now:.3g}{f" ({now / was:.2f} times)" if was > 0 else ""}.'
        )
    return [*lines, *(_alike(item) for item in similar if len(item.same.blocks) > 0)]


def _alike(item: Similarity) -> str:
    curve = item.same
    if not np.isfinite(curve.values).all():
        return f'{item.name} cannot be compared: in one block all images are alike.'
    most, least = int(np.argmax(curve.values)), int(np.argmin(curve.values))
    return (
        f'{item.name} are most alike in block {curve.blocks[most]} (CKA {curve.values[most]:.2f}) '
        f'and least in block {curve.blocks[least]} ({curve.values[least]:.2f}).'
    )


def _peak(what: str, models: Mapping[str, BlockMeasures]) -> str:
    parts = []
    for name, m in models.items():
        known = m.position_accuracy if what.startswith('position') else m.class_accuracy
        assert known is not None, 'asked for only where there are labels'
        top = int(np.argmax(known))
        parts.append(
            f'{name} best in block {m.blocks[top]} ({100 * known[top]:.1f} %), last block '
            f'{100 * known[-1]:.1f} %'
        )
    return f'The {what}, from a single patch: {"; ".join(parts)}.'


def _curves(models: Mapping[str, BlockMeasures], similar: Sequence[Similarity]) -> list[_Drawing]:
    drawings = [
        _Drawing(
            'eigenvalues.png', plots.eigenvalue_curves(models), 'Eigenvalues of the patches',
            'Leading eigenvalues by block',
            'Of the covariance of the patches of an image, centred in it, before the final norm. '
            'Large values: the patches of an image differ much. Logarithmic axes.',
        ),
        _Drawing(
            'ranks.png', plots.rank_curves(models), 'Effective ranks', 'Effective ranks by block',
            'Directions that the patches of an image use (mean and standard deviation over the '
            'images), and that the mean patches of all images use.',
        ),
        _Drawing(
            'position.png', plots.position_curves(models), _TOLD, 'Position accuracy by block',
            'A linear classifier of the cell of the patch grid, from one patch token; scored on '
            'images held out.',
        ),
    ]  # fmt: skip
    if any(m.classes is not None for m in models.values()):
        drawings.append(_Drawing(
            'classes.png', plots.class_curves(models), _TOLD, 'Class accuracy by block',
            'A linear classifier of the class of the image, from one patch token; scored on images '
            'held out.',
        ))  # fmt: skip
    if similar:
        curves = {item.name: item.same for item in similar}
        drawings.append(_Drawing(
            'cka.png', plots.cka_curves(curves), _ALIKE, 'Similarity of the same block',
            'Linear centred kernel alignment of the mean patches of up to 1,000 images; 1 where one '
            'model is a rotation and scaling of the other.',
        ))  # fmt: skip
    for number, item in enumerate(similar):
        file = 'cka_blocks.png' if number == 0 else f'cka_blocks_{number + 1}.png'
        figure = plots.cka_heatmap(item.matrix, (item.first, item.second), item.blocks)
        drawings.append(_Drawing(
            file, figure, _ALIKE, f'Similarity of the blocks of {item.name}',
            f'Every block of {item.first} against every block of {item.second}. A bright diagonal: '
            'blocks kept their place.',
        ))  # fmt: skip
    return drawings


def _maps(pictures: Pictures) -> list[_Drawing]:
    drawings = []
    if pictures.attention:
        drawings.append(_Drawing(
            'attention.png', plots.attention_figure(pictures.images, pictures.attention),
            'Where the class token looks', 'Attention of the class token',
            'Attention of the class token to the patches in the last block, mean of the heads. The '
            f'models of a row share one scale. {_listed(pictures.names)}',
        ))  # fmt: skip
        drawings.append(_Drawing(
            'attention_heads.png', plots.heads_figure(pictures.images, pictures.attention),
            'Head by head', 'Attention of each head', 'The same for each head; each map has a scale of its own.',
        ))  # fmt: skip
    if pictures.components:
        drawings.append(_Drawing(
            'pca.png', plots.pca_figure(pictures.images, pictures.components),
            'Principal components of patches', 'Patches in three colours',
            'First three components of the patches after the final norm as red, green and blue. '
            'Models of one width share one basis: equal colours are equal features.',
        ))  # fmt: skip
    return drawings


def _listed(names: Sequence[str]) -> str:
    return f'From top to bottom: {", ".join(names)}.'


_HEADER = ('block', 'mean eigenvalue', 'their std', 'rank of patches', 'rank of images',
           'position %', 'class %')  # fmt: skip


def _cells(measures: BlockMeasures) -> list[list[object]]:
    return [
        [
            row['block'], f'{row["eigenvalue_mean"]:.4g}', f'{row["eigenvalue_std"]:.4g}',
            f'{row["patch_rank"]:.1f} ± {row["patch_rank_std"]:.1f}', f'{row["image_rank"]:.1f}',
            f'{100 * row["position_accuracy"]:.1f}',
            None if math.isnan(row['class_accuracy']) else f'{100 * row["class_accuracy"]:.1f}',
        ]
        for row in measures.rows()
    ]  # fmt: skip


def _finite(matrix: NDArray[np.float64]) -> list[list[float | None]]:
    """Rows for JSON, which has no NaN."""
    return [[float(v) if math.isfinite(v) else None for v in row] for row in matrix]


def _write_json(path: Path, content: Mapping[str, Any]) -> Path:
    with replacing(path) as temporary:
        text = json.dumps(content, indent=2, allow_nan=False)
        temporary.write_text(f'{text}\n', encoding='utf-8')
    return path


def _write_table(path: Path, models: Mapping[str, BlockMeasures]) -> Path:
    rows = [{'model': name, **row} for name, m in models.items() for row in m.rows()]
    with replacing(path) as temporary, temporary.open('w', newline='', encoding='utf-8') as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(
            {k: '' if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}
            for row in rows
        )
    return path
