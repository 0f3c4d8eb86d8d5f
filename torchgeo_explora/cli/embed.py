"""``embed``: rasters in, embeddings of their patches or windows out."""

import argparse
from pathlib import Path

from torchgeo_explora.cli.backbones import NamedBackbone, open_backbone
from torchgeo_explora.cli.choices import choose_device, choose_precision, parse_bands
from torchgeo_explora.cli.console import complain, say
from torchgeo_explora.cli.engine import choose_cluster, describe_cluster
from torchgeo_explora.cli.predict import RasterProgress, conclude
from torchgeo_explora.errors import ConfigError
from torchgeo_explora.inference import EmbedSettings, Shard, embed_rasters
from torchgeo_explora.inference.embedder import patch_side


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
    path = Path(args.weights).expanduser()
    if not path.is_file():
        raise ConfigError(f'{path} is no file: give weights, for instance explora.safetensors.')
    model = open_backbone(path.stem, path, args.model, args.base)
    introduce(model, settings, str(device) if cluster is None else describe_cluster(cluster))
    try:
        summary = embed_rasters(
            args.sources,
            model.model,
            model.inputs,
            args.out,
            settings,
            name=model.arch,
            device=device,
            threads=args.threads,
            resume=args.resume,
            shard=shard,
            progress=RasterProgress(),
            cluster=cluster,
            asset=args.asset,
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            'stopped by the user; the same command with --resume goes on.'
        ) from None
    return conclude(summary, shard)


def read_settings(args: argparse.Namespace, precision: str) -> EmbedSettings:
    """Translate arguments.

    Args:
        args: From the parser.
        precision: Lightning's name.

    Returns:
        What decides the numbers.
    """
    return EmbedSettings(
        window=args.window,
        overlap=args.overlap,
        batch=args.batch,
        block=args.block,
        max_memory=args.max_memory,
        blocks=tuple(args.blocks),
        norm=not args.no_norm,
        dtype=args.dtype,
        pca=args.pca,
        basis=args.basis,
        rgb=args.rgb,
        windows=args.window_embeddings,
        stride=args.stride,
        tokens=tuple(args.tokens),
        bands=None if args.bands is None else tuple(parse_bands(args.bands)),
        scale=None if args.scale is None else (args.scale[0], args.scale[1]),
        aoi=args.aoi,
        force=args.force,
        precision='bfloat16' if precision.startswith('bf16') else 'float32',
    )


def introduce(model: NamedBackbone, settings: EmbedSettings, device: str) -> None:
    """Say what will happen.

    Args:
        model: The model.
        settings: What decides the numbers.
        device: Where it runs.
    """
    inputs, side = model.inputs, patch_side(model.model)
    say(
        f'{model.path}: {model.arch}, {len(inputs.bands)} bands ({", ".join(inputs.bands)}), '
        f'patches of {side} pixels'
    )
    say(f'Input: {inputs.source}')
    windows = settings.tiling(inputs.image_size, side)
    apart = f'overlap {windows.overlap}' if windows.stride is None else f'stride {windows.stride}'
    say(
        f'Windows of {windows.size} pixels, {apart}, batches of {windows.batch}, on {device} in '
        f'{settings.precision}'
    )
    if inputs.resolution is None:
        complain('note', 'the weights do not tell the size of their pixels, so it is not checked.')
