"""What the report of a run measures beyond the probes: blocks, patch features, attention."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.utils.data import Dataset, Subset

from torchgeo_explora.analysis import (
    AnalysisConfig,
    BlockMeasures,
    TokenProbeConfig,
    cka_matrix,
    class_attention,
    enlarge,
    has_class_attention,
    measure_model,
    patch_features,
    pca_maps,
)
from torchgeo_explora.cli.images import Sample, length
from torchgeo_explora.cli.plan import Plan, patch_size, whole_patches
from torchgeo_explora.cli.run_folder import RunFolder
from torchgeo_explora.cli.settings import weights_argument
from torchgeo_explora.cli.training import ProgressLine
from torchgeo_explora.models import create_backbone
from torchgeo_explora.objectives.probing import Progress
from torchgeo_explora.transforms import EvalTransform

BEFORE, AFTER = 'before', 'after'
MEASURED = 96
"""Images that blocks are measured on."""

SHOWN = 5
"""Images whose features and attention are drawn."""

PICTURE_SIDE = 224
"""Least side in pixels that drawn images are given to the models at, for maps that show something."""

type Picture = NDArray[np.float32]
type Models = dict[str, VisionTransformer]


@dataclass(frozen=True)
class Study:
    """What was measured of a model before and after.

    Args:
        blocks: Of every block, by model.
        similarity: Linear CKA of each block before with the same after.
        pictures: Images (h, w, 3) in [0, 1].
        components: By model, colours of their patches, with one basis (images, gh, gw, 3).
        attention: By model, attention of the heads of the last block resized to the images (images,
            heads, h, w); None for models without a class token that looks.
    """

    blocks: dict[str, BlockMeasures]
    similarity: NDArray[np.float64]
    pictures: list[Picture]
    components: dict[str, Picture]
    attention: dict[str, Picture] | None


def study(plan: Plan, folder: RunFolder) -> Study:
    """Measure the base and the adapted model on the same images.

    Args:
        plan: Of the run.
        folder: Of the run; has the adapted weights, and keeps parts of what is measured.

    Raises:
        ExploraError: If a model or image cannot be read.
    """
    models = open_models(plan, folder)
    images = _spread(plan.images.health_sample(plan.settings.seed), MEASURED)
    blocks = {name: _measure(model, images, plan, folder, name) for name, model in models.items()}
    first, second = (list(blocks[name].sample) for name in (BEFORE, AFTER))
    matrix = cka_matrix(list(map(torch.from_numpy, first)), list(map(torch.from_numpy, second)))
    shown = _shown(plan)
    pictures = [picture(image) for image in _images(shown, plan, normalised=False)]
    given = _images(shown, plan, normalised=True)
    return Study(
        blocks, np.diag(np.asarray(matrix)), pictures, _components(models, given),
        _attention(models, given),
    )  # fmt: skip


def open_models(plan: Plan, folder: RunFolder) -> Models:
    """Open the base and the adapted model, on the run's device.

    Args:
        plan: Of the run.
        folder: Has the adapted weights.
    """
    settings, bands = plan.settings, plan.arguments['in_channels']
    base, _ = create_backbone(
        settings.model, weights_argument(settings.weights), in_chans=bands, seed=settings.seed
    )
    adapted, _ = create_backbone(settings.model, folder.merged, in_chans=bands)
    return {
        name: model.to(plan.device).eval() for name, model in ((BEFORE, base), (AFTER, adapted))
    }


def _spread(dataset: Dataset[Sample], most: int) -> Dataset[Sample]:
    count = length(dataset)
    chosen = np.linspace(0, count, min(most, count), endpoint=False).astype(int).tolist()
    return Subset(dataset, chosen)


def _shown(plan: Plan) -> Dataset[Sample]:
    """Images that are drawn: of several classes, where they are known."""
    if plan.images.labelled is not None:
        return _spread(plan.images.labelled.scored, SHOWN)
    return _spread(plan.images.health_sample(plan.settings.seed), SHOWN)


def _measure(
    model: VisionTransformer, images: Dataset[Sample], plan: Plan, folder: RunFolder, name: str
) -> BlockMeasures:
    config = AnalysisConfig(
        tokens=4000, probe=TokenProbeConfig(steps=80, batch_size=512), seed=plan.settings.seed
    )
    return measure_model(
        model, images, plan.task.eval_transform, config, folder=folder.analysis / name,
        device=plan.device, workers=plan.images.arguments['num_workers'],
        progress=_progress(f'Blocks {name}'),
    )  # fmt: skip


def _progress(what: str) -> Callable[[str, Progress], None]:
    lines: dict[str, ProgressLine] = {}

    def show(stage: str, state: Progress) -> None:
        lines.setdefault(stage, ProgressLine(f'{what}, {stage}'))(state)

    return show


def _images(dataset: Dataset[Sample], plan: Plan, normalised: bool) -> Tensor:
    """Images as the models are given them, or in [0, 1] (n, c, h, w)."""
    side = whole_patches(
        max(plan.arguments['eval_size'], PICTURE_SIDE), patch_size(plan.settings.model)
    )
    mean, std = plan.values.mean, plan.values.std
    if not normalised:
        mean, std = [0.0] * len(mean), [1.0] * len(std)
    images = torch.stack([dataset[index]['image'] for index in range(length(dataset))])
    seen: Tensor = EvalTransform(side, mean, std)(images)
    return seen


def picture(image: Tensor) -> Picture:
    """Return the first three bands of an image, or the first one as grey (h, w, 3) in [0, 1].

    Each band is stretched between its 1st and 99th percentile where it is dim: pictures of satellites
    often are.

    Args:
        image: (c, h, w) in [0, 1].
    """
    shown = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    values: Picture = shown.permute(1, 2, 0).numpy().astype(np.float32)
    low, high = np.percentile(values, (1, 99))
    stretched: Picture = np.clip((values - low) / max(high - low, 1e-6), 0, 1)
    return stretched


@torch.no_grad()
def _components(models: Models, images: Tensor) -> dict[str, Picture]:
    features = {
        name: patch_features(model, images.to(next(model.parameters()).device)).float().cpu()
        for name, model in models.items()
    }
    return {name: found.numpy() for name, found in pca_maps(features).maps.items()}


@torch.no_grad()
def _attention(models: Models, images: Tensor) -> dict[str, Picture] | None:
    if not all(map(has_class_attention, models.values())):
        return None
    height, width = images.shape[-2:]
    maps = {
        name: class_attention(model, images.to(next(model.parameters()).device))
        for name, model in models.items()
    }
    return {
        name: enlarge(found, height, width).float().cpu().numpy() for name, found in maps.items()
    }
