"""Names and parameters of the generated corruptions, five severities at three native sizes.

Parameters belong to the size at which an image is corrupted, not to the model's input: a noise of
0.38 at 224 px would leave nothing of a 32 px image, whose hardest noise is 0.10.
Source: Hendrycks and Dietterich, "Benchmarking neural network robustness to common corruptions
and perturbations"; the sizes are those of ImageNet-C, Tiny-ImageNet-C and CIFAR-10-C.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

_NUM_FRAMES = 31
_OTHER_LENGTHS: Mapping[str, Mapping[int, int]] = {
    "motion_blur": {32: 21},
    "translate": {32: 16, 224: 41},
}

# What the numbers of a tuple are is said by the function of that name in `perturb`.
PERTURBATION_TABLES: Mapping[str, Mapping[int, tuple[float, ...]]] = {
    "gaussian_noise": {32: (0.02,), 64: (0.025,), 224: (0.03,)},
    "shot_noise": {32: (700,), 64: (500,), 224: (300,)},
    "speckle_noise": {32: (0.05,), 64: (0.05,), 224: (0.05,)},
    # Differs: Tiny-ImageNet-P smears before it reduces to 64 px; (8, 2.4) lies between the others.
    "motion_blur": {32: (6, 1.8, -180, 9), 64: (8, 2.4, -150, 5), 224: (10, 3, -120, 4)},
    "zoom_blur": {32: (0.004,), 64: (0.004,), 224: (0.004,)},
    "gaussian_blur": {32: (0.3, 0.015, 7), 64: (0.35, 0.014, 7), 224: (0.25, 0.035, 6)},
    "snow": {
        32: (0.05, 0.3, 2, 0.5, 10, 2),
        64: (0.05, 0.28, 2, 0.5, 10, 2.5),
        224: (0.05, 0.3, 3, 0.5, 14, 4),
    },
    "spatter": {
        32: (0.6, 0.265, 1.75, 0.7, 0.2, 0.8),
        64: (0.6, 0.25, 1.75, 0.7, 0.2, 0.8),
        224: (0.65, 0.27, 3.7, 0.69, 0.05, 0.1, 0.15, 0.7),
    },
    "brightness": {32: (0.015,), 64: (0.02,), 224: (0.02,)},
    "translate": {32: (-7,), 64: (-15,), 224: (-20,)},
    "rotate": {32: (1,), 64: (1,), 224: (1,)},
    "tilt": {32: (0.75,), 64: (1,), 224: (1,)},
    "scale": {32: (0.7, 0.02), 64: (0.4, 0.025), 224: (0.4, 0.025)},
    "shear": {32: (1,), 64: (1,), 224: (1,)},
}


EXTRA_PERTURBATIONS = ("speckle_noise", "gaussian_blur", "spatter", "shear")
PERTURBATIONS = tuple(name for name in PERTURBATION_TABLES if name not in EXTRA_PERTURBATIONS)

# A prediction flips if it differs from that of this frame. Frames of noise have no order, so that
# all are compared with the clean first one.
REFERENCE: Mapping[str, Literal["first", "previous"]] = {
    name: "first" if name.endswith("_noise") else "previous"
    for name in (*PERTURBATIONS, *EXTRA_PERTURBATIONS)
}


def num_official_frames(name: str, size: int) -> int:
    """How many frames the official sequence of a name has at a native size."""
    return _OTHER_LENGTHS.get(name, {}).get(size, _NUM_FRAMES)


FROST_PROCEDURAL = "frost_procedural"
NUM_SEVERITIES = 5
NATIVE_SIZES = (32, 64, 224)
Parameters = tuple[float, ...]
Severities = tuple[Parameters, Parameters, Parameters, Parameters, Parameters]


def _single(a: float, b: float, c: float, d: float, e: float) -> Severities:
    return (a,), (b,), (c,), (d,), (e,)


def _elastic_224(*severities: Parameters) -> Any:
    """In parts of 244, as the official script multiplies, not of the 224 pixels."""
    return tuple(tuple(value * (244 / 224) for value in values) for values in severities)


# What the numbers of a tuple are is said by the function of that name. In the official order.
TABLES: Mapping[str, Mapping[int, Severities]] = {
    "gaussian_noise": {
        32: _single(0.04, 0.06, 0.08, 0.09, 0.10),
        64: _single(0.04, 0.08, 0.12, 0.15, 0.18),
        224: _single(0.08, 0.12, 0.18, 0.26, 0.38),
    },
    "shot_noise": {
        32: _single(500, 250, 100, 75, 50),
        64: _single(250, 100, 50, 30, 15),
        224: _single(60, 25, 12, 5, 3),
    },
    "impulse_noise": {
        32: _single(0.01, 0.02, 0.03, 0.05, 0.07),
        64: _single(0.01, 0.02, 0.05, 0.08, 0.14),
        224: _single(0.03, 0.06, 0.09, 0.17, 0.27),
    },
    "speckle_noise": {
        32: _single(0.06, 0.10, 0.12, 0.16, 0.20),
        64: _single(0.15, 0.20, 0.25, 0.30, 0.35),
        224: _single(0.15, 0.20, 0.35, 0.45, 0.60),
    },
    "gaussian_blur": {
        32: _single(0.4, 0.6, 0.7, 0.8, 1.0),
        64: _single(0.5, 0.75, 1.0, 1.25, 1.5),
        224: _single(1, 2, 3, 4, 6),
    },
    "defocus_blur": {
        32: ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        64: ((0.5, 0.6), (1, 0.1), (1.5, 0.1), (2.5, 0.01), (3, 0.1)),
        224: ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    },
    "glass_blur": {
        32: ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        64: ((0.1, 1, 1), (0.5, 1, 1), (0.6, 1, 2), (0.7, 2, 1), (0.9, 2, 2)),
        224: ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    },
    "motion_blur": {
        32: ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        64: ((10, 1), (10, 1.5), (10, 2), (10, 2.5), (12, 3)),
        224: ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    },
    "zoom_blur": {
        32: ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
        64: ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
        224: ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    },
    "snow": {
        32: (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        64: (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.8),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.8),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.7),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.65),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.6),
        ),
        224: (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
    },
    "frost": {
        32: ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
        64: ((1, 0.3), (0.9, 0.4), (0.8, 0.45), (0.75, 0.5), (0.7, 0.55)),
        224: ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
    },
    "fog": {
        32: ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
        64: ((0.4, 3), (0.7, 3), (1, 2.5), (1.5, 2), (2, 1.75)),
        224: ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    },
    "brightness": {
        32: _single(0.05, 0.1, 0.15, 0.2, 0.3),
        64: _single(0.1, 0.2, 0.3, 0.4, 0.5),
        224: _single(0.1, 0.2, 0.3, 0.4, 0.5),
    },
    "contrast": {
        32: _single(0.75, 0.5, 0.4, 0.3, 0.15),
        64: _single(0.4, 0.3, 0.2, 0.1, 0.05),
        224: _single(0.4, 0.3, 0.2, 0.1, 0.05),
    },
    "saturate": {
        32: ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
        64: ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (30, 0.2)),
        224: ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
    },
    "elastic_transform": {
        32: (
            (0, 0, 0.08),
            (0.05, 0.2, 0.07),
            (0.08, 0.06, 0.06),
            (0.1, 0.04, 0.05),
            (0.1, 0.03, 0.03),
        ),
        64: (
            (0, 0, 0.08),
            (0.05, 0.3, 0.06),
            (0.1, 0.08, 0.06),
            (0.1, 0.03, 0.03),
            (0.16, 0.03, 0.02),
        ),
        224: _elastic_224(
            (2, 0.7, 0.1),
            (2, 0.08, 0.2),
            (0.05, 0.01, 0.02),
            (0.07, 0.01, 0.02),
            (0.12, 0.01, 0.02),
        ),
    },
    "spatter": {
        32: (
            (0.62, 0.1, 0.7, 0.7, 0.5, 0),
            (0.65, 0.1, 0.8, 0.7, 0.5, 0),
            (0.65, 0.3, 1, 0.69, 0.5, 0),
            (0.65, 0.1, 0.7, 0.69, 0.6, 1),
            (0.65, 0.1, 0.5, 0.68, 0.6, 1),
        ),
        64: (
            (0.62, 0.1, 0.7, 0.7, 0.6, 0),
            (0.65, 0.1, 0.8, 0.7, 0.6, 0),
            (0.65, 0.3, 1, 0.69, 0.6, 0),
            (0.65, 0.1, 0.7, 0.68, 0.6, 1),
            (0.65, 0.1, 0.5, 0.67, 0.6, 1),
        ),
        224: (
            (0.65, 0.3, 4, 0.69, 0.6, 0),
            (0.65, 0.3, 3, 0.68, 0.6, 0),
            (0.65, 0.3, 2, 0.68, 0.5, 0),
            (0.65, 0.3, 1, 0.65, 1.5, 1),
            (0.67, 0.4, 1, 0.65, 1.5, 1),
        ),
    },
    "pixelate": {
        32: _single(0.95, 0.9, 0.85, 0.75, 0.65),
        64: _single(0.9, 0.8, 0.7, 0.6, 0.5),
        224: _single(0.6, 0.5, 0.4, 0.3, 0.25),
    },
    "jpeg_compression": {
        32: _single(80, 65, 58, 50, 40),
        64: _single(65, 58, 50, 40, 25),
        224: _single(25, 18, 15, 10, 7),
    },
}
EXTRA_CORRUPTIONS = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
CORRUPTIONS = tuple(name for name in TABLES if name not in EXTRA_CORRUPTIONS)


def native_size(height: int, width: int) -> int:
    """The size whose parameters an image gets: the nearest to its shorter side, by ratio."""
    side = min(height, width)
    return min(NATIVE_SIZES, key=lambda size: abs(math.log(side / size)))


def parameters(name: str, severity: int, size: int) -> Parameters:
    """The numbers that a corruption's function takes; `frost_procedural` has frost's."""
    return TABLES["frost" if name == FROST_PROCEDURAL else name][size][severity - 1]
