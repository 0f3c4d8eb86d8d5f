"""What is known of a model that is to be shared, from its file and from the folder of its run."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import timm

from torchgeo_explora._run_record import read_record
from torchgeo_explora.adapters import ExPLoRAConfig
from torchgeo_explora.adapters.peft import ADAPTER_CONFIG
from torchgeo_explora.cli.info import is_adaptation
from torchgeo_explora.cli.run_folder import RunFolder, read_json
from torchgeo_explora.cli.scoring import Scores
from torchgeo_explora.errors import WeightsError
from torchgeo_explora.export.card import CardFacts, Score
from torchgeo_explora.export.lineage import Lineage
from torchgeo_explora.models import Checkpoint, InputSpec, ModelSpec, read_checkpoint, read_input
from torchgeo_explora.models._saving import GENERATOR
from torchgeo_explora.models._stored import architecture_in
from torchgeo_explora.models.finetuned import HEAD
from torchgeo_explora.models.fitted import is_fitted, read_spec

MODELS = ('model.safetensors', 'explora.safetensors')
"""What a run leaves to be shared, most telling first."""

METRICS = {'Accuracy': 'accuracy', 'F1Score': 'f1', 'JaccardIndex': 'mean_iou'}
"""Ends of the names of TorchGeo's metrics, and the hub's names."""

TOLD = ('method', 'rank', 'alpha', 'targets', 'unfreeze_blocks', 'base_lr', 'weight_decay',
        'layer_decay', 'drop_path', 'decoder', 'loss', 'image_size', 'seed')  # fmt: skip
"""Arguments of a fine-tuning task that a card tells."""


@dataclass(frozen=True)
class CardSource:
    """A model that can be shared.

    Args:
        path: Its file; of an adapter, the folder.
        kind: ``fitted``, ``backbone`` or ``adapter``.
        model: timm name.
        spec: Description of a fitted model; None of a backbone.
        inputs: What it expects of an image.
        texts: Metadata of the file.
        width: Length of a feature.
        grid_side: Side in pixels of the images that position embeddings are stored for, or height
            and width.
        start: What the training started from, as the file or its run say it.
        record: ``run.json`` of the run; None without.
        report: ``report.json`` of an adaptation; None without.
    """

    path: Path
    kind: str
    model: str
    spec: ModelSpec | None
    inputs: InputSpec
    texts: Mapping[str, str]
    width: int
    grid_side: int | list[int]
    start: str | Path
    record: Mapping[str, Any] | None
    report: Mapping[str, Any] | None


def find_card_source(source: Path, model: str | None) -> CardSource:
    """Find the model to share.

    Args:
        source: Folder of a run, fitted model, merged weights, or folder of a PEFT adapter.
        model: timm name, where the file does not tell it.

    Raises:
        WeightsError: If there is none.
    """
    if (source / ADAPTER_CONFIG).is_file():
        return _adapter(source)
    path = source
    if source.is_dir():
        there = [source / name for name in MODELS if (source / name).is_file()]
        if not there:
            raise WeightsError(
                f'{source} holds no {" and no ".join(MODELS)}: finish the run, or give the file of '
                'a model.'
            )
        path = there[0]
    checkpoint = read_checkpoint(path)
    if is_fitted(checkpoint):
        return _fitted(path, checkpoint)
    if checkpoint.metadata.get('generator') != GENERATOR:
        raise WeightsError(
            f'{path} is neither a fitted model nor weights that were merged: make some with '
            '`torchgeo-explora export --to merged`, and share those.'
        )
    return _backbone(path, checkpoint, model)


def _fitted(path: Path, checkpoint: Checkpoint) -> CardSource:
    spec = read_spec(checkpoint)
    found = InputSpec.of(spec)
    return CardSource(
        path, 'fitted', spec.model, spec, found, checkpoint.metadata, 0, spec.image_size, path,
        read_record(path.parent), None,
    )  # fmt: skip


def _adapter(folder: Path) -> CardSource:
    if not (folder / HEAD).is_file():
        raise WeightsError(
            f'{folder} is a PEFT adapter without a {HEAD}, which says what the model is for: give '
            'the folder `peft` that a fine-tuning wrote.'
        )
    head = read_checkpoint(folder / HEAD)
    spec = ModelSpec.from_json(head.metadata['spec'])
    return CardSource(
        folder, 'adapter', spec.model, spec, InputSpec.of(spec), head.metadata, 0,
        spec.image_size, head.metadata.get('start', ''), read_record(folder.parent), None,
    )  # fmt: skip


def _backbone(path: Path, checkpoint: Checkpoint, model: str | None) -> CardSource:
    sizes = architecture_in(checkpoint)
    name = checkpoint.metadata.get('base', sizes.timm_name()) if model is None else model
    if name is None:
        raise WeightsError(f'{path} does not name its model: give the timm name as --model.')
    grid = json.loads(checkpoint.metadata.get('grid', 'null'))
    patch = max(sizes.patch)
    inputs = read_input(path, name)
    sides = [inputs.image_size] if grid is None else [count * patch for count in grid]
    record = read_record(path.parent)
    folder = RunFolder(path.parent)
    adapted = record is not None and is_adaptation(record) and folder.report.is_file()
    return CardSource(
        path, 'backbone', name, None, inputs, checkpoint.metadata, sizes.width,
        sides[0] if len({*sides}) == 1 else sides, path, record,
        read_json(folder.report) if adapted else None,
    )  # fmt: skip


def is_stock(found: CardSource) -> bool:
    """Whether timm alone knows the architecture."""
    if not timm.is_model(found.model) or 'channel_groups' in found.texts:
        return False
    return timm.model_entrypoint(found.model).__module__.startswith('timm.')


def gather_facts(
    found: CardSource,
    lineage: Lineage,
    title: str,
    files: Mapping[str, str],
    repository: str | None,
) -> CardFacts:
    """Return what a card says.

    Args:
        found: The model.
        lineage: Where it comes from.
        title: Its name.
        files: SHA-256 of the files that are shared, by name.
        repository: Where they are published; None if not known.
    """
    spec = found.spec
    told = _told_of_fit(found) if found.report is None else _told_of_adaptation(found.report)
    if found.spec is None:
        told = {'recipe': _adapter_config(found.texts) | told.pop('recipe', {}), **told}
    return CardFacts(
        title=title if repository is None else PurePath(repository).name,
        task='backbone' if spec is None else spec.task,
        model=found.model,
        stock=is_stock(found),
        inputs=found.inputs,
        lineage=lineage,
        method=_method(found),
        assumed=found.spec is None and 'mean' not in found.texts,
        classes=() if spec is None else spec.classes,
        files=files,
        adapter=found.kind == 'adapter',
        repository=repository,
        **told,
    )


def _method(found: CardSource) -> str:
    if found.spec is not None:
        return 'It was fine-tuned with labels.'
    method = found.texts.get('method')
    if method is None:
        return 'How it was trained is not known.'
    return f'It was adapted to images without labels by {method} (Khanna et al., ICML 2025).'


def _adapter_config(texts: Mapping[str, str]) -> dict[str, object]:
    """What trained of an adapted backbone, from the metadata of its weights."""
    if 'config' not in texts:
        return {}
    config = ExPLoRAConfig.from_json(texts['config'])
    known: dict[str, object] = {
        'rank of the low-rank updates': config.rank,
        'blocks trained in full': list(config.unfreeze_blocks),
    }
    names = {'micro_steps': 'batches', 'blend': 'way from the base', 'network': 'network'}
    return known | {words: texts[name] for name, words in names.items() if name in texts}


def _told_of_adaptation(report: Mapping[str, Any]) -> dict[str, Any]:
    """Data, recipe and scores of a run of ``adapt``."""
    images, settings = report['images'], report['settings']
    told: dict[str, Any] = {
        'data': [f'Adapted to {images["adapted_to"]:,} images without labels.'],
        'recipe': {
            'preset': settings['preset'],
            'images of a batch': report['batch_size'],
            'precision': report['precision'],
            'seed': report['seed'],
        },
        'verdict': report['sentence'],
    }
    sides = [report[side] for side in ('before', 'after')]
    if any(side is None or side['scores'] is None for side in sides):
        return told
    old, new = (Scores.from_dict(side['scores']) for side in sides)
    scores = [Score(f'accuracy of {k} neighbours', new.knn[k], old.knn[k]) for k in new.knn]
    scores.append(Score('accuracy of a logistic regression', new.linear, old.linear, 'accuracy'))
    on = (
        f'{new.scored_images:,} labelled images of {new.classes} classes, with '
        f'{new.reference_images:,} others to learn from'
    )
    return told | {'scores': scores, 'scored_on': on}


def _told_of_fit(found: CardSource) -> dict[str, Any]:
    """Data, recipe and scores of a training, as far as its record tells."""
    parts = [] if found.record is None else found.record.get('parts', [])
    fits = [part for part in parts if part['command'] == 'fit']
    tests = [part for part in parts if part['command'] == 'test' and part['state'] == 'finished']
    if not fits:
        return {}
    config = fits[-1].get('config', {})
    arguments = config.get('model', {}).get('init_args', {})
    data = str(config.get('data', {}).get('class_path', '')).rpartition('.')[2]
    scored = [*fits[-1:], *tests[-1:]][-1]
    told: dict[str, Any] = {
        'recipe': {name: arguments[name] for name in TOLD if arguments.get(name) is not None},
        'data': [f'Trained on images of {data}.'] if data else [],
    }
    scores = [
        Score(name, value, metric=next(hub for end, hub in METRICS.items() if name.endswith(end)))
        for name, value in scored.get('metrics', {}).items()
        if value is not None and name.startswith(('val_', 'test_')) and name.endswith((*METRICS,))
    ]
    if scores:
        images = 'test images' if scored['command'] == 'test' else 'validation images'
        told |= {'scores': scores, 'scored_on': f'the {images} of {data or "its data"}'}
    return told
