"""Masked autoencoders written straight from the equations, slowly and without the package.

Every patch is cut out and embedded, every token decoded and predicted, image by image. Weights
are looked up by their official names; low-rank updates are added to them (``weights``).
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from torchgeo_explora.layers.lora import LoRALinear

Weights = Mapping[str, Tensor]
EPS = 1e-6  # of norms, and of the variance of a patch


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's weights with the low-rank updates of Q and V added, differentiably."""
    found: dict[str, Tensor] = dict(model.named_parameters())
    for name, module in model.named_modules():
        if isinstance(module, LoRALinear):
            update = torch.zeros_like(module.weight)
            for part in module.segments:
                product = module.up(part.name) @ module.down(part.name)
                rows = torch.zeros_like(update)
                rows[part.start : part.stop] = product
                update = update + module.scale * rows
            found[f'{name}.weight'] = module.weight + update
    return found


def norm(x: Tensor, w: Weights, name: str) -> Tensor:
    """Layer norm."""
    centred = x - x.mean(dim=-1, keepdim=True)
    scaled = centred / (centred.square().mean(dim=-1, keepdim=True) + EPS).sqrt()
    return scaled * w[f'{name}.weight'] + w[f'{name}.bias']


def linear(x: Tensor, w: Weights, name: str) -> Tensor:
    return x @ w[f'{name}.weight'].T + w[f'{name}.bias']


def block(x: Tensor, w: Weights, name: str, heads: int) -> Tensor:
    """One transformer block on the tokens (n, width) of one image."""
    qkv = linear(norm(x, w, f'{name}.norm1'), w, f'{name}.attn.qkv')
    width = x.shape[1]
    size = width // heads
    outputs = []
    for head in range(heads):
        own = slice(head * size, (head + 1) * size)
        q, k, v = (qkv[:, i * width : (i + 1) * width][:, own] for i in range(3))
        outputs.append(torch.softmax(q @ k.T / math.sqrt(size), dim=-1) @ v)
    x = x + linear(torch.cat(outputs, dim=1), w, f'{name}.attn.proj')
    hidden = linear(norm(x, w, f'{name}.norm2'), w, f'{name}.mlp.fc1')
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    return x + linear(hidden, w, f'{name}.mlp.fc2')


def transformer(x: Tensor, w: Weights, stem: str, heads: int) -> Tensor:
    depth = len({name.split('.')[1] for name in w if name.startswith(f'{stem}.')})
    for index in range(depth):
        x = block(x, w, f'{stem}.{index}', heads)
    return x


def cut(image: Tensor, patch: Sequence[int]) -> list[Tensor]:
    """Cut an image (c, h, w) into patches (c, p, q), row by row."""
    height, width = patch
    return [
        image[:, top : top + height, left : left + width]
        for top in range(0, image.shape[1], height)
        for left in range(0, image.shape[2], width)
    ]


