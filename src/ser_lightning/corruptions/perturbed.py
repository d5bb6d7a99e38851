"""The perturbations of ImageNet-P as one function of an image and a name."""

from collections.abc import Callable, Sequence
from functools import partial
from numbers import Integral

import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator
from torch import Tensor

from ser_lightning.corruptions import digital, noise, warps
from ser_lightning.corruptions.corrupted import check_image
from ser_lightning.corruptions.filters import smear, smooth, to_uint8
from ser_lightning.corruptions.spatter import add_water, draw_liquid
from ser_lightning.corruptions.tables import (
    EXTRA_PERTURBATIONS,
    PERTURBATION_TABLES,
    PERTURBATIONS,
    native_size,
    num_official_frames,
)
from ser_lightning.corruptions.warps import Size
from ser_lightning.corruptions.weather import add_flakes, draw_flakes, whiten
from ser_lightning.randomness import Stream, generator

_SNOW_SHARE = 0.85
_WATER_STRENGTH = 0.6


# The place in this list counts the random numbers: append, never reorder.
_NUMBERS = {name: number for number, name in enumerate((*PERTURBATIONS, *EXTRA_PERTURBATIONS))}


def _independent(
    noisy: Callable[..., Tensor], image: Tensor, rng: Generator, count: int, *values: float
) -> Tensor:
    """The image, then noise that is drawn anew per frame."""
    return torch.stack([image, *(noisy(image, rng, *values) for _ in range(count - 1))])


def motion_blur(
    image: Tensor,
    rng: Generator,
    count: int,
    radius: float,
    sigma: float,
    start: float,
    step: float,
) -> Tensor:
    """Smears in a direction that turns by step degrees per frame and ends at 0 degrees."""
    angles = start + step * np.arange(count)
    return torch.stack([to_uint8(smear(image.float(), radius, sigma, float(a))) for a in angles])


def gaussian_blur(
    image: Tensor, rng: Generator, count: int, start: float, step: float, truncate: float
) -> Tensor:
    """Gaussian blur whose sigma grows by step per frame."""
    sigmas = start + step * np.arange(count)
    return torch.stack([to_uint8(smooth(image.float(), float(s), truncate)) for s in sigmas])


def snow(image: Tensor, rng: Generator, count: int, *values: float) -> Tensor:
    """The same flakes, smeared in a direction that turns by 4 degrees per frame."""
    *flake, radius, sigma = values  # mean, scale, factor and threshold of `draw_flakes`
    flakes, pale = draw_flakes(image.shape[-2:], rng, *flake), whiten(image, _SNOW_SHARE)
    angles = -150 + 4 * np.arange(count)
    return torch.stack([add_flakes(pale, smear(flakes, radius, sigma, float(a))) for a in angles])


def spatter(image: Tensor, rng: Generator, count: int, *values: float) -> Tensor:
    """Drops of water that run down: every frame filters the liquid's columns with drift."""
    mean, scale, sigma, threshold, *drift = values
    liquid = draw_liquid(image.shape[-2:], rng, mean, scale, sigma, threshold)
    frames = []
    for _ in range(count):
        frames.append(add_water(image, liquid, _WATER_STRENGTH))
        liquid = _drifted(liquid, drift)
    return torch.stack(frames)


def _drifted(liquid: Tensor, drift: Sequence[float]) -> Tensor:
    """Convolves the columns of (1, H, W) as numpy's convolve with mode "same"; 0 outside."""
    height, before = liquid.shape[1], (len(drift) - 1) // 2
    padded = F.pad(liquid, (0, 0, len(drift), len(drift)))
    moved = torch.zeros_like(liquid)
    for tap, weight in enumerate(drift):
        start = len(drift) + before - tap
        moved.add_(padded[:, start : start + height], alpha=weight)
    return moved


def brightness(image: Tensor, rng: Generator, count: int, step: float) -> Tensor:
    """The value of HSV raised by step per frame, from -15 to +15 steps."""
    return torch.stack([digital.brightness(image, rng, (i - 15) * step) for i in range(count)])


_ON_CROPS: dict[str, Callable[..., Tensor]] = {
    "gaussian_noise": partial(_independent, noise.gaussian_noise),
    "shot_noise": partial(_independent, noise.shot_noise),
    "speckle_noise": partial(_independent, noise.speckle_noise),
    "motion_blur": motion_blur,
    "gaussian_blur": gaussian_blur,
    "snow": snow,
    "spatter": spatter,
    "brightness": brightness,
}


