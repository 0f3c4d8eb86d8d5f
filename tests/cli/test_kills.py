"""``predict`` and ``similar`` killed at many moments, writing included: nothing is left half done."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.cli import killed_predictions
from tests.inference.conftest import segmentation_spec, write_raster
from tests.inference.test_similar import at, values, write
from tests.processes import run
from torchgeo_explora.models import create_backbone, save_model
from torchgeo_explora.models.segmentation import build_segmenter

KILLS = 24


@pytest.mark.slow
def test_no_moment_leaves_an_incomplete_file_and_the_end_has_the_same_bytes(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    backbone = create_backbone('test_vit', seed=0, img_size=32)[0]
    spec = segmentation_spec(classes=4, image_size=32, options={'decoder': 'fpn'})
    model = save_model(
        build_segmenter(backbone, 'fpn', 4, seed=0), spec, tmp_path / 'm.safetensors'
    )
    (tmp_path / 'scenes').mkdir()
    for number, side in enumerate((200, 450)):
        values = np.random.default_rng(number).integers(0, 255, (3, side, side), dtype=np.uint8)
        write_raster(tmp_path / 'scenes' / f'{number}.tif', values)
    command = [
        'predict', str(tmp_path / 'scenes'), '--model', str(model), '--device', 'cpu',
        '--precision', '32', '--block', '200', '--batch', '16', '--probabilities',
        '--uncertainty', 'entropy', '--vector', '--min-area', '2000',
    ]  # fmt: skip
    asked = json.dumps([command, str(tmp_path / 'whole'), str(tmp_path / 'out'), KILLS])
    printed = run(killed_predictions, asked, output=tmp_path / 'printed')
    assert json.loads(printed.splitlines()[-1])['files'] == 2 * 6  # layers, polygons, style, names


@pytest.mark.slow
def test_no_moment_leaves_half_a_search(tmp_path: Path) -> None:
    (tmp_path / 'embeddings').mkdir()
    for name in ('a', 'b'):
        write(tmp_path / 'embeddings' / f'{name}_embedding.tif', values())
    command = ['similar', str(tmp_path / 'embeddings'), '--like', at(12.5, 22.5), '--top', '5']
    asked = json.dumps([command, str(tmp_path / 'whole'), str(tmp_path / 'out'), KILLS])
    printed = run(killed_predictions, asked, output=tmp_path / 'printed')
    assert json.loads(printed.splitlines()[-1])['files'] == 2 * 2 + 1
