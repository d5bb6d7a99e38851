"""What enters the first block of a timm ViT: patches, their positions, and where [CLS] has one."""

from typing import Any

import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ser_lightning.batch import TapFeatures


def drop_cls_position(vit: VisionTransformer) -> None:
    """Removes the class token's position entry: its [CLS] will not stand at the input.

    Raises:
        ValueError: register tokens stand there beside it.
    """
    assert vit.pos_embed is not None
    if vit.num_reg_tokens:
        raise ValueError(
            f"cls_layer above 0 with {vit.num_reg_tokens} register tokens, which stand beside "
            "[CLS] at the input; use cls_layer: 0, or a ViT without registers"
        )
    vit.no_embed_class = True
    position = vit.pos_embed
    # A plain clone would keep the stride of the entry that is gone, and DDP's buckets have none.
    rest = position.detach()[:, 1:].clone(memory_format=torch.contiguous_format)
    vit.pos_embed = nn.Parameter(rest, position.requires_grad)


def with_cls_position(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of such a ViT as plain timm has them: with an entry for the class token, zero."""
    position = state["pos_embed"]
    padded = torch.cat([torch.zeros_like(position[:, :1]), position], dim=1)
    return {**state, "pos_embed": padded}


def grid_of(images: Tensor, patch_size: int) -> tuple[int, int]:
    """The (h, w) tokens of (B, 3, H, W) images.

    Raises:
        ValueError: a side is not a multiple of the patch size.
    """
    height, width = images.shape[-2:]
    if height % patch_size or width % patch_size:
        raise ValueError(
            f"an image of {height} x {width} pixels is not made of whole patches of "
            f"{patch_size} pixels; resize its sides to multiples of {patch_size}"
        )
    return height // patch_size, width // patch_size


def embed(vit: Any, images: Tensor, grid: tuple[int, int], has_cls: bool) -> Tensor:
    """Tokens with position embedding, (B, h*w, C) or after [CLS] and registers."""
    # The convolution may leave channels first in memory; every later operation would copy.
    tokens = vit.patch_embed(images).flatten(1, 2).contiguous()
    if has_cls:
        tokens = join_cls(vit, tokens)
    # Differs: bicubic as in the public code, which gives scales of (h + 0.1) / 14 for sizes.
    position = resample_abs_pos_embed(
        vit.pos_embed,
        list(grid),
        list(vit.patch_embed.grid_size),
        num_prefix_tokens=1 + vit.num_reg_tokens if has_cls else 0,
        antialias=False,
    )
    embedded: Tensor = vit.norm_pre(vit.pos_drop(tokens + position))
    return embedded


def handed_out(tokens: Tensor, grid: tuple[int, int], has_cls: bool) -> TapFeatures:
    """What (B, h*w, C) tokens, or these behind [CLS] and registers, hand to an add-on."""
    num_others = tokens.shape[1] - grid[0] * grid[1]
    patches = tokens[:, num_others:] if num_others else tokens
    return TapFeatures(patches.mT.unflatten(2, grid), tokens[:, 0] if has_cls else None)


def join_cls(vit: Any, tokens: Tensor) -> Tensor:
    """(B, n, C) tokens behind [CLS] and the registers that the ViT has."""
    others = [vit.cls_token] if vit.reg_token is None else [vit.cls_token, vit.reg_token]
    num_images = tokens.shape[0]  # `len` would be a constant in an exported graph
    return torch.cat([*(token.expand(num_images, -1, -1) for token in others), tokens], dim=1)
