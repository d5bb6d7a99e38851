"""Names that other projects give to a ViT's weights, in timm's; what is apart there is joined."""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Renamed = Sequence[tuple[str, str]]
"""Patterns of names, each with what takes its place; the first one that fits counts."""

# Source: huggingface/transformers, ViT, DINOv2 (with registers) and ViT-MAE: files have the names
# on the left of a "|", modules since version 5 those on the right.
_BLOCK = r"^(?:encoder\.layer|layers)\.(\d+)\."
HUGGING_FACE: Renamed = (
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.distillation_token$", "dist_token"),
    (r"^embeddings\.", ""),
    (r"^layernorm\.", "norm."),
    (_BLOCK + r"(?:layernorm_before|norm1)\.", r"blocks.\1.norm1."),
    (_BLOCK + r"(?:layernorm_after|norm2)\.", r"blocks.\1.norm2."),
    (_BLOCK + r"attention\.(?:output\.dense|o_proj)\.", r"blocks.\1.attn.proj."),
    (_BLOCK + r"attention\.(?:attention\.)?(query|key|value)\.", r"blocks.\1.attn.\2."),
    (_BLOCK + r"attention\.q_proj\.", r"blocks.\1.attn.query."),
    (_BLOCK + r"attention\.k_proj\.", r"blocks.\1.attn.key."),
    (_BLOCK + r"attention\.v_proj\.", r"blocks.\1.attn.value."),
    (_BLOCK + r"(?:intermediate\.dense|mlp\.fc1|mlp\.weights_in)\.", r"blocks.\1.mlp.fc1."),
    (_BLOCK + r"(?:output\.dense|mlp\.fc2|mlp\.weights_out)\.", r"blocks.\1.mlp.fc2."),
    (_BLOCK + r"layer_scale([12])\.lambda1$", r"blocks.\1.ls\2.gamma"),
)  # fmt: skip

# Source: huggingface/transformers, CLIP.
_LAYER = r"^encoder\.layers\.(\d+)\."
HUGGING_FACE_CLIP: Renamed = (
    (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"^embeddings\.position_embedding\.weight$", "pos_embed"),
    (r"^embeddings\.class_embedding$", "cls_token"),
    (r"^pre_layrnorm\.", "norm_pre."),
    (r"^post_layernorm\.", "norm."),
    (_LAYER + r"layer_norm([12])\.", r"blocks.\1.norm\2."),
    (_LAYER + r"self_attn\.q_proj\.", r"blocks.\1.attn.query."),
    (_LAYER + r"self_attn\.k_proj\.", r"blocks.\1.attn.key."),
    (_LAYER + r"self_attn\.v_proj\.", r"blocks.\1.attn.value."),
    (_LAYER + r"self_attn\.out_proj\.", r"blocks.\1.attn.proj."),
    (_LAYER, r"blocks.\1."),
)  # fmt: skip

# Source: openai/CLIP and mlfoundations/open_clip, the visual tower.
_RESBLOCK = r"^transformer\.resblocks\.(\d+)\."
CLIP: Renamed = (
    (r"^conv1\.", "patch_embed.proj."),
    (r"^class_embedding$", "cls_token"),
    (r"^positional_embedding$", "pos_embed"),
    (r"^ln_pre\.", "norm_pre."),
    (r"^ln_post\.", "norm."),
    (_RESBLOCK + r"ln_([12])\.", r"blocks.\1.norm\2."),
    (_RESBLOCK + r"attn\.in_proj_", r"blocks.\1.attn.qkv."),
    (_RESBLOCK + r"attn\.out_proj\.", r"blocks.\1.attn.proj."),
    (_RESBLOCK + r"mlp\.c_fc\.", r"blocks.\1.mlp.fc1."),
    (_RESBLOCK + r"mlp\.c_proj\.", r"blocks.\1.mlp.fc2."),
)  # fmt: skip

# Source: pytorch/vision, models/vision_transformer.py; its MLPs had other names before 0.13.
_ENCODER_LAYER = r"^encoder\.layers\.encoder_layer_(\d+)\."
TORCHVISION: Renamed = (
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^class_token$", "cls_token"),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^encoder\.ln\.", "norm."),
    (_ENCODER_LAYER + r"ln_([12])\.", r"blocks.\1.norm\2."),
    (_ENCODER_LAYER + r"self_attention\.in_proj_", r"blocks.\1.attn.qkv."),
    (_ENCODER_LAYER + r"self_attention\.out_proj\.", r"blocks.\1.attn.proj."),
    (_ENCODER_LAYER + r"mlp\.(?:0|linear_1)\.", r"blocks.\1.mlp.fc1."),
    (_ENCODER_LAYER + r"mlp\.(?:3|linear_2)\.", r"blocks.\1.mlp.fc2."),
)  # fmt: skip

# Source: open-mmlab/mmpretrain and mmsegmentation, whose attention has another name for its parts.
_MM_LAYER = r"^layers\.(\d+)\."
MMPRETRAIN: Renamed = (
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"^pre_norm\.", "norm_pre."),
    (r"^ln1\.", "norm."),
    (_MM_LAYER + r"ln([12])\.", r"blocks.\1.norm\2."),
    (_MM_LAYER + r"attn\.attn\.in_proj_", r"blocks.\1.attn.qkv."),
    (_MM_LAYER + r"attn\.attn\.out_proj\.", r"blocks.\1.attn.proj."),
    (_MM_LAYER + r"ffn\.(?:layers\.0\.0|w12)\.", r"blocks.\1.mlp.fc1."),
    (_MM_LAYER + r"ffn\.(?:layers\.1|w3)\.", r"blocks.\1.mlp.fc2."),
    (_MM_LAYER + r"(?:attn|ffn)\.gamma([12])\.weight$", r"blocks.\1.ls\2.gamma"),
    (_MM_LAYER, r"blocks.\1."),
)  # fmt: skip
_PARTS = ("query", "key", "value")


def renamed(
    table: Renamed, state: Mapping[str, Tensor], has_bare_tokens: bool = False
) -> dict[str, Tensor]:
    """A state dict, its prefix gone, under timm's names.

    Args:
        table: of the project.
        state: in its names.
        has_bare_tokens: whether [CLS] (C,) and positions (N, C) lack timm's first axis.
    """
    found = {_new_name(name, table): value for name, value in state.items()}
    for name in [name for name in found if ".attn.query." in name]:
        parts = [name.replace(".query.", f".{part}.") for part in _PARTS]
        if all(part in found and found[part].ndim for part in parts):
            joined = torch.cat([found.pop(part) for part in parts])
            found[name.replace(".query.", ".qkv.")] = joined
    for name, ndim in (("cls_token", 1), ("pos_embed", 2)) if has_bare_tokens else ():
        if name in found and found[name].ndim == ndim:
            found[name] = found[name][None, None] if ndim == 1 else found[name][None]
    return found


def _new_name(name: str, table: Renamed) -> str:
    for pattern, new in table:
        name_in_timm, is_found = re.subn(pattern, new, name)
        if is_found:
            return name_in_timm
    return name
