"""Tell images of another sensor by their distance to those of one, block by block.

Run by hand: ``python -m tests.benchmarks.distance EUROSAT.zip OTHERS.zip WEIGHTS``. The reference is
fitted to images below ``train/``, with the unit from as many others of them; printed is how well it
tells OTHERS from images below ``test/``: the area under the ROC curve, the share of images beyond 1,
and that of each class of the archive after a reference without this class.
"""

import argparse
import io
import zipfile
from pathlib import Path, PurePath

import numpy as np
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from torchgeo_explora.layers.tokens import intermediate_tokens, patch_tokens
from torchgeo_explora.models import (
    FeatureOrigin,
    FeatureReference,
    create_backbone,
    fit_feature_reference,
    read_input,
)

ENDINGS = {'.jpg', '.jpeg', '.png', '.tif'}


def members(archive: Path, folder: str = '') -> list[str]:
    """List the images of an archive below a folder.

    Args:
        archive: The .zip file.
        folder: Name of one of the folders above the image; any where empty.
    """
    with zipfile.ZipFile(archive) as content:
        names = sorted(content.namelist())
    kept = [name for name in names if PurePath(name).suffix.lower() in ENDINGS]
    return [name for name in kept if not folder or folder in PurePath(name).parts]


def draw(names: list[str], count: int, seed: int) -> list[str]:
    """Draw images without repetition.

    Args:
        names: The images.
        count: At most so many.
        seed: Draws them.
    """
    order = np.random.default_rng(seed).permutation(len(names))[:count]
    return [names[index] for index in sorted(order)]


def features(
    vit: VisionTransformer,
    archive: Path,
    names: list[str],
    size: int,
    normal: tuple[Tensor, Tensor],
) -> Tensor:
    """Mean patch tokens of every block after the final norm (images, blocks, dim).

    Args:
        vit: The backbone.
        archive: The .zip file.
        names: Its images.
        size: Side that they are resized to.
        normal: Mean and standard deviation of the bands.
    """
    blocks, found = range(len(vit.blocks)), []
    with zipfile.ZipFile(archive) as content, torch.no_grad():
        for first in range(0, len(names), 32):
            batch = []
            for name in names[first : first + 32]:
                picture = Image.open(io.BytesIO(content.read(name))).convert('RGB')
                pixels = np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC))
                batch.append(torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255)
            images = (torch.stack(batch) - normal[0]) / normal[1]
            outputs = intermediate_tokens(vit, images, blocks)
            found.append(torch.stack([patch_tokens(vit, x).mean(1) for x in outputs], 1))
    return torch.cat(found)


def fitted(train: Tensor, held_out: Tensor) -> FeatureReference:
    """Fit a reference to the features of one block."""
    return fit_feature_reference(train, FeatureOrigin('', '', 0), held_out)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('images', type=Path)
    parser.add_argument('others', type=Path)
    parser.add_argument('weights', type=Path)
    parser.add_argument('--model', default='vit_small_patch14_dinov2')
    parser.add_argument('--size', type=int, default=112)
    parser.add_argument('--count', type=int, default=600)
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    inputs = read_input(args.weights, args.model)
    vit = create_backbone(args.model, args.weights, args.size)[0].eval()
    normal = tuple(torch.tensor(v)[:, None, None] for v in (inputs.mean, inputs.std))
    names = draw(members(args.images, 'train'), 2 * args.count, args.seed)
    tests = draw(members(args.images, 'test'), args.count // 2, args.seed)
    known, test = (
        features(vit, args.images, chosen, args.size, (normal[0], normal[1]))
        for chosen in (names, tests)
    )
    chosen = draw(members(args.others), args.count // 2, args.seed)
    other = features(vit, args.others, chosen, args.size, (normal[0], normal[1]))
    halves = torch.randperm(len(known), generator=torch.Generator().manual_seed(args.seed))
    train, held_out = halves.chunk(2)
    classes = np.array([PurePath(name).parent.name for name in names])[train.numpy()]
    truth = np.array([PurePath(name).parent.name for name in tests])
    print(
        f'{len(train)} images, {len(held_out)} for the unit, {len(test)} test, {len(other)} others'
    )
    print('block  AUROC  test beyond 1  others beyond 1  unknown class AUROC: mean (least to most)')
    for block in range(len(vit.blocks)):
        known_train, unit = known[train, block], known[held_out, block]
        reference = fitted(known_train, unit)
        near, far = (reference.distance(x[:, block]).numpy() for x in (test, other))
        score = roc_auc_score(np.repeat([0, 1], [len(near), len(far)]), np.concatenate([near, far]))
        held = []
        for name in sorted(set(truth)):
            without = fitted(known_train[torch.from_numpy(classes != name)], unit)
            held.append(roc_auc_score(truth == name, without.distance(test[:, block]).numpy()))
        print(
            f'{block:5}  {score:.4f}  {(near > 1).mean():.3f}  {(far > 1).mean():.3f}  '
            f'{np.mean(held):.3f} ({min(held):.3f} to {max(held):.3f})'
        )


if __name__ == '__main__':
    main()
