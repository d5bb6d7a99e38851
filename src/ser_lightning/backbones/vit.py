"""Builds the plain timm ViT inside a backbone, counts its blocks, refuses what does not fit."""

import difflib
import math
from collections.abc import Sequence
from typing import Any, Literal

import timm
import torch
from timm.layers.patch_embed import PatchEmbed
from timm.layers.weight_init import trunc_normal_
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ser_lightning.numbers import (
    BelowOne,
    NonNegativeInt,
    Positive,
    PositiveInt,
    Probability,
    fits,
    within,
)

Layer = NonNegativeInt | Probability
"""A place in a ViT: a number of blocks, or a float, a fraction of its depth."""
WeightInit = Literal["moco", "", "jax"]
PositionEmbedding = Literal["learned", "sincos"]
CLSLayer = NonNegativeInt | Literal["auto"] | None
# set by the backbone itself, or at odds with what it computes
RESERVED_OPTIONS = frozenset(
    {"img_size", "patch_size", "num_classes", "dynamic_img_size", "dynamic_img_pad"}
    | {"no_embed_class", "class_token", "global_pool", "fc_norm", "pos_embed"}
    | {"patch_drop_rate", "weight_init", "pretrained", "checkpoint_path"}
)
_RATES = ("drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate")
_OPTION_RANGES: dict[str, Any] = {
    **dict.fromkeys(("embed_dim", "num_heads"), PositiveInt),
    **dict.fromkeys(_RATES, BelowOne),
    "depth": within(int, 1, 1000),  # 100 million blocks would be built for hours
    "mlp_ratio": Positive,
    "init_values": Positive | None,
    "norm_eps": Positive,
    "reg_tokens": NonNegativeInt,
}


def build_vit(
    name: str,
    image_size: int,
    patch_size: int | None,
    options: dict[str, Any],
    weight_init: WeightInit,
    position_embedding: PositionEmbedding,
) -> VisionTransformer:
    """A plain timm ViT with one class token, its position entry and no classifier.

    Registers have position entries too, as timm's models with `no_embed_class` False.

    The arguments are those of `SplitViT`.

    Raises:
        ValueError: if timm has no such ViT, refuses the options, or the sizes do not fit.
    """
    _validate(name, options)
    options = dict(options)
    eps = options.pop("norm_eps", None)
    if patch_size is not None:
        options["patch_size"] = patch_size
    try:
        vit: Any = timm.create_model(
            name,
            img_size=image_size,
            num_classes=0,
            dynamic_img_size=True,
            no_embed_class=False,
            class_token=True,
            global_pool="token",
            weight_init=weight_init,
            **options,
        )
    except (TypeError, AssertionError, RuntimeError, LookupError, AttributeError) as error:
        raise ValueError(f"timm cannot build {name} with the options {options}: {error}") from error
    _require_fit(vit, name, image_size)
    for norm in vit.modules() if eps is not None else ():
        if hasattr(norm, "eps"):
            norm.eps = eps
    _finish_initialisation(vit, weight_init)
    if position_embedding == "sincos":  # frozen; the class token's entry is 0
        position = sincos_position(vit.patch_embed.grid_size, vit.embed_dim)
        others = torch.zeros_like(position[:, :1]).expand(-1, vit.num_prefix_tokens, -1)
        position = torch.cat([others, position], dim=1)
        vit.pos_embed = nn.Parameter(position.to(vit.pos_embed), requires_grad=False)
    model: VisionTransformer = vit
    return model


def sincos_position(grid: tuple[int, int], width: int, temperature: float = 1e4) -> Tensor:
    """The fixed position embedding of MoCo-v3 for a grid of patches.

    With omega_i = temperature^(-i / (C/4)), i = 0 .. C/4 - 1, the patch in row y and column x gets

        [sin(y omega), cos(y omega), sin(x omega), cos(x omega)]    (C/4 channels each)

    Wavelengths rise from 2 pi patches towards `temperature` times 2 pi. Source: MoCo-v3 and its
    public code, which names the first half after the width, but whose mesh grid fills it with the
    row of each token.

    Returns:
        (1, h*w, C), rows first.

    Raises:
        ValueError: if the width is not a multiple of 4.
    """
    if width % 4:
        raise ValueError(
            f"width {width} is not a multiple of 4, as a sin-cos position embedding needs; choose "
            "another embed_dim, or position_embedding: learned"
        )
    bands = width // 4
    omega = temperature ** -(torch.arange(bands, dtype=torch.float32) / bands)
    angles = [torch.arange(n, dtype=torch.float32)[:, None] * omega for n in grid]
    row, column = (torch.cat([angle.sin(), angle.cos()], dim=1) for angle in angles)
    row = row[:, None].expand(-1, grid[1], -1)
    column = column[None].expand(grid[0], -1, -1)
    return torch.cat([row, column], dim=2).flatten(0, 1)[None]


def block_number(layer: Layer, depth: int) -> int:
    """The number of blocks that an argument means: an int, or a fraction of the depth as a float.

    A fraction is rounded to the nearest block (a half to the even one): 0.25 of 12 is 3.
    """
    return round(layer * depth) if isinstance(layer, float) else layer


