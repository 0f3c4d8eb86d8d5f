"""What data and weights say of themselves, and whether that fits a model."""

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from torchgeo_explora.errors import ConfigError
from torchgeo_explora.models import LoadReport
from torchgeo_explora.tasks.mae import input_bands


@dataclass(frozen=True)
class DataFacts:
    """What a data module says of its images; None where it does not.

    Args:
        classes: Names of the classes.
        bands: Names of the bands.
        scale: Raw values that become 0 and 1, for each band.
        resolution: Size of a pixel on the ground.
        colors: Red, green and blue of each class.
        ignore_index: Label that is no class.
        image_size: Side of the images in pixels.
    """

    classes: tuple[str, ...] | None = None
    bands: tuple[str, ...] | None = None
    scale: tuple[tuple[float, float], ...] | None = None
    resolution: float | None = None
    colors: tuple[tuple[int, int, int], ...] | None = None
    ignore_index: int | None = None
    image_size: int | None = None

    @classmethod
    def of(cls, datamodule: object) -> 'DataFacts':
        """Read the attributes of a data module, and the class names of its training images."""
        found = {name: getattr(datamodule, name, None) for name in cls.__dataclass_fields__}
        if found['classes'] is None:
            sets = (getattr(datamodule, f'{split}_dataset', None) for split in ('train', 'test'))
            named = (getattr(dataset, 'classes', None) for dataset in sets)
            found['classes'] = next((names for names in named if names is not None), None)
        for name in ('classes', 'bands'):
            items: Sequence[object] | None = found[name]
            found[name] = None if items is None else tuple(map(str, items))
        return cls(**found)


def statistics(
    given: Sequence[float] | None, name: str, vit: VisionTransformer, report: LoadReport
) -> list[float]:
    """Return mean or std of each band: as given, as the weights' file says, or as timm does.

    Args:
        given: The user's.
        name: ``mean`` or ``std``.
        vit: The backbone.
        report: Of its weights.

    Raises:
        ConfigError: If they are not known for this number of bands.
    """
    bands = input_bands(vit)
    sources: list[Sequence[float] | None] = [given]
    if given is None:
        stored = report.metadata.get(name)
        sources = [
            None if stored is None else json.loads(stored),
            getattr(vit, 'pretrained_cfg', {}).get(name),
        ]
    found = next((values for values in sources if values is not None), ())
    if len(found) != bands:
        raise ConfigError(
            f'{name} has {len(found)} values for {bands} bands: give one for each band, of images '
            'in [0, 1].'
        )
    return [float(value) for value in found]


def check_classes(known: Sequence[str], found: Sequence[str]) -> None:
    """Check that a data set has the classes that a model knows, in their order.

    Args:
        known: Names of the model's classes.
        found: Names of the data set's.

    Raises:
        ConfigError: If it has others, or in another order.
    """
    unknown = [name for name in found if name not in known]
    if unknown:
        raise ConfigError(
            f'The data has classes that the model was not trained on: {", ".join(unknown)} (it '
            f'knows {", ".join(known)}): leave their images out, or train with all classes.'
        )
    if list(known[: len(found)]) != list(found):
        raise ConfigError(
            f'The data numbers its classes {", ".join(found)}, the model {", ".join(known)}: give '
            'both the same classes in the same order.'
        )


def check_labels(labels: Tensor, count: int, ignore_index: int | None = None) -> None:
    """Check that labels are classes.

    Args:
        labels: Class indices of any shape.
        count: Number of classes.
        ignore_index: Label that is no class and allowed.

    Raises:
        ConfigError: If one is not.
    """
    wrong = (labels < 0) | (labels >= count)
    if ignore_index is not None:
        wrong &= labels != ignore_index
    if bool(wrong.any()):
        values = labels[wrong].unique().tolist()
        raise ConfigError(
            f'The labels hold {", ".join(map(str, values[:5]))}, and the model has {count} classes, '
            f'numbered 0 to {count - 1}: correct the labels, or set num_classes.'
        )


def warn_of_unseen(counts: Tensor, names: Sequence[str] | None) -> None:
    """Warn of classes without any training image, which no model can learn.

    Args:
        counts: Labels seen in an epoch, by class.
        names: Of the classes.
    """
    unseen = [index for index, count in enumerate(counts.tolist()) if count == 0]
    if unseen:
        called = [str(index) if names is None else names[index] for index in unseen]
        warnings.warn(
            f'No training image has the class {", ".join(called[:10])}'
            f'{" and others" if len(called) > 10 else ""} ({len(called)} of {len(counts)} classes): '
            'it will never be predicted; add images, or leave the class out.',
            stacklevel=1,
        )
