"""Weights enums, how they are fetched, and TorchGeo's registry."""

import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torchvision.models._api import WeightsEnum

from tests.conftest import REPOSITORY
from tests.models.official import TINY, published_encoder, shapes, tensors
from torchgeo_explora.errors import ConfigError, WeightsError
from torchgeo_explora.models import (
    TemporalViT,
    ViTBase14_DINOv2_ExPLoRA_Weights,
    ViTLarge8_GroupChannel_ExPLoRA_Weights,
    ViTLarge16_Temporal_SatMAE_Weights,
    create_backbone,
    describe_file,
    explora_vit_base,
    find_weights,
    register_with_torchgeo,
)
from torchgeo_explora.models.builders import ENTRIES
from torchgeo_explora.models.weights import ENUMS

MEMBER = ViTBase14_DINOv2_ExPLoRA_Weights.FMOW_RGB
MEMBERS = [member for enum in ENUMS for member in enum]
SMALL: dict[str, Any] = TINY


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small file in the published layout in the place of the real one."""
    path = tmp_path / 'published' / 'encoder_only.pth'
    path.parent.mkdir()
    torch.save(published_encoder(tensors(shapes(positions=257))), path)
    monkeypatch.setattr(MEMBER.value, 'url', path.as_uri())
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    return path


def _shape(model: torch.nn.Module, meta: dict[str, Any]) -> tuple[int, ...]:
    chip = (meta['in_chans'], meta['img_size'], meta['img_size'])
    return (2, 3, *chip) if isinstance(model, TemporalViT) else (2, *chip)


def _times(model: torch.nn.Module) -> list[torch.Tensor]:
    return [torch.empty(2, 3, 3, device='meta')] if isinstance(model, TemporalViT) else []


@pytest.mark.parametrize('member', MEMBERS, ids=str)
def test_meta_describes_the_model(member: WeightsEnum) -> None:
    meta = member.meta
    with torch.device('meta'):
        model = timm.create_model(meta['model'], img_size=meta['img_size'], num_classes=0)
    assert sum(p.numel() for p in model.parameters()) == meta['parameters']
    assert len(meta['bands']) == meta['in_chans']
    assert model(torch.empty(_shape(model, meta), device='meta'), *_times(model)).shape[0] == 2
    assert member.url.endswith('.pth')
    assert set(meta) >= {'dataset', 'publication', 'repo', 'ssl_method', 'licence'}
    assert find_weights(str(member)) is member


def test_the_documentation_lists_every_member() -> None:
    lines = (REPOSITORY / 'docs' / 'models.md').read_text(encoding='utf-8').splitlines()
    for member in MEMBERS:
        (line,) = [line for line in lines if f'`{member}`' in line]
        assert f'{member.meta["parameters"]:,}' in line
        assert member.meta['licence'] in line.lower()


@pytest.mark.parametrize('name', ['sentinel', 'temporal'])
def test_satmaes_transforms(name: str) -> None:
    if name == 'sentinel':
        transforms = ViTLarge8_GroupChannel_ExPLoRA_Weights.FMOW_SENTINEL.transforms
        out = transforms(torch.full((2, 10, 64, 80), 0.25))
        assert out.shape == (2, 10, 96, 96)
        torch.testing.assert_close(out, torch.full_like(out, 0.25))
    else:
        transforms = ViTLarge16_Temporal_SatMAE_Weights.FMOW_RGB.transforms
        out = transforms(torch.full((2, 3, 3, 300, 250), 0.4182007))
        assert out.shape == (2, 3, 3, 224, 224)
        assert out[:, :, 0].abs().max() < 1e-5


def test_transforms_give_what_the_model_takes() -> None:
    image = torch.full((2, 3, 300, 400), 0.485)
    out = MEMBER.transforms(image)
    assert out.shape == (2, 3, 224, 224)
    assert out[:, 0].abs().max() < 1e-5
    torch.testing.assert_close(out[0, 1, 0, 0].item(), (0.485 - 0.456) / 0.224, rtol=1e-4, atol=0)


@pytest.mark.parametrize('weights', [MEMBER, str(MEMBER)])
def test_enum_weights_are_downloaded_once(
    published: Path, tmp_path: Path, weights: WeightsEnum | str
) -> None:
    name = 'explora_vit_base_patch14_dinov2'
    first, report = create_backbone(name, weights, **SMALL)
    cached = tmp_path / 'cache' / 'hub' / 'checkpoints' / published.name
    assert report.source == str(cached)
    published.unlink()
    second = explora_vit_base(MEMBER, **SMALL)
    torch.testing.assert_close(dict(first.state_dict()), dict(second.state_dict()))


def test_a_path_in_the_place_of_the_url(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MEMBER.value, 'url', str(published))
    assert create_backbone('vit_base_patch14_dinov2', MEMBER, **SMALL)[1].source == str(published)


def test_failed_downloads_name_a_way_out(published: Path) -> None:
    published.unlink()
    with pytest.raises(WeightsError, match='put the file at') as error:
        create_backbone('vit_base_patch14_dinov2', MEMBER, **SMALL)
    assert 'FMOW_RGB' in str(error.value)


def test_hash_in_the_name_is_checked(
    published: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    digest = describe_file(published)['sha256'][:8]
    for name, fits in ((f'w-{digest}.pth', True), ('w-00000000.pth', False)):
        path = published.rename(published.with_name(name))
        monkeypatch.setattr(MEMBER.value, 'url', path.as_uri())
        if fits:
            create_backbone('vit_base_patch14_dinov2', MEMBER, **SMALL)
        else:
            with pytest.raises(WeightsError, match='could not be downloaded'):
                create_backbone('vit_base_patch14_dinov2', MEMBER, **SMALL)
            assert not (tmp_path / 'cache' / 'hub' / 'checkpoints' / name).exists()
        published = path


def test_timm_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / 'w.pth'
    torch.save(published_encoder(tensors(shapes(positions=257))), path)
    overlay = {'file': str(path), 'input_size': (3, 224, 224)}
    original = timm.create_model

    def local(name: str, **kwargs: Any) -> torch.nn.Module:  # noqa: ANN401
        extra = {'pretrained_cfg_overlay': overlay, **SMALL} if kwargs['pretrained'] else {}
        return original(name, **{**kwargs, **extra})

    monkeypatch.setattr(timm, 'create_model', local)
    model, report = create_backbone('vit_small_patch14_dinov2', True, img_size=56, **SMALL)
    assert report.source == 'timm weights of vit_small_patch14_dinov2'
    assert report.changed == {'pos_embed': 'resampled from 16 x 16 to 4 x 4 patches'}
    assert model.get_parameter('pos_embed').shape == (1, 17, 48)
    path.unlink()
    with pytest.raises(WeightsError, match='could not be had from timm'):
        create_backbone('vit_small_patch14_dinov2', True, **SMALL)


def test_unknown_weights() -> None:
    with pytest.raises(ConfigError, match=r'ViTBase14_DINOv2_ExPLoRA_Weights\.FMOW_RGB'):
        find_weights('ViTBase14_DINOv2_ExPLoRA_Weights.MARS')


def test_torchgeo_knows_the_models(published: Path) -> None:
    models = pytest.importorskip('torchgeo.models')
    assert register_with_torchgeo(ENTRIES), 'a second time changes nothing'
    assert models.get_weight(str(MEMBER)) is MEMBER
    assert set(ENTRIES) <= set(models.list_models())
    for name, entry in ENTRIES.items():
        if entry.weights is not None:
            assert models.get_model_weights(name) is entry.weights
            assert models.get_model_weights(entry.builder) is entry.weights
    assert all(models.get_weight(str(member)) is member for member in MEMBERS)
    model = models.get_model('explora_vit_base_patch14_dinov2', weights=MEMBER, **SMALL)
    assert model(torch.rand(1, 3, 28, 28)).shape == (1, 48)
    theirs = 'ViTSmall14_DINOv2_Weights.SENTINEL2_ALL_SOFTCON'
    assert str(find_weights(theirs)) == theirs


def test_a_changed_torchgeo_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    api = pytest.importorskip('torchgeo.models.api')
    monkeypatch.delattr(api, '_model_weights')
    with pytest.warns(UserWarning, match='in timm only'):
        assert not register_with_torchgeo(ENTRIES)


def test_without_torchgeo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'torchgeo.models', None)
    assert not register_with_torchgeo(ENTRIES)