def block_numbers(layer: Layer | list[Layer], depth: int) -> tuple[int, ...]:
    """The `block_number` of one or several different places, in increasing order.

    Raises:
        ValueError: if there is none, or one is not in 0..depth or there twice.
    """
    several = layer if isinstance(layer, list | tuple) else [layer]
    numbers = sorted(block_number(single, depth) for single in several)
    require_layers(numbers, 0, depth)
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"layer {several} names one of the blocks {numbers} twice; name each once")
    return tuple(numbers)


def resolve_cls_layer(cls_layer: CLSLayer, layer: int, depth: int) -> int:
    """The number of blocks before [CLS] joins: by default `layer`, or 0 where that is the depth.

    Raises:
        ValueError: if it does not name a place before the last block.
    """
    if cls_layer is None or cls_layer == "auto":
        return 0 if layer == depth else layer
    if not 0 <= cls_layer < depth:
        raise ValueError(
            f"cls_layer {cls_layer} is not in 0..{depth - 1}: [CLS] has to join before the last "
            f"of the {depth} blocks; use a smaller one, or leave it out for the default"
        )
    return cls_layer


def require_layers(layers: Sequence[int], first: int, depth: int) -> None:
    """Refuses numbers of blocks outside `first` to the depth, and an empty list.

    A first above 0 is the first block whose tokens include [CLS].
    """
    if others := [n for n in layers if not fits(NonNegativeInt, n)]:
        raise ValueError(f"layer {others[0]!r} must be {NonNegativeInt}, a number of blocks")
    wrong = [n for n in layers if not first <= n <= depth]
    if wrong or not layers:
        reason = f"; [CLS] joins after block {first - 1}" if first > 0 else ""
        raise ValueError(
            f"layer {wrong[0] if wrong else 'list is empty'} "
            f"is not in {first}..{depth}{reason}; choose layers in that range"
        )


def _validate(name: str, options: dict[str, Any]) -> None:
    plain = timm.list_models(module=["vision_transformer", "deit"])
    if name.partition(".")[0] not in plain:
        if timm.is_model(name):
            raise ValueError(f"{name} is not a plain ViT; use one like vit_small_patch16_224")
        close = difflib.get_close_matches(name, plain, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(close)}?" if close else "see timm.list_models('vit*')"
        raise ValueError(f"timm has no model {name!r}; {hint}")
    reserved = sorted(RESERVED_OPTIONS & options.keys())
    if reserved:
        raise ValueError(
            f"vit_options must not set {', '.join(reserved)}: the backbone sets these; "
            "use its own arguments"
        )
    if options.get("in_chans", 3) != 3:
        raise ValueError(
            f"vit_options: in_chans {options['in_chans']}, but images have 3 channels; those of "
            "fewer are repeated; leave it out"
        )
    for option, kind in _OPTION_RANGES.items():
        if option in options and not fits(kind, options[option]):
            raise ValueError(f"vit_options: {option} {options[option]} must be {kind}")


def heads_of(vit: Any) -> int | None:
    """Attention heads of a block, in parallel blocks of one of them; None where nothing has any."""
    heads = (each.num_heads for each in vit.modules() if hasattr(each, "num_heads"))
    first: int | None = next(heads, None)
    return first


def why_not_plain(vit: Any) -> str:
    """What a model of timm has that `SplitViT` lacks, in words; empty for a plain ViT."""
    if not isinstance(vit, VisionTransformer):
        return "attention in windows, a convolutional stem, or other positions"
    answers = {
        "no class token": not vit.has_class_token,
        "a distillation token": vit.num_prefix_tokens
        != int(vit.has_class_token) + vit.num_reg_tokens,
        "no position embedding": vit.pos_embed is None,
        "attention pooling in place of [CLS]": vit.attn_pool is not None,
        f"the pooling {vit.global_pool!r} in place of [CLS]": vit.global_pool != "token",
        "a convolutional stem": type(vit.patch_embed) is not PatchEmbed,
    }
    return next((answer for answer, is_so in answers.items() if is_so), "")


def _require_fit(vit: Any, name: str, image_size: int) -> None:
    if reason := why_not_plain(vit):
        raise ValueError(
            f"{name} has {reason}, and is not a plain ViT with one class token and a position "
            "embedding; use one like vit_small_patch16_224"
        )
    patch = vit.patch_embed.patch_size[0]
    if image_size % patch:
        nearest = max(1, round(image_size / patch)) * patch
        raise ValueError(
            f"image_size {image_size} is not a multiple of the patch size {patch}; "
            f"use {nearest}, or another patch_size"
        )


def _finish_initialisation(vit: VisionTransformer, weight_init: WeightInit) -> None:
    """What timm's schemes leave open: the MoCo-v3 patch embedding and the DINO class token."""
    if weight_init == "moco":
        projection = vit.patch_embed.proj
        fan_in, fan_out = projection.weight[0].numel(), projection.weight.shape[0]
        bound = math.sqrt(6 / (fan_in + fan_out))
        nn.init.uniform_(projection.weight, -bound, bound)
        if projection.bias is not None:
            nn.init.zeros_(projection.bias)
    elif weight_init == "":
        with torch.no_grad():
            trunc_normal_(vit.cls_token, std=0.02)
