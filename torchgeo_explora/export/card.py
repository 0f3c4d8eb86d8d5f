"""The text of a Hugging Face model card, from what is known of a model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from huggingface_hub import EvalResult, ModelCardData

from torchgeo_explora import __version__
from torchgeo_explora.export.lineage import UNKNOWN, Lineage
from torchgeo_explora.models import InputSpec

PIPELINES = {
    'backbone': 'image-feature-extraction',
    'classification': 'image-classification',
    'segmentation': 'image-segmentation',
}
TAGS = ['torchgeo', 'torchgeo-explora', 'earth-observation', 'remote-sensing']
REPOSITORY = 'your-name/your-model'
"""Stands where the repository is not known yet."""

CITATION = """```bibtex
@inproceedings{khanna2025explora,
  title     = {Ex{PL}o{RA}: Parameter-Efficient Extended Pre-Training to Adapt Vision Transformers under Domain Shifts},
  author    = {Samar Khanna and Medhanie Irgau and David B. Lobell and Stefano Ermon},
  booktitle = {Forty-second International Conference on Machine Learning},
  year      = {2025},
  url       = {https://openreview.net/forum?id=OtxLhobhwb}
}
```"""


@dataclass(frozen=True)
class Score:
    """One number that was measured.

    Args:
        name: What was measured, for people.
        value: The number.
        before: The same of the model that training started from; None where it was not measured.
        metric: Hugging Face's name of the metric; None where the number is not for its tables.
    """

    name: str
    value: float
    before: float | None = None
    metric: str | None = None


@dataclass(frozen=True)
class CardFacts:
    """What a card says.

    Args:
        title: Name of the model.
        task: ``backbone``, ``classification`` or ``segmentation``.
        model: timm name of the architecture.
        stock: Whether timm alone can build and load it.
        inputs: What it expects of an image.
        lineage: Where it comes from.
        method: How it was trained, in words.
        assumed: Whether what it expects of an image is assumed of its architecture, since its file
            does not tell.
        recipe: Numbers of the training, by name.
        data: What it was trained on, in sentences.
        scores: What was measured.
        scored_on: What the scores were measured on; None without.
        verdict: What the scores say, in sentences.
        classes: Names of the classes; none for a backbone.
        files: SHA-256 of the files, by name.
        adapter: Whether the files are a PEFT adapter with a head.
        repository: Where it is published; None if not known.
    """

    title: str
    task: str
    model: str
    stock: bool
    inputs: InputSpec
    lineage: Lineage
    method: str
    assumed: bool = False
    recipe: Mapping[str, object] = field(default_factory=dict)
    data: Sequence[str] = ()
    scores: Sequence[Score] = ()
    scored_on: str | None = None
    verdict: str | None = None
    classes: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    adapter: bool = False
    repository: str | None = None


def card_text(facts: CardFacts) -> str:
    """Return the whole card: YAML front matter and Markdown.

    Args:
        facts: What is known.
    """
    sections = [
        f'# {facts.title}',
        _lead(facts),
        f'## Load it\n\n```python\n{loading_code(facts)}\n```',
        f'## Images that it takes\n\n{_inputs(facts.inputs, facts.assumed)}',
        *([f'## Classes\n\n{_classes(facts.classes)}'] if facts.classes else []),
        f'## Where it comes from\n\n{_origin(facts)}',
        f'## Scores\n\n{_scores(facts)}',
        f'## Limits\n\n{_limits(facts)}',
        f'## Files\n\n{_files(facts.files)}',
        f'## Citation\n\nThe method is the work of its authors; please cite them.\n\n{CITATION}',
    ]
    body = '\n\n'.join(sections)
    return f'---\n{front_matter(facts).to_yaml()}\n---\n\n{body}\n'


def front_matter(facts: CardFacts) -> ModelCardData:
    """Return what the hub reads of a card.

    Args:
        facts: What is known.
    """
    known = facts.lineage.licence != UNKNOWN
    results = [_result(facts, score) for score in facts.scores if score.metric is not None]
    library = 'peft' if facts.adapter else 'timm' if facts.stock else 'torchgeo-explora'
    return ModelCardData(
        license=facts.lineage.licence if known else 'other',
        license_name=None if known else UNKNOWN,
        library_name=library if facts.task == 'backbone' or facts.adapter else 'torchgeo-explora',
        pipeline_tag=PIPELINES[facts.task],
        base_model=facts.lineage.base_model,
        tags=TAGS,
        model_name=facts.title if results else None,
        eval_results=results or None,
    )


def _result(facts: CardFacts, score: Score) -> EvalResult:
    data = 'images of its training' if facts.scored_on is None else facts.scored_on
    return EvalResult(
        task_type=PIPELINES[facts.task],
        dataset_type='custom',
        dataset_name=data,
        metric_type=str(score.metric),
        metric_name=score.name,
        metric_value=round(score.value, 4),
    )


def loading_code(facts: CardFacts) -> str:
    """Return Python that loads the model from the hub.

    Args:
        facts: What is known.
    """
    repository = REPOSITORY if facts.repository is None else facts.repository
    if facts.adapter:
        return (
            'from huggingface_hub import snapshot_download\n'
            'from torchgeo_explora.models import load_finetuned\n\n'
            "# base_weights: the weights named under 'Where it comes from'\n"
            f"folder = snapshot_download('{repository}')\n"
            "model, spec = load_finetuned(folder, base_weights='base.safetensors')"
        )
    if facts.task == 'backbone' and facts.stock:
        return f"import timm\n\nmodel = timm.create_model('hf-hub:{repository}', pretrained=True)"
    download = f"hf_hub_download('{repository}', 'model.safetensors')"
    if facts.task == 'backbone':
        return (
            'from huggingface_hub import hf_hub_download\n'
            'from torchgeo_explora.models import create_backbone\n\n'
            f"model, report = create_backbone('{facts.model}', {download})"
        )
    return (
        'from huggingface_hub import hf_hub_download\n'
        'from torchgeo_explora.models import load_model\n\n'
        f'model, spec = load_model({download})  # takes images in [0, 1], gives logits'
    )


def _lead(facts: CardFacts) -> str:
    what = {
        'backbone': 'gives features of images',
        'classification': f'gives images one of {len(facts.classes)} classes',
        'segmentation': f'gives every pixel of images one of {len(facts.classes)} classes',
    }[facts.task]
    count = len(facts.inputs.bands)
    bands = 'one band' if count == 1 else f'{count} bands'
    return (
        f'A vision transformer (`{facts.model}`) that {what}. It sees {bands}. '
        f'{facts.method} Made with torchgeo-explora {__version__}.'
    )


def _inputs(inputs: InputSpec, assumed: bool) -> str:
    rows = []
    for index, band in enumerate(inputs.bands):
        low, high = ('', '') if inputs.scale is None else map(_number, inputs.scale[index])
        mean, std = _number(inputs.mean[index]), _number(inputs.std[index])
        rows.append([band, low, high, mean, std])
    header = ['band', 'value that becomes 0', 'value that becomes 1', 'mean', 'std']
    sentences = ['Mean and standard deviation are of values in [0, 1].']
    if inputs.scale is None:
        sentences.append('How raw values become [0, 1] is not known.')
    if assumed:
        sentences.append(
            'The file does not say what images it takes: these values are the usual ones of the '
            'architecture. Check them.'
        )
    else:
        sentences.append(f'Trained on images of {inputs.image_size} x {inputs.image_size} pixels.')
    if inputs.resolution is None:
        sentences.append('The size of a pixel on the ground is not known.')
    else:
        ground = f'{inputs.resolution:g} (metres, or units of the CRS)'
        sentences.append(f'A pixel measures {ground} on the ground.')
    return f'{_table(header, rows)}\n\n{" ".join(sentences)}'


def _classes(classes: Sequence[str]) -> str:
    return '\n'.join(f'{number}. {name}' for number, name in enumerate(classes))


def _origin(facts: CardFacts) -> str:
    lineage = facts.lineage
    licence = 'not known' if lineage.licence == UNKNOWN else f'`{lineage.licence}`'
    terms = '' if lineage.commercial else ' It is not for commercial use.'
    lines = [
        f'* Started from: {lineage.start}.',
        f'* Licence: {licence} ({lineage.reason}).{terms}',
        *(f'* {sentence}' for sentence in facts.data),
    ]
    recipe = _table(['setting', 'value'], [[k, f'`{v}`'] for k, v in facts.recipe.items()])
    return '\n'.join(lines) + (f'\n\n{recipe}' if facts.recipe else '')


def _scores(facts: CardFacts) -> str:
    if not facts.scores:
        return 'None were measured: score it on labelled images of your own before you rely on it.'
    before = any(score.before is not None for score in facts.scores)
    header = ['measure', *(['before training'] if before else []), 'value']
    rows = [
        [
            score.name,
            *(['' if score.before is None else _number(score.before)] if before else []),
            _number(score.value),
        ]
        for score in facts.scores
    ]
    on = '' if facts.scored_on is None else f'Measured on {facts.scored_on}.\n\n'
    verdict = '' if facts.verdict is None else f'\n\n{facts.verdict}'
    return f'{on}{_table(header, rows)}{verdict}'


def _limits(facts: CardFacts) -> str:
    lines = [
        'Images of other sensors, places, seasons or resolutions than those above were not tried.',
        'Values have to be scaled as above; a model cannot tell that they are not.',
    ]
    if facts.task == 'backbone':
        lines.append('It gives features, not decisions: a head has to be trained on labels.')
    else:
        lines.append('It knows no class beside its own, and answers for every image all the same.')
    if not facts.scores:
        lines.append('Nothing has been measured that would tell whether it is any good.')
    return '\n'.join(f'* {line}' for line in lines)


def _files(files: Mapping[str, str]) -> str:
    return _table(['file', 'SHA-256'], [[f'`{name}`', f'`{sha}`'] for name, sha in files.items()])


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join(f'| {" | ".join(_cell(cell) for cell in line)} |' for line in lines)


def _cell(text: str) -> str:
    return text.replace('|', '\\|').replace('\n', ' ')


def _number(value: float) -> str:
    return f'{value:.4g}'
