"""Crop boxes and resizing on the host: uint8 in, uint8 out.

Boxes follow torchvision's RandomResizedCrop, but are a function of given uniform numbers and
computed for a whole batch at once. The options (scale, ratio, p_flip) are those of `CropViews` in
`pipelines.py`.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from ser_lightning.batch import ViewRecord
from ser_lightning.groups import turn_each

Interpolation = Literal["bilinear", "bicubic"]
MAX_ASPECT = 16
"""Longer images are cut before they are resized; the usual ones are not, bit for bit as ever."""
DETAIL = 1.5
"""Pixels of a cut for each pixel of its view, on a side: with fewer of them a view would change."""
_ATTEMPTS = 10
NUM_UNIFORMS = 2 * _ATTEMPTS + 2  # an area and an aspect per attempt, then the position


def image_sizes(images: Sequence[Tensor]) -> np.ndarray:
    """(B, 2) int64 heights and widths."""
    sides = [side for image in images for side in image.shape[-2:]]
    return np.array(sides, dtype=np.int64).reshape(-1, 2)


def whole(images: Sequence[Tensor]) -> ViewRecord[np.ndarray]:
    """The record of views that show the whole of each image, upright, in its own colours.

    Cut to a square, the image is squashed and nothing is lost.
    """
    sizes = image_sizes(images)
    no, zero, one = np.zeros(len(sizes), bool), np.zeros(len(sizes)), np.ones(len(sizes))
    box = np.concatenate([np.zeros_like(sizes), sizes], axis=1)
    order = np.tile(np.arange(4), (len(sizes), 1))
    return ViewRecord(sizes, box, no, no, order, one, one, one, zero, no, zero, no, zero)


def needed_side(
    size: int, scale: tuple[float, float] = (1, 1), ratio: tuple[float, float] = (1, 1)
) -> int:
    """Height and width that an image needs, so that its smallest crop has `DETAIL`.

    `size` is the view's side in pixels; `scale` and `ratio` are as in `crop_boxes`.
    """
    return math.ceil(DETAIL * size / math.sqrt(scale[0] * min(ratio[0], 1 / ratio[1])))


def carried(boxes: np.ndarray, sizes: np.ndarray, to: np.ndarray) -> np.ndarray:
    """Carries (B, 4) int64 boxes to images of other sizes: the same shares of their sides.

    `sizes` and `to` are (B, 2) heights and widths. The result is rounded to whole pixels, at least
    one, inside the other images.
    """
    scaled = np.rint(boxes * np.tile(to / sizes, 2)).astype(np.int64)
    sides = np.clip(scaled[:, 2:], 1, to)
    return np.concatenate([np.minimum(scaled[:, :2], to - sides), sides], axis=1)


def crop_boxes(
    uniforms: np.ndarray,
    heights: np.ndarray | int,
    widths: np.ndarray | int,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> np.ndarray:
    """Turns uniform numbers into crop boxes.

    The first of ten drawn sizes that fits into the image is taken, at a uniform position; if none
    fits, the largest central crop whose aspect lies within `ratio`.

    Args:
        uniforms: (B, NUM_UNIFORMS) numbers in [0, 1).
        heights: (B,) image heights, or one for all.
        widths: (B,) image widths, or one for all.
        scale: smallest and largest area of a crop, as a share of the image's.
        ratio: smallest and largest width / height of a crop; drawn log-uniformly.

    Returns:
        (B, 4) int64 boxes: top, left, height, width.
    """
    height = np.broadcast_to(np.asarray(heights, dtype=np.int64), len(uniforms))[:, None]
    width = np.broadcast_to(np.asarray(widths, dtype=np.int64), len(uniforms))[:, None]

    area = height * width * (scale[0] + (scale[1] - scale[0]) * uniforms[:, :_ATTEMPTS])
    low, high = np.log(ratio[0]), np.log(ratio[1])
    aspect = np.exp(low + (high - low) * uniforms[:, _ATTEMPTS : 2 * _ATTEMPTS])
    drawn_width = np.rint(np.sqrt(area * aspect)).astype(np.int64)
    drawn_height = np.rint(np.sqrt(area / aspect)).astype(np.int64)
    fits = (
        (drawn_width > 0) & (drawn_width <= width) & (drawn_height > 0) & (drawn_height <= height)
    )

    first = fits.argmax(axis=1)[:, None]
    any_fits = fits.any(axis=1, keepdims=True)
    drawn = (np.take_along_axis(side, first, 1) for side in (drawn_height, drawn_width))
    central = (
        np.clip(np.rint(width / ratio[0]).astype(np.int64), 1, height),
        np.clip(np.rint(height * ratio[1]).astype(np.int64), 1, width),
    )
    crop_height, crop_width = (
        np.where(any_fits, *sizes) for sizes in zip(drawn, central, strict=True)
    )

    room = np.concatenate([height - crop_height, width - crop_width], axis=1)
    position = np.floor(uniforms[:, 2 * _ATTEMPTS : NUM_UNIFORMS] * (room + 1)).astype(np.int64)
    corner = np.where(any_fits, position, room // 2)
    return np.concatenate([corner, crop_height, crop_width], axis=1)


def crop_and_resize(
    image: Tensor,
    box: np.ndarray,
    size: int,
    flip: bool = False,
    interpolation: Interpolation = "bilinear",
) -> Tensor:
    """Cuts a box out of an image and resizes it, antialiased, to a square.

    Takes a uint8 (3, H, W) image and a (4,) box of top, left, height, width; `flip` mirrors the
    result left to right. Returns uint8 (3, size, size) that shares no memory with the input.
    """
    top, left, height, width = (int(value) for value in box)
    crop = image[None, :, top : top + height, left : left + width]
    if (height, width) != (size, size):
        # torchvision's resized_crop ends in this call; its dispatch costs three times as much at
        # 28 pixels
        crop = F.interpolate(
            crop, (size, size), mode=interpolation, align_corners=False, antialias=True
        )
    crop = torch.flip(crop, [-1]) if flip else crop
    pixels = torch.empty(crop.shape[1:], dtype=image.dtype)  # contiguous, whatever the input is
    return pixels.copy_(crop[0])


def cut(
    images: Sequence[Tensor],
    record: ViewRecord[np.ndarray],
    size: int,
    interpolation: Interpolation = "bilinear",
) -> Tensor:
    """Cuts the record's part out of every image, resizes and turns it: uint8 (B, 3, size, size)."""
    drawn = zip(images, record.box, record.flip, record.turn, strict=True)
    return torch.stack(
        [
            turned(crop_and_resize(image, box, size, bool(flip), interpolation), float(degrees))
            for image, box, flip, degrees in drawn
        ]
    )


