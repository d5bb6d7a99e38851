"""Names of Hugging Face's ViT and DINOv2, in timm's; queries, keys and values joined."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

# Source: huggingface/transformers, ViT, DINOv2 (with registers) and ViT-MAE: files have the names
# on the left of a "|", modules since version 5 those on the right.
_BLOCK = r"^(?:encoder\.layer|layers)\.(\d+)\."
_RENAMED = (
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
_PARTS = ("query", "key", "value")


def timm_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of Hugging Face's, its prefix gone, under timm's names."""
    found = {_renamed(name): value for name, value in state.items()}
    for name in [name for name in found if ".attn.query." in name]:
        parts = [name.replace(".query.", f".{part}.") for part in _PARTS]
        if all(part in found for part in parts):
            joined = torch.cat([found.pop(part) for part in parts])
            found[name.replace(".query.", ".qkv.")] = joined
    return found


def _renamed(name: str) -> str:
    for pattern, new in _RENAMED:
        renamed, is_found = re.subn(pattern, new, name)
        if is_found:
            return renamed
    return name
