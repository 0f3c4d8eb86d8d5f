"""The training steps that ``pretrain_step.py`` compares, all on the same weights and crops.

``ExploraStep`` is this package's objective, with low-rank updates or with every weight training.
``PlainStep`` is full DINOv2 training written straight from the equations (spec section C.4):
a teacher that is a full copy, every block at every token, one head call per kind of token, logits
kept, textbook softmax and Sinkhorn-Knopp. ``LightlyStep`` is the step of lightly-train, where that
package is installed; it is AGPL-licensed, so nothing here depends on it or repeats its code.
"""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, Protocol

import timm
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from tests.benchmarks.pretrain_flops import Sizes
from torchgeo_explora.adapters import ExPLoRAConfig, apply_explora
from torchgeo_explora.layers import DINOHead, block_masks, encode, patch_grid
from torchgeo_explora.layers.tokens import fast_attention
from torchgeo_explora.objectives.dinov2 import DINOv2Config, DINOv2Objective
from torchgeo_explora.objectives.param_groups import clip_gradients, make_optimizer
from torchgeo_explora.objectives.presets import OptimizationConfig

TEACHER_TEMPERATURE = 0.07
STUDENT_TEMPERATURE = 0.1
KOLEO_WEIGHT = 0.1
MOMENTUM = 0.994
RATE = 1e-5
CLIP = 3.0


@dataclass(frozen=True)
class Setting:
    """What a step is measured on.

    Args:
        model: Name of a timm vision transformer.
        batch: Images of a step.
        prototypes: Prototypes of the head.
        global_size: Side of the two global crops, in pixels.
        local_size: Side of the local crops, in pixels.
        n_local: Local crops of an image.
        device: ``cpu`` or ``cuda``.
        dtype: ``fp32``, or ``bf16`` for autocast.
        seed: Source of weights, crops and masks.
        chunk: Rows of logits at a time; the package's own default when not given.
    """

    model: str
    batch: int
    prototypes: int
    global_size: int
    local_size: int
    n_local: int
    device: str
    dtype: str
    seed: int
    chunk: int | None

    def autocast(self) -> AbstractContextManager[object]:
        """Return the precision's context."""
        if self.dtype == 'bf16':
            return torch.autocast(self.device, torch.bfloat16)
        return nullcontext()


@dataclass(frozen=True)
class Crops:
    """Pre-made random crops, crop-major, and the masks of the global ones (on the CPU)."""

    global_: Tensor
    local: Tensor
    mask: Tensor


def shapes_only(setting: Setting) -> VisionTransformer:
    """Build the encoder without values."""
    with torch.device('meta'):
        model = timm.create_model(setting.model, img_size=setting.global_size, num_classes=0)
    assert isinstance(model, VisionTransformer)
    return model


def make_crops(setting: Setting) -> Crops:
    """Draw normalised noise and block-wise masks."""
    generator = torch.Generator().manual_seed(setting.seed)
    shape = (2 * setting.batch, 3, setting.global_size, setting.global_size)
    local = (setting.n_local * setting.batch, 3, setting.local_size, setting.local_size)
    grid = patch_grid(shapes_only(setting), torch.empty(shape, device='meta'))
    return Crops(
        torch.randn(shape, generator=generator).to(setting.device),
        torch.randn(local, generator=generator).to(setting.device),
        block_masks(grid, shape[0], generator=generator),
    )


def make_vit(setting: Setting) -> VisionTransformer:
    """Build the encoder, on the CPU, with seeded weights under which every layer matters."""
    torch.manual_seed(setting.seed)
    model = timm.create_model(setting.model, img_size=setting.global_size, num_classes=0)
    assert isinstance(model, VisionTransformer)
    for name, parameter in model.named_parameters():
        if name.endswith('gamma'):  # at their initial 1e-5 the blocks would do nothing
            nn.init.uniform_(parameter, 0.2, 1.0)
    return model


