"""Which attention kernel a ViT uses, and the last block computed for [CLS] alone."""

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
    """Whether `cls_block` knows this block: timm's pre-norm Block with its standard attention."""
    return (
        type(block) is Block and type(block.attn) is Attention and type(block.attn.qkv) is nn.Linear
    )


def cls_block(block: Any, tokens: Tensor) -> Tensor:
    """A plain block's output (B, C) for the first of its tokens (B, 1 + N, C) alone.

    Equal to `block(tokens)[:, 0]`: keys and values are those of all tokens; query, projection and
    MLP are computed for [CLS] only.
    """
    attended = _cls_attention(block.attn, block.norm1(tokens))
    x = tokens[:, :1] + block.drop_path1(block.ls1(attended))
    x = x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))
    output: Tensor = x[:, 0]
    return output


def _cls_attention(attn: Any, tokens: Tensor) -> Tensor:
    """Attention of timm for the query of the first token; (B, 1 + N, C) to (B, 1, C)."""
    batch_size, num_tokens, _ = tokens.shape
    width = attn.num_heads * attn.head_dim
    cls = tokens[:, :1]
    q_weight, kv_weight = attn.qkv.weight.split([width, 2 * width])
    q_bias, kv_bias = (
        (None, None) if attn.qkv.bias is None else attn.qkv.bias.split([width, 2 * width])
    )
    q = F.linear(cls, q_weight, q_bias).view(batch_size, 1, attn.num_heads, attn.head_dim)
    kv = F.linear(tokens, kv_weight, kv_bias)
    kv = kv.view(batch_size, num_tokens, 2, attn.num_heads, attn.head_dim)
    k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)
    q, k = attn.q_norm(q.transpose(1, 2)), attn.k_norm(k)
    if attn.fused_attn:
        dropout = attn.attn_drop.p if attn.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    else:
        scores = (q * attn.scale) @ k.transpose(-2, -1)
        x = attn.attn_drop(scores.softmax(dim=-1)) @ v
    x = attn.norm(x.transpose(1, 2).reshape(batch_size, 1, width))
    gate = getattr(attn, "gate", None)  # newer timm only
    if gate is not None:
        x = x * gate(cls).sigmoid()
    projected: Tensor = attn.proj_drop(attn.proj(x))
    return projected