def turned(pixels: Tensor, degrees: float) -> Tensor:
    """Turns uint8 pixels (3, S, S) counter-clockwise; exact for quarter turns, else bilinear."""
    if degrees % 90 == 0:
        return torch.rot90(pixels, int(degrees // 90) % 4, dims=(-2, -1))
    result = turn_each(pixels[None].float(), torch.tensor([degrees]))[0]
    return result.round_().clamp_(0, 255).to(pixels.dtype)


def middle(
    image: Tensor, resized: int, size: int, interpolation: Interpolation = "bicubic"
) -> Tensor:
    """Resizes the shorter side, antialiased, and cuts the middle out: how evaluation sees an image.

    Of an image that is many times as long as it is short, the middle is cut out first, so that no
    more is computed than is shown; the result is the same to a level of rounding.

    Args:
        image: (..., 3, H, W) uint8 image, or frames.
        resized: length of the resized shorter side in pixels.
        size: side of the result in pixels, at most as long.
        interpolation: the filter.
    """
    height, width = image.shape[-2:]
    if image.dim() == 3 and max(height, width) > MAX_ASPECT * min(height, width):
        return _cut_then_resized(image, resized, size, interpolation)
    kind = InterpolationMode(interpolation)
    return functional.center_crop(
        functional.resize(image, [resized], kind, antialias=True), [size, size]
    )


def _cut_then_resized(
    image: Tensor, resized: int, size: int, interpolation: Interpolation
) -> Tensor:
    """Weighs only those rows and columns that the middle shows."""
    short, pixels = min(image.shape[-2:]), image
    weights = []
    for dim, side in ((1, image.shape[-2]), (2, image.shape[-1])):
        length = resized if side == short else int(resized * side / short)
        first = round((length - size) / 2)
        start, weight = _weights(side, length, range(first, first + size), interpolation)
        pixels = pixels.narrow(dim, start, weight.shape[1])
        weights.append(weight)
    rows = (pixels.double() @ weights[1].T).clamp(0, 255)
    return (weights[0] @ rows).round().clamp(0, 255).to(torch.uint8)


def _weights(
    side: int, length: int, places: range, interpolation: Interpolation
) -> tuple[int, Tensor]:
    """What each of some places of a resized line is a mean of, as PyTorch's antialiased filters.

    Returns:
        The first pixel of the line that counts, and (places, pixels from there on) float64.
    """
    scale = side / length
    width = max(scale, 1.0)
    centre = (torch.arange(places.start, places.stop).double() + 0.5) * scale
    reach = (2 if interpolation == "bicubic" else 1) * width
    start = max(0, int(centre[0] - reach))
    stop = min(side, math.ceil(centre[-1] + reach) + 1)
    x = ((torch.arange(start, stop) + 0.5 - centre[:, None]) / width).abs()
    if interpolation == "bicubic":  # with -0.5, as Pillow
        near, far = (1.5 * x - 2.5) * x**2 + 1, ((2.5 - 0.5 * x) * x - 4) * x + 2
        weight = torch.where(x < 1, near, far * (x < 2))
    else:
        weight = (1 - x).clamp_min(0)
    return start, weight / weight.sum(1, keepdim=True)
