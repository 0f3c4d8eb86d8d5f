"""The reference of features beside adapted weights, by which other images are found to be unlike."""

from pathlib import Path

import torch
from timm.models.vision_transformer import VisionTransformer

from torchgeo_explora.cli.console import say
from torchgeo_explora.cli.images import length, loader
from torchgeo_explora.cli.plan import Plan
from torchgeo_explora.cli.run_folder import RunFolder
from torchgeo_explora.models.feature_reference import (
    FeatureOrigin,
    backbone_fingerprint,
    fit_feature_reference,
    pooled_features,
)

FEWEST = 20
"""Images below which spread and distances say nothing."""

BATCH = 64


@torch.no_grad()
def write_reference(model: VisionTransformer, plan: Plan, folder: RunFolder) -> list[Path]:
    """Summarise the features of images that a model was adapted to.

    Args:
        model: The adapted model.
        plan: Of the run.
        folder: Where ``features.safetensors`` goes.

    Returns:
        The file; nothing where there are fewer than 20 images.

    Raises:
        OutputError: If it cannot be written.
    """
    images = plan.images.health_sample(plan.settings.seed)
    count = length(images)
    if count < FEWEST:
        say(f'There are {count} images, too few for a reference of features ({FEWEST} at least).')
        return []
    model = model.to(plan.device).eval()
    batches = loader(images, BATCH, plan.images.arguments['num_workers'])
    features = [
        pooled_features(model, plan.task.eval_transform(batch['image'].to(plan.device))).cpu()
        for batch in batches
    ]
    side = plan.arguments['eval_size']
    origin = FeatureOrigin(plan.settings.model, backbone_fingerprint(model), side)
    return [fit_feature_reference(torch.cat(features), origin).save(folder.features_reference)]
