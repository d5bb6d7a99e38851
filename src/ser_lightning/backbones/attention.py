"""Which attention kernel a ViT uses, and timm's attention in parts."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn


def choose_attention(modules: Sequence[Any], images: Tensor, weight: Tensor) -> None:
    """Sets timm's switch between fused and written-out attention for a forward pass.

    In 16 bits on the CPU, by autocast, input or weights, scaled dot product attention is 3 to 7
    times slower than the product written out; everywhere else it is as fast or faster.
    """
    reduced = (torch.bfloat16, torch.float16)
    autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") in reduced
    is_reduced = autocast or images.dtype in reduced or weight.dtype in reduced
    for module in modules:
        module.fused_attn = images.device.type != "cpu" or not is_reduced


def is_plain_block(block: nn.Module) -> bool:
    """Whether `packed.py` knows this block: timm's pre-norm Block with its standard attention."""
    return (
        type(block) is Block and type(block.attn) is Attention and type(block.attn.qkv) is nn.Linear
    )


def attend(attn: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of timm between (n, heads, t, d) queries, keys and values: (n, t', heads * d)."""
    query, key = attn.q_norm(query), attn.k_norm(key)
    if attn.fused_attn:
        dropout = attn.attn_drop.p if attn.training else 0.0
        x = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
    else:
        scores = (query * attn.scale) @ key.transpose(-2, -1)
        x = attn.attn_drop(scores.softmax(dim=-1)) @ value
    return x.transpose(1, 2).flatten(2)


def qkv_of_cls(attn: Any, cls: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Queries of some tokens, and keys and values of all.

    Args:
        attn: timm's attention.
        cls: (n, 1, C).
        tokens: (N, C).

    Returns:
        (n, heads, 1, d) queries and (N, 2, heads, d) keys and values.
    """
    width, heads = attn.num_heads * attn.head_dim, (attn.num_heads, attn.head_dim)
    sizes, bias = [width, 2 * width], attn.qkv.bias
    q_weight, kv_weight = attn.qkv.weight.split(sizes)
    q_bias, kv_bias = (None, None) if bias is None else bias.split(sizes)
    query = F.linear(cls, q_weight, q_bias).unflatten(2, heads).transpose(1, 2)
    return query, F.linear(tokens, kv_weight, kv_bias).unflatten(1, (2, *heads))
