"""Backbones that a command is given by file, with the names that people gave them."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import lcm
from pathlib import Path

from timm.models.vision_transformer import VisionTransformer

from torchgeo_explora.cli import replay_model  # noqa: F401  # makes the model of `replay` known to timm
from torchgeo_explora.errors import ConfigError
from torchgeo_explora.models import (
    InputSpec,
    create_backbone,
    describe_file,
    read_input,
    read_metadata,
)


@dataclass(frozen=True, eq=False)
class NamedBackbone:
    """A backbone and what it expects.

    Args:
        name: What people call it.
        path: Of its weights.
        arch: timm name.
        model: The network, without classifier, in evaluation mode.
        inputs: What it expects of an image.
        summary: What loading did.
    """

    name: str
    path: Path
    arch: str
    model: VisionTransformer
    inputs: InputSpec
    summary: str

    @property
    def patch(self) -> int:
        """Longer side of a patch in pixels."""
        height, width = self.model.patch_embed.patch_size
        return int(max(height, width))


def open_backbones(texts: Sequence[str], arch: str | None) -> list[NamedBackbone]:
    """Load the models that a command compares.

    Args:
        texts: ``FILE``, or ``NAME=FILE``.
        arch: timm name, where a file does not tell it.

    Raises:
        ConfigError: If two have one name, a model is not known, or they take other bands.
        WeightsError: If a file cannot be read.
    """
    named = [_named(text) for text in texts]
    names = [name for name, _ in named]
    if len(set(names)) < len(names):
        raise ConfigError(
            f'The models are called {", ".join(names)}: give each a name of its own, as in '
            '--model before=base.safetensors --model after=run1/explora.safetensors.'
        )
    found = [open_backbone(name, path, arch) for name, path in named]
    counts = {item.name: len(item.inputs.bands) for item in found}
    if len(set(counts.values())) > 1:
        told = ', '.join(f'{name} {count}' for name, count in counts.items())
        raise ConfigError(
            f'The models take different numbers of bands ({told}): compare those of one.'
        )
    return found


def _named(text: str) -> tuple[str, Path]:
    name, sign, rest = text.partition('=')
    if not sign or Path(text).expanduser().exists():
        name, rest = '', text
    path = Path(rest).expanduser()
    if not path.is_file():
        raise ConfigError(f'{path} is no file: give weights as --model FILE or --model NAME=FILE.')
    if name:
        return name, path
    generic = path.stem in {'explora', 'model', 'adapter'} and path.resolve().parent.name
    return (path.resolve().parent.name if generic else path.stem), path


def open_backbone(
    name: str, path: Path, arch: str | None, base: str | None = None
) -> NamedBackbone:
    """Load one model.

    Args:
        name: What people call it.
        path: Of its weights.
        arch: timm name, where the file does not tell it.
        base: Weights that a delta belongs to.

    Raises:
        ConfigError: If the model is not known.
        WeightsError: If the file cannot be read.
    """
    chosen = arch if arch is not None else _architecture(path)
    inputs = read_input(path, chosen)
    model, report = create_backbone(chosen, path, in_chans=len(inputs.bands), base_weights=base)
    return NamedBackbone(name, path, chosen, model, inputs, report.summary())


def _architecture(path: Path) -> str:
    """Return the timm name that a file tells, or that its tensors are those of."""
    told = read_metadata(path)
    described = describe_file(path)
    fitted = described.get('fitted')
    base = fitted['model'] if isinstance(fitted, dict) else told.get('base')
    found = described.get('model') if base is None else base
    if not isinstance(found, str):
        raise ConfigError(
            f'{path} does not tell which model it belongs to ({described["kind"]}): name it by '
            '--arch, for instance --arch vit_small_patch14_dinov2.'
        )
    return found


def common_side(models: Sequence[NamedBackbone], wanted: int | None) -> int:
    """Round a side to whole patches of every model.

    Args:
        models: The models.
        wanted: In pixels; None for what the first model expects.
    """
    step = lcm(*(item.patch for item in models))
    side = models[0].inputs.image_size if wanted is None else wanted
    return max(round(side / step), 1) * step
