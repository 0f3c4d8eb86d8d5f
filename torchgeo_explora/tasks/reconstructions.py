"""Pictures of what a masked autoencoder makes of hidden patches, before, during and after a run."""

from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.seed import isolate_rng
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, default_collate
from torchgeo.datamodules import BaseDataModule

from torchgeo_explora._figures import save_png
from torchgeo_explora.errors import ConfigError
from torchgeo_explora.models import resolve_groups
from torchgeo_explora.tasks._autoencoder import Channels
from torchgeo_explora.tasks._online import undisturbed
from torchgeo_explora.tasks._pictures import Composite, Reconstruction, draw_dates, draw_images
from torchgeo_explora.tasks._subsets import draw
from torchgeo_explora.tasks.mae import ExPLoRAMAE

FOLDER = 'reconstructions'
SENTINEL2_COMPOSITES = {
    'true colour (B4, B3, B2)': ('B4', 'B3', 'B2'),
    'false colour (B8, B4, B3)': ('B8', 'B4', 'B3'),
    'short-wave infrared (B12, B8A, B4)': ('B12', 'B8A', 'B4'),
}
"""What is usually shown of Sentinel-2: vegetation is red in the second and green in the third."""


class Reconstructions(Callback):
    """Writes pictures of a few images: input, what was visible of it, and the model's output.

    ``reconstructions/step_00000000.png`` shows the start, others follow every ``every_n_steps``
    optimizer steps and at the end, always of the same images with the same masks; ``torchgeo
    test`` writes ``test.png``. The images are validation images where there are some. Training
    goes on exactly as it would without.

    Args:
        every_n_steps: Optimizer steps between two pictures.
        images: Number of images, or of places of a temporal model.
        composites: Names of the bands shown as red, green and blue, by a title. By default true
            and false colours of Sentinel-2 where its bands are named, else bands of each group.
        seed: Draws images and masks.

    Raises:
        ConfigError: If an argument is not possible, or the task is no masked autoencoder.
    """

    def __init__(
        self,
        every_n_steps: int = 1000,
        images: int = 6,
        composites: Mapping[str, Sequence[str]] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if every_n_steps < 1 or images < 1:
            raise ConfigError(
                f'every_n_steps is {every_n_steps} and images {images}: both must be at least 1.'
            )
        self.every_n_steps, self.images, self.seed = every_n_steps, images, seed
        self.named = composites
        self.last = -1

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Choose images and bands."""
        if stage not in ('fit', 'test'):
            return
        if not isinstance(pl_module, ExPLoRAMAE):
            raise ConfigError(
                f'{type(pl_module).__name__} reconstructs nothing: use Reconstructions with '
                'ExPLoRAMAE.'
            )
        datamodule = getattr(trainer, 'datamodule', None)
        if not isinstance(datamodule, BaseDataModule):
            raise ConfigError(
                'Reconstructions has no data module to take images from: train with a TorchGeo '
                'data module.'
            )
        count = pl_module.in_channels
        self.composites = find_composites(pl_module.channels, count, self.named)
        with isolate_rng():
            self.batch = self._draw(datamodule, stage)

    def _draw(self, datamodule: BaseDataModule, stage: str) -> dict[str, Tensor] | None:
        splits = ('val', 'train') if stage == 'fit' else ('test',)
        found: list[Dataset[Any] | None] = [getattr(datamodule, f'{s}_dataset') for s in splits]
        datasets = [dataset for dataset in found if dataset is not None]
        if not datasets:
            return None
        subset = draw(datasets[0], self.images, self.seed)
        samples = [subset[index] for index in range(len(subset))]
        kept = ('image', 'timestamps')
        batch: dict[str, Tensor] = default_collate(
            [{key: sample[key] for key in kept if key in sample} for sample in samples]
        )
        return batch

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the start, or where a run goes on."""
        self._write(trainer, pl_module, None)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Show where it is time to."""
        if trainer.global_step % self.every_n_steps == 0:
            self._write(trainer, pl_module, None)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the result."""
        self._write(trainer, pl_module, None)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show test images."""
        self._write(trainer, pl_module, 'test')

    def _write(self, trainer: pl.Trainer, pl_module: pl.LightningModule, name: str | None) -> None:
        assert isinstance(pl_module, ExPLoRAMAE), 'checked in setup'
        step = trainer.global_step
        if self.batch is None or not pl_module.writes or (name is None and step == self.last):
            return
        self.last = step
        folder = pl_module.result_folder() / FOLDER
        if not trainer.is_global_zero:
            return
        with undisturbed([pl_module]), trainer.precision_plugin.forward_context():
            pl_module.eval()
            rows = reconstruct(pl_module, self.batch, self.seed)
        path = folder / f'{f"step_{step:08d}" if name is None else name}.png'
        save_png(self._picture(pl_module, rows, step), path)
        rank_zero_info(f'Wrote {path}')

    def _picture(self, task: ExPLoRAMAE, rows: list[Reconstruction], step: int) -> Figure:
        config = task.recipe.objective
        title = f'After {step:,} optimizer steps. {100 * config.mask_ratio:.0f} % of the tokens '
        grouped = task.channels.indices is not None
        title += f'are hidden (grey{"; tinted where only some bands are" if grouped else ""}).'
        if config.norm_pix_loss:
            title += '\nnorm_pix_loss: hidden patches are given their true mean and deviation.'
        if 'timestamps' in (self.batch or {}):
            return draw_dates(rows, self.composites[0], title)
        return draw_images(rows, self.composites, title)


@torch.no_grad()
def reconstruct(task: ExPLoRAMAE, batch: Mapping[str, Tensor], seed: int) -> list[Reconstruction]:
    """Mask and reconstruct images.

    Args:
        task: In evaluation mode.
        batch: ``image`` in [0, 1], and ``timestamps`` for a temporal model.
        seed: Draws the masks.
    """
    images = task.prepare(batch['image'].to(task.device))
    timestamps = batch['timestamps'].to(task.device) if 'timestamps' in batch else None
    output = task.masked(images, seed, timestamps)
    made = task.model.reconstruct(images, output)
    hidden = task.model.hidden_pixels(images, output)
    normalize = task.eval_transform.normalize
    mean, std = normalize.mean[:, None, None], normalize.std[:, None, None]
    names = [()] * len(images) if timestamps is None else [date_labels(t) for t in timestamps]
    return [
        Reconstruction(*parts)
        for parts in zip(
            _dated(images.float() * std + mean, timestamps),
            _dated(hidden, timestamps).astype(np.bool_),
            _dated(made.float() * std + mean, timestamps),
            names,
            strict=True,
        )
    ]


def _dated(images: Tensor, timestamps: Tensor | None) -> NDArray[np.float32]:
    """Images as an array with an axis of dates, (B, T, C, H, W)."""
    dated = images[:, None] if timestamps is None else images
    array: NDArray[np.float32] = dated.cpu().numpy()
    return array


def date_labels(timestamps: Tensor) -> tuple[str, ...]:
    """Return year and month of some dates.

    Args:
        timestamps: (T, 3), years since 2002, months from 0, hours.
    """
    return tuple(f'{2002 + int(year)}-{1 + int(month):02d}' for year, month, _ in timestamps)


def find_composites(
    channels: Channels, count: int, named: Mapping[str, Sequence[str]] | None
) -> list[Composite]:
    """Choose what is shown of the bands.

    Args:
        channels: Names and groups of the bands, as far as they are known.
        count: Number of bands.
        named: Names of three bands each, by title; None to choose.

    Raises:
        ConfigError: If a name is unknown, or not three are given.
    """
    if named is not None:
        return [_composite(title, names, channels.bands) for title, names in named.items()]
    if count <= 3:
        return [Composite('', *_three(range(count)))]
    known = [
        _composite(title, names, channels.bands)
        for title, names in SENTINEL2_COMPOSITES.items()
        if channels.bands is not None and _all_there(names, channels.bands)
    ]
    if known:
        return known
    groups = [tuple(range(count))] if channels.indices is None else channels.indices
    titles = [''] * len(groups) if channels.groups is None else list(channels.groups)
    # bands are mostly listed from short to long waves: the longest of three is shown as red
    return [
        Composite(title, *reversed(_three(group)))
        for title, group in zip(titles, groups, strict=True)
    ]


def _three(group: Sequence[int]) -> tuple[int, int, int]:
    """The first three bands, the last one again where there are fewer."""
    first, second, third = (group[min(place, len(group) - 1)] for place in range(3))
    return first, second, third


def _all_there(names: Sequence[str], bands: Sequence[str]) -> bool:
    try:
        resolve_groups(bands, [names])
    except ConfigError:
        return False
    return True


def _composite(title: str, names: Sequence[str], bands: Sequence[str] | None) -> Composite:
    if bands is None or isinstance(names, str) or len(names) != 3:
        what = 'the task has no names of bands' if bands is None else f'it is {names}'
        raise ConfigError(
            f'Composite {title!r} cannot be shown, as {what}: give bands to the task, and the '
            'names of three of them to each composite, for red, green and blue.'
        )
    ((red, green, blue),) = resolve_groups(bands, [names])
    return Composite(title, red, green, blue)