def make_sizes(setting: Setting, crops: Crops) -> Sizes:
    """Return the sizes that the arithmetic follows from."""
    vit = shapes_only(setting)
    config = DINOv2Config()
    inner = [config.hidden_dim] * (config.head_layers - 1)
    return Sizes(
        width=vit.embed_dim,
        hidden=vit.blocks[0].get_submodule('mlp.fc1').get_parameter('weight').shape[0],
        depth=len(vit.blocks),
        patch_inputs=vit.patch_embed.proj.weight[0].numel(),
        prefix=vit.num_prefix_tokens,
        global_crops=len(crops.global_),
        local_crops=len(crops.local),
        global_patches=patch_grid(vit, crops.global_).area,
        local_patches=patch_grid(vit, crops.local).area,
        masked=int(crops.mask.sum()),
        head=(vit.embed_dim, *inner, config.bottleneck_dim, setting.prototypes),
    )


class Step(Protocol):
    """One way to train: a loss, and what happens after its gradients are there."""

    optimizer: Optimizer

    def loss(self) -> Tensor:
        """Return the loss of the crops."""

    def clip(self) -> None:
        """Clip the gradients of backbone and head."""

    def average(self) -> None:
        """Average the student into the teacher."""

    def parameters(self) -> Iterator[Tensor]:
        """Yield every weight of student and teacher."""


class ExploraStep:
    """This package's step.

    Args:
        setting: What is measured.
        crops: The crops.
        adapter: What trains.
    """

    def __init__(self, setting: Setting, crops: Crops, adapter: ExPLoRAConfig) -> None:
        vit = make_vit(setting)
        self.setting, self.crops = setting, crops
        self.report = apply_explora(vit, adapter, torch.Generator().manual_seed(setting.seed))
        config = DINOv2Config(prototypes=setting.prototypes, train_mask_token=adapter.train_all)
        if setting.chunk is not None:
            config = replace(config, chunk=setting.chunk)
        heads = torch.Generator().manual_seed(setting.seed)
        self.objective = DINOv2Objective(vit, config, generator=heads).to(setting.device).train()
        self.optimizer: Optimizer = make_optimizer(
            self.objective, self.report.unfrozen, OptimizationConfig()
        )
        for group in self.optimizer.param_groups:
            group['lr'], group['weight_decay'] = RATE, 0.0

    def loss(self) -> Tensor:
        crops = self.crops
        tokens = crops.mask.shape[1]
        with self.setting.autocast(), fast_attention(crops.global_.device, tokens):
            losses = self.objective(crops.global_, crops.local, crops.mask, TEACHER_TEMPERATURE)
        total: Tensor = losses.total
        return total

    def clip(self) -> None:
        clip_gradients(self.objective, CLIP)

    def average(self) -> None:
        self.objective.update_teacher(MOMENTUM)

    def parameters(self) -> Iterator[Tensor]:
        yield from self.objective.parameters()


