"""The architecture of a plain ViT from its weights, and what the weights leave open."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ser_lightning.files import read_mapping
from ser_lightning.foreign.layouts import UNRECORDED, Weights
from ser_lightning.numbers import Positive, fits

NAME_OPTION, HEADS_OPTION = "--model.timm_name", "--model.num_heads"  # of stages
BASE = "vit_base_patch16_224"
_GATED = "vit_giant_patch14_dinov2"  # of timm's plain ViTs, one whose MLP is gated
_WIDE_HEADS = dict.fromkeys((1152, 1280, 1408, 1664), 16)  # So400M, ViT-H, ViT-g, ViT-G
_CHANNELS = 64  # of a head, in all others
CONFIG = "config.json"  # beside weights
_SIDES = ("img_size", "patch_size")
_USUAL_ACTIVATION = {"clip_vision_model": "quick_gelu"}  # by type, where a config has none
_TOKENS = ("cls_token", "reg_token", "pos_embed")
_PER_BLOCK = r"^blocks\.(\d+)\."


class Architecture(NamedTuple):
    """Arguments of `SplitViT`, and what was assumed.

    Attributes:
        arguments: name, sizes, options, and where [CLS] joins.
        assumed: what neither the file nor the user said, in words.
    """

    arguments: dict[str, Any]
    assumed: tuple[str, ...]


def architecture_of(weights: Weights, num_heads: int | None = None) -> Architecture:
    """What a file's shapes tell of its ViT, with the `config.json` beside it, if there is one.

    Args:
        weights: in timm's names.
        num_heads: attention heads of a block, which no shape tells.

    Raises:
        ValueError: the weights are not those of a plain ViT with one class token.
    """
    state = weights.state
    _require_plain(weights)
    width, patch = state["cls_token"].shape[-1], state["patch_embed.proj.weight"].shape[-1]
    depth = 1 + max(int(match[1]) for match in (re.match(_PER_BLOCK, n) for n in state) if match)
    hidden = len(state["blocks.0.mlp.fc1.weight"])
    fan_in = state["blocks.0.mlp.fc2.weight"].shape[1]
    registers = state["reg_token"].shape[1] if "reg_token" in state else 0
    ratio = hidden / width
    if int(width * ratio) < hidden:  # as timm takes it back
        ratio = math.nextafter(ratio, math.inf)
    heads, assumed = _heads(weights, width, num_heads)
    options: dict[str, Any] = {
        "embed_dim": width, "depth": depth, "num_heads": heads, "mlp_ratio": ratio,
    }  # fmt: skip
    special = {
        "qkv_bias": (False, "blocks.0.attn.qkv.bias" not in state),
        "init_values": (1e-5, "blocks.0.ls1.gamma" in state),
        "reg_tokens": (registers, registers > 0),
    }
    options |= {name: value for name, (value, is_so) in special.items() if is_so}
    options |= told_epsilon(weights)
    layer, late = _late_cls(weights, registers)
    arguments = {
        "name": BASE if hidden == fan_in else _GATED,
        "image_size": patch * _side(weights, registers),
        "patch_size": patch,
        "vit_options": options,
        **({"layer": layer, "cls_layer": layer} if layer is not None else {}),
    }
    return Architecture(arguments, (*assumed, *late))


def told_heads(weights: Weights) -> int | None:
    """Attention heads of a block where a file's layout, or else what lies beside it, tells them.

    Raises:
        ValueError: what lies beside the file is of another model, or is none.
    """
    of_timm = read_options_beside(weights.path, "model_args").get("num_heads")
    told = _config_of(weights).get("num_attention_heads", of_timm)
    known = weights.layout.heads.get(_width(weights) or 0)
    return told if known is None and isinstance(told, int) else known


def told_epsilon(weights: Weights) -> dict[str, float]:
    """The option `norm_eps` where a file, or its layout, has another one than timm's 1e-6.

    Raises:
        ValueError: what lies beside the file tells none, or is of another model.
    """
    eps = _config_of(weights).get("layer_norm_eps", weights.layout.eps)
    if not fits(Positive, eps):
        file = weights.path.with_name(CONFIG)
        raise ValueError(f"{file}: layer_norm_eps {eps!r} must be above 0; restore the file")
    return {} if eps == 1e-6 else {"norm_eps": float(eps)}


def told_activation(weights: Weights) -> str | None:
    """The activation of its blocks by Hugging Face's name, where the file or its config tells it.

    Raises:
        ValueError: what lies beside the file is of another model.
    """
    config = _config_of(weights)
    usual = _USUAL_ACTIVATION.get(str(config.get("model_type")), weights.layout.activation)
    told = config.get("hidden_act", usual)
    return told if isinstance(told, str) else None


def read_config_beside(path: Path) -> dict[str, Any]:
    """The `config.json` that hubs keep beside weights; empty where there is none that tells.

    Of a model of images and texts it is the part of the images.
    """
    content = read_mapping(path.with_name(CONFIG))
    if isinstance(content.get("vision_config"), dict):
        content = content["vision_config"]
    return content if {"hidden_size", "architecture", "model_type"} & content.keys() else {}


def _config_of(weights: Weights) -> dict[str, Any]:
    """The same for weights that were read.

    Raises:
        ValueError: it is of another model, as in a folder of downloads.
    """
    config, width = read_config_beside(weights.path), _width(weights)
    told = config.get("hidden_size", config.get("num_features"))
    if width is not None and told not in (None, width):
        raise ValueError(
            f"{weights.path} has weights of width {width}, and {CONFIG} beside it is of "
            f"a model of width {told}; put the file into a folder without it"
        )
    return config


def _width(weights: Weights) -> int | None:
    """Channels of the class token; None where there is none."""
    token = weights.state.get("cls_token")
    return None if token is None or token.ndim == 0 else token.shape[-1]


def read_options_beside(path: Path, name: str) -> dict[str, Any]:
    """A part of the `config.json` beside weights; empty where there is none.

    Raises:
        ValueError: something else than options stands there.
    """
    options = read_config_beside(path).get(name) or {}
    if not isinstance(options, dict):
        file = path.with_name(CONFIG)
        raise ValueError(f"{file}: {name} {options!r} must be a mapping; restore the file")
    return options


def read_model_args(path: Path) -> dict[str, Any]:
    """In what timm's `config.json` beside weights differs from the model that it names.

    Sides in pixels, which timm writes as pairs of equal ones, are single numbers.
    """
    pooling = {"global_pool": read_config_beside(path).get("global_pool")}
    return {
        name: value[0]
        if name in _SIDES and isinstance(value, list) and len({*value}) == 1
        else value
        for name, value in (pooling | read_options_beside(path, "model_args")).items()
    }


def odd_shapes(state: Mapping[str, Tensor]) -> list[str]:
    """Tokens and positions that are not (1, entries, width), and patches that are no pixels'."""
    patches = "patch_embed.proj.weight"
    odd = [name for name in _TOKENS if name in state and state[name].shape[:-2] != (1,)]
    odd += [patches] if patches in state and state[patches].ndim != 4 else []
    return [f"{name} of shape {tuple(state[name].shape)}" for name in odd]


