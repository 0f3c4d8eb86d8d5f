"""A small LoRA fine-tuning run as a script, on one rank or several.

``python -m tests.tasks.classification_runs IMAGES OUT [--devices N]`` writes the weights of every rank.
"""

import argparse
from pathlib import Path

import torch
from lightning.pytorch import Trainer

from tests.tasks.dinov2_runs import weights
from torchgeo_explora.datamodules import FolderDataModule
from torchgeo_explora.tasks import LoRAClassification


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument('images', type=Path)
    parser.add_argument('out', type=Path)
    parser.add_argument('--devices', type=int, default=1)
    options = parser.parse_args()
    # with two images a batch most branches of the last block are dropped whole
    task = LoRAClassification(
        'test_vit', image_size=32, rank=2, base_lr=0.5, drop_path=0.95, train_norms=True
    )
    trainer = Trainer(
        accelerator='cpu', devices=options.devices, strategy='ddp', max_epochs=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, default_root_dir=options.out,
        enable_model_summary=False,
    )  # fmt: skip
    data = FolderDataModule(options.images, image_size=32, batch_size=2)
    trainer.fit(task, data)
    torch.save(weights(task), options.out / f'rank{trainer.global_rank}.pt')
    trainer.test(task, data, verbose=False)


if __name__ == '__main__':
    main()
