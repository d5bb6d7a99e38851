"""The corruptions of ImageNet-C as one function of an image, a name and a severity."""

from functools import partial
from numbers import Integral
from pathlib import Path

import torch
from torch import Tensor

from ser_lightning.corruptions import blur, digital, frost, noise, spatter, weather
from ser_lightning.corruptions.tables import (
    CORRUPTIONS,
    EXTRA_CORRUPTIONS,
    FROST_PROCEDURAL,
    NUM_SEVERITIES,
    native_size,
    parameters,
)
from ser_lightning.randomness import Stream, generator

MIN_SIDE = 16

_MODULES = (noise, blur, weather, frost, digital, spatter)  # each has the functions it is named for
# The place in this list counts the random numbers: append, never reorder.
_NUMBERS = {
    name: number for number, name in enumerate((*CORRUPTIONS, *EXTRA_CORRUPTIONS, FROST_PROCEDURAL))
}


def corruption_names(frost_dir: Path | str | None = None, extra: bool = False) -> tuple[str, ...]:
    """The 15 corruptions to evaluate, in the official order; with `extra` the other four too.

    Without a folder of the official photographs of ice `frost_procedural` stands in frost's place.
    """
    names = CORRUPTIONS + EXTRA_CORRUPTIONS if extra else CORRUPTIONS
    if frost_dir is not None:
        return names
    return tuple(FROST_PROCEDURAL if name == "frost" else name for name in names)


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

    A pure function, on any number of threads. Which parameters a severity has depends on the
    image's size; see `tables`.

    Args:
        image: (3, H, W) uint8; gray images have three equal channels.
        name: one of CORRUPTIONS, EXTRA_CORRUPTIONS or `frost_procedural`.
        severity: 1 to 5.
        index: place of the image in its data set.
        seed: of the whole corrupted set.
        frost_dir: folder with the official photographs, for `frost` only.
        jpeg_quality: encodes the result once more; 85 makes images like those of the released
            set, which are what published numbers were measured on.

    Returns:
        (3, H, W) uint8, a new tensor.

    Raises:
        ValueError: not such an image, unknown name or severity, missing photographs of ice.
    """
    check_image(image)
    if name not in _NUMBERS:
        raise ValueError(f"corruption {name!r} is unknown; use one of {', '.join(_NUMBERS)}")
    if not isinstance(severity, Integral) or not 1 <= severity <= NUM_SEVERITIES:
        raise ValueError(f"severity {severity} does not exist; use 1 to {NUM_SEVERITIES}")
    if jpeg_quality is not None and not 1 <= jpeg_quality <= 100:
        raise ValueError(f"jpeg_quality {jpeg_quality} is outside 1 to 100; use 85 or none")
    rng = generator(seed, Stream.CORRUPTION, index, _NUMBERS[name] * 8 + severity)
    size = native_size(*image.shape[-2:])
    values = parameters(name, severity, size)
    function = next(vars(module)[name] for module in _MODULES if name in vars(module))
    if name == "frost":
        if frost_dir is None:
            raise ValueError(
                "frost needs frost_dir, a folder with the official photographs; without them use "
                "frost_procedural, whose accuracy is not comparable"
            )
        function = partial(function, frost_dir=Path(frost_dir), size=size)
    result: Tensor = function(image.contiguous(), rng, *values)
    return result if jpeg_quality is None else digital.jpeg_compression(result, rng, jpeg_quality)


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
