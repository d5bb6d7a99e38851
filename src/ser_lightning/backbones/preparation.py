"""How the images of a backbone are prepared, as far as its file, its name or its folder tells.

Images here are resized bicubically, whatever a file says of that.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
from timm.data.config import resolve_data_config
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ser_lightning.backbones.weights import read_preparation
from ser_lightning.files import read_mapping, with_home
from ser_lightning.foreign.architecture import (
    CONFIG,
    read_config_beside,
    read_options_beside,
)
from ser_lightning.foreign.layouts import SAFE
from ser_lightning.numbers import CropFraction, Probability, Ratio, fits

_KINDS: dict[str, Any] = {
    "mean": tuple[Probability, Probability, Probability],
    "std": tuple[Ratio, Ratio, Ratio],
    "crop_fraction": CropFraction,
}


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How a backbone's images were prepared where it was trained.

    Attributes:
        mean: of the channels, of pixels from 0 to 1.
        std: deviations of the channels.
        crop_fraction: share of the resized side that the central crop keeps.
        assumed: which of these nobody told, so that ImageNet's custom is assumed.
    """

    mean: tuple[float, float, float] = IMAGENET_DEFAULT_MEAN
    std: tuple[float, float, float] = IMAGENET_DEFAULT_STD
    crop_fraction: float = 224 / 256
    assumed: tuple[str, ...] = tuple(_KINDS)


def preparation_of(checkpoint: str | Path, name: str | None = None) -> Preparation:
    """What a file or its folder says, or timm of a name; ImageNet's way where none does.

    Args:
        checkpoint: a file; beside it may lie timm's `config.json`, or transformers'
            `preprocessor_config.json`.
        name: timm's name of its architecture, if it was given or is the checkpoint itself; then
            what lies beside the file is left unread.

    Raises:
        ValueError: what is said there cannot be.
    """
    path = Path(with_home(str(checkpoint)))
    if name is not None:
        return _of_timm(name, {}, path)
    if path.suffix == SAFE and path.is_file() and (stored := read_preparation(path)):
        return stored_preparation(stored, path)
    if told := name_beside(path):
        beside = read_options_beside(path, "pretrained_cfg")
        found = _of_timm(told, beside, path.with_name(CONFIG))
    else:
        processor = path.with_name("preprocessor_config.json")
        found = stored_preparation(_of_processor(processor), processor)
    assumed = read_config_beside(path).get("assumed")  # an export of this package has it
    return replace(found, assumed=_names(assumed)) if assumed else found


def _of_timm(name: str, beside: Mapping[str, Any], file: Path) -> Preparation:
    """By timm's data configuration of a name, and what lies beside a file, in one of its own."""
    known = timm.get_pretrained_cfg(name)
    if known is None:
        return Preparation()
    found = resolve_data_config(pretrained_cfg={**known.to_dict(), **beside})
    told = {"mean": found["mean"], "std": found["std"], "crop_fraction": found["crop_pct"]}
    return stored_preparation(told, file)


def _of_processor(path: Path) -> dict[str, Any]:
    """The same in transformers' words; empty where there is no such file that tells."""
    content = read_mapping(path)
    found = {"mean": content.get("image_mean"), "std": content.get("image_std")}
    if content.get("do_normalize") is False:
        found = {"mean": [0.0] * 3, "std": [1.0] * 3}
    side, cropped = (_side(content.get(key)) for key in ("size", "crop_size"))
    if side:
        crops = content.get("do_center_crop") is not False and cropped
        found["crop_fraction"] = cropped / side if crops else 1.0
    return {name: value for name, value in found.items() if value is not None}


def _side(size: Any) -> int:
    """Pixels of transformers' number, or mapping of sides; 0 where it tells none."""
    told = size.get("shortest_edge") or size.get("height") if isinstance(size, dict) else size
    return told if isinstance(told, int) else 0


def _names(assumed: Any) -> tuple[str, ...]:
    return tuple(name for name in _KINDS if isinstance(assumed, list) and name in assumed)


def stored_preparation(stored: Mapping[str, Any], path: Path) -> Preparation:
    """The same from plain values of a file.

    Raises:
        ValueError: a value is none that images can be prepared by.
    """
    found: dict[str, Any] = {}
    for name, kind in _KINDS.items():
        value = stored.get(name)
        if value is None:
            continue
        found[name] = tuple(value) if isinstance(value, list) else value
        if not fits(kind, found[name]):
            raise ValueError(f"{path}: {name} {value!r} must be {kind}; restore the file")
    untold = {*_names(stored.get("assumed")), *(_KINDS.keys() - found.keys())}
    return Preparation(**found, assumed=_names(list(untold)))


def name_beside(path: Path) -> str | None:
    """Timm's name in the `config.json` beside a file, as its hub keeps it."""
    config = read_config_beside(path)
    name, tag = config.get("architecture"), read_options_beside(path, "pretrained_cfg").get("tag")
    if not isinstance(name, str) or not timm.is_model(name):
        return None
    return f"{name}.{tag}" if tag and timm.is_model_pretrained(f"{name}.{tag}") else name