def zoom_blur(whole: Tensor, size: Size, count: int, step: float) -> Tensor:
    """Frame i averages the image and its enlargements by 1 + step, ..., 1 + i * step."""
    frames = [warps.centre_crop(whole, size)]
    total = frames[0].float()
    for i in range(1, count):
        total.add_(warps.warp(whole, size, [warps.scaling(1 + step * i)])[0])
        frames.append(to_uint8(total / (i + 1)))
    return torch.stack(frames)


def translate(whole: Tensor, size: Size, count: int, start: float) -> Tensor:
    """Moves to the right by one pixel per frame."""
    return torch.stack([warps.shift(whole, size, int(start) + i) for i in range(count)])


def scale(whole: Tensor, size: Size, count: int, start: float, step: float) -> Tensor:
    """Scales by start + step * frame."""
    return warps.warp(whole, size, [warps.scaling(start + step * i) for i in range(count)])


def _turning(
    matrix: Callable[..., np.ndarray], whole: Tensor, size: Size, count: int, step: float
) -> Tensor:
    """Maps by step degrees per frame, from -15 to +15 steps."""
    height, width = whole.shape[-2:]
    matrices = [matrix((i - 15) * step, (height, width)) for i in range(count)]
    return warps.warp(whole, size, matrices)


_ON_WHOLE: dict[str, Callable[..., Tensor]] = {
    "zoom_blur": zoom_blur,
    "translate": translate,
    "rotate": partial(_turning, lambda degrees, _: warps.rotation(degrees)),
    "tilt": partial(_turning, warps.tilting),
    "scale": scale,
    "shear": partial(_turning, lambda degrees, _: warps.shearing(degrees)),
}


def perturb(
    image: Tensor,
    name: str,
    index: int,
    seed: int,
    num_frames: int | None = None,
    *,
    crop: int | None = None,
) -> Tensor:
    """Perturbs one image step by step at its native size.

    A pure function, on any number of threads. Lengths and steps depend on the size of the frames:
    31 frames, but 41 translations at 224 px and 16 at 32 px, where 21 smears turn by 9 instead of
    4 degrees; see `tables`.

    Differs: the released sets are videos, whose coder changes the pixels once more. Maps keep the
    image's centre, the official scripts' a place half a pixel beside it; tilts truncate, where
    the official script rounds.

    Args:
        image: (3, H, W) uint8; gray images have three equal channels.
        name: one of PERTURBATIONS or EXTRA_PERTURBATIONS.
        index: place of the image in its data set.
        seed: of the whole perturbed set.
        num_frames: stops after so many frames, at least 2; by default the official number.
        crop: side of the frames. What moves the image then moves all of it before the middle is
            cut out, so that less black is drawn in: ImageNet-P has crops of 224 from images whose
            shorter side is 256. By default frames are as large as the image.

    Returns:
        (T, 3, h, w) uint8.

    Raises:
        ValueError: not such an image, unknown name, impossible number of frames or crop.
    """
    check_image(image)
    if name not in _NUMBERS:
        raise ValueError(f"perturbation {name!r} is unknown; use one of {', '.join(_NUMBERS)}")
    size = _frame_size(image, crop)
    native = native_size(*size)
    official = num_official_frames(name, native)
    count = official if num_frames is None else num_frames
    if not 2 <= count <= official:
        raise ValueError(
            f"num_frames {count} is impossible for {name}, whose sequence has {official} frames at "
            f"this size; use 2 to {official}"
        )
    values = PERTURBATION_TABLES[name][native]
    if name in _ON_WHOLE:
        return _ON_WHOLE[name](image.contiguous(), size, count, *values)
    rng = generator(seed, Stream.PERTURBATION, index, _NUMBERS[name])
    return _ON_CROPS[name](warps.centre_crop(image, size).contiguous(), rng, count, *values)


def _frame_size(image: Tensor, crop: int | None) -> Size:
    height, width = image.shape[-2:]
    if crop is None:
        return height, width
    if not isinstance(crop, Integral) or crop < 1:
        raise ValueError(f"crop {crop} is no number of pixels; use 1 or more, or none")
    if crop > min(height, width):
        raise ValueError(
            f"crop {crop} does not fit into an image of {height} x {width} pixels; resize it to "
            f"a shorter side of {round(crop * 256 / 224)} first, or use a smaller crop"
        )
    check_image(image[:, :crop, :crop])
    return crop, crop
