"""Conversions between merged weights, delta and PEFT files give the same features."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from peft import PeftModel
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer

from tests.cli.conftest import MODEL, adapt_arguments
from torchgeo_explora.cli import main
from torchgeo_explora.layers.tokens import encode
from torchgeo_explora.models import create_backbone


def _images(side: int = 48) -> torch.Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


def _tokens(weights: Path, side: int = 48) -> torch.Tensor:
    model, _ = create_backbone(MODEL, weights)
    with torch.no_grad():
        return encode(model, _images(side))


def _export(source: Path, to: str, out: Path, *more: str) -> int:
    return main(['export', str(source), '--to', to, '--out', str(out), *more])


@pytest.mark.parametrize('source', ['.', 'checkpoints/last.ckpt', 'adapter.safetensors'])
def test_every_source_gives_the_same_merged_weights(
    source: str, finished: Path, weights: Path, tmp_path: Path
) -> None:
    out = tmp_path / 'merged.safetensors'
    more = ['--weights', str(weights)] if source.startswith('adapter') else []
    assert _export(finished / source, 'merged', out, *more) == 0
    expected, found = load_file(finished / 'explora.safetensors'), load_file(out)
    assert expected.keys() == found.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize('source', ['.', 'checkpoints/last.ckpt'])
def test_delta_comes_from_a_run_or_its_checkpoint(
    source: str, finished: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / 'delta.safetensors'
    status = _export(finished / source, 'delta', out)
    if source == '.':  # the run has its delta: nothing to convert
        assert status == 2
        assert 'is a delta already' in capsys.readouterr().err
        return
    assert status == 0
    merged = tmp_path / 'merged.safetensors'
    assert _export(out, 'merged', merged, '--weights', str(weights)) == 0
    torch.testing.assert_close(_tokens(merged), _tokens(finished / 'explora.safetensors'))


@pytest.mark.parametrize('side', [32, 64])
def test_resampled_positions_serve_stock_timm(side: int, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / 'sized.safetensors'
    assert _export(finished, 'merged', out, '--image-size', str(side)) == 0
    stock = timm.create_model(MODEL, num_classes=0, img_size=side).eval()
    stock.load_state_dict(load_file(out))
    with torch.no_grad():
        features: torch.Tensor = stock.forward_features(_images(side))  # type: ignore[operator]
    expected = _tokens(finished / 'explora.safetensors', side)
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-5)


def test_peft_holds_a_run_that_trains_factors_alone(
    scenes: Path, weights: Path, tmp_path: Path, backbone: VisionTransformer
) -> None:
    run, out = tmp_path / 'run', tmp_path / 'peft'
    only = ['--unfreeze', '--set', 'train_norms=false', '--set', 'train_cls_token=false']
    assert main(adapt_arguments(scenes, run, weights, *only)) == 0
    assert _export(run, 'peft', out) == 0
    base, _ = create_backbone(MODEL, weights)
    adapted: Any = PeftModel.from_pretrained(base, str(out))
    adapted = adapted.merge_and_unload().eval()
    with torch.no_grad():
        found = encode(adapted, _images())
    expected = _tokens(run / 'explora.safetensors')
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert not torch.allclose(encode(backbone, _images()), expected, atol=1e-4)


@pytest.mark.parametrize(
    ('source', 'to', 'more', 'what'),
    [
        ('.', 'peft', [], 'does not fit into a PEFT adapter'),
        ('explora.safetensors', 'delta', [], 'cannot be told apart'),
        ('adapter.safetensors', 'merged', [], 'as --weights'),
        ('adapter.safetensors', 'merged', ['--weights', 'random'], 'other base weights'),
        ('checkpoints/last.ckpt', 'delta', ['--image-size', '32'], 'only merged weights'),
        ('checkpoints', 'merged', [], 'neither exported weights nor a checkpoint'),
    ],
)
def test_impossible_conversion(
    source: str,
    to: str,
    more: list[str],
    what: str,
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / 'out.safetensors'
    assert _export(finished / source, to, out, *more) == 2
    assert what in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_existing_file_is_not_replaced(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / 'mine.safetensors'
    out.write_bytes(b'mine')
    assert _export(finished, 'merged', out) == 2
    assert out.read_bytes() == b'mine'
