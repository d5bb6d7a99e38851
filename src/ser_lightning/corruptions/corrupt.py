"""The corruptions of ImageNet-C as one function of an image, a name and a severity."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ser_lightning.corruptions import blur, digital, noise, spatter, weather
from ser_lightning.corruptions.frost import frost, frost_procedural
from ser_lightning.corruptions.tables import (
    CORRUPTIONS,
    EXTRA_CORRUPTIONS,
    FROST_PROCEDURAL,
    NUM_SEVERITIES,
    native_size,
    parameters,
)
from ser_lightning.randomness import Stream, generator

DISK_JPEG_QUALITY = 85  # of the released ImageNet-C
MIN_SIDE = 16

_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "gaussian_noise": noise.gaussian_noise,
    "shot_noise": noise.shot_noise,
    "impulse_noise": noise.impulse_noise,
    "defocus_blur": blur.defocus_blur,
    "glass_blur": blur.glass_blur,
    "motion_blur": blur.motion_blur,
    "zoom_blur": blur.zoom_blur,
    "snow": weather.snow,
    "frost": frost,
    "fog": weather.fog,
    "brightness": digital.brightness,
    "contrast": digital.contrast,
    "elastic_transform": digital.elastic_transform,
    "pixelate": digital.pixelate,
    "jpeg_compression": digital.jpeg_compression,
    "speckle_noise": noise.speckle_noise,
    "gaussian_blur": blur.gaussian_blur,
    "spatter": spatter.spatter,
    "saturate": digital.saturate,
    FROST_PROCEDURAL: frost_procedural,
}


# The place in this list counts the random numbers: append, never reorder.
_NUMBERS = {
    name: number for number, name in enumerate((*CORRUPTIONS, *EXTRA_CORRUPTIONS, FROST_PROCEDURAL))
}


def corruption_names(frost_dir: Path | str | None = None, extra: bool = False) -> tuple[str, ...]:
    """Names the corruptions to evaluate, in the official order.

    Args:
        frost_dir: folder of the official photographs of ice; without it `frost_procedural`
            stands in frost's place.
        extra: also the four that are no part of the official average.

    Returns:
        15 or 19 names.
    """
    names = CORRUPTIONS + EXTRA_CORRUPTIONS if extra else CORRUPTIONS
    if frost_dir is not None:
        return names
    return tuple(FROST_PROCEDURAL if name == "frost" else name for name in names)


def is_official(name: str) -> bool:
    """Whether a corruption has the official definition, so that its accuracy can be compared."""
    return name in CORRUPTIONS or name in EXTRA_CORRUPTIONS


def corrupt(
    image: Tensor,
    name: str,
    severity: int,
    index: int,
    seed: int,
    *,
    frost_dir: Path | str | None = None,
    jpeg_quality: int | None = None,
) -> Tensor:
    """Corrupts one image at its native size, before any resizing to a model's input.

    A pure function: the same arguments give the same pixels, in any process and on any number of
    threads. Which parameters a severity has depends on the image's size; see `tables`.

    Args:
        image: (3, H, W) uint8; gray images have three equal channels.
        name: one of CORRUPTIONS, EXTRA_CORRUPTIONS or `frost_procedural`.
        severity: 1 to 5.
        index: place of the image in its data set.
        seed: of the whole corrupted set.
        frost_dir: folder with the official photographs, for `frost` only.
        jpeg_quality: encodes the result once more; DISK_JPEG_QUALITY makes images like those of
            the released set, which are what published numbers were measured on.

    Returns:
        (3, H, W) uint8, a new tensor.

    Raises:
        ValueError: not such an image, unknown name or severity, missing photographs of ice.
    """
    check_image(image)
    if name not in _FUNCTIONS:
        raise ValueError(f"corruption {name!r} is unknown; use one of {', '.join(_FUNCTIONS)}")
    if severity not in range(1, NUM_SEVERITIES + 1):
        raise ValueError(f"severity {severity} does not exist; use 1 to {NUM_SEVERITIES}")
    if jpeg_quality is not None and not 1 <= jpeg_quality <= 100:
        raise ValueError(f"jpeg_quality {jpeg_quality} is outside 1 to 100; use 85 or none")
    rng = generator(seed, Stream.CORRUPTION, index, _NUMBERS[name] * 8 + severity)
    size = native_size(*image.shape[-2:])
    values = parameters(name, severity, size)
    if name == "frost":
        result = frost(image, rng, *values, frost_dir=_frost_path(frost_dir), size=size)
    else:
        result = _FUNCTIONS[name](image.contiguous(), rng, *values)
    return result if jpeg_quality is None else reencode(result, jpeg_quality)


def reencode(image: Tensor, quality: int) -> Tensor:
    """A (3, H, W) uint8 image after writing it to and reading it from a JPEG file."""
    return digital.jpeg_compression(image, np.random.default_rng(0), quality)


def check_image(image: Tensor) -> None:
    """Raises ValueError unless image is (3, H, W) uint8 of at least MIN_SIDE pixels a side."""
    if image.dtype != torch.uint8 or image.ndim != 3 or len(image) != 3:
        raise ValueError(
            f"an image of shape {tuple(image.shape)} and {image.dtype} was given; corruptions and "
            f"perturbations take (3, H, W) uint8, so convert before they are applied"
        )
    if min(image.shape[1:]) < MIN_SIDE:
        raise ValueError(
            f"an image of {image.shape[1]} x {image.shape[2]} pixels is too small to be "
            f"corrupted; use at least {MIN_SIDE} a side"
        )


def _frost_path(frost_dir: Path | str | None) -> Path:
    if frost_dir is None:
        raise ValueError(
            "frost needs frost_dir, a folder with the official photographs; without them use "
            "frost_procedural, whose accuracy is not comparable"
        )
    return Path(frost_dir)
