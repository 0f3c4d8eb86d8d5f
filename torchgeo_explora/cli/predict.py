"""``predict``: rasters in, maps out."""

import argparse
from pathlib import Path

from torch import nn

from torchgeo_explora.cli.choices import choose_device, choose_precision, parse_bands
from torchgeo_explora.cli.console import NAMED, complain, duration, percent, say
from torchgeo_explora.cli.engine import choose_cluster, counted, describe_cluster
from torchgeo_explora.cli.meter import Meter
from torchgeo_explora.errors import ConfigError
from torchgeo_explora.inference import (
    PredictSettings,
    Shard,
    Summary,
    Tally,
    predict_rasters,
)
from torchgeo_explora.models import FeatureReference, ModelSpec, load_model
from torchgeo_explora.models.feature_reference import REFERENCE, check_reference
from torchgeo_explora.models.fitted import find_backbone

NOTHING_DONE, SOME_FAILED = 2, 4


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
    shard = None if args.shard is None else Shard(*args.shard)
    cluster = choose_cluster(args)
    # workers choose theirs: this machine may have no GPU
    device = choose_device(args.device if cluster is None else 'cpu')
    settings = read_settings(args, choose_precision(args.precision, device))
    path = Path(args.model).expanduser()
    if not path.is_file():
        raise ConfigError(f'{path} is no file: give the model.safetensors that fine-tuning wrote.')
    model, spec = load_model(path)
    reference = find_reference(args.reference, path, model, spec, settings)
    introduce(path, spec, settings, str(device) if cluster is None else describe_cluster(cluster))
    try:
        summary = predict_rasters(
            args.sources,
            model,
            spec,
            args.out,
            settings,
            device=device,
            threads=args.threads,
            resume=args.resume,
            shard=shard,
            reference=reference,
            progress=RasterProgress(),
            cluster=cluster,
            asset=args.asset,
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            'stopped by the user; the same command with --resume goes on.'
        ) from None
    return conclude(summary, shard)


def read_settings(args: argparse.Namespace, precision: str) -> PredictSettings:
    """Translate arguments.

    Args:
        args: From the parser.
        precision: Lightning's name.

    Returns:
        What decides the numbers.
    """
    return PredictSettings(
        window=args.window,
        overlap=args.overlap,
        stride=args.stride,
        batch=args.batch,
        block=args.block,
        max_memory=args.max_memory,
        probabilities=args.probabilities,
        uncertainty=tuple(args.uncertainty),
        bands=None if args.bands is None else tuple(parse_bands(args.bands)),
        scale=None if args.scale is None else (args.scale[0], args.scale[1]),
        aoi=args.aoi,
        force=args.force,
        vector=args.vector,
        min_area=args.min_area,
        simplify=args.simplify,
        precision='bfloat16' if precision.startswith('bf16') else 'float32',
    )


def find_reference(
    given: str | None,
    model_path: Path,
    model: nn.Module,
    spec: ModelSpec,
    settings: PredictSettings,
) -> FeatureReference | None:
    """Read what distances are to.

    Args:
        given: The file that the user names; None for the one beside the model.
        model_path: File of the model.
        model: The model.
        spec: Describes it.
        settings: What decides the numbers.

    Returns:
        The features of the images that the model was fitted on; None where no distance is wanted.

    Raises:
        ConfigError: If there is no such file, or none is needed.
        WeightsError: If it is of another model.
    """
    if 'distance' not in settings.uncertainty:
        if given is not None:
            raise ConfigError('--reference is for --uncertainty distance: ask for that, too.')
        return None
    path = model_path.with_name(REFERENCE) if given is None else Path(given).expanduser()
    if not path.is_file():
        raise ConfigError(
            f'{path} is not there, and distances are to the training images whose features it '
            'holds: fit the model again with this version, which writes it beside the model, name '
            'it with --reference, or leave the distance out.'
        )
    reference = FeatureReference.load(path)
    check_reference(reference, find_backbone(model)[1], str(path))
    if settings.window not in {None, spec.window}:
        complain(
            'warning',
            f'windows are of {settings.window} pixels and the images that distances are to of '
            f'{spec.window}: windows of another size look farther than they are',
        )
    return reference


def introduce(path: Path, spec: ModelSpec, settings: PredictSettings, device: str) -> None:
    """Say what will happen."""
    say(
        f'{path}: {spec.task} of {len(spec.classes)} classes from {len(spec.bands)} bands '
        f'({", ".join(spec.bands)}), {spec.model}'
    )
    windows = settings.tiling(spec)
    apart = f'overlap {windows.overlap}' if windows.stride is None else f'stride {windows.stride}'
    say(
        f'Windows of {windows.size} pixels, {apart}, batches of {windows.batch}, on {device} in '
        f'{settings.precision}'
    )


class RasterProgress:
    """Shows pixels a second and the time to go."""

    def __init__(self) -> None:
        self.meter = Meter()

    def __call__(self, tally: Tally) -> None:
        """Show a state if it is time to."""
        finished = tally.pixels == tally.total
        left = tally.remaining
        to_go = '' if left is None else f', {duration(left)} to go'
        workers = '' if tally.workers == 0 else f' by {counted(tally.workers, "worker")}'
        self.meter.show(
            f'{tally.pixels / 1e6:.1f} of {tally.total / 1e6:.1f} Mpx '
            f'({percent(tally.pixels / max(tally.total, 1))}), {tally.rate / 1e6:.2f} Mpx/s{workers}'
            f'{f" in {duration(tally.seconds)}" if finished else to_go}',
            finished,
        )


def conclude(summary: Summary, shard: Shard | None) -> int:
    """Say what became of the rasters.

    Args:
        summary: What did.
        shard: The share that was computed.

    Returns:
        The status of the command.
    """
    for path, reasons in summary.overridden.items():
        for reason in reasons:
            complain('warning', f'{path}: overridden by --force: {reason}')
    for written in summary.written.values():
        for path in written:
            say(f'Wrote {path}')
    _count(summary, shard)
    if not summary.failed:
        return 0
    for reason in summary.failed.values():
        complain('error', reason)
    through = summary.written or summary.skipped or summary.unfinished
    return SOME_FAILED if through else NOTHING_DONE


def _count(summary: Summary, shard: Shard | None) -> None:
    tally = summary.tally
    done = len(summary.written)
    parts = ['1 raster done' if done == 1 else f'{done} rasters done']
    if summary.skipped:
        parts.append(f'{len(summary.skipped)} done before')
    if summary.failed:
        parts.append(f'{len(summary.failed)} failed')
    if tally.empty:
        parts.append(f'{tally.empty:,} of {tally.windows + tally.empty:,} windows without data')
    if tally.deaths:
        parts.append(f'{counted(tally.deaths, "worker")} died, and others did their work')
    if shard is not None:
        parts.append(f'blocks of shard {shard.number}/{shard.count} are done')
        parts.append('when all shards are, the same command with --resume, without --shard, maps')
    elif summary.unfinished:
        named = ', '.join(summary.unfinished[:NAMED])
        parts.append(f'{len(summary.unfinished)} not finished ({named})')
    say('; '.join(parts))
