"""What trains after surgery: exact published counts, the official rule, and the model's output."""

from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from tests.vits import VARIANTS, images_for, make_vit
from torchgeo_explora.adapters import ExPLoRAConfig, apply_explora, lora_finetuning, merge_lora
from torchgeo_explora.adapters.surgery import _check_model
from torchgeo_explora.errors import ConfigError
from torchgeo_explora.layers.lora import LoRALinear

CONFIGS: dict[str, ExPLoRAConfig] = {
    'explora': ExPLoRAConfig(rank=4),
    'first_and_last': ExPLoRAConfig(rank=4, unfreeze_blocks=(0, -1)),
    'first': ExPLoRAConfig(rank=4, unfreeze_blocks=(0,)),
    'unfreeze_only': ExPLoRAConfig(rank=0),
    'lora_only_rank_1': ExPLoRAConfig(rank=1, unfreeze_blocks=()),
    'lora_only_full_rank': ExPLoRAConfig(rank=24, unfreeze_blocks=()),
    'key': ExPLoRAConfig(rank=4, targets=('k',)),
    'projection': ExPLoRAConfig(rank=4, targets=('proj',)),
    'mlp': ExPLoRAConfig(rank=5, targets=('mlp',)),
    'everywhere': ExPLoRAConfig(rank=8, targets=('q', 'k', 'v', 'proj', 'mlp'), alpha=3.0),
    'norms_frozen': ExPLoRAConfig(rank=4, train_norms=False),
    'tokens_frozen': ExPLoRAConfig(rank=4, train_cls_token=False, train_registers=False),
    'new_bands': ExPLoRAConfig(rank=4, train_patch_embed=True),
    'all': ExPLoRAConfig(rank=0, train_all=True),
    'fine_tuning': lora_finetuning(2),
}
SIZES = {'base': 'vit_base_patch14_dinov2', 'large': 'vit_large_patch14_dinov2'}


def _on_meta(name: str, **arguments: Any) -> VisionTransformer:  # noqa: ANN401
    with torch.device('meta'):
        model = timm.create_model(name, **arguments)
    assert isinstance(model, VisionTransformer)
    return model


@pytest.mark.parametrize(
    ('size', 'rank', 'without', 'with_token'),
    [
        ('base', 8, 7_395_072, 7_395_840),
        ('base', 32, 8_206_080, 8_206_848),
        ('base', 64, 9_287_424, 9_288_192),
        ('large', 8, 13_448_192, 13_449_216),
        ('large', 32, 15_709_184, 15_710_208),
        ('large', 64, 18_723_840, 18_724_864),
    ],
)
def test_published_counts(size: str, rank: int, without: int, with_token: int) -> None:
    for train_cls_token, expected in ((False, without), (True, with_token)):
        model = _on_meta(SIZES[size], num_classes=62 if train_cls_token else 0)
        config = ExPLoRAConfig(rank=rank, train_cls_token=train_cls_token)
        report = apply_explora(model, config)
        assert report.trainable_parameters == expected
        training = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert training == expected  # a classifier's weights stay frozen and are not counted


@pytest.mark.parametrize(('size', 'expected'), [('base', 294_912), ('large', 786_432)])
def test_published_counts_of_fine_tuning(size: str, expected: int) -> None:
    model = _on_meta(SIZES[size], num_classes=62)
    assert apply_explora(model, lora_finetuning(8)).trainable_parameters == expected


def test_full_count() -> None:
    # 303,227,904 is timm's ViT-L/14 at 224 px, the paper's 303 M
    model = _on_meta(SIZES['large'], img_size=224, num_classes=0)
    report = apply_explora(model, ExPLoRAConfig(rank=0, train_all=True))
    assert report.trainable_parameters == report.total_parameters == 303_227_904


def _trains_officially(name: str, config: ExPLoRAConfig, depth: int) -> bool:
    """The official rule, by substrings of names (spec section A.1), with timm's names."""
    if name.startswith(('head.', 'fc_norm.', 'attn_pool.')):
        return False  # not of the encoder
    if config.train_all or 'lora' in name:
        return True
    blocks = [index % depth for index in config.unfreeze_blocks]
    return (
        (config.train_registers and 'reg_token' in name)
        or (config.train_patch_embed and 'patch_embed' in name)
        or (config.train_norms and 'norm' in name)
        or (config.train_cls_token and 'cls_token' in name)
        or any(f'blocks.{index}.' in name for index in blocks)
    )


def _assert_official(model: VisionTransformer, config: ExPLoRAConfig) -> None:
    report = apply_explora(model, config)
    depth = len(model.blocks)
    found = {name for name, p in model.named_parameters() if p.requires_grad}
    names = [name for name, _ in model.named_parameters()]
    assert found == {name for name in names if _trains_officially(name, config, depth)}
    assert set(report.trained) == found
    assert set(report.frozen).isdisjoint(found)


