"""``export``: merged weights, delta and PEFT files from one another, and models for others."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer

from torchgeo_explora.adapters import (
    Adapter,
    ExPLoRAConfig,
    apply_explora,
    blend,
    load_adapter,
    load_adapter_state_dict,
    merge_lora,
    read_adapter,
    save_adapter,
    save_peft,
)
from torchgeo_explora.adapters.state import FORMAT as ADAPTER_FORMAT
from torchgeo_explora.cli.console import say
from torchgeo_explora.cli.export_arguments import PORTABLE
from torchgeo_explora.cli.run_folder import RunFolder
from torchgeo_explora.cli.settings import weights_argument
from torchgeo_explora.errors import ConfigError, OutputError, WeightsError
from torchgeo_explora.models import (
    Checkpoint,
    create_backbone,
    describe_file,
    load_backbone,
    read_metadata,
    save_backbone,
)
from torchgeo_explora.objectives.presets import Recipe, get_preset, recipe_fields

KEPT = (
    'base',
    'start',
    'method',
    'network',
    'micro_steps',
    'bands',
    'mean',
    'std',
    'scale',
    'size',
    'resolution',
    'config',
)
"""Metadata that goes on from file to file."""


@dataclass(frozen=True)
class Source:
    """An encoder to export.

    Args:
        model: With low-rank factors where the source has them.
        config: What was adapted; None for merged weights.
        metadata: What the weights are.
    """

    model: VisionTransformer
    config: ExPLoRAConfig | None
    metadata: dict[str, str]


def run(args: argparse.Namespace) -> int:
    """Run the command.

    Args:
        args: From the parser.

    Returns:
        0.

    Raises:
        ExploraError: If the conversion is not possible.
    """
    out, given = Path(args.out).expanduser(), Path(args.source).expanduser()
    if out.exists():
        raise OutputError(f'{out} is there already: give a new name as --out.')
    if args.card:
        from torchgeo_explora.cli import card  # imported late: it needs what only cards need

        return card.write(args, given, out)
    if args.to is None:
        raise ConfigError('Neither --to nor --card was given: say what to make of the model.')
    if args.to in PORTABLE:
        # imported late: it builds on this module, and on what only some exports need
        from torchgeo_explora.cli import export_portable

        return export_portable.write(args, given, out)
    path = find_source(given, args.to)
    if args.image_size is not None and args.to != 'merged':
        raise ConfigError(
            f'--image-size was given with --to {args.to}: only merged weights hold position '
            'embeddings, so use --to merged.'
        )
    source = open_source(path, args.to, args.model, args.weights)
    if args.to == 'merged':
        written = [write_merged(source, out, args.image_size)]
    elif args.to == 'delta':
        written = [write_delta(source, path, out)]
    else:
        written = save_peft(source.model, out, source.metadata.get('base', ''))
    for file in written:
        say(f'Wrote {file}')
    return 0


def find_source(path: Path, to: str) -> Path:
    """Return the file to export: in the folder of a run, the one that serves best.

    Args:
        path: A file, or the folder of a run.
        to: What is wanted.

    Raises:
        WeightsError: If there is none.
    """
    if not path.is_dir():
        return path
    folder = RunFolder(path)
    files = [folder.merged] if to == 'merged' else [folder.adapter]
    for file in (*files, folder.checkpoint):
        if file.is_file():
            return file
    raise WeightsError(
        f'{path} holds neither exported weights nor a checkpoint: finish the run with '
        f'`torchgeo-explora adapt --out {path} --resume`, or give a file.'
    )


def open_source(path: Path, to: str, model: str | None, weights: str | None) -> Source:
    """Read whatever a file is: checkpoint of this package, delta, or merged weights.

    Args:
        path: The file.
        to: What is wanted.
        model: timm name, where the file does not tell it.
        weights: Base weights of a delta.

    Raises:
        WeightsError: If it cannot be read or does not fit.
        ConfigError: If something is missing.
    """
    metadata = read_metadata(path)
    if metadata.get('format') == ADAPTER_FORMAT:
        return _open_delta(path, to, model, weights)
    described = describe_file(path)
    if str(described.get('root', '')).startswith('state_dict.model.'):
        return _open_checkpoint(path)
    if to != 'merged':
        raise ConfigError(
            f'{path} holds merged weights, in which the low-rank updates cannot be told apart any '
            f'more: export --to {to} from the folder, checkpoint or delta of the run.'
        )
    name = model or metadata.get('base') or described.get('model')
    if name is None:
        raise ConfigError(f'{path} does not name its model: give the timm name as --model.')
    backbone, _ = create_backbone(name, path, in_chans=described.get('bands', 3))
    kept = {key: metadata[key] for key in KEPT if key in metadata}
    return Source(backbone, None, {'base': name, **kept})


def _open_delta(path: Path, to: str, model: str | None, weights: str | None) -> Source:
    adapter = read_adapter(path)
    name = model or adapter.metadata.get('base')
    if name is None:
        raise ConfigError(f'{path} does not name its model: give the timm name as --model.')
    if to == 'delta':
        raise ConfigError(f'{path} is a delta already: copy it, or export --to merged or peft.')
    bands = _bands(adapter)
    kept = {key: adapter.metadata[key] for key in KEPT if key in adapter.metadata}
    if to == 'peft':  # only the factors are written, so the base is not needed
        backbone, _ = create_backbone(name, in_chans=bands, seed=0)
        apply_explora(backbone, adapter.config)
        load_adapter_state_dict(backbone, adapter.tensors)
        return Source(backbone, adapter.config, {**kept, 'base': name})
    if weights is None:
        raise ConfigError(
            f'{path} holds only what an adaptation changed: give the base weights '
            f'({adapter.metadata.get("start", "of the same model")}) as --weights.'
        )
    backbone, _ = create_backbone(name, weights_argument(weights), in_chans=bands)
    load_adapter(backbone, path)
    return Source(backbone, adapter.config, {**kept, 'base': name})


def _bands(adapter: Adapter) -> int:
    tensor = adapter.tensors.get('patch_embed.proj.weight')
    return 3 if tensor is None else tensor.shape[1]


def _open_checkpoint(path: Path) -> Source:
    """Rebuild the published network of a checkpoint of the D-ExPLoRA task."""
    content = torch.load(path, map_location='cpu', weights_only=True)
    hparams: dict[str, Any] = content.get('hyper_parameters', {})
    if 'preset' not in hparams or 'model' not in hparams:
        raise WeightsError(
            f'{path} is no checkpoint of a D-ExPLoRA run: it does not name its recipe. Give one '
            'that `adapt` or `torchgeo fit` with ExPLoRADINOv2 wrote.'
        )
    recipe = _recipe(hparams)
    network = recipe.optimization.publish
    prefix = f'model.{network}.'
    state = {
        key.removeprefix(prefix): tensor
        for key, tensor in content['state_dict'].items()
        if key.startswith(prefix)
    }
    backbone, _ = create_backbone(
        hparams['model'], img_size=_stored_side(state), in_chans=hparams['in_channels'], seed=0
    )
    apply_explora(backbone, recipe.adapter)
    try:
        backbone.load_state_dict(state)
    except RuntimeError as error:
        raise WeightsError(
            f'{path} does not fit the model it names ({hparams["model"]}): use a checkpoint that '
            'this version wrote.'
        ) from error
    share = recipe.optimization.blend
    backbone = blend(backbone, content['explora']['start'], share)
    metadata = {
        'base': hparams['model'],
        'method': 'D-ExPLoRA',
        'network': network,
        'blend': str(share),
        'size': str(recipe.crops.global_size),
    }
    return Source(backbone, recipe.adapter, metadata)


def _stored_side(state: dict[str, torch.Tensor]) -> int | None:
    """Side in pixels that square position embeddings are stored for."""
    positions, patch = state.get('pos_embed'), state['patch_embed.proj.weight'].shape[-1]
    if positions is None:
        return None
    prefixes = sum(state[name].shape[1] for name in ('cls_token', 'reg_token') if name in state)
    for prefix in (prefixes, 0, 1):
        side = round((positions.shape[1] - prefix) ** 0.5)
        if side**2 == positions.shape[1] - prefix:
            return int(side * patch)
    return None


def _recipe(hparams: dict[str, Any]) -> Recipe:
    own = {key: hparams[key] for key in recipe_fields() & hparams.keys()}
    if hparams['in_channels'] != 3 and own.get('train_patch_embed') is None:
        own['train_patch_embed'] = True  # as the task decides
    return get_preset(hparams['preset']).override(**own)


def write_merged(source: Source, out: Path, image_size: int | None) -> Path:
    """Write merged weights under stock timm keys.

    Args:
        source: What to export.
        out: The file.
        image_size: Side of the images that position embeddings are stored for; as they are when
            not given.
    """
    model = source.model if source.config is None else merge_lora(source.model)
    metadata = dict(source.metadata)
    if source.config is not None:
        metadata['config'] = source.config.to_json()
    if image_size is not None:
        model = resized(model, metadata['base'], image_size)
        metadata['size'] = str(image_size)
    return save_backbone(model, out, metadata)


def resized(model: VisionTransformer, name: str, side: int) -> VisionTransformer:
    """Return a model whose position embeddings are stored for another image size.

    Resampled as DINOv2 does it (and once, not at every call as timm would with its own filter).
    """
    height, width = model.patch_embed.grid_size
    resized_model, _ = create_backbone(name, img_size=side, in_chans=_in_chans(model), seed=0)
    load_backbone(
        resized_model, Checkpoint(model.state_dict(), {'grid': f'[{height}, {width}]'}, name)
    )
    return resized_model


def _in_chans(model: VisionTransformer) -> int:
    weight = model.patch_embed.proj.weight
    return int(weight.shape[1])


def write_delta(source: Source, path: Path, out: Path) -> Path:
    """Write what the adaptation changed.

    Args:
        source: What to export.
        path: Where it comes from, for messages.
        out: The file.

    Raises:
        ConfigError: If the source has no separate updates.
    """
    if source.config is None:
        raise ConfigError(f'{path} has no separate updates: export --to merged.')
    return save_adapter(source.model, source.config, out, source.metadata)
