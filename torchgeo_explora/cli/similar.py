"""``similar``: places like those that a user points at."""

import argparse
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from torchgeo_explora.cli.backbones import open_backbone
from torchgeo_explora.cli.choices import choose_device, choose_precision, parse_bands
from torchgeo_explora.cli.console import NAMED, complain, percent, say, table
from torchgeo_explora.cli.meter import Meter
from torchgeo_explora.cli.predict import NOTHING_DONE, SOME_FAILED, RasterProgress
from torchgeo_explora.errors import ConfigError, ImageError
from torchgeo_explora.inference import (
    EmbedSettings,
    Found,
    SimilarSettings,
    Summary,
    embed_rasters,
    find_similar,
)
from torchgeo_explora.inference.places import Places
from torchgeo_explora.inference.raster import read_info
from torchgeo_explora.inference.similarity import sort_sources
from torchgeo_explora.inference.sources import Source, find_rasters


def run(args: argparse.Namespace) -> int:
    """Run the command.

    Args:
        args: From the parser.

    Returns:
        0 if all rasters are done, 2 if none could be, 4 if some failed.

    Raises:
        ExploraError: If nothing at all can be done.
        KeyboardInterrupt: With a sentence that says how to go on.
    """
    settings = SimilarSettings(
        tuple(args.like), tuple(args.unlike), args.top, args.side, args.dtype
    )
    # mistakes are found before anything is computed
    places = [Places(items) for items in (settings.like, settings.unlike) if items]
    try:
        embeddings, failed = _embeddings(args, places)
        if not embeddings:
            return conclude(Found(failed=failed))
        found = find_similar(
            embeddings, args.out, settings, resume=args.resume, progress=SimilarProgress()
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            'stopped by the user; the same command with --resume goes on.'
        ) from None
    found.failed |= failed
    return conclude(found)


def _embeddings(
    args: argparse.Namespace, places: Sequence[Places]
) -> tuple[list[str | Source], dict[str, str]]:
    """Rasters of embeddings, made first where they are not there; and why others could not be."""
    out = Path(args.out).expanduser()
    found = sort_sources(find_rasters(args.sources, out / 'embeddings', args.asset))
    if args.weights is None:
        _say_left_out(found.ready, found.others, args.sources)
        return [*found.ready, *found.unreadable], {}
    raw = (*found.others, *found.unreadable)
    if not raw:
        return [*found.ready], {}
    for named in places:
        _check_inside(named, (*found.ready, *raw))
    given = out / 'embeddings' if args.embeddings is None else Path(args.embeddings).expanduser()
    # as the user names them, so that results keep the folders of their rasters
    summary = _embed(args, [s.path for s in raw] if found.ready else args.sources, given)
    for path, reasons in summary.overridden.items():
        for reason in reasons:
            complain('warning', f'{path}: overridden by --force: {reason}')
    done = bool(summary.written or summary.skipped)
    return [*found.ready, *([str(given)] if done else [])], summary.failed


def _check_inside(places: Places, sources: Sequence[Source]) -> None:
    """Refuse places outside of all rasters that can be read; others are named when embedded."""
    readable = False
    for source in sources:
        with suppress(ImageError):
            info = read_info(source.path)
            if not info.place.placed or places.within(info) is not None:
                return
            readable = True
    if readable:
        raise ConfigError(
            f'{", ".join(places.items)} lies outside of all rasters: point at a place inside one '
            '(longitude before latitude).'
        )


def _say_left_out(ready: Sequence[Source], others: Sequence[Source], given: Sequence[str]) -> None:
    if others and not ready:
        raise ConfigError(
            f'{", ".join(given)} holds no embeddings: make them with `torchgeo-explora embed`, or '
            'give --weights to have them made.'
        )
    if others:
        named = ', '.join(source.path for source in others[:NAMED])
        say(f'Left out {len(others)} rasters that hold no embeddings: {named}')


def _embed(args: argparse.Namespace, sources: Sequence[str], folder: Path) -> Summary:
    device = choose_device(args.device)
    path = Path(args.weights).expanduser()
    if not path.is_file():
        raise ConfigError(f'{path} is no file: give weights, for instance explora.safetensors.')
    model = open_backbone(path.stem, path, args.model, args.base)
    say(f'{path}: {model.arch}, {", ".join(model.inputs.bands)}; {model.inputs.source}')
    precision = choose_precision(args.precision, device)
    settings = EmbedSettings(
        window=args.window,
        overlap=args.overlap,
        batch=args.batch,
        bands=None if args.bands is None else tuple(parse_bands(args.bands)),
        scale=None if args.scale is None else (args.scale[0], args.scale[1]),
        force=args.force,
        precision='bfloat16' if precision.startswith('bf16') else 'float32',
    )
    return embed_rasters(
        sources,
        model.model,
        model.inputs,
        folder,
        settings,
        name=model.arch,
        device=device,
        threads=args.threads,
        resume=(folder / 'run.json').is_file(),  # embeddings that are there are used again
        progress=RasterProgress(),
        asset=args.asset,
    )


class SimilarProgress:
    """Shows how many patches are through."""

    def __init__(self) -> None:
        self.meter = Meter()

    def __call__(self, done: int, total: int) -> None:
        """Show a state if it is time to.

        Args:
            done: Patches that are through.
            total: All of them.
        """
        share = percent(done / max(total, 1))
        self.meter.show(f'{done:,} of {total:,} patches compared ({share})', done == total)


def conclude(found: Found) -> int:
    """Say what was found.

    Args:
        found: What was.

    Returns:
        The status of the command.
    """
    if found.written:
        avoided = f'; unlike {_patches(found.avoided)}' if found.avoided else ''
        say(f'Like {_patches(found.chosen)} at the places given{avoided}')
    for written in found.written.values():
        for path in written:
            say(f'Wrote {path}')
    if found.table is not None:
        say(f'Wrote {found.table}')
        _show(found)
    for reason in found.failed.values():
        complain('error', reason)
    if not found.failed:
        return 0
    return SOME_FAILED if found.written else NOTHING_DONE


def _patches(count: int) -> str:
    return '1 patch' if count == 1 else f'{count:,} patches'


def _show(found: Found) -> None:
    best = found.places[:NAMED]
    if not best:
        say('No place apart from those given is left to list.')
        return
    rows = [['place', 'similarity', 'longitude', 'latitude']]
    for place in best:
        where = [f'{place[name]:.5f}' for name in ('longitude', 'latitude')]
        rows.append(
            [f'{place["rank"]}. {Path(place["file"]).stem}', f'{place["similarity"]:.3f}', *where]
        )
    say(table(rows))
