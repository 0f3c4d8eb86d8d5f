"""Prototypes that start at features of images."""

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from torchgeo_explora.adapters import ExPLoRAConfig, apply_explora
from torchgeo_explora.layers.heads import DINOHead
from torchgeo_explora.layers.tokens import encode
from torchgeo_explora.objectives import DINOv2Config, DINOv2Objective, get_preset
from torchgeo_explora.objectives.prototypes import prototypes_from_images
from torchgeo_explora.objectives.steps import step_seed
from torchgeo_explora.transforms.multicrop import MultiCrop

PROTOTYPES = 24


def objective(separate_head: bool = False) -> DINOv2Objective:
    torch.manual_seed(0)
    vit = VisionTransformer(
        img_size=28, patch_size=7, embed_dim=16, depth=2, num_heads=2, num_classes=0
    )
    apply_explora(vit, ExPLoRAConfig(rank=2), torch.Generator().manual_seed(0))
    config = DINOv2Config(
        prototypes=PROTOTYPES, hidden_dim=12, bottleneck_dim=8, separate_head=separate_head
    )
    return DINOv2Objective(vit, config, generator=torch.Generator().manual_seed(1))


def batches(count: int, size: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.rand(size, 3, 30, 30, generator=generator) for _ in range(count)]


def head(heads: torch.nn.ModuleDict, name: str = 'dino') -> DINOHead:
    found = heads[name]
    assert isinstance(found, DINOHead)
    return found


CROPS = MultiCrop(28, 14, 2)


@pytest.mark.parametrize('number', [1, 2, 3, 5])
def test_directions_are_centred_features_and_the_rest_stays_random(number: int) -> None:
    model = objective()
    teacher = head(model.teacher_heads)
    random = teacher.last_layer.weight_v.clone()
    rows = []
    for index, images in enumerate(batches(number)):
        crops = CROPS(images, step_seed(7, -1 - index)).global_
        with torch.no_grad():
            rows.append(teacher.bottleneck(encode(model.teacher, crops)[:, 0]))
    wanted = torch.cat(rows)[:PROTOTYPES]
    wanted = F.normalize(wanted - wanted.mean(dim=0), dim=1)
    count = prototypes_from_images(model, CROPS, batches(number), 7)
    assert count == min(8 * number, PROTOTYPES)
    found = teacher.last_layer.weight_v
    torch.testing.assert_close(found[:count], wanted)
    torch.testing.assert_close(found[count:], random[count:], rtol=0, atol=0)
    torch.testing.assert_close(head(model.student_heads).last_layer.weight_v, found)


def test_no_more_images_are_read_than_there_are_prototypes() -> None:
    asked = iter(batches(10))
    prototypes_from_images(objective(), CROPS, asked, 0)
    assert len(list(asked)) == 7  # 3 batches of 4 images, 2 crops each, make 24


def test_a_head_of_its_own_for_patches_stays_random() -> None:
    model = objective(separate_head=True)
    before = head(model.student_heads, 'ibot').last_layer.weight_v.clone()
    prototypes_from_images(model, CROPS, batches(3), 0)
    assert torch.equal(head(model.student_heads, 'ibot').last_layer.weight_v, before)


def test_targets_tell_images_apart_from_the_first_step() -> None:
    """Crops of one image agree on prototypes more than with random directions."""

    def agreement(model: DINOv2Objective) -> float:
        images = torch.cat(batches(3))
        teacher = head(model.teacher_heads)
        with torch.no_grad():
            crops = CROPS(images, 99).global_
            logits = teacher(encode(model.teacher, crops)[:, 0])
        first, second = (logits - logits.mean(dim=0)).chunk(2)
        similarity = F.normalize(first, dim=1) @ F.normalize(second, dim=1).T
        own = similarity.diagonal().mean()
        return float((own - similarity.mean()) * logits.std(dim=0).mean())

    model = objective()
    random = agreement(model)
    prototypes_from_images(model, CROPS, batches(3), 0)
    assert agreement(model) > 1.2 * random


def test_only_the_small_preset_does_this() -> None:
    chosen = {name: get_preset(name).optimization.prototype_init for name in ('paper', 'workshop')}
    assert set(chosen.values()) == {'random'}
    assert get_preset('small').optimization.prototype_init == 'images'
