"""What is exported or embeds images: a backbone, and how the images that it saw were prepared."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ser_lightning.backbones import Branch, SplitViT
from ser_lightning.backbones.weights import read_preparation
from ser_lightning.data.clean import Clean
from ser_lightning.data.render import ChannelMeans, ChannelStds
from ser_lightning.evaluation.stage import check_finite, result_branch
from ser_lightning.files import checkpoint_config, file_sha256
from ser_lightning.foreign.layouts import SAFE
from ser_lightning.numbers import Ratio, fits

_KINDS: dict[str, Any] = {"mean": ChannelMeans, "std": ChannelStds, "crop_fraction": Ratio}
_IN_DATA = {"evaluation_crop_fraction": "crop_fraction", "mean": "mean", "std": "std"}


class Opened(NamedTuple):
    """A backbone, and what its file says of it.

    Attributes:
        backbone: frozen, in evaluation mode.
        branch: whose weights.
        is_default: whether that branch stands for the run.
        clean: how images are prepared for it.
        assumed: what of it the file does not say, so that ImageNet's custom is assumed.
        config: of the run; empty where the file has none.
        path: of the file.
        run_dir: folder of the run.
        sha256: of the file's bytes.
    """

    backbone: SplitViT
    branch: Branch
    is_default: bool
    clean: Clean
    assumed: tuple[str, ...]
    config: Mapping[str, Any]
    path: Path
    run_dir: Path
    sha256: str


def open_backbone_file(path: Path, run_dir: Path, branch: Branch | None = None) -> Opened:
    """A backbone from a run's checkpoint, or from a safetensors file of this package.

    Args:
        path: of the file.
        run_dir: folder of the run that it belongs to.
        branch: whose weights; None takes those that stand for the run.

    Raises:
        ValueError: there is no such file, it has no such branch, does not say how to rebuild its
            backbone, or its weights are not finite.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ValueError(
            f"checkpoint {path} {what}; give a file, such as runs/moco_ser/checkpoints/last.ckpt"
        )
    is_run = path.suffix != SAFE
    default: Branch = result_branch(str(path)) if is_run else "online"
    backbone = _read(path, branch or default).requires_grad_(False).eval()
    check_finite(backbone, f"weights of {path}", "give another checkpoint")
    config = (checkpoint_config(path) or {}) if is_run else {}
    stored = _of_run(config) if is_run else read_preparation(path)
    clean, assumed = _clean(stored, backbone.image_size, path)
    origin = (config, path, run_dir, file_sha256(path))
    return Opened(backbone, branch or default, branch in (None, default), clean, assumed, *origin)


def _read(path: Path, branch: Branch) -> SplitViT:
    """The one place where weights become a backbone."""
    return SplitViT.from_checkpoint(path, branch)


def preparation(clean: Clean) -> dict[str, Any]:
    """How images are prepared, in plain values; what `_clean` reads."""
    return {
        "image_size": clean.size,
        "resize_shorter_side": clean.resized,
        "crop": "center",
        "crop_fraction": clean.crop_fraction,
        "interpolation": "bicubic",
        "mean": list(clean.mean),
        "std": list(clean.std),
    }


def as_note(clean: Clean) -> str:
    """The same for the notes of a safetensors file."""
    return json.dumps(preparation(clean))


def _of_run(config: Mapping[str, Any]) -> dict[str, Any]:
    data = config.get("data") or {}
    return {name: data[option] for option, name in _IN_DATA.items() if option in data}


def _clean(stored: Mapping[str, Any], size: int, path: Path) -> tuple[Clean, tuple[str, ...]]:
    """How images are prepared, and what is only assumed of it."""
    found: dict[str, Any] = {}
    for name, kind in _KINDS.items():
        value = stored.get(name)
        if value is None:
            continue
        found[name] = tuple(value) if isinstance(value, list) else value
        if not fits(kind, found[name]):
            raise ValueError(f"{path}: {name} {value!r} must be {kind}; restore the file")
    return Clean(size, **found), tuple(name for name in _KINDS if name not in found)
