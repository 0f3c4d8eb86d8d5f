"""The DINOv2 objective on a shared-weight student and teacher.

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
from torchgeo_explora.layers.embedder import TokenEmbedder
from torchgeo_explora.layers.heads import DINOHead
from torchgeo_explora.losses.centering import SoftmaxCentering, sinkhorn_knopp_
from torchgeo_explora.losses.koleo import koleo_loss
from torchgeo_explora.losses.prototypes import prototype_cross_entropy
from torchgeo_explora.objectives._view import View
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

    Raises:
        ConfigError: If the student has several tokens a patch, for groups of bands or dates.
    """

    def __init__(
        self,
        student: VisionTransformer,
        config: DINOv2Config,
        mask_token: Float[Tensor, '1 dim'] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if isinstance(student, TokenEmbedder):
            raise ConfigError(
                f'{type(student).__name__} has a token for each group of bands or date, and DINOv2 '
                'masks patches: use masked autoencoding (ExPLoRAMAE), or a plain model.'
            )
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
        view = View.of(self.student, mask, global_crops.device)
        targets = self._targets(view, global_crops, teacher_temperature)
        cls, patches = view.features(self.student, global_crops, self.mask_token)
        cls_local, _ = View.plain(self.student, local_crops).features(self.student, local_crops)
        classes = torch.cat([cls, cls_local])  # (2 b + n_local b, d)
        total, each = self._cross_entropy(classes, patches, targets, mask)
        koleo = self.config.koleo_weight * torch.stack([koleo_loss(c) for c in cls.chunk(2)]).sum()
        return DINOv2Losses(
            total=total + koleo,
            dino_local=each[len(cls) : len(classes)].sum(),
            dino_global=each[: len(cls)].sum(),
            ibot=each[len(classes) :].sum(),
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
    def _targets(self, view: 'View', crops: Tensor, temperature: float) -> '_Targets':
        """Write the teacher's logits into tables and turn them into targets there."""
        cls, patch = self._bottlenecks(self.teacher_heads, *view.features(self.teacher, crops))
        count, images = len(cls), len(cls) // 2
        if self.config.separate_head:
            table, patches = self._table('dino', cls, images), self._table('ibot', patch)
        else:
            table = self._table('dino', torch.cat([cls, patch]), images)
            patches = table[count : count + len(patch)]
        classes = table[:count]
        known = _usage(classes, temperature), _mean_row(classes), _mean_row(patches)
        self._center('cls', classes, temperature)
        self._center('patch', patches, temperature)
        torch.add(classes[:images], classes[images:], out=table[len(table) - images :])
        return _Targets(table, patches, *known)

    def _table(self, name: str, features: Tensor, spare: int = 0) -> Tensor:
        """Return the teacher's logits, in float32 at least, and some empty rows after them."""
        prototypes = self._prototypes(self.teacher_heads, name)
        dtype = torch.promote_types(features.dtype, torch.float32)
        table = features.new_empty((len(features) + spare, len(prototypes)), dtype=dtype)
        _multiply(features, prototypes, table[: len(features)])
        return table

    def _center(self, name: str, logits: Tensor, temperature: float) -> None:
        """Turn logits into targets in place."""
        if self.config.centering == 'softmax':
            logits.copy_(self._centre(name)(logits, temperature))
        else:
            sinkhorn_knopp_(logits, temperature, self.config.sinkhorn_iterations)

    def _centre(self, name: str) -> SoftmaxCentering:
        centre = self.centers[name]
        assert isinstance(centre, SoftmaxCentering)
        return centre

    def _cross_entropy(
        self, classes: Tensor, patches: Tensor, targets: '_Targets', mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return class-token and masked-patch loss as a sum, and each row's share of it.

        Where one head serves both they are one call, so that its prototypes and the gradient
        of them are computed once.
        """
        dino, ibot = self._bottlenecks(self.student_heads, classes, patches)
        rows, weights = self._class_rows(len(classes), len(mask) // 2, targets.table)
        patch_rows, patch_weights = self._patch_rows(mask, rows)
        if self.config.separate_head:
            total, each = self._against('dino', dino, targets.table, rows, weights)
            more, other = self._against('ibot', ibot, targets.patches, patch_rows, patch_weights)
            total, each = total + more, torch.cat([each, other])
        else:
            both, rows = torch.cat([dino, ibot]), torch.cat([rows, patch_rows + len(mask)])
            weights = torch.cat([weights, patch_weights])
            total, each = self._against('dino', both, targets.table, rows, weights)
        # with no patch masked anywhere the token still has to take part in the graph (DDP)
        return total + 0 * self.mask_token.sum() if self.mask_token.requires_grad else total, each

    def _against(
        self, name: str, features: Tensor, targets: Tensor, rows: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        prototypes = self._prototypes(self.student_heads, name)
        temperature, chunk = self.config.student_temperature, self.config.chunk
        return prototype_cross_entropy(
            features, prototypes, targets, rows, weights, temperature, chunk
        )

    def _class_rows(self, count: int, images: int, table: Tensor) -> tuple[Tensor, Tensor]:
        """Return each class token's row of targets and its weight.

        A global crop is compared with the other one, a local crop with both: their sum. The
        weights' divisor is the number of crop pairs.
        """
        local_crops = count // images - 2
        index = torch.arange(count, device=table.device)
        sums = len(table) - images + index % images
        rows = torch.where(index < 2 * images, (index + images) % (2 * images), sums)
        weight = self.config.dino_weight / (images * (2 + 2 * local_crops))
        return rows, torch.full((count,), weight, device=table.device)

    def _patch_rows(self, mask: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return each masked patch's row of targets and its weight.

        The loss is the mean over a crop's masked patches, then over all crops.
        """
        counts = mask.sum(dim=1)
        shares = self.config.ibot_weight / (counts.clamp(min=1) * len(mask))
        weights = torch.repeat_interleave(shares, counts).to(like.device)
        return torch.arange(len(weights), device=like.device), weights


@dataclass(frozen=True)
class _Targets:
    """Teacher targets, with what is known of the logits that they were made of.

    Args:
        table: Targets of class tokens, of masked patches too where one head serves both, and
            for every image the sum of those of its two crops.
        patches: Targets of masked patches, in the table or apart.
        usage: See :class:`DINOv2Losses`; likewise the means.
        cls_mean: Of class tokens.
        patch_mean: Of masked patches.
    """

    table: Tensor
    patches: Tensor
    usage: Tensor
    cls_mean: Tensor
    patch_mean: Tensor


def _head(heads: nn.ModuleDict, name: str) -> DINOHead:
    head = heads[name]
    assert isinstance(head, DINOHead)
    return head


def _multiply(
    rows: Float[Tensor, 'n bottleneck'],
    prototypes: Float[Tensor, 'prototypes bottleneck'],
    out: Float[Tensor, 'n prototypes'],
) -> None:
    """Multiply in autocast's type; its own casting would keep a copy of the prototypes."""
    device = rows.device.type
    autocast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else rows.dtype
    if dtype == out.dtype:
        torch.mm(rows.to(dtype), prototypes.to(dtype).T, out=out)
    else:
        out.copy_(rows.to(dtype) @ prototypes.to(dtype).T)


def _mean_row(logits: Float[Tensor, 'n prototypes']) -> Float[Tensor, 'rows prototypes']:
    """Return one row, or none where there are no logits and a centre has to stay."""
    return logits.sum(dim=0, keepdim=True, dtype=torch.float32)[: len(logits)] / max(len(logits), 1)


def _usage(logits: Float[Tensor, 'n prototypes'], temperature: float) -> Float[Tensor, '']:
    mean = torch.softmax(logits.float() / temperature, dim=1).mean(dim=0)
    usage: Tensor = torch.special.entr(mean).sum() / math.log(len(mean))
    return usage