class PlainStep:
    """Full DINOv2 training as the equations have it, without any of this package's savings.

    Args:
        setting: What is measured.
        crops: The crops.
    """

    def __init__(self, setting: Setting, crops: Crops) -> None:
        self.setting, self.crops = setting, crops
        self.student = make_vit(setting).to(setting.device)
        heads = torch.Generator().manual_seed(setting.seed)
        head = DINOHead(self.student.embed_dim, setting.prototypes, generator=heads)
        self.head = head.to(setting.device)
        token = torch.zeros(1, self.student.embed_dim, device=setting.device)
        self.mask_token = nn.Parameter(token)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.teacher_head = copy.deepcopy(self.head).requires_grad_(False)
        self.backbone = [*self.student.parameters(), self.mask_token]
        self.mask = crops.mask.to(setting.device)
        weights = [*self.backbone, *self.head.parameters()]
        self.optimizer: Optimizer = AdamW(weights, lr=RATE, weight_decay=0.0)

    def loss(self) -> Tensor:
        with self.setting.autocast():
            return self._loss()

    def _loss(self) -> Tensor:
        crops, mask = self.crops, self.mask
        with torch.no_grad():
            tokens = encode(self.teacher, crops.global_)
            targets = plain_sinkhorn(self.teacher_head(tokens[:, 0]))
            patch_targets = plain_sinkhorn(self.teacher_head(self._patches(tokens)))
        tokens = encode(self.student, crops.global_, mask, self.mask_token)
        local = encode(self.student, crops.local)
        patches = self.head(self._patches(tokens))
        dino = self._dino(self.head(tokens[:, 0]), self.head(local[:, 0]), targets)
        weights = (1 / mask.sum(dim=1).clamp(min=1)).repeat_interleave(mask.sum(dim=1))
        ibot = (weights * cross_entropy(patches, patch_targets)).sum() / len(mask)
        koleo = sum(plain_koleo(crop) for crop in tokens[:, 0].chunk(2))
        return dino + ibot + KOLEO_WEIGHT * koleo

    def _patches(self, tokens: Tensor) -> Tensor:
        return tokens[:, self.student.num_prefix_tokens :][self.mask]

    def _dino(self, rows: Tensor, local: Tensor, targets: Tensor) -> Tensor:
        n_local, (first, second) = self.setting.n_local, targets.chunk(2)
        total = 2 * cross_entropy(rows, torch.cat([second, first])).mean()
        for crop in local.chunk(n_local):
            total = total + cross_entropy(crop, first).mean() + cross_entropy(crop, second).mean()
        return total / (2 + 2 * n_local)

    def clip(self) -> None:
        nn.utils.clip_grad_norm_(self.backbone, CLIP)
        nn.utils.clip_grad_norm_(self.head.parameters(), CLIP)

    @torch.no_grad()
    def average(self) -> None:
        pairs = ((self.teacher, self.student), (self.teacher_head, self.head))
        for teacher, student in pairs:
            for a, s in zip(teacher.parameters(), student.parameters(), strict=True):
                a.mul_(MOMENTUM).add_(s, alpha=1 - MOMENTUM)

    def parameters(self) -> Iterator[Tensor]:
        yield from self.backbone
        for module in (self.head, self.teacher, self.teacher_head):
            yield from module.parameters()


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross entropy of every row (n,) of logits (n, K) with targets (n, K)."""
    return -(targets * F.log_softmax(logits / STUDENT_TEMPERATURE, dim=-1)).sum(dim=-1)


def plain_sinkhorn(logits: Tensor) -> Tensor:
    """Scale rows and columns of the matrix in turn, three times (SwAV, section 3.1)."""
    q = torch.exp(logits.float() / TEACHER_TEMPERATURE)
    q = q / q.sum()
    for _ in range(3):
        q = q / q.sum(dim=0, keepdim=True) / q.shape[1]
        q = q / q.sum(dim=1, keepdim=True) / q.shape[0]
    return q * len(q)


def plain_koleo(x: Tensor) -> Tensor:
    """Return minus the mean log distance of unit rows to their nearest neighbour."""
    with torch.autocast(x.device.type, enabled=False):
        x = F.normalize(x.float(), dim=-1)
        products = (x @ x.T).fill_diagonal_(-1)
        nearest = x[products.argmax(dim=1)]
        return -(F.pairwise_distance(x, nearest, eps=1e-8) + 1e-8).log().mean()


class LightlyStep:
    """The DINOv2 step of lightly-train on the same model size, weights, crops and masks.

    Its own training step, clipping, AdamW and averaging are called; only the drawing of masks is
    replaced by the pre-made ones, and no Lightning trainer runs.

    Args:
        setting: What is measured.
        crops: The crops.
    """

    def __init__(self, setting: Setting, crops: Crops) -> None:
        from lightly_train._methods.dinov2 import dinov2

        self.setting, self.crops, self._dinov2 = setting, crops, dinov2
        args = dinov2.DINOv2Args(
            output_dim=setting.prototypes,
            center_method='sinkhorn_knopp',
            teacher_temp_start=TEACHER_TEMPERATURE,
            teacher_temp_end=TEACHER_TEMPERATURE,
            student_freeze_last_layer_steps=0,
            weight_decay_start=0.0,
            weight_decay_end=0.0,
            momentum_start=MOMENTUM,
            layerwise_decay=1.0,
            patch_embed_lr_multiplier=1.0,
        )
        self.method = dinov2.DINOv2(
            method_args=args,
            optimizer_args=dinov2.DINOv2AdamWViTArgs(lr=RATE, weight_decay=0.0),
            embedding_model=self._embedding(setting),
            global_batch_size=setting.batch,
            num_input_channels=3,
        ).to(setting.device)
        self._start(crops)
        self.method.student_embedding_model.train()
        self.optimizer: Optimizer = self.method.configure_optimizers()[0][0]
        for group in self.optimizer.param_groups:
            group['lr'] = RATE

    @staticmethod
    def _embedding(setting: Setting) -> nn.Module:
        """Build its encoder with the other variants' weights, which bear the same names."""
        from lightly_train._models.dinov2_vit.dinov2_vit_package import DINOV2_VIT_PACKAGE
        from lightly_train._models.embedding_model import EmbeddingModel

        letter = setting.model.removeprefix('vit_')[0]
        vit = DINOV2_VIT_PACKAGE.get_model(
            f'vit{letter}14',
            model_args={
                'img_size': setting.global_size,
                'drop_path_rate': 0.0,
                'num_register_tokens': 0,
            },
            load_weights=False,
        )
        weights = dict(make_vit(setting).state_dict())
        weights['mask_token'] = torch.zeros_like(vit.mask_token)
        vit.load_state_dict(weights)
        embedding: nn.Module = EmbeddingModel(DINOV2_VIT_PACKAGE.get_model_wrapper(vit))
        return embedding

    def _start(self, crops: Crops) -> None:
        """Load the head, fix the masks and give the method what it asks of a trainer."""
        heads = torch.Generator().manual_seed(self.setting.seed)
        width = self.method.student_head.dino_head.mlp[0].in_features
        weights = DINOHead(width, self.setting.prototypes, generator=heads).state_dict()
        for side in (self.method.student_head, self.method.teacher_head):
            load_lightly_head(side.dino_head, weights)
        mask = crops.mask
        counts = mask.sum(dim=1)
        masks = {
            'collated_masks': mask,
            'mask_indices_list': mask.flatten().nonzero()[:, 0],
            'masks_weight': (1 / counts.clamp(min=1)).repeat_interleave(counts),
        }
        self._dinov2.create_collated_masks = lambda **_: masks
        trainer = SimpleNamespace(global_step=0, estimated_stepping_batches=1000, max_epochs=1)
        self.method._trainer = trainer

    def loss(self) -> Tensor:
        crops, setting = self.crops, self.setting
        views = [*crops.global_.chunk(2), *crops.local.chunk(setting.n_local)]
        with setting.autocast():
            total: Tensor = self.method.training_step_impl({'views': views}, 0).loss
        return total

    def clip(self) -> None:
        """Clip as its trainer does: one norm over everything."""
        parameters = [p for group in self.optimizer.param_groups for p in group['params']]
        nn.utils.clip_grad_norm_(parameters, self.method.method_args.gradient_clip_val)

    def average(self) -> None:
        from lightly_train._torch_helpers import update_momentum

        method = self.method
        update_momentum(method.student_embedding_model, method.teacher_embedding_model, m=MOMENTUM)
        update_momentum(method.student_head, method.teacher_head, m=MOMENTUM)

    def parameters(self) -> Iterator[Tensor]:
        yield from self.method.parameters()


def load_lightly_head(head: nn.Module, weights: dict[str, Any]) -> None:
    """Load a head whose last layer is torch's own weight normalisation, in either of its forms."""
    names = dict(head.state_dict())
    renamed = {
        'last_layer.weight_g': 'last_layer.parametrizations.weight.original0',
        'last_layer.weight_v': 'last_layer.parametrizations.weight.original1',
    }
    head.load_state_dict({k if k in names else renamed[k]: v for k, v in weights.items()})
