"""Maps of classifiers that saw their images enlarged."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import rasterio
import torch
from torch import Tensor, nn

from tests.inference.conftest import segmentation_spec, write_raster
from torchgeo_explora.inference import PredictSettings, predict_rasters
from torchgeo_explora.transforms.normalize import resize_and_centre

SEEN, CHIP = 48, 20


class Bright(nn.Module):
    """Tells images by their mean, and remembers them."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (b, 2)."""
        self.seen.append(images.clone())
        mean = images.mean((1, 2, 3))
        return torch.stack([mean, 0.5 - mean], dim=1) * 100


def test_windows_are_chips_and_are_resized_as_chips_were(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    chips = rng.integers(1, 256, (6, 3, CHIP, CHIP), dtype=np.uint8)
    chips[::2] //= 3
    scene = np.concatenate([np.concatenate(list(chips[i : i + 3]), axis=2) for i in (0, 3)], axis=1)
    path = write_raster(tmp_path / 'scene.tif', scene)
    spec = segmentation_spec(classes=2, task='classification', image_size=SEEN, resolution=None)
    spec = replace(spec, options={'window': CHIP})
    model = Bright()
    predict_rasters([path], model, spec, tmp_path / 'out', PredictSettings())
    with rasterio.open(tmp_path / 'out' / 'scene_pred.tif') as found:
        classes = found.read(1).reshape(2, CHIP, 3, CHIP).swapaxes(1, 2).reshape(6, -1)
    given = resize_and_centre(torch.from_numpy(chips).float() / 255, SEEN, SEEN)
    expected = Bright()(given).argmax(1).numpy()
    assert set(expected) == {0, 1}
    assert (classes == expected[:, None]).all()
    torch.testing.assert_close(model.seen[-1], given, rtol=0, atol=1e-6)


def test_a_window_of_ones_own_keeps_the_scale(tmp_path: Path) -> None:
    path = write_raster(tmp_path / 'scene.tif', np.full((3, 60, 60), 9, np.uint8))
    spec = segmentation_spec(classes=2, task='classification', image_size=SEEN, resolution=None)
    model = Bright()
    how = PredictSettings(window=30)
    predict_rasters([path], model, replace(spec, options={'window': CHIP}), tmp_path / 'a', how)
    predict_rasters([path], model, spec, tmp_path / 'b', how)
    assert [images.shape[-1] for images in (model.seen[1], model.seen[-1])] == [72, 30]
