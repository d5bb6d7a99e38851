"""How the images of a backbone are prepared, as far as its file or its name tells."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from timm.data.config import resolve_data_config
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ser_lightning.backbones.weights import read_preparation
from ser_lightning.files import with_home
from ser_lightning.foreign.architecture import read_config_beside
from ser_lightning.foreign.layouts import SAFE
from ser_lightning.numbers import Probability, Ratio, fits

_KINDS: dict[str, Any] = {
    "mean": tuple[Probability, Probability, Probability],
    "std": tuple[Ratio, Ratio, Ratio],
    "crop_fraction": Ratio,
}


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How a backbone's images were prepared where it was trained.

    Attributes:
        mean: of the channels, of pixels from 0 to 1.
        std: deviations of the channels.
        crop_fraction: share of the resized side that the central crop keeps.
        interpolation: of the resizing. Images here are resized bicubically whatever it says.
        assumed: which of these nobody told, so that ImageNet's custom is assumed.
    """

    mean: tuple[float, float, float] = IMAGENET_DEFAULT_MEAN
    std: tuple[float, float, float] = IMAGENET_DEFAULT_STD
    crop_fraction: float = 224 / 256
    interpolation: str = "bicubic"
    assumed: tuple[str, ...] = tuple(_KINDS)


def preparation_of(checkpoint: str | Path, name: str | None = None) -> Preparation:
    """What an export of this package says, or timm of a name; ImageNet's way where neither does.

    Args:
        checkpoint: a file.
        name: timm's name of its architecture, if it was given or is the checkpoint itself.

    Raises:
        ValueError: an export says what cannot be.
    """
    path, beside = Path(with_home(str(checkpoint))), dict[str, Any]()
    if name is None and path.suffix == SAFE and path.is_file():
        stored = read_preparation(path)
        if stored:
            return stored_preparation(stored, path)
    if name is None:
        name, beside = name_beside(path), read_config_beside(path).get("pretrained_cfg") or {}
    known = timm.get_pretrained_cfg(name) if name else None
    if known is None:
        return Preparation()
    found = resolve_data_config(pretrained_cfg={**known.to_dict(), **beside})
    return Preparation(
        mean=tuple(found["mean"]), std=tuple(found["std"]), crop_fraction=found["crop_pct"],
        interpolation=found["interpolation"], assumed=(),
    )  # fmt: skip


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
    return Preparation(**found, assumed=tuple(name for name in _KINDS if name not in found))


def name_beside(path: Path) -> str | None:
    """Timm's name in the `config.json` beside a file, as its hub keeps it."""
    config = read_config_beside(path)
    name, tag = config.get("architecture"), (config.get("pretrained_cfg") or {}).get("tag")
    if not isinstance(name, str) or not timm.is_model(name):
        return None
    return f"{name}.{tag}" if tag and timm.is_model_pretrained(f"{name}.{tag}") else name
