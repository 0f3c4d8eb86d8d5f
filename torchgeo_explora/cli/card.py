"""``export --card``: a folder for the Hugging Face hub, and its upload when asked for."""

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import HfApi

from torchgeo_explora._files import write_tensors
from torchgeo_explora._run_record import file_hash
from torchgeo_explora.adapters.peft import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from torchgeo_explora.cli.card_facts import CardSource, find_card_source, gather_facts
from torchgeo_explora.cli.console import say
from torchgeo_explora.errors import ConfigError, OutputError
from torchgeo_explora.export.card import CardFacts, card_text
from torchgeo_explora.export.lineage import UNKNOWN, Lineage, combine, trace
from torchgeo_explora.models import read_checkpoint, read_metadata
from torchgeo_explora.models.feature_reference import REFERENCE
from torchgeo_explora.models.finetuned import HEAD

WEIGHTS, CARD, CONFIG = 'model.safetensors', 'README.md', 'config.json'


def write(args: argparse.Namespace, source: Path, out: Path) -> int:
    """Run ``export --card``.

    Args:
        args: From the parser.
        source: Folder of a run, fitted model, merged weights, or folder of a PEFT adapter.
        out: The folder to write; new.

    Returns:
        0.

    Raises:
        ExploraError: If there is nothing that can be shared, or it cannot be written or uploaded.
    """
    if args.to is not None:
        raise ConfigError(
            f'--card and --to {args.to} were given: --card writes a folder for the hub of its own; '
            'leave one of them out.'
        )
    found = find_card_source(source, args.model)
    lineage = combine(trace(found.start), args.license)
    if args.push is not None and lineage.licence == UNKNOWN:
        raise ConfigError(
            f'The licence of the model is not known ({lineage.reason}): say it with --license '
            'before you publish with --push.'
        )
    with new_folder(out) as folder:
        copy_files(found, folder, lineage)
        hashes = {path.name: file_hash(path) for path in sorted(folder.iterdir())}
        facts = gather_facts(found, lineage, out.name, hashes, args.push)
        if facts.stock and facts.task == 'backbone':
            text = json.dumps(timm_config(facts, found), indent=2)
            (folder / CONFIG).write_text(f'{text}\n', encoding='utf-8')
        (folder / CARD).write_text(card_text(facts), encoding='utf-8')
    for path in sorted(out.iterdir()):
        say(f'Wrote {path}')
    say(f'Licence: {lineage.licence} ({lineage.reason})')
    if args.push is not None:
        say(f'Published at {push(out, args.push, private=args.private)}')
    return 0


def copy_files(found: CardSource, folder: Path, lineage: Lineage) -> None:
    """Copy a model under the names that the hub knows.

    Args:
        found: The model.
        folder: Where it goes.
        lineage: Where it comes from, for weights that name a file of this machine.
    """
    if found.kind == 'adapter':
        shutil.copyfile(found.path / ADAPTER_CONFIG, folder / ADAPTER_CONFIG)
        copy_weights(found.path / ADAPTER_WEIGHTS, folder / ADAPTER_WEIGHTS, lineage)
        copy_weights(found.path / HEAD, folder / HEAD, lineage)
        return
    copy_weights(found.path, folder / WEIGHTS, lineage)
    beside = found.path.with_name(REFERENCE)
    if beside.is_file():
        copy_weights(beside, folder / REFERENCE, lineage)


def copy_weights(source: Path, target: Path, lineage: Lineage) -> None:
    """Copy weights; the start that they name loses the folders of this machine.

    Args:
        source: The file.
        target: The copy.
        lineage: Where they come from.
    """
    if 'start' not in read_metadata(source):
        shutil.copyfile(source, target)
        return
    checkpoint = read_checkpoint(source)
    write_tensors(target, checkpoint.tensors, {**checkpoint.metadata, 'start': lineage.start})


def timm_config(facts: CardFacts, found: CardSource) -> dict[str, Any]:
    """Return what timm needs to build and load a backbone from the hub.

    Args:
        facts: Describes it.
        found: The weights.
    """
    inputs, side = facts.inputs, found.grid_side
    own: Any = timm.get_pretrained_cfg(facts.model)
    known: Mapping[str, Any] = {} if own is None else own.to_dict()
    kept = ('first_conv', 'classifier', 'interpolation', 'crop_mode', 'fixed_input_size')
    return {
        'architecture': facts.model,
        'num_classes': 0,
        'num_features': found.width,
        'model_args': {'img_size': side, 'in_chans': len(inputs.bands)},
        'pretrained_cfg': {
            **{name: known[name] for name in kept if name in known},
            'tag': 'explora',
            'custom_load': False,
            'input_size': [len(inputs.bands), side, side],
            'num_classes': 0,
            'pool_size': None,
            'crop_pct': 1.0,
            'mean': list(inputs.mean),
            'std': list(inputs.std),
            'license': None if facts.lineage.licence == UNKNOWN else facts.lineage.licence,
        },
    }


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a folder that takes its name once everything in it is complete.

    Raises:
        OutputError: If it cannot be written; nothing is left behind.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f'.{out.name}.', suffix='.part'))
        try:
            yield temporary
            mask = os.umask(0)
            os.umask(mask)
            temporary.chmod(0o777 & ~mask)  # mkdtemp's 0700 would hide it from colleagues
            temporary.rename(out)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise OutputError(
            f'{out} could not be written ({error.strerror or error}): nothing was left behind. '
            'Choose a new folder that can be created and has free space.'
        ) from error


def push(folder: Path, repository: str, *, private: bool) -> str:
    """Upload a folder to the Hugging Face hub.

    Args:
        folder: What to upload.
        repository: Its name, with that of its owner before a slash.
        private: Whether a new repository is private.

    Returns:
        Address of the repository.

    Raises:
        OutputError: If it cannot be uploaded.
    """
    api = HfApi()
    try:
        made = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=made.repo_id,
            folder_path=folder,
            commit_message='Upload a model made with torchgeo-explora',
        )
    except Exception as error:  # its own errors, and those of whichever library it speaks HTTP by
        reason = ' '.join(str(error).split())
        raise OutputError(
            f'{folder} is complete, and could not be uploaded to {repository} '
            f'({type(error).__name__}: {reason}): check the name and the connection, log in with '
            f'`hf auth login`, and upload it with `hf upload {repository} {folder}`.'
        ) from error
    return str(made)