def wave(value: float, dim: int) -> list[float]:
    """Sines, then cosines, of one number."""
    angles = [value * 10000 ** (-i / (dim // 2)) for i in range(dim // 2)]
    return [math.sin(a) for a in angles] + [math.cos(a) for a in angles]


def date(timestamp: Tensor, dim: int) -> Tensor:
    """Encode one (year - 2002, month - 1, hour)."""
    return torch.tensor([v for t in timestamp.tolist() for v in wave(t, dim // 3)]).double()


def position(
    w: Weights, stem: str, index: int, area: int, prefix: int, timestamps: Tensor | None
) -> Tensor:
    """Return the encoding of token ``index``, prefix tokens not counted."""
    copy, place = divmod(index, area)
    table = w[f'{stem}pos_embed'][0, prefix + place]
    if f'{stem}channel_embed' in w:
        return torch.cat([table, w[f'{stem}channel_embed'][0, copy]])
    if timestamps is not None:
        width = w['norm.weight' if stem == '' else 'decoder_norm.weight'].numel()
        return torch.cat([table, date(timestamps[copy], width - len(table))])
    return table


def embed(piece: Tensor, w: Weights, name: str) -> Tensor:
    """Embed one patch (c, p, q)."""
    kernel = w[f'{name}.proj.weight']  # (width, c, p, q)
    return (kernel * piece).sum(dim=(1, 2, 3)) + w[f'{name}.proj.bias']


def pieces(image: Tensor, patch: Sequence[int], groups: Sequence[Sequence[int]]) -> list[Tensor]:
    """Return the patch that each token sees; groups are empty for plain images and dates."""
    if image.ndim == 4:  # dates
        return [piece for one in image for piece in cut(one, patch)]
    if not groups:
        return cut(image, patch)
    return [piece for group in groups for piece in cut(image[list(group)], patch)]


def encode(
    image: Tensor,
    shown: Sequence[int],
    w: Weights,
    heads: int,
    patch: Sequence[int],
    groups: Sequence[Sequence[int]],
    timestamps: Tensor | None,
) -> Tensor:
    """Return prefix tokens and the tokens shown, after the final norm."""
    every = pieces(image, patch, groups)
    area = len(cut(image[0] if image.ndim == 4 else image, patch))
    first = [w[name][0] for name in ('cls_token', 'reg_token') if name in w]
    prefix = torch.cat(first) if first else torch.zeros(0, w['norm.weight'].numel()).double()
    if not groups and timestamps is None:  # MAE's class token has its position, SatMAE's has not
        prefix = prefix + w['pos_embed'][0, : len(prefix)]
    tokens = []
    for index in shown:
        name = f'patch_embed.{index // area}' if groups else 'patch_embed'
        where = position(w, '', index, area, len(prefix), timestamps)
        tokens.append(embed(every[index], w, name) + where)
    x = transformer(torch.cat([prefix, torch.stack(tokens)]), w, 'blocks', heads)
    return norm(x, w, 'norm')


def decode(
    latent: Tensor, shown: Sequence[int], count: int, area: int, w: Weights, heads: int,
    timestamps: Tensor | None,
) -> Tensor:  # fmt: skip
    """Return all ``count`` tokens after the decoder's norm."""
    x = linear(latent, w, 'decoder_embed')
    prefix = len(x) - len(shown)
    token = w['mask_token'][0, 0]
    rows = [x[prefix + shown.index(i)] if i in shown else token for i in range(count)]
    places = [position(w, 'decoder_', i, area, prefix, timestamps) for i in range(count)]
    table = w['decoder_pos_embed'][0, :prefix]
    if 'decoder_channel_embed' in w:
        extra = w['decoder_channel_embed'][0, -1:].expand(prefix, -1)
    else:
        extra = torch.zeros(prefix, len(token) - table.shape[1]).double()
    first = x[:prefix] + torch.cat([table, extra], dim=1)
    x = torch.cat([first, torch.stack(rows) + torch.stack(places)])
    return norm(transformer(x, w, 'decoder_blocks', heads), w, 'decoder_norm')[prefix:]


def normalise(patch: Tensor) -> Tensor:
    values = patch.flatten()
    variance = (values - values.mean()).square().sum() / (len(values) - 1)
    return (patch - values.mean()) / (variance + EPS).sqrt()


def errors(
    image: Tensor, tokens: Tensor, hidden: Sequence[int], w: Weights, patch: Sequence[int],
    groups: Sequence[Sequence[int]], norm_pix: bool, by_number: bool,
) -> list[Tensor]:  # fmt: skip
    """Return the mean squared error of each masked token.

    ``by_number`` reads the outputs of all heads, one after the other, as the bands (SatMAE).
    """
    every = pieces(image, patch, ())
    every = [normalise(piece) if norm_pix else piece for piece in every]
    if not groups:
        outputs = linear(tokens, w, 'decoder_pred')
        return [(outputs[i] - every[i].permute(1, 2, 0).flatten()).square().mean() for i in hidden]
    area, pixels, found = len(every), patch[0] * patch[1], []
    for index in hidden:
        group, place = divmod(index, area)
        heads = [
            linear(tokens[g * area + place], w, f'decoder_pred.{g}').view(-1, pixels)
            for g in range(len(groups))
        ]
        bands = list(groups[group])
        predicted = torch.cat(heads)[bands] if by_number else heads[group]
        found.append((predicted - every[place][bands].flatten(1)).square().mean())
    return found