@pytest.mark.parametrize('config', CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize('variant', VARIANTS)
def test_output_and_what_trains(variant: str, config: ExPLoRAConfig) -> None:
    vit = make_vit(variant)
    images = images_for(vit)
    with torch.no_grad():
        before = vit(images)
        state = {name: value.clone() for name, value in vit.state_dict().items()}
        _assert_official(vit, config)
        torch.testing.assert_close(vit(images), before, rtol=0, atol=0)
    after = vit.state_dict()
    for name, value in state.items():  # pre-trained weights are kept under their names
        assert torch.equal(after[name], value), name
    extra = {name.rsplit('.', 1)[1][:6] for name in after.keys() - state.keys()}
    assert extra == ({'lora_A', 'lora_B'} if config.rank > 0 else set())


@pytest.mark.parametrize(
    'name',
    [
        'vit_tiny_patch16_224',
        'vit_small_patch8_224',
        'vit_small_patch14_dinov2',
        'vit_base_patch14_reg4_dinov2',
        'vit_base_patch16_siglip_224',
        'vit_base_patch16_clip_224',
        'vit_so150m2_patch16_reg1_gap_256',
        'deit3_small_patch16_224',
        'aimv2_large_patch14_224',
    ],
)
@pytest.mark.parametrize('key', ['everywhere', 'norms_frozen'])
def test_official_rule_on_timm_models(name: str, key: str) -> None:
    _assert_official(_on_meta(name), CONFIGS[key])


@pytest.mark.parametrize('variant', ['patch16', 'swiglu_packed', 'swiglu', 'registers'])
def test_shapes_of_the_factors(variant: str) -> None:
    vit = make_vit(variant)
    report = apply_explora(vit, CONFIGS['everywhere'])
    assert report.wrapped == tuple(
        name for name, module in vit.named_modules() if isinstance(module, LoRALinear)
    )
    assert {name.split('.')[1] for name in report.wrapped} == {'0', '1'}
    for name in report.wrapped:
        layer = vit.get_submodule(name)
        assert isinstance(layer, LoRALinear)
        rank = 2 if '.mlp.' in name else 8  # rank // 4 in the MLP, as in the official code
        assert layer.rank == rank
        assert layer.scale == pytest.approx(3.0 / rank)
        parts = 3 if name.endswith('qkv') else 1
        assert layer.lora_A.shape == (parts * rank, layer.in_features)
        ups = [layer.up(part.name) for part in layer.segments]
        assert sum(len(up) for up in ups) == layer.out_features
        assert all(up.shape[1] == rank and not up.any() for up in ups)


def test_default_scale_is_one_over_rank() -> None:
    vit = make_vit()
    apply_explora(vit, ExPLoRAConfig(rank=8))
    layers = [module for module in vit.modules() if isinstance(module, LoRALinear)]
    assert [layer.scale for layer in layers] == [1 / 8, 1 / 8]


def test_down_projection_is_kaiming_uniform_and_seeded() -> None:
    drawn = []
    for seed in (0, 0, 1):
        vit = make_vit(embed_dim=96)
        apply_explora(vit, ExPLoRAConfig(rank=64), torch.Generator().manual_seed(seed))
        layer = vit.get_submodule('blocks.0.attn.qkv')
        assert isinstance(layer, LoRALinear)
        drawn.append(layer.lora_A.detach())
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    bound = 96**-0.5  # U(-1 / sqrt(in), 1 / sqrt(in)): torch's default for linear layers
    assert drawn[0].abs().max() <= bound
    assert drawn[0].std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert abs(drawn[0].mean().item()) < 0.02 * bound


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        ({'rank': -1}, 'rank -1'),
        ({'rank': 4, 'mlp_rank': 0}, 'mlp_rank 0'),
        ({'alpha': 0.0}, 'alpha is 0'),
        ({'targets': ('q', 'w')}, "'w'"),
        ({'targets': ('q', 'q')}, 'at most once'),
        ({'targets': ()}, 'targets is empty'),
        ({'train_all': True, 'rank': 4}, 'train_all'),
    ],
)
def test_impossible_configurations(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ExPLoRAConfig(**arguments)


@pytest.mark.parametrize(
    ('config', 'words'),
    [
        (ExPLoRAConfig(rank=25), 'rank 25 .* exceeds the model width 24'),
        (ExPLoRAConfig(rank=4, targets=('mlp',), mlp_rank=25), 'in the MLP 25'),
        (ExPLoRAConfig(rank=4, unfreeze_blocks=(3,)), 'has 3 blocks: use 0 to 2'),
        (ExPLoRAConfig(rank=4, unfreeze_blocks=(-4, 0)), r'names \[-4\]'),
    ],
)
def test_configuration_that_does_not_fit_leaves_the_model_alone(
    config: ExPLoRAConfig, words: str
) -> None:
    vit = make_vit()
    keys = list(vit.state_dict())
    with pytest.raises(ConfigError, match=words):
        apply_explora(vit, config)
    assert list(vit.state_dict()) == keys
    assert all(p.requires_grad for p in vit.parameters())


def test_models_that_cannot_be_adapted() -> None:
    with pytest.raises(ConfigError, match='Linear cannot be adapted'):
        _check_model(nn.Linear(3, 3))
    vit = make_vit()
    apply_explora(vit, CONFIGS['explora'])
    with pytest.raises(ConfigError, match='merge_lora'):
        apply_explora(vit, CONFIGS['explora'])
    apply_explora(merge_lora(vit), CONFIGS['explora'])  # as it says
    parallel = _on_meta('vit_small_patch16_18x2_224')
    with pytest.raises(ConfigError, match=r'Block 0 .* no fused'):
        apply_explora(parallel, CONFIGS['explora'])


def test_lists_from_yaml_become_tuples() -> None:
    config = ExPLoRAConfig(rank=4, unfreeze_blocks=[0, -1], targets=['q'])
    assert (config.unfreeze_blocks, config.targets) == ((0, -1), ('q',))
    assert ExPLoRAConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize('text', ['{', '[1]', '{"rang": 3}', '{"rank": "x"}', '{"targets": null}'])
def test_json_that_is_no_configuration(text: str) -> None:
    with pytest.raises(ConfigError, match='no adapter configuration'):
        ExPLoRAConfig.from_json(text)


def test_summary_names_the_numbers() -> None:
    report = apply_explora(make_vit(), CONFIGS['first_and_last'])
    assert f'{report.trainable_parameters:,}' in report.summary()
    assert 'blocks.0, blocks.2' in report.summary()
    assert 'rank 4 on 1 layers' in report.summary()
