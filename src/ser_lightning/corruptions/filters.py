"""Linear filters that several corruptions share: smoothing, smearing, zooming, gray.

All work on (C, H, W) float32 levels of 0 to 255 or on maps of any range, and add the same numbers
in the same order on any number of threads, so that what is truncated afterwards does not depend
on where it was computed.
"""

import math
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

_LUMA = (0.299, 0.587, 0.114)
_GUARD = 1 / 1024  # levels


def to_uint8(levels: Tensor) -> Tensor:
    """Clamps float levels to 0..255, in place, and truncates as the official scripts do.

    A thousandth of a level is added before, so that an even area does not lose a level because
    the weights of a filter add up to 0.9999999.
    """
    return levels.add_(_GUARD).clamp_(0, 255).to(torch.uint8)


def luma(levels: Tensor) -> Tensor:
    """(3, H, W) -> (1, H, W), the weights of Rec. 601."""
    red, green, blue = levels.split(1)
    return red.mul(_LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])


def weighted_shifts(levels: Tensor, taps: Iterable[tuple[int, int, float]]) -> Tensor:
    """Sums weight * levels[:, y + dy, x + dx] over taps (dy, dx, weight).

    Levels (C, H, W) continue at the border by their edge pixels.
    """
    taps = list(taps)
    height, width = levels.shape[-2:]
    top, bottom = (max(0, *(sign * tap[0] for tap in taps), 0) for sign in (-1, 1))
    left, right = (max(0, *(sign * tap[1] for tap in taps), 0) for sign in (-1, 1))
    padded = F.pad(levels[None], (left, right, top, bottom), mode="replicate")[0]
    total = torch.zeros_like(levels)
    for dy, dx, weight in taps:
        shifted = padded[:, top + dy : top + dy + height, left + dx : left + dx + width]
        total.add_(shifted, alpha=weight)
    return total


def smooth(levels: Tensor, sigma: float, truncate: float = 4.0) -> Tensor:
    """Gaussian blur, cut off at truncate * sigma, continued at the border by its edge pixels.

    Args:
        levels: (C, H, W) float, left as it is.
        sigma: standard deviation in pixels; 0 for none.
        truncate: radius in standard deviations.
    """
    radius = int(truncate * sigma + 0.5)
    if radius == 0:
        return levels.clone()
    half = np.exp(-0.5 * (np.arange(radius + 1) / sigma) ** 2)
    half /= half[0] + 2 * half[1:].sum()
    taps = [
        (tap, float(half[abs(tap)])) for tap in (*range(radius + 1), *range(-1, -radius - 1, -1))
    ]
    rows = weighted_shifts(levels, [(tap, 0, weight) for tap, weight in taps])
    return weighted_shifts(rows, [(0, tap, weight) for tap, weight in taps])


def smooth_mirrored(field: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of fields (N, H, W) whose sigma may exceed their sides; d c b a | a b c d."""
    rows, columns = (_mirrored_gaussian(side, sigma) for side in field.shape[-2:])
    return rows @ field @ columns.T


@lru_cache(maxsize=16)
def _mirrored_gaussian(side: int, sigma: float) -> np.ndarray:
    """The filter, cut off at 3 * sigma, as a matrix (side, side), fast for any sigma."""
    matrix: np.ndarray = ndimage.gaussian_filter1d(np.eye(side), sigma, axis=0, truncate=3.0)
    return matrix


def smear(levels: Tensor, radius: float, sigma: float, angle: float) -> Tensor:
    """Motion blur: a one-sided Gaussian of 2 * radius + 1 taps along a direction.

    The angle is in degrees, clockwise from the right, sigma in pixels. Source: ImageMagick's
    MotionBlurImage, which the official scripts call.
    """
    count = 2 * math.ceil(radius) + 1
    weights = np.exp(-0.5 * (np.arange(count) / sigma) ** 2)
    weights /= weights.sum()
    sine, cosine = math.sin(math.radians(angle)), math.cos(math.radians(angle))
    taps: dict[tuple[int, int], float] = {}
    for tap, weight in enumerate(weights):
        place = math.ceil(tap * sine - 0.5), math.ceil(tap * cosine - 0.5)
        taps[place] = taps.get(place, 0.0) + float(weight)
    return weighted_shifts(levels, [(*place, weight) for place, weight in taps.items()])


def zoom(levels: Tensor, factor: float) -> Tensor:
    """Enlarges the centre, linearly, with the corner pixels of the crop on those of the result.

    A crop of ceil(side / factor) is enlarged by a factor of at least 1 and trimmed.
    """
    height, width = levels.shape[-2:]
    crops = [math.ceil(side / factor) for side in (height, width)]
    starts = [(side - crop) // 2 for side, crop in zip((height, width), crops, strict=True)]
    crop = levels[None].narrow(2, starts[0], crops[0]).narrow(3, starts[1], crops[1])
    sizes = [round(side * factor) for side in crops]
    large = F.interpolate(crop, sizes, mode="bilinear", align_corners=True)
    top, left = (sizes[0] - height) // 2, (sizes[1] - width) // 2
    return large[0, :, top : top + height, left : left + width]
