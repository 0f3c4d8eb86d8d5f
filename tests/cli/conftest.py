"""Small images, weights and runs for the command."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from torchgeo_explora.cli import main
from torchgeo_explora.datasets import SyntheticScenes
from torchgeo_explora.models import create_backbone, save_backbone

MODEL = 'test_vit'  # timm's own for tests: width 64, 6 blocks, patch 16
SMALL = ['--set', 'prototypes=32', '--set', 'hidden_dim=32', '--set', 'n_local=2']

Run = Callable[..., int]


@pytest.fixture(scope='session')
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 scenes in 8 class folders, 32 pixels a side."""
    folder = tmp_path_factory.mktemp('images') / 'scenes'
    SyntheticScenes(48, 'target', size=32).write_scenes(folder)
    return folder


@pytest.fixture(scope='session')
def backbone() -> VisionTransformer:
    """The base, with random weights."""
    return create_backbone(MODEL, seed=0)[0]


@pytest.fixture(scope='session')
def weights(tmp_path_factory: pytest.TempPathFactory, backbone: VisionTransformer) -> Path:
    """The base as a file."""
    path = tmp_path_factory.mktemp('weights') / 'base.safetensors'
    return save_backbone(backbone, path, {'base': MODEL})


def adapt_arguments(folder: Path, out: Path, weights: Path, *more: str) -> list[str]:
    """Arguments of a run of a few seconds."""
    return [
        'adapt', str(folder), '--out', str(out), '--model', MODEL, '--weights', str(weights),
        '--steps', '4', '--batch-size', '8', '--rank', '4', '--precision', '32', '--device', 'cpu',
        '--image-size', '32', '--report', 'short', *SMALL, *more,
    ]  # fmt: skip


@pytest.fixture(scope='session')
def finished(tmp_path_factory: pytest.TempPathFactory, scenes: Path, weights: Path) -> Path:
    """The folder of a finished run; not to be changed."""
    out = tmp_path_factory.mktemp('runs') / 'run'
    assert main(adapt_arguments(scenes, out, weights, '--checkpoint-every', '2')) == 0
    return out


@pytest.fixture
def one_line(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """Return a function that gives stderr, which must be a single line."""

    def read() -> str:
        text = capsys.readouterr().err
        assert text.count('\n') == 1, text
        assert torch.is_grad_enabled()
        return text

    return read
