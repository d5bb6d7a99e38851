"""A generated data set of drawn shapes whose orientation carries meaning. It needs no file.

Eight of its twelve classes form pairs that differ only by a rotation or a reflection (an arrow up
and an arrow to the right, a letter L and its mirror image), so that an encoder that is invariant
to them cannot tell the two apart, while an equivariant one can.
"""

from collections.abc import Callable, Iterable

import numpy as np
import torch
import torch.nn.functional as F
from typing_extensions import override

from ser_lightning.numbers import PositiveInt, Probability, checked
from ser_lightning.randomness import Stream, uniforms
from ser_lightning.sources.base import MemoryImages, Source

Array = np.ndarray
Shape = Callable[[Array, Array], Array]  # signed distance at x (to the right), y (up) in -1..1
_CHUNK = 256
_SEED = 0
_TEXTURE = 6  # cells per side of the background's texture
_NUM_SPOTS = 3
_NUM_POSE = 32  # numbers for pose and colours; texture, spots and noise follow


def _box(x: Array, y: Array, centre: tuple[float, float], half: tuple[float, float]) -> Array:
    return np.maximum(np.abs(x - centre[0]) - half[0], np.abs(y - centre[1]) - half[1])


def _disc(x: Array, y: Array, centre: tuple[float, float], radius: float) -> Array:
    return np.hypot(x - centre[0], y - centre[1]) - radius


def _polygon(x: Array, y: Array, *corners: tuple[float, float]) -> Array:
    """A convex polygon, corners counter-clockwise: the largest distance to its edges' lines."""
    distances = []
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        length = np.hypot(x1 - x0, y1 - y0)
        distances.append(((x - x0) * (y1 - y0) - (y - y0) * (x1 - x0)) / length)
    return np.maximum.reduce(distances)


def _arrow(x: Array, y: Array) -> Array:
    head = _polygon(x, y, (-0.75, 0.05), (0.75, 0.05), (0, 0.95))
    return np.minimum(head, _box(x, y, (0, -0.4), (0.24, 0.5)))


def _ell(x: Array, y: Array) -> Array:
    return np.minimum(_box(x, y, (-0.4, 0), (0.22, 0.95)), _box(x, y, (0.1, -0.73), (0.6, 0.22)))


def _flag(x: Array, y: Array) -> Array:
    cloth = _polygon(x, y, (-0.6, 0), (0.85, 0.475), (-0.6, 0.95))
    return np.minimum(cloth, _box(x, y, (-0.6, 0), (0.13, 0.95)))


def _triangle(x: Array, y: Array) -> Array:
    return _polygon(x, y, (-0.9, -0.7), (0.9, -0.7), (0, 0.85))


def _crescent(x: Array, y: Array) -> Array:
    return np.maximum(_disc(x, y, (0, 0), 0.9), -_disc(x, y, (0.42, 0.1), 0.7))


def _key(x: Array, y: Array) -> Array:
    ring = np.maximum(_disc(x, y, (0, 0.5), 0.47), -_disc(x, y, (0, 0.5), 0.19))
    teeth = np.minimum(
        _box(x, y, (0.3, -0.84), (0.25, 0.11)), _box(x, y, (0.25, -0.45), (0.2, 0.1))
    )
    return np.minimum.reduce([ring, teeth, _box(x, y, (0, -0.4), (0.13, 0.55))])


def _mushroom(x: Array, y: Array) -> Array:
    cap = np.maximum(_disc(x, y, (0, -0.05), 0.9), -0.05 - y)
    return np.minimum(cap, _box(x, y, (0, -0.45), (0.26, 0.45)))


def _cross(x: Array, y: Array) -> Array:
    return np.minimum(_box(x, y, (0, 0), (0.24, 0.9)), _box(x, y, (0, 0), (0.9, 0.24)))


SHAPES: dict[str, Shape] = {
    "arrow up": _arrow,
    "arrow right": lambda x, y: _arrow(-y, x),
    "L": _ell,
    "mirrored L": lambda x, y: _ell(-x, y),
    "flag right": _flag,
    "flag left": lambda x, y: _flag(-x, y),
    "triangle up": _triangle,
    "triangle down": lambda x, y: _triangle(x, -y),
    "crescent": _crescent,
    "key": _key,
    "mushroom": _mushroom,
    "cross": _cross,
}


def _between(low: float, high: float, u: Array) -> Array:
    return low + (high - low) * u


def _cover(distance: Array, pixel: Array | float) -> Array:
    """Share of each pixel that lies inside, from the distance of its centre to the outline."""
    return np.clip(0.5 - distance / pixel, 0, 1)


def _pixels(size: int) -> tuple[Array, Array]:
    """(S, S) coordinates of the pixels' centres to the right and upwards, in -1..1."""
    ticks = (2 * np.arange(size, dtype=np.float32) + 1) / size - 1
    x, y = np.meshgrid(ticks, -ticks)
    return x, y


def _resized(cells: Array, size: int, mode: str) -> Array:
    """(N, K, c, c) numbers in [0, 1) as a map (N, K, size, size) around 0."""
    return F.interpolate(torch.from_numpy(cells - 0.5), (size, size), mode=mode).numpy()


def _choose(functions: Iterable[Shape], which: Array, x: Array, y: Array) -> Array:
    """(N, S, S) values of one of the functions for each image."""
    values = np.empty_like(x)
    for number, function in enumerate(functions):
        rows = which == number
        values[rows] = function(x[rows], y[rows])
    return values


def _levels(image: Array) -> Array:
    """The nearest uint8 levels of an image in 0..1."""
    return np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)


