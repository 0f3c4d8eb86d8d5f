"""The DINOv2 objective on a shared-weight student and teacher (spec section C).

The teacher sees only the global crops and is evaluated only at class tokens and masked
patches; the student's heads run once on the same tokens. Sinkhorn-Knopp and KoLeo act on the
micro-batch. All weights live in the modules passed in; nothing here changes in ``forward``.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from torchgeo_explora.errors import ConfigError
from torchgeo_explora.layers.heads import DINOHead
from torchgeo_explora.layers.tokens import (
    TokenSelection,
    encode,
    encode_selected,
    global_token,
    patch_grid,
    patch_tokens,
    select_tokens,
)
from torchgeo_explora.losses.centering import SoftmaxCentering, sinkhorn_knopp
from torchgeo_explora.losses.koleo import koleo_loss
from torchgeo_explora.losses.prototypes import prototype_cross_entropy
from torchgeo_explora.objectives.ema import averaged_pairs, ema_update, shared_copy


@dataclass(frozen=True)
class DINOv2Config:
    """Numbers of the objective; the defaults are those of ExPLoRA's published script.

    Args:
        prototypes: Number of prototypes of the head.
        hidden_dim: Width of the head's hidden layers.
        bottleneck_dim: Width of the head's normalised output before the prototypes.
        head_layers: Linear layers of the head before the prototypes.
        separate_head: Whether iBOT has a head of its own.
        ibot_prototypes: Prototypes of iBOT's own head; as many as the other's when not given.
        centering: How teacher outputs become targets.
        sinkhorn_iterations: Iterations of Sinkhorn-Knopp.
        center_momentum: Momentum of the centre when ``centering`` is ``softmax``.
        student_temperature: Temperature of the student's softmax.
        dino_weight: Weight of the class-token loss.
        ibot_weight: Weight of the masked-patch loss.
        koleo_weight: Weight of the KoLeo spread regulariser.
        train_mask_token: Whether the mask token trains (no, in the published script).
        chunk: Rows of student outputs whose logits exist at one time.
    """

    prototypes: int = 65_536
    hidden_dim: int = 2048
    bottleneck_dim: int = 256
    head_layers: int = 3
    separate_head: bool = False
    ibot_prototypes: int | None = None
    centering: Literal['sinkhorn_knopp', 'softmax'] = 'sinkhorn_knopp'
    sinkhorn_iterations: int = 3
    center_momentum: float = 0.9
    student_temperature: float = 0.1
    dino_weight: float = 1.0
    ibot_weight: float = 1.0
    koleo_weight: float = 0.1
    train_mask_token: bool = False
    chunk: int = 256

    def __post_init__(self) -> None:
        """Check the values."""
        if self.centering not in ('sinkhorn_knopp', 'softmax'):
            raise ConfigError(
                f'centering is {self.centering!r}: use sinkhorn_knopp (the paper) or softmax.'
            )
        if self.prototypes < 2 or self.student_temperature <= 0 or self.chunk < 1:
            raise ConfigError(
                f'prototypes {self.prototypes}, student_temperature {self.student_temperature} '
                f'and chunk {self.chunk} were given: use at least 2, more than 0, at least 1.'
            )

    def prototypes_of(self, loss: str) -> int:
        """Return the number of prototypes that the ``dino`` or the ``ibot`` loss has."""
        if loss == 'ibot' and self.separate_head and self.ibot_prototypes is not None:
            return self.ibot_prototypes
        return self.prototypes


@dataclass(frozen=True)
class DINOv2Losses:
    """Loss terms of one micro-batch.

    Args:
        total: What is back-propagated: the sum of the terms below.
        dino_local: Class-token loss between local student and teacher crops.
        dino_global: Class-token loss between the two global crops.
        ibot: Masked-patch loss (twice what the official code displays).
        koleo: KoLeo term (twice what the official code displays).
        usage: Entropy of the teacher's mean softmax over the prototypes, before centring,
            divided by its maximum; 1 when all are used alike, 0 when one takes everything.
        cls_mean: Mean teacher class-token logits (1, prototypes), for the centre.
        patch_mean: Mean teacher patch logits, likewise; no row where no patch was masked.
    """

    total: Tensor
    dino_local: Tensor
    dino_global: Tensor
    ibot: Tensor
    koleo: Tensor
    usage: Tensor
    cls_mean: Tensor
    patch_mean: Tensor

    def displayed(self) -> dict[str, Tensor]:
        """Return the terms as the official code logs them (iBOT and KoLeo halved)."""
        return {
            'dino_local': self.dino_local,
            'dino_global': self.dino_global,
            'ibot': self.ibot / 2,
            'koleo': self.koleo / 2,
        }


class DINOv2Objective(nn.Module):
    """Student, teacher and heads, and the losses between them.

    Args:
        student: An encoder whose trainable parameters are settled (``apply_explora``).
        config: Numbers of the objective.
        mask_token: Replacement of masked patches (1, dim); zeros when the checkpoint has none.
        generator: Source of the heads' random values.
    """

    def __init__(
        self,
        student: VisionTransformer,
        config: DINOv2Config,
        mask_token: Float[Tensor, '1 dim'] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.student = student
        self.teacher = shared_copy(student)
        self.student_heads = self._heads(generator)
        self.teacher_heads = shared_copy(self.student_heads)
        token = torch.zeros(1, student.embed_dim) if mask_token is None else mask_token
        self.mask_token = nn.Parameter(token.float().clone(), requires_grad=config.train_mask_token)
        self.centers = nn.ModuleDict()
        if config.centering == 'softmax':
            for name, loss in (('cls', 'dino'), ('patch', 'ibot')):
                count = config.prototypes_of(loss)
                self.centers[name] = SoftmaxCentering(count, config.center_momentum)

    def _heads(self, generator: torch.Generator | None) -> nn.ModuleDict:
        config = self.config
        names = ('dino', 'ibot') if config.separate_head else ('dino',)
        return nn.ModuleDict(
            {
                name: DINOHead(
                    self.student.embed_dim,
                    config.prototypes_of(name),
                    config.hidden_dim,
                    config.bottleneck_dim,
                    config.head_layers,
                    generator=generator,
                )
                for name in names
            }
        )

    def train(self, mode: bool = True) -> 'DINOv2Objective':
        """Set the student's mode; the teacher never leaves eval mode."""
        super().train(mode)
        self.teacher.eval()
        self.teacher_heads.eval()
        return self

    def submodules(self) -> Iterator[tuple[str, list[nn.Parameter]]]:
        """Yield the parts whose gradients are clipped separately, with what they train."""
        parts = {'backbone': [*self.student.parameters(), self.mask_token]}
        parts |= {name: list(head.parameters()) for name, head in self.student_heads.items()}
        for name, parameters in parts.items():
            yield name, [p for p in parameters if p.requires_grad]

    def update_teacher(self, momentum: float) -> None:
        """Average the student into the teacher; once an optimizer step."""
        ema_update(averaged_pairs(self.student, self.teacher), momentum)
        ema_update(averaged_pairs(self.student_heads, self.teacher_heads), momentum)

    def update_centers(self, losses: DINOv2Losses) -> None:
        """Move the centres towards a micro-batch's mean logits; nothing with Sinkhorn-Knopp."""
        for name, mean in (('cls', losses.cls_mean), ('patch', losses.patch_mean)):
            if name in self.centers:
                self._centre(name).update(mean)

    def forward(
        self,
        global_crops: Float[Tensor, 'images2 c g g'],
        local_crops: Float[Tensor, 'images_local c l l'],
        mask: Bool[Tensor, 'images2 patches'],
        teacher_temperature: float,
    ) -> DINOv2Losses:
        """Compute the losses of one micro-batch.

        Args:
            global_crops: Two crops of every image, crop-major: all images' first crops, then
                all second ones.
            local_crops: Local crops, crop-major.
            mask: Masked patches of the student's global crops; best on the CPU.
            teacher_temperature: Temperature of the teacher's targets.
        """
        view = _View.of(self.student, mask, global_crops.device)
        targets = self._targets(view, global_crops, teacher_temperature)
        cls, patches = view.features(self.student, global_crops, self.mask_token)
        cls_local, _ = _View.plain(self.student, local_crops).features(self.student, local_crops)
        classes = torch.cat([cls, cls_local])  # (2 b + n_local b, d)
        dino_in, ibot_in = self._bottlenecks(self.student_heads, classes, patches)
        dino, local, global_ = self._dino(dino_in, targets.cls)
        ibot = self._ibot(ibot_in, targets.patch, mask)
        koleo = self.config.koleo_weight * torch.stack([koleo_loss(c) for c in cls.chunk(2)]).sum()
        return DINOv2Losses(
            total=dino + ibot + koleo,
            dino_local=local,
            dino_global=global_,
            ibot=ibot.detach(),
            koleo=koleo.detach(),
            usage=targets.usage,
            cls_mean=targets.cls_mean,
            patch_mean=targets.patch_mean,
        )

    def _bottlenecks(
        self, heads: nn.ModuleDict, classes: Tensor, patches: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Run the heads' MLPs, a shared one in a single call."""
        if self.config.separate_head:
            return _head(heads, 'dino').bottleneck(classes), _head(heads, 'ibot').bottleneck(
                patches
            )
        both = _head(heads, 'dino').bottleneck(torch.cat([classes, patches]))
        return both[: len(classes)], both[len(classes) :]

    def _prototypes(self, heads: nn.ModuleDict, loss: str) -> Tensor:
        return _head(heads, loss if self.config.separate_head else 'dino').prototypes()

    @torch.no_grad()
    def _targets(self, view: '_View', crops: Tensor, temperature: float) -> '_Targets':
        cls, patch = self._bottlenecks(self.teacher_heads, *view.features(self.teacher, crops))
        cls = _logits(cls, self._prototypes(self.teacher_heads, 'dino'))
        usage = _usage(cls, temperature)
        patch = _logits(patch, self._prototypes(self.teacher_heads, 'ibot'))
        return _Targets(
            cls=self._center('cls', cls, temperature),
            patch=self._center('patch', patch, temperature),
            cls_mean=_mean_row(cls),
            patch_mean=_mean_row(patch),
            usage=usage,
        )

    def _center(self, name: str, logits: Tensor, temperature: float) -> Tensor:
        if self.config.centering == 'softmax':
            centred: Tensor = self._centre(name)(logits, temperature)
            return centred
        return sinkhorn_knopp(logits, temperature, self.config.sinkhorn_iterations)

    def _centre(self, name: str) -> SoftmaxCentering:
        centre = self.centers[name]
        assert isinstance(centre, SoftmaxCentering)
        return centre

    def _dino(self, rows: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Class-token loss; the terms' divisor is the number of crop pairs (spec C.4)."""
        images = len(targets) // 2
        local_crops = (len(rows) - len(targets)) // images
        # a global crop is compared with the other one, a local crop with both: their sum
        table = torch.cat([targets, targets[:images] + targets[images:]])  # (3 b, prototypes)
        index = torch.arange(len(rows), device=rows.device)
        index = torch.where(
            index < 2 * images, (index + images) % (2 * images), index % images + 2 * images
        )
        weight = self.config.dino_weight / (images * (2 + 2 * local_crops))
        weights = torch.full((len(rows),), weight, device=rows.device)
        total, each = prototype_cross_entropy(
            rows,
            self._prototypes(self.student_heads, 'dino'),
            table,
            index,
            weights,
            self.config.student_temperature,
            self.config.chunk,
        )
        return total, each[2 * images :].sum(), each[: 2 * images].sum()

    def _ibot(self, rows: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
        """Masked-patch loss: mean over an image's masked patches, then over all crops."""
        counts = mask.sum(dim=1)
        weights = torch.repeat_interleave(
            self.config.ibot_weight / (counts.clamp(min=1) * len(mask)), counts
        )
        total, _ = prototype_cross_entropy(
            rows,
            self._prototypes(self.student_heads, 'ibot'),
            targets,
            torch.arange(len(rows), device=rows.device),
            weights.to(rows.device),
            self.config.student_temperature,
            self.config.chunk,
        )
        # with no patch masked anywhere the token still has to take part in the graph (DDP)
        return total + 0 * self.mask_token.sum() if self.mask_token.requires_grad else total


@dataclass(frozen=True)
class _Targets:
    """Teacher targets of class tokens and masked patches, with what is known of their logits."""

    cls: Tensor
    patch: Tensor
    cls_mean: Tensor
    patch_mean: Tensor
    usage: Tensor


@dataclass(frozen=True)
class _View:
    """Which tokens of a batch of crops the losses look at."""

    mask: Tensor
    selection: TokenSelection

    @classmethod
    def of(cls, vit: VisionTransformer, mask: Tensor, device: torch.device) -> '_View':
        selection = select_tokens(mask, max(vit.num_prefix_tokens, 1))
        return cls(mask.to(device), selection.to(device))

    @classmethod
    def plain(cls, vit: VisionTransformer, crops: Tensor) -> '_View':
        """No patch is masked: only class tokens are looked at."""
        mask = torch.zeros(len(crops), patch_grid(vit, crops).area, dtype=torch.bool)
        return cls.of(vit, mask, crops.device)

    def features(
        self, vit: VisionTransformer, crops: Tensor, mask_token: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return class features (b, d) and features of the masked patches (masked, d).

        With a mask token the patches are masked in the input, without one they are not.
        """
        hidden = None if mask_token is None else self.mask
        if vit.cls_token is None:  # the mean patch stands for the image: all tokens are needed
            tokens = encode(vit, crops, hidden, mask_token)
            return global_token(vit, tokens), patch_tokens(vit, tokens)[self.mask]
        rows = encode_selected(vit, crops, self.selection, hidden, mask_token)
        return rows[self.selection.cls], rows[self.selection.patches]


def _head(heads: nn.ModuleDict, name: str) -> DINOHead:
    head = heads[name]
    assert isinstance(head, DINOHead)
    return head


def _logits(
    rows: Float[Tensor, 'n bottleneck'], prototypes: Float[Tensor, 'prototypes bottleneck']
) -> Float[Tensor, 'n prototypes']:
    """Multiply in autocast's type; its own casting would keep a copy of the prototypes."""
    device = rows.device.type
    autocast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else rows.dtype
    return rows.to(dtype) @ prototypes.to(dtype).T


def _mean_row(logits: Float[Tensor, 'n prototypes']) -> Float[Tensor, 'rows prototypes']:
    """Return one row, or none where there are no logits and a centre has to stay."""
    return logits.sum(dim=0, keepdim=True, dtype=torch.float32)[: len(logits)] / max(len(logits), 1)


def _usage(logits: Float[Tensor, 'n prototypes'], temperature: float) -> Float[Tensor, '']:
    mean = torch.softmax(logits.float() / temperature, dim=1).mean(dim=0)
    usage: Tensor = torch.special.entr(mean).sum() / math.log(len(mean))
    return usage
