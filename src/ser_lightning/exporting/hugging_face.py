"""Exports as transformers' ViTModel, or its Dinov2Model where there is LayerScale.

Source: transformers (huggingface/transformers), `models/vit` and `models/dinov2`, and the weights
of google/vit-base-patch16-224 and facebook/dinov2-base: names of parameters and of options.
"""

import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from ser_lightning.backbones import SplitViT
from ser_lightning.backbones.attention import is_plain_block
from ser_lightning.data.clean import Clean
from ser_lightning.exporting.opened import Opened
from ser_lightning.exporting.weight_folders import CONFIG, write_json, write_state

PROCESSOR = "preprocessor_config.json"
_BICUBIC = 3  # Pillow's number
_BLOCK = r"blocks\.(\d+)\."
_LAYER = r"encoder.layer.\1."
_BOTH = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    r"patch_embed\.proj\.": "embeddings.patch_embeddings.projection.",
    r"norm\.": "layernorm.",
    rf"{_BLOCK}attn\.(query|key|value)\.": rf"{_LAYER}attention.attention.\2.",
    rf"{_BLOCK}attn\.proj\.": rf"{_LAYER}attention.output.dense.",
}
_VIT = {
    rf"{_BLOCK}norm1\.": rf"{_LAYER}layernorm_before.",
    rf"{_BLOCK}norm2\.": rf"{_LAYER}layernorm_after.",
    rf"{_BLOCK}mlp\.fc1\.": rf"{_LAYER}intermediate.dense.",
    rf"{_BLOCK}mlp\.fc2\.": rf"{_LAYER}output.dense.",
}
_DINOV2 = {
    rf"{_BLOCK}(norm\d|mlp\.fc\d)\.": rf"{_LAYER}\2.",
    rf"{_BLOCK}ls(\d)\.gamma": rf"{_LAYER}layer_scale\2.lambda1",
}


def write_hugging_face(opened: Opened, folder: Path) -> None:
    """Writes weights, configuration and image processor.

    Raises:
        ValueError: transformers has no such ViT; the message says what it lacks.
    """
    backbone = opened.backbone
    lacking = list(_lacking(backbone))
    if lacking:
        raise ValueError(
            f"{opened.path}: transformers' ViT and DINOv2 have no {', no '.join(lacking)}; export "
            "it as timm, safetensors, onnx or torch-export"
        )
    write_state(renamed(backbone), folder)
    write_json(configuration(backbone), folder / CONFIG)
    write_json(processor(opened.clean), folder / PROCESSOR)


def embed_hugging_face(folder: Path, images: Tensor) -> Tensor:
    """The embeddings (B, C) that an export gives of images (B, 3, S, S)."""
    model = import_module("transformers").AutoModel.from_pretrained(folder).eval()
    embedding: Tensor = model(pixel_values=images).last_hidden_state[:, 0]
    return embedding


def _has_scale(backbone: SplitViT) -> bool:
    return not isinstance(backbone.vit.blocks[0].ls1, nn.Identity)


def _lacking(backbone: SplitViT) -> Iterator[str]:
    """What transformers' models do not compute."""
    vit, blocks = backbone.vit, backbone.vit.blocks
    if not all(map(is_plain_block, blocks)):
        yield "other blocks than pre-norm ones with plain attention"
        return
    if getattr(vit, "num_reg_tokens", 0):
        yield "register tokens"
    attentions = [block.attn for block in blocks]
    if any(getattr(attn, "gate", None) is not None for attn in attentions):
        yield "gated attention"
    extra = [norm for attn in attentions for norm in (attn.q_norm, attn.k_norm, attn.norm)]
    extra += [vit.norm_pre, vit.patch_embed.norm, *(getattr(b.mlp, "norm", None) for b in blocks)]
    if not all(norm is None or isinstance(norm, nn.Identity) for norm in extra):
        yield "norms beyond two in a block and a final one"
    norms = [vit.norm, *(norm for block in blocks for norm in (block.norm1, block.norm2))]
    if not all(isinstance(norm, nn.LayerNorm) and norm.eps == vit.norm.eps for norm in norms):
        yield "norms but LayerNorms with one epsilon"
    mlps = [block.mlp for block in blocks]
    if not all(type(mlp) is Mlp and _is_gelu(mlp.act) for mlp in mlps):
        yield "MLPs but two layers around an exact GELU"
    if vit.patch_embed.proj.bias is None or any(mlp.fc1.bias is None for mlp in mlps):
        yield "layers without biases"
    if _has_scale(backbone) and mlps[0].fc1.out_features % backbone.width:
        yield "LayerScale with an MLP of no whole multiple of the width"


def _is_gelu(act: nn.Module) -> bool:
    return isinstance(act, nn.GELU) and act.approximate == "none"


def renamed(backbone: SplitViT) -> dict[str, Tensor]:
    """The weights under the names of the hub's files."""
    table = _BOTH | (_DINOV2 if _has_scale(backbone) else _VIT)
    found = {}
    for name, weight in _with_parts(backbone.timm_state_dict()):
        (new,) = [re.sub(f"^{old}", to, name) for old, to in table.items() if re.match(old, name)]
        found[new] = weight
    if _has_scale(backbone):  # for masked images, of which an exported ViT sees none
        found["embeddings.mask_token"] = torch.zeros(1, backbone.width)
    return found


def _with_parts(state: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The weights, with those of queries, keys and values apart."""
    for name, weight in state.items():
        place, is_joint, kind = name.partition("qkv.")
        parts = zip(("query", "key", "value"), weight.chunk(3), strict=True) if is_joint else ()
        yield from ((f"{place}{part}.{kind}", rows) for part, rows in parts)
        if not is_joint:
            yield name, weight


def configuration(backbone: SplitViT) -> dict[str, Any]:
    """What transformers builds the model from."""
    block, hidden = backbone.vit.blocks[0], backbone.vit.blocks[0].mlp.fc1.out_features
    common = {
        "hidden_size": backbone.width,
        "num_hidden_layers": backbone.depth,
        "num_attention_heads": block.attn.num_heads,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": backbone.vit.norm.eps,
        "image_size": backbone.image_size,
        "patch_size": backbone.patch_size,
        "num_channels": 3,
        "qkv_bias": block.attn.qkv.bias is not None,
    }
    if _has_scale(backbone):
        kind = {"model_type": "dinov2", "architectures": ["Dinov2Model"]}
        return {**kind, **common, "mlp_ratio": hidden // backbone.width, "use_swiglu_ffn": False}
    kind = {"model_type": "vit", "architectures": ["ViTModel"]}
    return {**kind, **common, "intermediate_size": hidden}


def processor(clean: Clean) -> dict[str, Any]:
    """How transformers prepares images: by the processor that cuts out the middle."""
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": clean.resized},
        "resample": _BICUBIC,
        "do_center_crop": True,
        "crop_size": {"height": clean.size, "width": clean.size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(clean.mean),
        "image_std": list(clean.std),
    }
