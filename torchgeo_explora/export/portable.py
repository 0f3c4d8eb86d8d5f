"""What leaves PyTorch: one network, one input, one output, and a description of both."""

import copy
import math
from dataclasses import dataclass, replace
from typing import Literal, final

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from torchgeo_explora.errors import ConfigError
from torchgeo_explora.layers.tokens import encode, patch_tokens
from torchgeo_explora.models import InputSpec, ModelSpec, TemporalViT
from torchgeo_explora.models.fitted import FittedModel, find_backbone, tensors_hash

EmbeddingPooling = Literal['token', 'avg', 'both']
POOLINGS: tuple[EmbeddingPooling, ...] = ('token', 'avg', 'both')

MOST_TILES = 2**20
"""Tiles of a batch at most: a bound that torch 2.6 needs to trace batches of any size."""

INPUT = 'images'
OUTPUTS = {
    'classification': 'probabilities',
    'segmentation': 'probabilities',
    'embedding': 'embeddings',  # torch 2.6 uses the singular for a value inside
}
"""Names of the input and, for each task, of the output."""


@dataclass(frozen=True)
class PortableSpec:
    """Describes a model for programs that do not know this package.

    Args:
        task: ``classification``, ``segmentation``, or ``embedding`` of a backbone alone.
        model: timm name of the backbone.
        images: What the model expects of an image.
        side: Side in pixels of the tiles that it takes.
        outputs: Number of classes, or width of the embedding.
        classes: Names of the classes; none of an embedding.
        colors: Red, green and blue (0 to 255) of each class; None without.
        parameters: Number of weights.
        weights_hash: SHA-256 of the weights.
        options: What else the model was built from.
    """

    task: Literal['classification', 'segmentation', 'embedding']
    model: str
    images: InputSpec
    side: int
    outputs: int
    classes: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...] | None
    parameters: int
    weights_hash: str
    options: dict[str, object]

    @property
    def output(self) -> str:
        """Name of the output."""
        return OUTPUTS[self.task]

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Bands, height and width of an image."""
        return len(self.images.bands), self.side, self.side

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the output of one image."""
        tail = (self.side, self.side) if self.task == 'segmentation' else ()
        return self.outputs, *tail

    def raw_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each band in the values that rasters hold.

        With ``unit = (raw - low) / (high - low)`` and ``standardised = (unit - mean) / std``, they
        are ``low + mean * (high - low)`` and ``std * (high - low)``. Where raw values are not
        known, those of images in [0, 1].
        """
        images = self.images
        ends = ((0.0, 1.0),) * len(images.bands) if images.scale is None else images.scale
        pairs = zip(ends, images.mean, images.std, strict=True)
        both = [(low + m * (high - low), s * (high - low)) for (low, high), m, s in pairs]
        return tuple(mean for mean, _ in both), tuple(std for _, std in both)


@final
class PortableModel(nn.Module):
    """Takes standardised images, gives probabilities or embeddings.

    Values that no image in [0, 1] can have are cut first, as ``predict`` cuts raw values.

    Args:
        network: Takes standardised images; gives logits (b, classes, ...) or embeddings.
        spec: Describes it.
    """

    def __init__(self, network: nn.Module, spec: PortableSpec) -> None:
        super().__init__()
        self.network = network
        self.spec = spec
        mean, std = (torch.tensor(v)[:, None, None] for v in (spec.images.mean, spec.images.std))
        self.register_buffer('least', (0 - mean) / std, persistent=False)
        self.register_buffer('most', (1 - mean) / std, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return probabilities (b, classes) or (b, classes, h, w), or embeddings (b, width).

        Args:
            images: ``(raw - mean) / std`` with the statistics of
                :meth:`PortableSpec.raw_statistics`, (b, bands, side, side).
        """
        images = images.maximum(self.get_buffer('least')).minimum(self.get_buffer('most'))
        out: Tensor = self.network(images)
        return out if self.spec.task == 'embedding' else out.softmax(dim=1)


