"""Colours, warps and codecs: brightness, contrast, saturate, elastic, pixelate, jpeg."""

import io

import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator
from PIL import Image
from torch import Tensor

from ser_lightning.corruptions.filters import smooth_mirrored, to_uint8

_LEVELS = np.arange(256) / 255


def brightness(image: Tensor, rng: Generator, shift: float) -> Tensor:
    """Adds to the value of HSV, at most up to 1; hue and saturation stay.

    With the new value v' every channel is x * v' / v; black turns gray.
    """
    raised = torch.from_numpy(np.clip(_LEVELS + shift, 0, 1) * 255)
    factors = raised / torch.arange(256).clamp(min=1)
    value = image.amax(0).long()
    black = torch.where(value == 0, raised[0], 0.0)
    return to_uint8(image * factors[value] + black)


def saturate(image: Tensor, rng: Generator, factor: float, shift: float) -> Tensor:
    """Maps the saturation s of HSV to factor * s + shift, cut to 0..1; hue and value stay.

    A channel is v - v * s * d with d from the hue, so that v - x grows by s' / s. Gray pixels
    have the hue of red: with a shift, their green and blue fall.
    """
    levels = image.float()
    value, lowest = levels.amax(0), levels.amin(0)
    drop = value - levels
    chroma = value - lowest
    saturation = chroma / value.clamp(min=1)
    target = saturation.mul(factor).add_(shift).clamp_(0, 1)
    drop.mul_(target * value / chroma.clamp(min=1))
    red_tint = target.mul_(value).masked_fill_(chroma > 0, 0)
    drop[1:].add_(red_tint)
    return to_uint8(value - drop)


def contrast(image: Tensor, rng: Generator, factor: float) -> Tensor:
    """Shrinks the distance of every level to its channel's mean.

    A table per channel in float64, in the official order of operations: equal to the last bit,
    but for the rounding of the mean.
    """
    channels = image.numpy().reshape(len(image), -1)
    changed = np.empty_like(channels)
    for channel, result in zip(channels, changed, strict=True):
        mean = np.bincount(channel, minlength=256) @ _LEVELS / channel.size
        table = np.clip((_LEVELS - mean) * factor + mean, 0, 1) * 255
        np.take(table.astype(np.uint8), channel, out=result)
    return torch.from_numpy(changed).view(image.shape)


def elastic_transform(
    image: Tensor, rng: Generator, amplitude: float, sigma: float, shear: float
) -> Tensor:
    """Warps by a random affine map of three points, then by smoothed random displacements.

    In parts of the shorter side: the displacements' amplitude before a Gaussian of sigma smooths
    them, and the largest shear, by which a coordinate of the three points is shifted.
    """
    height, width = image.shape[-2:]
    side = min(height, width)
    y, x = _affine_places(height, width, rng, shear * side)
    warped = _sample(image.float(), y, x, mirror_edge=False)
    noise = rng.uniform(-1, 1, (2, height, width))
    if amplitude == 0:
        return to_uint8(warped)
    dx, dy = smooth_mirrored(noise, sigma * side) * (amplitude * side)
    rows, columns = np.mgrid[:height, :width]
    return to_uint8(_sample(warped, rows + dy, columns + dx, mirror_edge=True))


def _affine_places(
    height: int, width: int, rng: Generator, reach: float
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns (H, W) from which the pixels of a random affine map come.

    The map takes three corners of a square round the centre to places up to reach away.
    """
    centre = np.array([width // 2, height // 2])
    arm = min(height, width) // 3
    corners = centre + arm * np.array([[1, 1], [1, -1], [-1, -1]])
    moved = corners + rng.uniform(-reach, reach, (3, 2))
    back = np.linalg.solve(np.c_[moved, np.ones(3)], corners)  # (3, 2): (x, y, 1) @ back
    columns = np.arange(width)[None, :]
    rows = np.arange(height)[:, None]
    x, y = (columns * a + rows * b + c for a, b, c in back.T)
    return y, x


def _sample(levels: Tensor, y: np.ndarray, x: np.ndarray, mirror_edge: bool) -> Tensor:
    """Linear interpolation of (3, H, W) at rows y and columns x; mirrored at the border.

    With mirror_edge the edge pixels are repeated (b a | a b), else not (c b | a b).
    """
    height, width = levels.shape[-2:]
    if mirror_edge:
        x, y = (2 * x + 1) / width - 1, (2 * y + 1) / height - 1
    else:
        x, y = 2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1
    grid = torch.from_numpy(np.stack([x, y], axis=-1).astype(np.float32))[None]
    return F.grid_sample(
        levels[None], grid, padding_mode="reflection", align_corners=not mirror_edge
    )[0]


def to_pil(image: Tensor) -> Image.Image:
    """(3, H, W) uint8 to an image of PIL; band by band, which is several times faster."""
    return Image.merge("RGB", [Image.fromarray(band) for band in image.numpy()])


def from_pil(picture: Image.Image) -> Tensor:
    """An RGB image of PIL to (3, H, W) uint8."""
    return torch.from_numpy(np.stack([np.asarray(band) for band in picture.split()]))


def pixelate(image: Tensor, rng: Generator, scale: float) -> Tensor:
    """Reduces the image by averaging over boxes and enlarges it again."""
    height, width = image.shape[-2:]
    small = to_pil(image).resize((int(width * scale), int(height * scale)), Image.Resampling.BOX)
    return from_pil(small.resize((width, height), Image.Resampling.BOX))


def jpeg_compression(image: Tensor, rng: Generator, quality: float) -> Tensor:
    """Encodes as JPEG and decodes again."""
    buffer = io.BytesIO()
    to_pil(image).save(buffer, "JPEG", quality=int(quality))
    return from_pil(Image.open(buffer))
