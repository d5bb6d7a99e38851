"""Weights of a ViT: into it from foreign files, out of it as safetensors.

Which branch an evaluation takes, student or teacher, is in `evaluation/stage.py`.
"""

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from ser_lightning.files import CHECKPOINT_KEY, checkpoint_config, load_checkpoint, with_home
from ser_lightning.sealed import read_tensors, write_tensors

Branch = Literal["online", "momentum"]
SAFE = ".safetensors"
PREPARATION = "preparation"  # of images, among the notes of a safetensors file
_AGAIN = "export or fetch it again"
# where a ViT's parameters sit in a checkpoint of an objective, and in a backbone's state dict
PREFIXES: dict[Branch, tuple[str, ...]] = {
    "online": ("backbone.vit.", "vit."),
    "momentum": ("momentum_backbone.vit.",),
}


def load_vit(vit: VisionTransformer, path: str | Path, branch: Branch = "online") -> None:
    """Loads a file's weights into a ViT, in place; a classifier in it is ignored.

    A position embedding of another grid is resampled (bicubic). Where the file has a position
    entry for the class token and the model has none, the entry is added to the class token, so
    that [CLS] joins with the value it had; in the opposite case the entry becomes zero.

    Args:
        vit: the model.
        path: safetensors, or a torch file that holds nothing but tensors and plain containers:
            a state dict of timm, of a backbone, or a checkpoint of an objective.
        branch: which backbone of an objective's checkpoint.

    Raises:
        ValueError: if the file would have to be unpickled, its weights do not fit the model, or it
            has no momentum branch.
    """
    state = _read_state(Path(with_home(str(path))), branch)
    state = {k: v for k, v in state.items() if not k.startswith("head.")}
    own = vit.state_dict()
    if "pos_embed" in state and "cls_token" in state:
        state = _fit_position(state, vit)
    missing = sorted(own.keys() - state.keys())
    unexpected = sorted(state.keys() - own.keys())
    unequal = [
        f"{key} {tuple(state[key].shape)} for {tuple(own[key].shape)}"
        for key in sorted(own.keys() & state.keys())
        if own[key].shape != state[key].shape
    ]
    if missing or unexpected or unequal:
        raise ValueError(
            f"the weights in {path} do not fit this ViT; missing: {_listing(missing)}; "
            f"unexpected: {_listing(unexpected)}; of another shape: {_listing(unequal)}; "
            "build the backbone with the file's name, patch_size and vit_options"
        )
    vit.load_state_dict(state)


def add_cls_position(state: Mapping[str, Tensor], vit: VisionTransformer) -> dict[str, Tensor]:
    """A ViT's state dict with a position entry for the class token: its own, or zero."""
    result = {key: value.detach().clone() for key, value in state.items()}
    if vit.no_embed_class:
        position = result["pos_embed"]
        result["pos_embed"] = torch.cat([torch.zeros_like(position[:, :1]), position], dim=1)
    return result


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
        content = json.loads(read_tensors(Path(path), _AGAIN)[1].get(PREPARATION, "{}"))
        return content if isinstance(content, dict) else {}
    return {}


def read_arguments(path: str | Path) -> dict[str, Any]:
    """The constructor arguments of a backbone: an export's record, or a run's configuration.

    Raises:
        ValueError: if there is none, or the file would have to be unpickled.
    """
    arguments: Any = None
    path = with_home(str(path))
    try:
        if Path(path).suffix == SAFE:
            _, notes = read_tensors(Path(path), _AGAIN)
            arguments = json.loads(notes.get(CHECKPOINT_KEY, "null"))
        elif config := checkpoint_config(path):
            arguments = config["model"]["init_args"]["backbone"]["init_args"]
    except (LookupError, TypeError, RecursionError, json.JSONDecodeError):
        arguments = None
    if not isinstance(arguments, dict):
        raise ValueError(
            f"{path} does not say how to rebuild its backbone; build it yourself and pass the "
            "file as `weights`"
        )
    return arguments


def _read_state(path: Path, branch: Branch) -> dict[str, Tensor]:
    content: Any
    if path.suffix == SAFE and path.is_file():
        content, _ = read_tensors(path, _AGAIN)
    else:
        content = load_checkpoint(path, map_location="cpu")
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    content = {key: value for key, value in content.items() if isinstance(key, str)}
    prefix = next((p for p in PREFIXES[branch] if any(k.startswith(p) for k in content)), None)
    if prefix is not None:
        content = {k.removeprefix(prefix): v for k, v in content.items() if k.startswith(prefix)}
    elif branch == "momentum":
        raise ValueError(f"{path} has no momentum branch; take its online one")
    return {key: value for key, value in content.items() if isinstance(value, Tensor)}


def _fit_position(state: dict[str, Tensor], vit: VisionTransformer) -> dict[str, Tensor]:
    """Gives the position embedding the model's class-token entry (or none) and grid."""
    position, cls_token = state["pos_embed"], state["cls_token"]
    num_entries = position.shape[1]
    side = math.isqrt(num_entries)
    has_cls_entry = side * side != num_entries
    if has_cls_entry and math.isqrt(num_entries - 1) ** 2 != num_entries - 1:
        return state  # not a square grid: reported as a shape that does not fit
    cls_entry, position = position[:, :1], position[:, 1:] if has_cls_entry else position
    position = resample_abs_pos_embed(
        position, new_size=list(vit.patch_embed.grid_size), num_prefix_tokens=0, antialias=False
    )
    if not has_cls_entry:
        cls_entry = torch.zeros_like(position[:, :1])
    if vit.no_embed_class:
        cls_token = cls_token + cls_entry
    else:
        position = torch.cat([cls_entry, position], dim=1)
    return {**state, "pos_embed": position, "cls_token": cls_token}


def _listing(names: list[str], limit: int = 8) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "none") + more