@final
class Embedder(nn.Module):
    """One vector an image, from the tokens after the final norm.

    Args:
        backbone: The vision transformer.
        pooling: ``token`` for the class token, ``avg`` for the mean of the patch tokens, ``both``
            for one behind the other.

    Raises:
        ConfigError: If there is no class token, or no such pooling.
    """

    def __init__(self, backbone: VisionTransformer, pooling: EmbeddingPooling) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ConfigError(f'pooling is {pooling!r}: give {", ".join(POOLINGS)}.')
        if pooling != 'avg' and backbone.cls_token is None:
            raise ConfigError(f'pooling is {pooling}, but the model has no class token: use avg.')
        self.backbone = backbone
        self.pooling = pooling

    @property
    def width(self) -> int:
        """Length of the vector."""
        width: int = self.backbone.embed_dim
        return 2 * width if self.pooling == 'both' else width

    def forward(self, images: Tensor) -> Tensor:
        """Return embeddings (b, width) of standardised images (b, c, h, w)."""
        tokens = encode(self.backbone, images)
        mean = patch_tokens(self.backbone, tokens).mean(dim=1)
        if self.pooling == 'avg':
            return mean
        return tokens[:, 0] if self.pooling == 'token' else torch.cat([tokens[:, 0], mean], dim=1)


def portable_model(model: nn.Module, spec: ModelSpec, side: int | None = None) -> PortableModel:
    """Make a fitted model portable.

    Args:
        model: What ``load_model`` or ``build_classifier`` or ``build_segmenter`` returned, low-rank
            updates merged; it is copied.
        spec: Describes it.
        side: Side in pixels of the tiles; that of the images it was fitted on by default.

    Raises:
        ConfigError: If it takes several dates, or the side is not possible.
    """
    network = model.network if isinstance(model, FittedModel) else model
    portable = PortableSpec(
        task=spec.task,
        model=spec.model,
        images=replace(InputSpec.of(spec), resolution=spec.seen_resolution),
        side=spec.image_size if side is None else side,
        outputs=len(spec.classes),
        classes=spec.classes,
        colors=spec.colors,
        parameters=_count(network),
        weights_hash=tensors_hash(network.state_dict()),
        options={str(key): value for key, value in spec.options.items()},
    )
    return _settled(network, portable)


def portable_backbone(
    backbone: VisionTransformer,
    model: str,
    images: InputSpec,
    side: int | None = None,
    pooling: EmbeddingPooling | None = None,
) -> PortableModel:
    """Make a backbone alone portable: it gives one embedding an image.

    Args:
        backbone: The vision transformer, low-rank updates merged; it is copied.
        model: Its timm name.
        images: What it expects of an image.
        side: Side in pixels of the tiles; that of ``images`` by default.
        pooling: As for :class:`Embedder`; the class token by default, where there is one.

    Raises:
        ConfigError: If it takes several dates, or the side or the pooling is not possible.
    """
    if pooling is None:
        pooling = 'avg' if backbone.cls_token is None else 'token'
    network = Embedder(backbone, pooling)
    portable = PortableSpec(
        task='embedding',
        model=model,
        images=images,
        side=images.image_size if side is None else side,
        outputs=network.width,
        classes=(),
        colors=None,
        parameters=_count(backbone),
        weights_hash=tensors_hash(backbone.state_dict()),
        options={'pooling': pooling},
    )
    return _settled(network, portable)


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _settled(network: nn.Module, spec: PortableSpec) -> PortableModel:
    """A copy on the CPU, in float32, that trains nothing."""
    _, vit = find_backbone(network)
    if isinstance(vit, TemporalViT):
        raise ConfigError(
            f'{spec.model} takes several dates of a place with their times, and programs that read '
            'exported models give one image: use it with this package.'
        )
    patch = math.lcm(*vit.patch_embed.patch_size)
    if spec.side < 1 or (spec.task != 'segmentation' and spec.side % patch):
        raise ConfigError(
            f'Tiles of {spec.side} pixels do not divide into patches of {patch}: give a multiple '
            'of it as --image-size.'
        )
    copied = copy.deepcopy(network).cpu().float().eval().requires_grad_(False)
    find_backbone(copied)[1].set_grad_checkpointing(False)
    return PortableModel(copied, spec).eval()


def trace(model: PortableModel) -> ExportedProgram:
    """Trace a model for tiles of its side, in batches of any size.

    Args:
        model: What :func:`portable_model` or :func:`portable_backbone` returned.

    Returns:
        The program, without the paths of the files that it was traced from.
    """
    example = torch.zeros(2, *model.spec.input_shape)
    with torch.no_grad():
        program = torch.export.export(
            model,
            (example,),
            dynamic_shapes={INPUT: {0: Dim('batch', min=1, max=MOST_TILES)}},
            strict=False,
        )
    for part in program.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, GraphModule) else ():
            node.meta.pop('stack_trace', None)
    return program