def _pose(u: Array, x: Array, y: Array) -> tuple[Array, Array, Array]:
    """Coordinates of the pixels in each image's upright shape, and the size of a pixel there.

    Args:
        u: (N, 5) numbers for tilt, size, aspect and position.
        x: (S, S) pixel coordinates to the right.
        y: (S, S) pixel coordinates upwards.

    Returns:
        Two (N, S, S) coordinates and the (N, 1, 1) pixel size.
    """
    tilt, size, aspect, right, up = u.T[:, :, None, None]
    size = _between(0.5, 0.8, size)
    room = 0.7 * (0.95 - size)
    x, y = x - room * (2 * right - 1), y - room * (2 * up - 1)
    angle = np.deg2rad(_between(-14, 14, tilt))
    cos, sin = np.cos(angle), np.sin(angle)
    stretch = np.exp(_between(-0.2, 0.2, aspect))
    pixel = 2 / x.shape[-1] / size
    return (cos * x + sin * y) / (size * stretch), (cos * y - sin * x) * stretch / size, pixel


def _colours(u: Array) -> tuple[Array, Array]:
    """Object and background colours of enough contrast, each (N, 3, 1, 1), from (N, 7) numbers."""
    mean = u[:, :3].mean(1, keepdims=True)
    background = np.clip(mean + 0.6 * (u[:, :3] - mean), 0.1, 0.9)
    level = background.mean(1, keepdims=True)
    direction = np.where(level + 0.5 * (u[:, 6:7] - 0.5) < 0.5, 1, -1)
    tint = u[:, 3:6] - u[:, 3:6].mean(1, keepdims=True)
    foreground = np.clip(level + 0.4 * direction + 0.6 * tint, 0, 1)
    return foreground[:, :, None, None], background[:, :, None, None]


def _spots(image: Array, u: Array, x: Array, y: Array) -> Array:
    """Draws small coloured discs behind the object; u (N, _NUM_SPOTS, 6)."""
    for spot in u.transpose(1, 2, 0)[..., None, None]:
        distance = np.hypot(x - (2 * spot[0] - 1), y - (2 * spot[1] - 1))
        radius = _between(0.06, 0.2, spot[2])
        cover = _cover(distance - radius, 2 / x.shape[-1])[:, None]
        image = image + cover * (spot[3:6].swapaxes(0, 1) - image)
    return image


def draw_shapes(split: int, indices: Array, image_size: int, clutter: float = 1.0) -> Array:
    """Draws images; image i of a split is a pure function of the split and i.

    Args:
        split: 0 for training, 1 for evaluation.
        indices: (N,) positions in the split; the class is the position modulo 12.
        image_size: side S in pixels.
        clutter: strength of texture, spots and noise, 0 to 1.

    Returns:
        (N, 3, S, S) uint8 images.
    """
    texture_size, spots_size = 3 * _TEXTURE**2, 6 * _NUM_SPOTS
    count = _NUM_POSE + texture_size + spots_size + 3 * image_size**2
    u = uniforms(_SEED, Stream.GENERATED, split, indices, 0, count).astype(np.float32)
    pose, texture, spots, noise = np.split(
        u, np.cumsum([_NUM_POSE, texture_size, spots_size]), axis=1
    )
    x, y = _pixels(image_size)

    foreground, background = _colours(pose[:, :7])
    waves = _resized(texture.reshape(-1, 3, _TEXTURE, _TEXTURE), image_size, "bicubic")
    strength = clutter * _between(0.1, 0.4, pose[:, 7])[:, None, None, None]
    image = background + strength * waves
    image = image + clutter * (_spots(image, spots.reshape(len(u), _NUM_SPOTS, 6), x, y) - image)

    right, up, pixel = _pose(pose[:, 8:13], x, y)
    distance = _choose(SHAPES.values(), np.asarray(indices) % len(SHAPES), right, up)
    cover = _cover(distance, pixel)[:, None]
    shade = 1 + 0.25 * (2 * pose[:, 13] - 1)[:, None, None, None] * y
    image = image + cover * (foreground * shade - image)

    level = clutter * _between(0.05, 0.2, pose[:, 14])[:, None, None, None]
    return _levels(image + level * (noise.reshape(image.shape) - 0.5))


@checked
class Shapes(Source):
    """Drawn shapes in twelve classes, on textured backgrounds, made in memory.

    Args:
        num_train: number of training images.
        num_evaluation: number of evaluation images.
        image_size: side in pixels.
        clutter: strength of texture, spots and noise behind and on the shapes, 0 to 1. The more of
            it, the more there is to tell two images apart by without looking at the shape.
    """

    _names = tuple(SHAPES)

    def __init__(
        self,
        num_train: PositiveInt = 4096,
        num_evaluation: PositiveInt = 1024,
        image_size: PositiveInt = 32,
        clutter: Probability = 1.0,
    ) -> None:
        self.num_train = num_train
        self.num_evaluation = num_evaluation
        self.image_size = image_size
        self.clutter = clutter
        self._splits: dict[int, MemoryImages] = {}

    @override
    def train(self) -> MemoryImages:
        return self._open(0, self.num_train)

    @override
    def evaluation(self) -> MemoryImages:
        return self._open(1, self.num_evaluation)

    def _draw(self, split: int, indices: Array) -> Array:
        return draw_shapes(split, indices, self.image_size, self.clutter)

    def _open(self, split: int, count: int) -> MemoryImages:
        if split not in self._splits:
            indices = np.arange(count)
            starts = range(0, count, _CHUNK)
            chunks = [self._draw(split, indices[start : start + _CHUNK]) for start in starts]
            labels = torch.from_numpy(indices % len(self._names))
            pixels = torch.from_numpy(np.concatenate(chunks))
            self._splits[split] = MemoryImages(pixels, labels, self._names)
        return self._splits[split]
