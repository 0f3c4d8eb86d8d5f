"""``report.html``: what a run was asked, what it saw, what changed, and whether that helped."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from torchgeo_explora._run_record import file_hash
from torchgeo_explora.analysis import Page
from torchgeo_explora.analysis.plots import (
    Curve,
    attention_figure,
    cka_curves,
    class_curves,
    eigenvalue_curves,
    pca_figure,
    position_curves,
    rank_curves,
)
from torchgeo_explora.cli.adapt_figures import (
    draw_course,
    draw_histograms,
    draw_pictures,
    draw_windows,
    rows_of_rasters,
    windows_seen,
)
from torchgeo_explora.cli.adapt_study import AFTER, BEFORE, Study, picture, study
from torchgeo_explora.cli.console import duration, percent, say
from torchgeo_explora.cli.energy import Energy
from torchgeo_explora.cli.images import length
from torchgeo_explora.cli.plan import Plan
from torchgeo_explora.cli.rasters import folder_of
from torchgeo_explora.cli.run_folder import RunFolder
from torchgeo_explora.cli.scoring import Scores
from torchgeo_explora.datamodules import GeoTIFFDataModule
from torchgeo_explora.datasets._statistics import BandStatistics
from torchgeo_explora.tasks.logger import read_metrics

PAPER_GPU_HOURS = 320
"""Of the paper's M-ExPLoRA on fMoW-Sentinel, four A4000 for 80 hours (workshop paper, appendix D.2);
the same number is given for D-ExPLoRA on fMoW-RGB (the figure of its scores)."""

SHEET = 12
"""Images that are shown of a folder."""

CANNOT_SAY = """\
Without labels, nothing here can tell whether the adapted model is better for your task. What the \
measures can say is whether something went wrong. An effective rank or a spread that falls far below \
that of the base means that images have become alike: such a model is worse for nearly everything. A \
drift near 0 means that little was learnt, one near 1 that little is left of the base. A rank that \
stays, with some drift, is what a healthy run looks like, and healthy runs help in many cases, not in \
all. Label a few dozen images and run `torchgeo-explora probe` with both weights to know."""


def write_report(plan: Plan, folder: RunFolder, report: dict[str, Any]) -> Path:
    """Write the page of a run that has ended, or collapsed.

    Args:
        plan: Of the run.
        folder: Of the run.
        report: What ``report.json`` is to hold.

    Returns:
        The page.

    Raises:
        OutputError: If it cannot be written.
    """
    page = Page('What the adaptation did', _lead(plan, report))
    _asked(page, plan, report)
    _seen(page, plan, report)
    _values(page, plan)
    _course(page, folder, report)
    if report['after'] is not None:
        _changed(page, report)
    if report['after'] is not None and plan.settings.report == 'full':
        found = study(plan, folder)
        _blocks(page, found)
        _pictures(page, found)
    _cost(page, report)
    _files(page, folder, report)
    page.heading('Did it help?').note(conclusion(report))
    path = page.write(folder.page)
    say(f'Report: {path}')
    return path


def _lead(plan: Plan, report: dict[str, Any]) -> str:
    settings = plan.settings
    return (
        f'{settings.model} adapted to {settings.images} without labels: {report["steps"]:,} steps of '
        f'{plan.batch_size} images. {report["sentence"].splitlines()[0]}'
    )


def _asked(page: Page, plan: Plan, report: dict[str, Any]) -> None:
    settings, recipe = plan.settings, plan.task.recipe
    trained, whole = report['trainable_parameters'], report['encoder_parameters']
    adapter = recipe.adapter
    rows: list[Sequence[object]] = [
        ('Images', settings.images),
        ('Start', report['weights'] or 'random weights'),
        ('Recipe', f'{settings.preset}; seed {settings.seed}'),
        ('What trains', f'blocks {list(adapter.unfreeze_blocks)} in full, rank {adapter.rank} in the '
         f'others, norms: {trained:,} of {whole:,} weights ({100 * trained / whole:.1f} %)'),
        ('Crops', f'2 of {recipe.crops.global_size} and {recipe.crops.n_local} of '
         f'{recipe.crops.local_size} pixels'),
        ('Labels', report['images']['labels'] or 'none'),
        ('Computed on', f'{plan.device} in {plan.precision}'),
    ]  # fmt: skip
    page.heading('What was asked').table(rows, ('', ''))
    page.details('All settings', yaml.safe_dump(settings.to_dict(), sort_keys=False))


def _seen(page: Page, plan: Plan, report: dict[str, Any]) -> None:
    module, seen = plan.images.module, report['steps'] * plan.batch_size
    page.heading('What it saw')
    if isinstance(module, GeoTIFFDataModule):
        _windows(page, module, seen)
    else:
        count = plan.images.count
        page.text(
            f'{count:,} images, {seen:,} seen: each about {seen / count:.1f} times, every time in '
            'other crops. These are some of them, in contrast as a screen shows it.'
        )
        sample = plan.images.health_sample(plan.settings.seed)
        chosen = np.linspace(0, length(sample), min(SHEET, length(sample)), endpoint=False)
        shown = [picture(sample[int(index)]['image']) for index in chosen]
        page.figure(draw_pictures(shown), 'Some of the images.', f'{len(shown)} images')
    if plan.images.skipped:
        page.text(f'Left out: {len(plan.images.skipped)} files that could not be used.')
        page.items(f'{path}: {reason}' for path, reason in list(plan.images.skipped.items())[:20])


def _windows(page: Page, module: GeoTIFFDataModule, seen: int) -> None:
    images = folder_of(module)
    windows = windows_seen(images, seen)
    page.text(
        f'{seen:,} windows of {images.image_size} pixels from {len(images.rasters)} rasters, drawn '
        'evenly over the ground with data. A pass is shared out over rasters by their area to the '
        f'power of {module.options["balance"]:g}. Windows with data in less than '
        f'{100 * module.options["min_valid"]:g} % of their pixels were left out.'
    )
    rows = rows_of_rasters(images, windows)
    header = ('raster', 'columns', 'rows', 'type', 'pixel', 'windows seen')
    more = len(images.rasters) - len(rows)
    page.table(rows, header, f'and {more} more' if more > 0 else '')
    page.text('Where windows were drawn, on the rasters that gave the most. White is without data.')
    page.pictures(
        [
            (figure, name, f'Picture of {name} with the outlines of windows on it')
            for figure, name in draw_windows(images, windows)
        ]
    )


def _values(page: Page, plan: Plan) -> None:
    found, values = plan.images.statistics, plan.values
    sources = {
        'dtype': 'the whole range of bytes',
        'given': 'given, or said by the weights',
        'percentiles': 'percentiles 1 and 99',
    }
    what = 'images' if plan.settings.sources is None else 'windows'
    page.heading('The values of the bands').text(
        f'Measured on {found.images} {what}, {found.pixels:,} pixels. What becomes 0 and 1: '
        f'{sources[found.source]}. Mean and std that the model is given: {values.source} '
        f'({", ".join(f"{v:.3f}" for v in values.mean)} and '
        f'{", ".join(f"{v:.3f}" for v in values.std)}).'
    )
    page.table(_band_rows(found), ('band', 'becomes 0', 'becomes 1', 'least', 'most', 'mean of '
               '[0, 1]', 'std', 'with data (%)'))  # fmt: skip
    page.figure(
        draw_histograms(found), 'How often each raw value occurs; the ends become 0 and 1.',
        f'A histogram for each of {len(found.bands)} bands',
    )  # fmt: skip


def _band_rows(found: BandStatistics) -> list[list[str]]:
    columns = (found.low, found.high, found.minimum, found.maximum)
    return [
        [name, *(f'{column[band]:g}' for column in columns), f'{found.mean[band]:.3f}',
         f'{found.std[band]:.3f}', f'{100 * found.valid[band]:.1f}']
        for band, name in enumerate(found.bands)
    ]  # fmt: skip


def _course(page: Page, folder: RunFolder, report: dict[str, Any]) -> None:
    page.heading('The way there')
    path = folder.path / 'metrics.csv'
    if not path.is_file():
        return
    page.text(
        'The losses alone do not tell how a run goes: those of a collapsing run can look fine. Rank '
        'and spread of the features fall when images become alike. The base stands at step 0.'
    )
    curves = draw_course(read_metrics(path))
    page.pictures([(figure, '', f'{what} over the steps') for figure, what in curves])


def _changed(page: Page, report: dict[str, Any]) -> None:
    old, new = report['before']['health'], report['after']['health']
    rows: list[Sequence[object]] = [
        ('effective rank', f'{old["effective_rank"]:.1f}', f'{new["effective_rank"]:.1f}'),
        ('spread', f'{old["spread"]:.4f}', f'{new["spread"]:.4f}'),
        ('drift from the base', '0', f'{new["drift"]:.3f}'),
        ('linear CKA with the base', '1', f'{new["cka"]:.3f}'),
    ]
    page.heading('What changed').table(
        rows, ('of the class tokens', BEFORE, AFTER),
        f'Measured on {new["images"]:,} images, {new["dim"]} features each.',
    )  # fmt: skip
    if report['after']['scores'] is not None:
        _scores(page, report)


def _scores(page: Page, report: dict[str, Any]) -> None:
    old, new = (Scores.from_dict(report[side]['scores']) for side in ('before', 'after'))
    pairs = [(f'nearest neighbours, k = {k}', old.knn[k], new.knn[k]) for k in new.knn]
    pairs.append(('linear probe (logistic regression)', old.linear, new.linear))
    rows = []
    for name, first, second in pairs:
        spread = (first * (1 - first) + second * (1 - second)) / new.scored_images
        change = f'{100 * (second - first):+.1f}'
        rows.append(
            [name, percent(first), percent(second), change, f'{100 * math.sqrt(spread):.1f}']
        )
    page.heading('With labels', 3).text(
        f'Labels: {report["images"]["labels"]}. They were used here alone, never in training. '
        f'{new.scored_images:,} images of {new.classes} classes are scored, with '
        f'{new.reference_images:,} others as reference.'
    )
    page.table(rows, ('', BEFORE, AFTER, 'change', 'standard error of the change'))


def _blocks(page: Page, found: Study) -> None:
    blocks = found.blocks
    page.heading('Block by block').text(
        f'Measured on the patches of {blocks[AFTER].images} images. In the paper, '
        'eigenvalues change in the last two blocks alone, where single patches come to tell more of '
        'the class.'
    )
    page.figure(
        eigenvalue_curves(blocks), 'Spectrum of the patches of an image, per block.',
        'Mean and standard deviation of eigenvalues before and after, over the blocks',
    ).figure(
        rank_curves(blocks), 'Effective rank of patches, and of images, per block.',
        'Effective ranks before and after, over the blocks',
    )  # fmt: skip
    curve = Curve(blocks[AFTER].blocks, found.similarity)
    tiles = [
        (cka_curves({f'{BEFORE} and {AFTER}': curve}),
         'How alike the images are to each block before and after (1: the same).',
         'Linear CKA of each block before and after'),
        (position_curves(blocks), 'How well a single patch tells its position.',
         'Accuracy of a probe of the position, before and after, over the blocks'),
    ]  # fmt: skip
    if blocks[AFTER].classes is not None:
        tiles.append((class_curves(blocks), 'How well a single patch tells the class of its image.',
                      'Accuracy of a probe of the class, before and after, over the blocks'))  # fmt: skip
    page.pictures(tiles)


def _pictures(page: Page, found: Study) -> None:
    page.heading('What the patches look like').text(
        'Three principal components of the patch features as red, green and blue. One basis serves '
        'both models and all images, so that equal colours mean equal features.'
    )
    page.figure(
        pca_figure(found.pictures, found.components),
        'Image, features before, features after.',
        'Images beside their patch features before and after in false colours',
    )
    if found.attention is None:
        return
    page.figure(
        attention_figure(found.pictures, found.attention),
        'Where the class token of the last block looks, mean of its heads.',
        'Images beside the attention of the class token before and after',
    )


def _cost(page: Page, report: dict[str, Any]) -> None:
    energy = Energy.from_dict(report['energy'])
    training = report['training']['seconds']
    took = 'was done in an earlier part' if training is None else f'took {duration(training)}'
    on_gpu = report['environment']['device'].startswith('cuda')
    where = 'GPU' if on_gpu else f'{report["environment"]["hardware"]}, no GPU'
    page.heading('What it cost').text(
        f'Everything with probes and this page: {energy.sentence()} Training {took} ({where}).'
        f'\n\nThe paper reports {PAPER_GPU_HOURS} GPU-hours for a ViT-L on fMoW. That is another model, '
        'other images and other hardware, given for scale and not as a comparison.'
    )


def _files(page: Page, folder: RunFolder, report: dict[str, Any]) -> None:
    rows = [[Path(name).name, _size(Path(name)), file_hash(Path(name))]
            for name in report['files'] if Path(name).is_file()]  # fmt: skip
    weights = report['weights_sha256']
    page.heading('Files')
    if rows:
        page.table(rows, ('file', 'MB', 'SHA-256'))
    if weights is not None:
        page.text(f'Started from {report["weights"]}, SHA-256 {weights}.')
    page.details('Versions and hardware', json.dumps(report['environment'], indent=2))
    if folder.config.is_file():
        text = folder.config.read_text(encoding='utf-8')
        page.details('The same run for torchgeo fit (config.yaml)', text)


def _size(path: Path) -> str:
    return f'{path.stat().st_size / 1e6:.1f}'


def conclusion(report: dict[str, Any]) -> str:
    """Say whether a run helped, and how that is known.

    Args:
        report: What ``report.json`` is to hold.
    """
    outcome, sentence = report['outcome'], report['sentence']
    if outcome == 'collapsed':
        return f'It did not: the run collapsed. {sentence}'
    if outcome == 'unknown':
        return f'Unknown. {CANNOT_SAY}\n\n{sentence.splitlines()[0]}'
    noise = 100 * report['standard_error']
    heads = {
        'helped': 'Yes, on the labels given.',
        'mixed': 'In part.',
        'within noise': 'It cannot be told from noise.',
        'did not help': 'No: keep the original weights.',
    }
    return (
        f'{heads[outcome]} {sentence}. A change counts here where it exceeds its standard error, at '
        f'most {noise:.1f} points; that of one run and one split says nothing of other seeds.'
    )
