"""Exports as transformers' ViTModel, or where there is LayerScale as its DINOv2.

Source: transformers (huggingface/transformers), `models/vit`, `models/dinov2` and
`models/dinov2_with_registers`, and the weights of google/vit-base-patch16-224 and
facebook/dinov2-base: names of parameters and of options.
"""

import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from timm.layers.mlp import GluMlp, Mlp
from torch import Tensor, nn

from ser_lightning.backbones import SplitViT
from ser_lightning.backbones.attention import is_plain_block
from ser_lightning.data.clean import Clean
from ser_lightning.exporting.opened import Opened
from ser_lightning.exporting.weight_folders import write_config, write_json, write_state

PROCESSOR = "preprocessor_config.json"
_BICUBIC = 3  # Pillow's number
_BLOCK = r"blocks\.(\d+)\."
_LAYER = r"encoder.layer.\1."
_BOTH = {
    "cls_token": "embeddings.cls_token",
    "reg_token": "embeddings.register_tokens",
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
    rf"{_BLOCK}norm(\d)\.": rf"{_LAYER}norm\2.",
    rf"{_BLOCK}ls(\d)\.gamma": rf"{_LAYER}layer_scale\2.lambda1",
}
_PLAIN_MLP = {rf"{_BLOCK}mlp\.fc(\d)\.": rf"{_LAYER}mlp.fc\2."}
_GATED_MLP = {
    rf"{_BLOCK}mlp\.fc1\.": rf"{_LAYER}mlp.weights_in.",
    rf"{_BLOCK}mlp\.fc2\.": rf"{_LAYER}mlp.weights_out.",
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
    write_config(configuration(backbone), opened, folder)
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
    if backbone.num_registers and not _has_scale(backbone):
        yield "register tokens without LayerScale"
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
    if not all(_is_known_mlp(mlp, _has_scale(backbone)) for mlp in mlps):
        yield "MLPs but two layers around an exact GELU, or with LayerScale gated by a SiLU"
    if vit.patch_embed.proj.bias is None or any(mlp.fc1.bias is None for mlp in mlps):
        yield "layers without biases"
    if _has_scale(backbone) and _mlp_ratio(backbone) is None:
        yield "LayerScale with an MLP of this width"


def _is_known_mlp(mlp: nn.Module, has_scale: bool) -> bool:
    if type(mlp) is GluMlp:
        return has_scale and not mlp.gate_last and type(mlp.act) is nn.SiLU
    return type(mlp) is Mlp and type(mlp.act) is nn.GELU and mlp.act.approximate == "none"


def _mlp_ratio(backbone: SplitViT) -> int | None:
    """Transformers' `mlp_ratio` of a DINOv2; None where none gives this MLP."""
    width, mlp = backbone.width, backbone.vit.blocks[0].mlp
    for ratio in range(1, 17):
        hidden = (width * ratio * 2 // 3 + 7) // 8 * 8 if _is_gated(backbone) else width * ratio
        if hidden == mlp.fc2.in_features:
            return ratio
    return None


def _is_gated(backbone: SplitViT) -> bool:
    return isinstance(backbone.vit.blocks[0].mlp, GluMlp)


def renamed(backbone: SplitViT) -> dict[str, Tensor]:
    """The weights under the names of the hub's files."""
    mlp = _GATED_MLP if _is_gated(backbone) else _PLAIN_MLP
    table = _BOTH | (_DINOV2 | mlp if _has_scale(backbone) else _VIT)
    found = {}
    for name, weight in _with_parts(_without_positions_of_registers(backbone)):
        (new,) = [re.sub(f"^{old}", to, name) for old, to in table.items() if re.match(old, name)]
        found[new] = weight
    if _has_scale(backbone):  # for masked images, of which an exported ViT sees none
        found["embeddings.mask_token"] = torch.zeros(1, backbone.width)
    return found


def _without_positions_of_registers(backbone: SplitViT) -> dict[str, Tensor]:
    """The weights as DINOv2 has them: positions of [CLS] and patches, none of registers."""
    state, num = backbone.timm_state_dict(), backbone.num_registers
    if num == 0:
        return state
    position = state["pos_embed"]
    state["reg_token"] = state["reg_token"] + position[:, 1 : 1 + num]
    state["pos_embed"] = torch.cat([position[:, :1], position[:, 1 + num :]], dim=1)
    return state


def _with_parts(state: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The weights, with those of queries, keys and values apart."""
    for name, weight in state.items():
        place, is_joint, kind = name.partition("qkv.")
        if is_joint:
            for part, rows in zip(("query", "key", "value"), weight.chunk(3), strict=True):
                yield f"{place}{part}.{kind}", rows
        else:
            yield name, weight


def configuration(backbone: SplitViT) -> dict[str, Any]:
    """What transformers builds the model from."""
    block = backbone.vit.blocks[0]
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
        mlp = {"mlp_ratio": _mlp_ratio(backbone), "use_swiglu_ffn": _is_gated(backbone)}
        kind: dict[str, Any] = {"model_type": "dinov2", "architectures": ["Dinov2Model"]}
        if num := backbone.num_registers:
            kind = {
                "model_type": "dinov2_with_registers",
                "architectures": ["Dinov2WithRegistersModel"],
                "num_register_tokens": num,
            }
        return {**kind, **common, **mlp}
    kind = {"model_type": "vit", "architectures": ["ViTModel"]}
    return {**kind, **common, "intermediate_size": block.mlp.fc1.out_features}


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