def split_position(weights: Weights, registers: int) -> tuple[int, int] | None:
    """How many entries of a position embedding are for other tokens, and the grid's side.

    25 entries with 8 registers may be of 4 x 4 patches, as this project has them, or of 5 x 5.
    """
    entries = weights.state["pos_embed"].shape[1]
    is_ours = "ser-lightning" in weights.layout.name
    for others in (1 + registers, 1, 0) if is_ours else (0, 1, 1 + registers):
        side = math.isqrt(max(entries - others, 0))
        if side > 0 and side * side == entries - others:
            return others, side
    return None


def _side(weights: Weights, registers: int) -> int:
    entries = weights.state["pos_embed"].shape[1]
    found = split_position(weights, registers)
    if found is None:
        raise ValueError(
            f"{weights.path} ({weights.layout.name}): {entries} position entries are no square "
            "grid of patches; ViTs for square images alone are read"
        )
    return found[1]


def _heads(weights: Weights, width: int, given: int | None) -> tuple[int, tuple[str, ...]]:
    """Attention heads, and what was assumed for them."""
    told = told_heads(weights) if given is None else given
    if told is not None:
        if told < 1 or width % told:
            raise ValueError(
                f"num_heads {told} does not divide the width {width} of {weights.path}; give the "
                "number that the model was trained with"
            )
        return told, ()
    heads = _WIDE_HEADS.get(width, width // _CHANNELS)
    if width not in _WIDE_HEADS and width % _CHANNELS:
        raise ValueError(
            f"{weights.path} does not tell its number of attention heads, and its width {width} "
            f"is no multiple of {_CHANNELS}; give {HEADS_OPTION} N"
        )
    return heads, (f"{heads} attention heads, as usual for a width of {width}",)


def _late_cls(weights: Weights, registers: int) -> tuple[int | None, tuple[str, ...]]:
    """After which block [CLS] joins in SER's code and ours; None where it stands at the input."""
    found = split_position(weights, registers)
    may_be_late = weights.layout.name in ("SER's public code", UNRECORDED)
    if not may_be_late or found is None or found[0] > 0:
        return None, ()
    told = getattr(weights.content.get("args"), "equiv_layer", None)
    if isinstance(told, int):
        return told, ()
    return 3, ("[CLS] joins after block 3, SER's default",)


def _require_plain(weights: Weights) -> None:
    """Refuses weights that are not those of a plain ViT with one class token."""
    state = weights.state
    if "norm_pre.weight" in state and "cls_token" in state:
        raise ValueError(
            f"{weights.path} ({weights.layout.name}) has a norm before its blocks, as CLIP's, "
            f"whose activation no shape tells; give timm's name of it by {NAME_OPTION} NAME, such "
            "as vit_base_patch32_clip_224, or vit_base_patch32_clip_quickgelu_224 for OpenAI's"
        )
    needed = ("blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc2.weight")
    answers = {
        "a distillation token beside [CLS]": "dist_token" in state,
        "relative positions": any(
            "rel_pos" in name or "relative_position" in name for name in state
        ),
        "rotary positions": any("rope" in name for name in state),
        "attention in windows, in stages": any(re.match(r"layers\.\d|stages\.", n) for n in state),
        "no class token": "cls_token" not in state,
        "no position embedding": "pos_embed" not in state,
        "a norm after pooling: it hands out the mean of its patches": "fc_norm.weight" in state,
        "a convolutional stem": any(name.startswith("patch_embed.backbone") for name in state),
    }
    odd = odd_shapes(state)
    answers |= {", ".join(odd): bool(odd)}
    activation = "gelu" if odd else told_activation(weights) or "gelu"
    answers[f"the activation {activation}"] = activation != "gelu"
    found = next((answer for answer, is_so in answers.items() if is_so), "")
    missing = [name for name in needed if name not in state]
    if found or missing:
        what = f"has {found}" if found else f"lacks {', '.join(missing)}"
        raise ValueError(
            f"{weights.path} ({weights.layout.name}) {what}, and is not a plain ViT with one class "
            "token and learned positions; give the file of one"
        )
