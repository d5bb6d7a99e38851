"""Photometric augmentation of whole batches: drawn once, applied many times.

The semantics of every operation are torchvision's on float images; parameters and the order of
the colour operations are drawn per image.

Differs: the paper's public code uses kornia, whose brightness is additive, whose contrast does
not blend to the mean and whose solarize threshold is random. The paper says that both pipelines
share the base method's photometrics, which are torchvision's.

Normalisation and its default constants are in `render.py`; `data.mean` and `data.std` change them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ser_lightning.batch import ViewRecord
from ser_lightning.numbers import HalfTurn, NonNegative, PositiveInterval, Probability, checked

NUM_UNIFORMS = 10
SOLARIZE_THRESHOLD = 128 / 255
_LUMA = (0.2989, 0.587, 0.114)
_ORDERS = np.array(list(permutations(range(4))))  # of brightness, contrast, saturation, hue
_CHUNK_ELEMENTS = 2**19  # 2 MB of float32 stay in a core's cache, a few more with temporaries
_LARGE = 2**17  # elements of an image that is better worked on alone, without copies


@checked
@dataclass(frozen=True)
class PhotometricRecipe:
    """How strongly and how often the colours of a view are changed. Defaults: MoCo-v3's view 1.

    Args:
        brightness: factor is drawn from 1 -+ this.
        contrast: factor is drawn from 1 -+ this.
        saturation: factor is drawn from 1 -+ this.
        hue: shift is drawn from -+ this, in turns of the colour circle, at most 0.5.
        p_jitter: probability of the four operations above.
        p_gray: probability of grayscale.
        p_blur: probability of a Gaussian blur.
        blur_sigma: smallest and largest standard deviation of the blur in pixels.
        p_solarize: probability of inverting the bright pixels.
    """

    brightness: NonNegative = 0.4
    contrast: NonNegative = 0.4
    saturation: NonNegative = 0.2
    hue: HalfTurn = 0.1
    p_jitter: Probability = 0.8
    p_gray: Probability = 0.2
    p_blur: Probability = 1.0
    blur_sigma: PositiveInterval = (0.1, 2.0)
    p_solarize: Probability = 0.0


MOCO_VIEW_1 = PhotometricRecipe()
MOCO_VIEW_2 = PhotometricRecipe(p_blur=0.1, p_solarize=0.2)


def draw(
    recipe: PhotometricRecipe, uniforms: np.ndarray, record: ViewRecord[np.ndarray]
) -> ViewRecord[np.ndarray]:
    """Turns (B, NUM_UNIFORMS) uniform numbers in [0, 1) into the colours of a record of crops.

    A row depends on its own uniform numbers only.
    """
    u = uniforms.T

    def factor(strength: float, column: np.ndarray) -> np.ndarray:
        low = max(0.0, 1 - strength)
        return low + (1 + strength - low) * column

    low, high = recipe.blur_sigma
    return record._replace(
        jitter=u[0] < recipe.p_jitter,
        order=_ORDERS[(u[1] * len(_ORDERS)).astype(np.int64)],
        brightness=factor(recipe.brightness, u[2]),
        contrast=factor(recipe.contrast, u[3]),
        saturation=factor(recipe.saturation, u[4]),
        hue=recipe.hue * (2 * u[5] - 1),
        gray=u[6] < recipe.p_gray,
        blur_sigma=np.where(u[7] < recipe.p_blur, low + (high - low) * u[8], 0.0),
        solarize=u[9] < recipe.p_solarize,
    )


def apply(record: ViewRecord[np.ndarray], pixels: Tensor) -> Tensor:
    """Applies colour jitter in the drawn order, then grayscale, blur and solarize.

    Every operation touches only the images that need it; which ones is known on the host, so
    that a device is never waited for. The record's flags may be numbers.

    Args:
        record: what was drawn for B images.
        pixels: (B, 3, H, W) float images in [0, 1], on any device; left as they are.
    """
    return apply_(record, pixels.clone(memory_format=torch.contiguous_format))


def apply_(record: ViewRecord[np.ndarray], pixels: Tensor) -> Tensor:
    """As `apply`, in place, to contiguous images."""
    if len(record.jitter) != len(pixels):
        raise ValueError(f"a record of {len(record.jitter)} images for {len(pixels)} images")
    size = len(pixels)
    if pixels.device.type == "cpu" and size:
        elements = pixels[0].numel()
        size = 1 if elements > _LARGE else _CHUNK_ELEMENTS // elements
    for start in range(0, len(pixels), max(1, size)):
        rows = slice(start, start + size)
        _change(record.take(rows), pixels[rows])
    return pixels


def _change(record: ViewRecord[np.ndarray], pixels: Tensor) -> None:
    jitter = (
        (_brightness, record.brightness, record.brightness != 1),
        (_contrast, record.contrast, record.contrast != 1),
        (_saturation, record.saturation, record.saturation != 1),
        (_hue, record.hue, record.hue != 0),
    )
    for turn in record.order.T:
        for number, (operation, factors, changes) in enumerate(jitter):
            chosen = (record.jitter > 0) & changes & (turn == number)
            _on_rows(pixels, chosen, operation, factors)
    _on_rows(pixels, record.gray, _gray)
    _on_rows(pixels, record.blur_sigma > 0, _blur, record.blur_sigma)
    _on_rows(pixels, record.solarize, _solarize)


def _on_rows(
    pixels: Tensor, mask: np.ndarray, operation: Callable[..., Tensor], *factors: np.ndarray
) -> None:
    """Replaces the images that the mask names by the operation's result."""
    rows = np.flatnonzero(mask)
    if rows.size == 0:
        return
    if rows.size == len(pixels):
        result = operation(pixels, *factors)
        if result is not pixels:
            pixels.copy_(result)
    else:
        index = _to_device(rows, pixels.device)
        chosen = pixels.index_select(0, index)
        pixels.index_copy_(0, index, operation(chosen, *(factor[rows] for factor in factors)))


