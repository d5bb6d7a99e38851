"""A generated data set of patterned cut-outs on grainy ground, made to be learned in minutes.

The class is the pattern, which lies any way round, as things do in a photograph from above or under
a microscope: which way is a means to tell two images apart, but says nothing about the class.
"""

from collections.abc import Callable

import numpy as np
from typing_extensions import override

from ser_lightning.randomness import Stream, uniforms
from ser_lightning.sources.shapes import (
    _SEED,
    Array,
    Shape,
    Shapes,
    _between,
    _box,
    _choose,
    _colours,
    _cover,
    _disc,
    _levels,
    _pixels,
    _resized,
    _triangle,
)

_SPLIT_OFFSET = 2  # other draws than those of Shapes
_MAX_PIECES = 2
_NUM_SCENE, _NUM_PIECE = 16, 6  # numbers for colours and layout, and for each piece
_GRAIN, _WAVES = 12, 6  # cells per side of the ground's grain and of its slow change in colour
_TAU = 2 * np.pi

OUTLINES: tuple[Shape, ...] = (
    lambda x, y: _disc(x, y, (0, 0), 0.95),
    lambda x, y: _box(x, y, (0, 0), (0.82, 0.82)),
    _triangle,
)

PATTERNS: dict[str, Callable[[Array, Array], Array]] = {  # positive where the first colour is
    "stripes": lambda x, y: np.cos(_TAU * 2.1 * y),
    "fine stripes": lambda x, y: np.cos(_TAU * 3.6 * y),
    "thin lines": lambda x, y: np.cos(_TAU * 1.7 * y) - 0.7,
    "waves": lambda x, y: np.cos(_TAU * (1.9 * y + 0.35 * np.cos(_TAU * 1.3 * x))),
    "checks": lambda x, y: 1.5 * np.cos(_TAU * 1.1 * x) * np.cos(_TAU * 1.1 * y),
    "fine checks": lambda x, y: 1.5 * np.cos(_TAU * 2.6 * x) * np.cos(_TAU * 2.6 * y),
    "dots": lambda x, y: np.cos(_TAU * 2.4 * x) + np.cos(_TAU * 2.4 * y) - 0.75,
    "rings": lambda x, y: np.cos(_TAU * 1.6 * np.hypot(x, y)),
    "rays": lambda x, y: np.cos(12 * np.arctan2(y, x)),
    "net": lambda x, y: 0.8 - np.maximum(np.cos(_TAU * 2.1 * x), np.cos(_TAU * 2.1 * y)),
    "halves": lambda x, y: 4 * y,
    "plain": lambda x, y: np.ones_like(x),
}


def draw_patterns(split: int, indices: Array, image_size: int, clutter: float = 1.0) -> Array:
    """Draws images; image i of a split is a pure function of the split and i.

    Args:
        split: 0 for training, 1 for evaluation.
        indices: (N,) positions in the split; the class is the position modulo 12.
        image_size: side S in pixels.
        clutter: strength of the ground's grain, 0 to 1.

    Returns:
        (N, 3, S, S) uint8 images.
    """
    widths = [_NUM_SCENE, _MAX_PIECES * _NUM_PIECE, 3 * _WAVES**2, _GRAIN**2]
    u = uniforms(_SEED, Stream.GENERATED, split + _SPLIT_OFFSET, indices, 0, sum(widths))
    scene, pieces, waves, grain = np.split(u.astype(np.float32), np.cumsum(widths)[:-1], axis=1)
    x, y = _pixels(image_size)

    first, ground = _colours(scene[:, :7])
    second = np.clip(first + np.where(first.mean(1, keepdims=True) > 0.5, -0.5, 0.5), 0, 1)
    image = _ground(ground, scene[:, 7:11], x, y)
    image = image + 0.1 * _resized(waves.reshape(-1, 3, _WAVES, _WAVES), image_size, "bicubic")
    grain = grain.reshape(-1, 1, _GRAIN, _GRAIN)
    image = image + 0.8 * clutter * _resized(grain, image_size, "bilinear")

    num_pieces = 1 + (scene[:, 11] > 0.6)
    for number, piece in enumerate(np.split(pieces, _MAX_PIECES, axis=1)):
        side = scene[:, 12] + number / num_pieces  # of several, in turns around the middle
        cover, pattern = _piece(piece, side, num_pieces, np.asarray(indices), x, y)
        cover = cover * (number < num_pieces)[:, None, None, None]
        image = image + cover * (second + pattern * (first - second) - image)
    return _levels(image)


def _ground(colour: Array, u: Array, x: Array, y: Array) -> Array:
    """(N, 3, S, S) a ground that turns into another colour in some direction; u (N, 4)."""
    other = np.clip(colour + 0.7 * (u[:, :3, None, None] - 0.5), 0, 1)
    angle = _TAU * u[:, 3, None, None]
    share = 1 / (1 + np.exp(-4 * (np.cos(angle) * x + np.sin(angle) * y)))
    return colour + (other - colour) * share[:, None]


def _piece(
    u: Array, side: Array, num_pieces: Array, indices: Array, x: Array, y: Array
) -> tuple[Array, Array]:
    """One cut-out of each image.

    Args:
        u: (N, _NUM_PIECE) numbers for tilt, size, position and outline.
        side: (N,) where a piece that is not alone lies around the middle, in turns.
        num_pieces: (N,) pieces of the image.
        indices: (N,) positions in the split.
        x: (S, S) pixel coordinates to the right.
        y: (S, S) pixel coordinates upwards.

    Returns:
        (N, 1, S, S) share of each pixel that it covers, and of the pattern's first colour.
    """
    tilt, size, right, up, _, _ = u.T[:, :, None, None]
    is_alone = (num_pieces == 1)[:, None, None]
    size = _between(0.7, 0.95, size) * np.where(is_alone, 1, 0.68)
    room = np.maximum(0.98 - 0.85 * size, 0)
    angle = _TAU * side[:, None, None] + 0.4 * (right - 0.5)
    x = x - np.where(is_alone, room * (2 * right - 1), 0.5 * np.cos(angle))
    y = y - np.where(is_alone, room * (2 * up - 1), 0.5 * np.sin(angle))
    tilt = _TAU * tilt
    x, y = np.cos(tilt) * x + np.sin(tilt) * y, np.cos(tilt) * y - np.sin(tilt) * x
    outline = (u[:, 4] * len(OUTLINES)).astype(np.int64)
    distance = _choose(OUTLINES, outline, x / size, y / size)
    pattern = _choose(PATTERNS.values(), indices % len(PATTERNS), x, y)
    cover = _cover(distance, 2 / x.shape[-1] / size)
    return cover[:, None], (0.5 + 0.5 * np.clip(2.5 * pattern, -1, 1))[:, None]


class Patterns(Shapes):
    """Patterned cut-outs on grainy ground in twelve classes, made in memory.

    Args:
        num_train: number of training images.
        num_evaluation: number of evaluation images.
        image_size: side in pixels.
        clutter: strength of the ground's grain, 0 to 1.
    """

    _names = tuple(PATTERNS)

    @override
    def _draw(self, split: int, indices: Array) -> Array:
        return draw_patterns(split, indices, self.image_size, self.clutter)
