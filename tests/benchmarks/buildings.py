"""Building segmentation of drone tiles: a pre-trained encoder against a random one, same decoder.

    PYTHONPATH=. python tests/benchmarks/buildings.py buildings_tiles.zip FOLDER \
        --weights dinov2_vits14_fp16.safetensors

Both arms train the same decoder and the same low-rank updates on the same windows in the same order
with the same random numbers; only the encoder's own weights differ. Splits are by space, so that test
windows share no ground with training windows. Settings were not chosen on the test windows. FOLDER
gets ``result.json``, the fitted models and, for every arm, pictures of all test windows.
"""

import argparse
import json
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer, seed_everything
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from tests.benchmarks.building_tiles import write_geotiffs
from torchgeo_explora.datamodules import VectorSegmentationDataModule
from torchgeo_explora.tasks import LoRASemanticSegmentation

BUILDING = 1
TRUE, MISSED, FALSE = (0, 200, 0), (230, 0, 0), (0, 90, 255)
"""Colours of pixels: building found, building missed, found where there is none."""


def make_data(root: Path, args: argparse.Namespace) -> VectorSegmentationDataModule:
    """Windows of the tiles, divided by space: every run has the same ground in the same split."""
    return VectorSegmentationDataModule(
        root, root / 'labels.geojson', classes=['building'], image_size=args.image_size,
        batch_size=args.batch_size, seed=args.split_seed,
    )  # fmt: skip


def make_task(args: argparse.Namespace, pretrained: bool, seed: int) -> LoRASemanticSegmentation:
    """The task of one arm."""
    widths = {'upernet': {'decoder_channels': args.width}}
    return LoRASemanticSegmentation(
        'vit_small_patch14_dinov2',
        weights=str(args.weights) if pretrained else None,
        decoder=args.decoder,
        decoder_options=widths.get(args.decoder, {}),
        method=args.method,
        drop_path=0.1,
        base_lr=args.lr * 256 / args.batch_size,
        seed=seed,
    )


def intersection_over_union(found: Tensor, truth: Tensor) -> float:
    """Of the building pixels, over those that have a truth."""
    valid = truth != 255
    ours, theirs = (found == BUILDING) & valid, (truth == BUILDING) & valid
    return float((ours & theirs).sum() / (ours | theirs).sum())


def overlay(image: Tensor, truth: Tensor, found: Tensor) -> Image.Image:
    """The window as it is, its truth, and what was found, right and wrong."""
    pixels = (image.permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    valid = (truth != 255).numpy()
    ours, theirs = (found == BUILDING).numpy() & valid, (truth == BUILDING).numpy() & valid

    def painted(*layers: tuple[Any, tuple[int, int, int]]) -> Any:  # noqa: ANN401
        out = pixels.copy()
        for where, color in layers:
            out[where] = (0.5 * out[where] + 0.5 * np.array(color)).astype(np.uint8)
        return out

    errors = ((ours & theirs, TRUE), (theirs & ~ours, MISSED), (ours & ~theirs, FALSE))
    return Image.fromarray(np.hstack([pixels, painted((theirs, TRUE)), painted(*errors)]))


def predictions(
    task: LoRASemanticSegmentation, data: VectorSegmentationDataModule
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Image, truth and prediction of every test window."""
    data.setup('test')
    task.eval()
    loader = data.test_dataloader()
    assert isinstance(loader, DataLoader), 'there are test windows'
    for batch in loader:
        with torch.inference_mode(), torch.autocast('cpu', dtype=torch.bfloat16):
            found = task(batch['image']).argmax(dim=1)
        yield from zip(batch['image'], batch['mask'], found, strict=True)


def run(
    args: argparse.Namespace, tiles: Path, name: str, pretrained: bool, seed: int
) -> dict[str, Any]:
    """Fit and score one arm."""
    seed_everything(seed, verbose=False)
    folder = args.folder / f'{name}_{seed}'
    task, data = make_task(args, pretrained, seed), make_data(tiles, args)
    trainer = Trainer(
        accelerator='cpu', devices=1, precision='bf16-mixed', max_epochs=args.epochs,
        logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, limit_val_batches=0,
        num_sanity_val_steps=0,
    )  # fmt: skip
    start = time.process_time()
    trainer.fit(task, data)
    seconds = time.process_time() - start
    shown = list(predictions(task, data))
    pictures = folder / 'overlays'
    pictures.mkdir(parents=True, exist_ok=True)
    for index, (image, truth, found) in enumerate(shown):
        overlay(image, truth, found).save(pictures / f'{index:03d}.png')
    images, truth, found = (torch.stack(part) for part in zip(*shown, strict=True))
    share = float((truth == BUILDING).sum() / (truth != 255).sum())
    return {
        'arm': name, 'seed': seed, 'iou': intersection_over_union(found, truth),
        'test_windows': len(images), 'building_share': share, 'cpu_seconds': round(seconds, 1),
        'train_loss': float(trainer.callback_metrics['train_loss']),
    }  # fmt: skip


def main() -> None:
    """Run both arms and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument('archive', type=Path, help='buildings_tiles.zip')
    parser.add_argument('folder', type=Path, help='where results go')
    parser.add_argument('--weights', type=Path, required=True, help='DINOv2 ViT-S/14')
    parser.add_argument('--decoder', default='upernet')
    parser.add_argument('--width', type=int, default=64, help="UPerNet's channels")
    parser.add_argument('--method', default='lora', help='lora, frozen or full')
    parser.add_argument('--epochs', type=int, default=6)
    parser.add_argument('--batch-size', type=int, default=4)
    parser.add_argument('--image-size', type=int, default=256)
    parser.add_argument('--lr', type=float, default=1e-3)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0])
    parser.add_argument('--split-seed', type=int, default=0)
    parser.add_argument('--arms', nargs='+', default=['pretrained', 'random'])
    args = parser.parse_args()
    torch.set_num_threads(1)
    tiles = write_geotiffs(args.archive, args.folder / 'tiles')
    rows = []
    for seed in args.seeds:
        for arm in args.arms:
            rows.append(run(args, tiles, arm, arm == 'pretrained', seed))
            print(json.dumps(rows[-1]), flush=True)
            facts = {
                'settings': {key: str(value) for key, value in vars(args).items()},
                'torch': torch.__version__, 'machine': platform.processor(), 'runs': rows,
            }  # fmt: skip
            (args.folder / 'result.json').write_text(json.dumps(facts, indent=2))


if __name__ == '__main__':
    main()
