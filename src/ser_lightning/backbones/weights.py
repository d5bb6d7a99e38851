"""Weights of a ViT: into it from files of any known layout, out of it as safetensors.

Layouts are in `foreign/`; which branch an evaluation takes, student or teacher, is in
`backbones/opening.py`.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import timm
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from safetensors import SafetensorError, safe_open
from timm.layers.mlp import Mlp
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ser_lightning.backbones.vit import heads_of
from ser_lightning.checkpoints import CHECKPOINT_KEY, checkpoint_config
from ser_lightning.files import with_home
from ser_lightning.foreign import Branch, Weights, read_weights
from ser_lightning.foreign.architecture import (
    odd_shapes,
    split_position,
    told_activation,
    told_heads,
)
from ser_lightning.foreign.layouts import AGAIN, SAFE
from ser_lightning.sealed import read_tensors, write_tensors
from ser_lightning.trusted import printable

_ACTIVATIONS = {
    "GELU": ("gelu", "gelu_python"),
    "GELUTanh": ("gelu_pytorch_tanh", "gelu_new", "gelu_fast"),
    "QuickGELU": ("quick_gelu",),
    "ReLU": ("relu",),
    "SiLU": ("silu", "swish"),
}
"""Hugging Face's names of activations by the class that a ViT of timm has."""
PREPARATION = "preparation"  # of images, among the notes of a safetensors file


def load_vit(vit: VisionTransformer, path: str | Path, branch: Branch | None = None) -> None:
    """Loads a file's weights into a ViT, in place; a classifier in it is ignored.

    Args:
        vit: the model.
        path: safetensors, or a torch file, in any of the layouts of `foreign/layouts.py`.
        branch: of a file with a momentum encoder or teacher; null takes what its project evaluates.

    Raises:
        ValueError: as `read_weights` and `load_weights`.
    """
    weights, own = read_weights(path, branch), own_arguments(path)
    if own is None:
        rank_zero_info(f"weights of {path}: {weights.layout.name}, {weights.branch} branch")
        require_activation(vit, weights)
    known, heads = _own_heads(own) if own else told_heads(weights), heads_of(vit)
    if known not in (None, heads):
        rank_zero_warn(
            f"{path} ({weights.layout.name}) has {known} attention heads at a width of "
            f"{vit.embed_dim}, the backbone {heads}; give --model.backbone.vit_options.num_heads "
            f"{known}, unless the file is of another model"
        )
    load_weights(vit, weights, "--model.backbone.name")


def require_activation(vit: VisionTransformer, weights: Weights) -> None:
    """Raises where a file is known to have another activation than a ViT; no shape tells it."""
    told, mlp = told_activation(weights), vit.blocks[0].mlp
    own = _ACTIVATIONS.get(type(getattr(mlp, "act", None)).__name__)
    if isinstance(mlp, Mlp) and own is not None and told not in (None, *own):
        raise ValueError(
            f"{weights.path} ({weights.layout.name}) is of a model with the activation {told}, and "
            f"this ViT has {own[0]}; give timm's name of one with {told}, such as "
            "vit_base_patch32_clip_quickgelu_224 for quick_gelu"
        )


def not_finite(module: nn.Module) -> list[str]:
    """The names of parameters that are NaN or infinite somewhere."""
    return [name for name, weight in module.named_parameters() if not weight.isfinite().all()]


def refuse_non_finite(vit: VisionTransformer, path: str | Path) -> None:
    """Raises where weights that a run is to start from are no numbers; names the first."""
    if broken := not_finite(vit):
        raise ValueError(
            f"weights of {path}: {len(broken)} are not finite (NaN or infinite), first "
            f"{broken[0]}; give another file, as of before a training diverged"
        )


def load_weights(vit: VisionTransformer, weights: Weights, option: str) -> None:
    """Loads weights that were read into a ViT, in place.

    A position embedding of another grid is resampled (bicubic). Where the file has position entries
    for the class token and registers and the model has none, they are added to these tokens, so
    that [CLS] joins with the value it had; in the opposite case the entries become zero.

    Args:
        vit: the model.
        weights: of a file.
        option: by which users give timm's name of an architecture.

    Raises:
        ValueError: the weights do not fit the model; names the layout, the first keys and a remedy.
    """
    state, own = weights.state, vit.state_dict()
    if "pos_embed" in state and "cls_token" in state and not odd_shapes(state):
        state = _fit_position(weights, vit)
    missing = sorted(own.keys() - state.keys())
    unexpected = sorted(state.keys() - own.keys())
    unequal = [
        f"{key} {tuple(state[key].shape)} for {tuple(own[key].shape)}"
        for key in sorted(own.keys() & state.keys())
        if own[key].shape != state[key].shape
    ]
    if missing or unexpected or unequal:
        raise ValueError(
            f"the weights in {weights.path}, in the layout of {weights.layout.name}, do not fit "
            f"this ViT; missing: {_listing(missing)}; unexpected: {_listing(unexpected)}; of "
            f"another shape: {_listing(unequal)}; {weights.remedy(option)}"
        )
    unlike = [
        f"{key} ({state[key].dtype}, {state[key].layout})"
        for key in sorted(own)
        if not (state[key].layout == torch.strided and state[key].is_floating_point())
        or state[key].is_meta
    ]
    if unlike:
        raise ValueError(
            f"{weights.path} has weights that are no dense floating-point numbers: "
            f"{_listing(unlike, 2)}; save them as those"
        )
    vit.load_state_dict(state)


