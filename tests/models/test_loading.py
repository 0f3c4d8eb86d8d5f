"""Building backbones with and without weights, and writing them."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from tests.models.official import NAME, TINY, published_encoder, shapes, tensors, tiny
from torchgeo_explora.adapters import ExPLoRAConfig, apply_explora, merge_lora, save_adapter
from torchgeo_explora.errors import ConfigError, OutputError, WeightsError
from torchgeo_explora.layers.tokens import encode
from torchgeo_explora.models import (
    create_backbone,
    load_backbone,
    read_checkpoint,
    read_metadata,
    save_backbone,
)

SMALL: dict[str, Any] = TINY


def test_native_grid_is_kept_unless_a_size_is_asked_for(tmp_path: Path) -> None:
    torch.save(published_encoder(tensors(shapes(positions=37))), tmp_path / 'w.pth')
    model, report = create_backbone(NAME, tmp_path / 'w.pth', **SMALL)
    assert model.patch_embed.grid_size == (6, 6)
    assert report.changed == {}
    model, report = create_backbone(NAME, tmp_path / 'w.pth', img_size=(28, 70), **SMALL)
    assert model.patch_embed.grid_size == (2, 5)
    assert report.changed == {'pos_embed': 'resampled from 6 x 6 to 2 x 5 patches'}
    assert 'resampled from 6 x 6' in report.summary()
    assert 'Added: mask_token' in report.summary()


def test_half_precision_becomes_single(tmp_path: Path) -> None:
    state = {key: tensor.half() for key, tensor in tensors(shapes()).items()}
    save_file(state, tmp_path / 'w.safetensors')
    model, report = create_backbone(NAME, tmp_path / 'w.safetensors', **SMALL)
    assert {p.dtype for p in model.parameters()} == {report.mask_token.dtype} == {torch.float32}
    assert report.dtypes == ('float16',)
    key = 'blocks.2.mlp.fc1.weight'
    torch.testing.assert_close(model.state_dict()[key], state[key].float(), rtol=0, atol=0)


def test_real_weights_load_and_see(weights_dir: Path) -> None:
    model, report = create_backbone(NAME, weights_dir / 'dinov2_vits14_fp16.safetensors')
    assert model.get_parameter('pos_embed').shape == (1, 1370, 384)
    assert report.added == ('mask_token',)
    assert report.dropped == ()
    assert report.dtypes == ('float16',)
    with torch.no_grad():
        tokens = encode(model, torch.zeros(1, 3, 56, 56))
    assert torch.isfinite(tokens).all()


def test_seed_decides_the_initialisation_and_nothing_else() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first, second = (create_backbone(NAME, img_size=28, seed=5, **SMALL)[0] for _ in range(2))
    other, report = create_backbone(NAME, img_size=28, seed=6, **SMALL)
    torch.testing.assert_close(torch.rand(1), expected, rtol=0, atol=0)
    torch.testing.assert_close(dict(first.state_dict()), dict(second.state_dict()))
    assert not torch.equal(first.state_dict()['pos_embed'], other.state_dict()['pos_embed'])
    assert report.source is None
    assert set(report.added) == {*other.state_dict(), 'mask_token'}


@pytest.mark.parametrize(
    ('name', 'kwargs', 'said'),
    [
        ('resnet18', {}, 'is a ResNet'),
        ('swin_tiny_patch4_window7_224', {}, 'is a SwinTransformer'),
        ('deit_tiny_distilled_patch16_224', {}, 'VisionTransformerDistilled'),
        ('vit_smal_patch14_dinov2', {}, 'vit_small_patch14_dinov2'),
        ('vit_small_patch14_dinov2.mars', {}, 'lvd142m'),
        (NAME, {'in_chans': 0}, 'in_chans is 0'),
        (NAME, {'img_size': 0}, 'img_size is 0'),
        (NAME, {'img_size': (28, 28, 28)}, 'height and width'),
        (NAME, {'img_size': 30, **TINY}, 'for instance 28'),
        (NAME, {'drop_pth_rate': 0.1, **TINY}, 'drop_pth_rate'),
        (NAME, {'weights': 'ViTBase14_DINOv2_ExPLoRA_Weights.MARS'}, 'FMOW_RGB'),
    ],
)
def test_impossible_models(name: str, kwargs: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        create_backbone(name, **kwargs)


def test_weights_of_another_size_name_the_model_they_belong_to(tmp_path: Path) -> None:
    save_file(tensors(shapes()), tmp_path / 'w.safetensors')
    with pytest.raises(WeightsError) as error:
        create_backbone('vit_tiny_patch16_224', tmp_path / 'w.safetensors')
    for part in ('w.safetensors', 'width 48', 'width 192', 'patch 14', 'patch 16'):
        assert part in str(error.value)


def test_saved_backbone_loads_anywhere(tmp_path: Path) -> None:
    model = tiny((28, 56))
    metadata = {'base': NAME, 'mean': [0.5, 0.4, 0.3], 'config': {'rank': 8}}
    path = save_backbone(model, tmp_path / 'new' / 'merged.safetensors', metadata)
    texts = read_metadata(path)
    assert texts['base'] == NAME
    assert json.loads(texts['mean']) == [0.5, 0.4, 0.3]
    assert json.loads(texts['config']) == {'rank': 8}
    assert {'format', 'version', 'generator', 'grid'} <= set(texts)
    assert [p.name for p in path.parent.iterdir()] == ['merged.safetensors']
    ours, report = create_backbone(NAME, path, **SMALL)
    stock = timm.create_model(
        NAME, num_classes=0, img_size=(28, 56), checkpoint_path=str(path), **SMALL
    )
    for loaded in (ours, stock):
        torch.testing.assert_close(dict(loaded.state_dict()), dict(model.state_dict()))
    assert (report.renamed, report.dropped, report.changed) == ({}, (), {})


def test_adapted_models_are_merged_before_they_are_saved(tmp_path: Path) -> None:
    model = tiny()
    config = ExPLoRAConfig(rank=2, unfreeze_blocks=(-1,))
    apply_explora(model, config)
    with pytest.raises(ConfigError, match='merge_lora'):
        save_backbone(model, tmp_path / 'w.safetensors')
    path = save_backbone(merge_lora(model), tmp_path / 'w.safetensors')
    load_backbone(tiny(), path)
    delta = save_adapter(model, config, tmp_path / 'adapter.safetensors')
    with pytest.raises(WeightsError, match='only what an adaptation changed'):
        create_backbone(NAME, delta, **SMALL)


def test_unwritable_places(tmp_path: Path) -> None:
    (tmp_path / 'file').write_text('x')
    with pytest.raises(OutputError, match='could not be written'):
        save_backbone(tiny(), tmp_path / 'file' / 'w.safetensors')
    with pytest.raises(ConfigError, match=r'\.safetensors'):
        save_backbone(tiny(), tmp_path / 'w.pth')


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let the system refuse to write beyond a size, as it does when the disk is full."""
    resource = pytest.importorskip('resource', reason='limits of file sizes exist on Unix only')
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / 'w.safetensors'
    save_backbone(tiny(), path, {'base': 'old'})
    before = path.read_bytes()
    with largest_file(100_000), pytest.raises(OutputError, match='could not be written'):
        save_backbone(tiny(), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ['w.safetensors']


def test_reading_gives_independent_tensors(tmp_path: Path) -> None:
    path = save_backbone(tiny(), tmp_path / 'w.safetensors')
    found = read_checkpoint(path)
    found.tensors['norm.weight'].zero_()
    assert read_checkpoint(path).tensors['norm.weight'].abs().sum() > 0
