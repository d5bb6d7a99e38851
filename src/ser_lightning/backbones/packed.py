"""Images of several shapes in one pass: their tokens lie in one row, attention keeps them apart."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ser_lightning.backbones.attention import attend, is_plain_block, qkv_of_cls


class Packed(NamedTuple):
    """Tokens of groups of images, of which each group has images of one shape.

    Attributes:
        tokens: (sum of n * t, C), group by group and image by image.
        shapes: (n, t) of each group: images, and tokens of each.
    """

    tokens: Tensor
    shapes: tuple[tuple[int, int], ...]

    @property
    def groups(self) -> list[Tensor]:
        """The (n, t, C) tokens of each group, as views."""
        return split(self.tokens, self.shapes)


Output = TypeVar("Output", Packed, Tensor)
Run = Callable[[nn.Module, Packed], Output]
"""What computes a block's output, or that of its [CLS]."""


def pack(groups: Sequence[Tensor]) -> Packed:
    """Puts (n, t, C) tokens of groups in a row; of a single one without a copy."""
    tokens = in_a_row([group.flatten(0, 1) for group in groups])
    return Packed(tokens, tuple((group.shape[0], group.shape[1]) for group in groups))


def in_a_row(parts: Sequence[Tensor]) -> Tensor:
    """`torch.cat`, without a copy of a single part."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def split(tokens: Tensor, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """The (n, t, ...) rows of each group of (sum of n * t, ...) rows, as views."""
    parts = tokens.split([count * length for count, length in shapes])
    return [part.unflatten(0, shape) for part, shape in zip(parts, shapes, strict=True)]


def run_block(block: Any, packed: Packed) -> Packed:
    """The block's output for every group, as `block` itself for each of them.

    What treats every token alike runs once over all tokens; attention runs per group. A block that
    is not timm's plain one runs per group as a whole.
    """
    if len(packed.shapes) == 1 or not is_plain_block(block):
        return pack([block(group) for group in packed.groups])
    x, shapes = packed
    attended = _attention(block.attn, block.norm1(x), shapes)
    x = x + _per_image(block.drop_path1, block.ls1(attended), shapes)
    x = x + _per_image(block.drop_path2, block.ls2(block.mlp(block.norm2(x))), shapes)
    return Packed(x, shapes)


def run_cls_block(block: Any, packed: Packed) -> Tensor:
    """A plain block's output (sum of n, C) for the first token of every image alone.

    Equal to `block(tokens)[:, 0]` of each group: keys and values are those of all tokens; query,
    projection and MLP are computed for [CLS] only.
    """
    cls = in_a_row([group[:, :1] for group in packed.groups])
    attended = _cls_attention(block.attn, packed._replace(tokens=block.norm1(packed.tokens)))
    x = cls + block.drop_path1(block.ls1(attended))
    x = x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))
    output: Tensor = x[:, 0]
    return output


def run_again(run: Run[Output], block: nn.Module, packed: Packed) -> Output:
    """`run` of a block, of which the input alone is kept: the backward pass computes it again."""
    shapes = packed.shapes

    def of_tokens(tokens: Tensor) -> Output:  # within another argument they would be kept longer
        return run(block, Packed(tokens, shapes))

    output: Output = checkpoint(of_tokens, packed.tokens, use_reentrant=False)
    return output


def _attention(attn: Any, tokens: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
    """Attention of timm within every image; (sum of n * t, C) to the same."""
    qkv = attn.qkv(tokens).unflatten(1, (3, attn.num_heads, attn.head_dim))
    groups = [group.permute(2, 0, 3, 1, 4) for group in split(qkv, shapes)]
    attended = [attend(attn, *group).flatten(0, 1) for group in groups]
    return _project(attn, tokens, in_a_row(attended))


def _cls_attention(attn: Any, packed: Packed) -> Tensor:
    """Attention of timm for the query of every image's first token: (sum of n, 1, C)."""
    cls = in_a_row([group[:, :1] for group in packed.groups])
    query, kv = qkv_of_cls(attn, cls, packed.tokens)
    queries = query.split([count for count, _ in packed.shapes])
    groups = [group.permute(2, 0, 3, 1, 4) for group in split(kv, packed.shapes)]
    attended = [attend(attn, q, *group) for q, group in zip(queries, groups, strict=True)]
    return _project(attn, cls, in_a_row(attended))


def _project(attn: Any, tokens: Tensor, attended: Tensor) -> Tensor:
    """What follows attention, token by token."""
    attended = attn.norm(attended)
    gate = getattr(attn, "gate", None)  # newer timm only
    if gate is not None:
        attended = attended * gate(tokens).sigmoid()
    projected: Tensor = attn.proj_drop(attn.proj(attended))
    return projected


def _per_image(drop: nn.Module, tokens: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
    """Drops whole images, as `drop` does of a batch."""
    if isinstance(drop, nn.Identity) or not drop.training:
        return tokens
    return torch.cat([drop(group).flatten(0, 1) for group in split(tokens, shapes)])