def _to_device(values: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(values).to(device, non_blocking=True)


def _per_image(values: np.ndarray, pixels: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1) in the pixels' precision and on their device."""
    return _to_device(values, pixels.device).to(pixels.dtype).view(-1, 1, 1, 1)


def _luma(pixels: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 1, H, W)."""
    red, green, blue = pixels.split(1, dim=1)
    return red.mul(_LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])


def _blend(pixels: Tensor, other: Tensor, factor: np.ndarray) -> Tensor:
    """Factor * pixels + (1 - factor) * other, clamped; in place."""
    other = other.mul_(_per_image(1 - factor, pixels))
    return pixels.mul_(_per_image(factor, pixels)).add_(other).clamp_(0, 1)


def _brightness(pixels: Tensor, factor: np.ndarray) -> Tensor:
    return pixels.mul_(_per_image(factor, pixels)).clamp_(0, 1)


def _contrast(pixels: Tensor, factor: np.ndarray) -> Tensor:
    return _blend(pixels, _luma(pixels).mean((1, 2, 3), keepdim=True), factor)


def _saturation(pixels: Tensor, factor: np.ndarray) -> Tensor:
    return _blend(pixels, _luma(pixels), factor)


def _gray(pixels: Tensor) -> Tensor:
    return _luma(pixels).expand_as(pixels)


def _solarize(pixels: Tensor) -> Tensor:
    bright = pixels.clone().ge_(SOLARIZE_THRESHOLD)  # 0 or 1
    # x + (1 - 2x) rounds to the same number as 1 - x, and is faster than a selection
    return pixels.addcmul_(bright, pixels.mul(-2).add_(1))


def _hue(pixels: Tensor, shift: np.ndarray) -> Tensor:
    """Turns the hue; value and chroma stay, so HSV need not be left and entered again.

    With hue h in sixths of the circle, value v and chroma c, a channel is v - c * clamp(d, 0, 1)
    with d = 2 - |h - 3| for red, |h - 2| - 1 for green and |h - 4| - 1 for blue.
    """
    red, green, blue = pixels.unbind(1)
    value = pixels.amax(1)
    chroma = value - pixels.amin(1)
    # lerp with a weight of 0 or 1 selects exactly, at a fifth of torch.where's time
    is_largest = torch.empty_like(value)
    hue = torch.sub(red, green).add_(chroma, alpha=4)
    torch.eq(value, green, out=is_largest)
    hue.lerp_(torch.sub(blue, red).add_(chroma, alpha=2), is_largest)
    torch.eq(value, red, out=is_largest)
    hue.lerp_(torch.sub(green, blue), is_largest)
    hue.div_(chroma.clamp_min(1e-9)).add_(_per_image(6 * shift, pixels)[:, 0]).remainder_(6)

    drop = is_largest
    for channel, centre, sign, peak in ((red, 3, -1, 2), (green, 2, 1, -1), (blue, 4, 1, -1)):
        torch.sub(hue, centre, out=drop)
        drop.abs_().mul_(sign).add_(peak).clamp_(0, 1)
        torch.addcmul(value, drop, chroma, value=-1, out=channel)
    return pixels


def _blur(pixels: Tensor, sigma: np.ndarray) -> Tensor:
    """Separable Gaussian, reflected at the border, as a weighted sum of shifted images.

    Each image has as many taps as its own sigma asks for: a radius of ceil(3 sigma), less than
    the image's side. Sorted by radius, the images that need a tap are the first ones.
    """
    radius = np.minimum(np.ceil(3 * sigma), min(pixels.shape[-2:]) - 1).astype(np.int64)
    order = np.argsort(-radius, kind="stable")
    sigma, radius = sigma[order], radius[order]
    reach = int(radius[0])
    taps = np.arange(reach + 1)
    weights = np.exp(-0.5 * (taps / sigma[:, None]) ** 2) * (taps <= radius[:, None])
    weights /= weights[:, :1] + 2 * weights[:, 1:].sum(1, keepdims=True)
    if len(order) == 1:
        return _blur_one(pixels, weights[0].tolist())
    weight = _to_device(weights, pixels.device).to(pixels.dtype)[:, :, None, None, None]
    counts = [int((radius >= tap).sum()) for tap in taps]

    place = _to_device(order, pixels.device)
    blurred = pixels.index_select(0, place)
    for dim, padding in ((-2, (0, 0, reach, reach)), (-1, (reach, reach, 0, 0))):
        padded = F.pad(blurred, padding, mode="reflect")
        side = blurred.shape[dim]
        blurred = padded.narrow(dim, reach, side) * weight[:, 0]
        for tap in range(1, reach + 1):
            count = counts[tap]
            for start in (reach - tap, reach + tap):
                shifted = padded[:count].narrow(dim, start, side)
                blurred[:count].addcmul_(shifted, weight[:count, tap])
    return torch.empty_like(blurred).index_copy_(0, place, blurred)


def _blur_one(pixels: Tensor, weights: list[float]) -> Tensor:
    """The same to the bit for a single image, whose weights are numbers: in half the time."""
    reach = len(weights) - 1
    for dim, padding in ((-2, (0, 0, reach, reach)), (-1, (reach, reach, 0, 0))):
        padded, side = F.pad(pixels, padding, mode="reflect"), pixels.shape[dim]
        pixels = padded.narrow(dim, reach, side) * weights[0]
        for tap in range(1, reach + 1):
            for start in (reach - tap, reach + tap):
                pixels.add_(padded.narrow(dim, start, side), alpha=weights[tap])
    return pixels
