"""Builds the plain timm ViT inside a backbone, and refuses what is not one."""

import difflib
import math
from typing import Any, Literal

import timm
import torch
from timm.layers.weight_init import trunc_normal_
from timm.models.vision_transformer import VisionTransformer
from torch import nn

WeightInit = Literal["moco", "", "jax"]
WEIGHT_INITS = ("moco", "", "jax")
# set by the backbone itself, or at odds with what it computes
RESERVED_OPTIONS = frozenset(
    {"img_size", "patch_size", "num_classes", "dynamic_img_size", "dynamic_img_pad"}
    | {"no_embed_class", "class_token", "reg_tokens", "global_pool", "fc_norm", "pos_embed"}
    | {"patch_drop_rate", "weight_init", "pretrained", "checkpoint_path"}
)


def build_vit(
    name: str,
    image_size: int,
    patch_size: int | None,
    options: dict[str, Any],
    weight_init: WeightInit,
) -> VisionTransformer:
    """A plain timm ViT with one class token, its position entry and no classifier.

    Args:
        name: timm's name of the model.
        image_size: side of the square image, pixels; a multiple of the patch size.
        patch_size: side of a patch, pixels; None for the named model's.
        options: further arguments of timm's VisionTransformer.
        weight_init: "moco", "" or "jax".

    Raises:
        ValueError: if timm has no such ViT, refuses the options, or the sizes do not fit.
    """
    _validate(name, options, weight_init)
    if patch_size is not None:
        options = {**options, "patch_size": patch_size}
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
    except (TypeError, AssertionError, RuntimeError) as error:
        raise ValueError(f"timm cannot build {name} with the options {options}: {error}") from error
    _require_plain(vit, name)
    _require_whole_patches(image_size, vit.patch_embed.patch_size)
    _finish_initialisation(vit, weight_init)
    model: VisionTransformer = vit
    return model


def drop_cls_position(vit: VisionTransformer) -> None:
    """Removes the class token's position entry: its [CLS] will not stand at the input."""
    assert vit.pos_embed is not None
    vit.no_embed_class = True
    vit.pos_embed = nn.Parameter(vit.pos_embed.detach()[:, 1:].clone())


def _validate(name: str, options: dict[str, Any], weight_init: str) -> None:
    plain = timm.list_models(module="vision_transformer")
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
    if weight_init not in WEIGHT_INITS:
        raise ValueError(f"weight_init {weight_init!r} is not one of {WEIGHT_INITS}")


def _require_plain(vit: nn.Module, name: str) -> None:
    if not (
        isinstance(vit, VisionTransformer)
        and vit.has_class_token
        and vit.num_prefix_tokens == 1
        and vit.pos_embed is not None
        and vit.attn_pool is None
    ):
        raise ValueError(
            f"{name} is not a plain ViT with one class token and a position embedding; "
            "use one like vit_small_patch16_224"
        )


def _require_whole_patches(image_size: int, patch_size: tuple[int, int]) -> None:
    patch, other = patch_size
    if patch != other:
        raise ValueError(f"patches of {patch} x {other} pixels are not square; use square ones")
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