def write_safetensors(
    path: str | Path,
    state: Mapping[str, Tensor],
    arguments: Mapping[str, Any],
    preparation: str | None = None,
) -> None:
    """Writes weights and constructor arguments; the file appears complete or not at all.

    `preparation` says how images are prepared for the weights, as JSON; see `read_preparation`.

    Raises:
        ValueError: if the arguments are not plain values.
    """
    try:
        record = json.dumps(arguments)
    except TypeError as error:
        raise ValueError(
            f"cannot record the backbone's arguments {dict(arguments)}: {error}; "
            "use plain values in vit_options"
        ) from error
    notes = {} if preparation is None else {PREPARATION: preparation}
    write_tensors(Path(path), state, {"format": "pt", CHECKPOINT_KEY: record, **notes})


def read_preparation(path: str | Path) -> dict[str, Any]:
    """How images are prepared for the weights of a safetensors file; empty if it does not say."""
    with suppress(RecursionError, json.JSONDecodeError):
        content = json.loads(_notes(path).get(PREPARATION, "{}"))
        return content if isinstance(content, dict) else {}
    return {}


def read_arguments(path: str | Path, kind: str) -> dict[str, Any]:
    """The constructor arguments of a backbone: an export's record, or a run's configuration.

    Says so where the run's backbone is of another class than `kind`, which is built from them.

    Raises:
        ValueError: if there is none, or the file would have to be unpickled.
    """
    found = _own(path)
    if found is None:
        raise ValueError(
            f"{path} does not say how to rebuild its backbone; build it yourself and pass the "
            "file as `weights`"
        )
    name, arguments = found
    if name and name.rpartition(".")[2] != kind:
        rank_zero_warn(
            f"{path}: its backbone is a {printable(name)}, and {kind} is built from its arguments "
            "and weights; where it computes something else, use its own from_checkpoint in Python"
        )
    return arguments


def own_arguments(path: str | Path) -> dict[str, Any] | None:
    """The same; None where a file that can be read does not tell."""
    found = _own(path)
    return None if found is None else found[1]


def _own(path: str | Path) -> tuple[str, dict[str, Any]] | None:
    """The class of a backbone, "" where a file does not say it, and its arguments."""
    path, section = Path(with_home(str(path))), dict[str, Any]()
    try:
        if path.suffix == SAFE and path.is_file():
            section = {"init_args": json.loads(_notes(path).get(CHECKPOINT_KEY, "null"))}
        elif config := checkpoint_config(path):
            section = config["model"]["init_args"]["backbone"]
        name, arguments = str(section.get("class_path", "")), section["init_args"]
    except (AttributeError, LookupError, TypeError, RecursionError, json.JSONDecodeError):
        return None
    return (name, arguments) if isinstance(arguments, dict) else None


def _own_heads(arguments: Mapping[str, Any]) -> int | None:
    """Attention heads of the backbone that arguments describe; None where they name none."""
    options, name = arguments.get("vit_options"), str(arguments.get("name")).partition(".")[0]
    if isinstance(options, dict) and "num_heads" in options:
        told: int | None = options["num_heads"]
        return told
    if not timm.is_model(name):
        return None
    with torch.device("meta"):
        return heads_of(timm.create_model(name, num_classes=0))


def _notes(path: str | Path) -> dict[str, str]:
    """The notes of a safetensors file, whose tensors are left unread."""
    try:
        with safe_open(str(path), framework="pt") as file:
            return dict(file.metadata() or {})
    except SafetensorError:
        return read_tensors(Path(path), AGAIN)[1]  # which says what is wrong


def _fit_position(weights: Weights, vit: VisionTransformer) -> dict[str, Tensor]:
    """Gives the position embedding the model's entries for other tokens (or none) and its grid."""
    state = dict(weights.state)
    position = state["pos_embed"].float()
    if vit.pos_embed is not None and position.shape == vit.pos_embed.shape:
        return state
    num_registers = state["reg_token"].shape[1] if "reg_token" in state else 0
    found = split_position(weights, num_registers)
    if found is None:
        return state  # not a square grid: reported as a shape that does not fit
    others, position = position[:, : found[0]], position[:, found[0] :]
    position = resample_abs_pos_embed(
        position, new_size=list(vit.patch_embed.grid_size), num_prefix_tokens=0, antialias=False
    )
    # one entry for each of [CLS] and the registers, zero where the file has none
    lacking = 1 + num_registers - others.shape[1]
    others = torch.cat([others, position.new_zeros(1, lacking, position.shape[2])], dim=1)
    if vit.no_embed_class:
        state["cls_token"] = state["cls_token"].float() + others[:, :1]
    else:
        position = torch.cat([others, position], dim=1)
    return {**state, "pos_embed": position}


def _listing(names: list[str], limit: int = 8) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "none") + more
