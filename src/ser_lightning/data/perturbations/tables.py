"""Names, lengths and parameters of the generated perturbation sequences at three native sizes.

Source: Hendrycks and Dietterich, "Benchmarking neural network robustness to common corruptions
and perturbations"; the sizes are those of ImageNet-P, Tiny-ImageNet-P and CIFAR-10-P.
"""

from collections.abc import Mapping
from typing import Literal

PERTURBATIONS = (
    "gaussian_noise",
    "shot_noise",
    "motion_blur",
    "zoom_blur",
    "snow",
    "brightness",
    "translate",
    "rotate",
    "tilt",
    "scale",
)
EXTRA_PERTURBATIONS = ("speckle_noise", "gaussian_blur", "spatter", "shear")

# A prediction flips if it differs from that of this frame. Frames of noise have no order, so that
# all are compared with the clean first one.
REFERENCE: Mapping[str, Literal["first", "previous"]] = {
    name: "first" if name.endswith("_noise") else "previous"
    for name in (*PERTURBATIONS, *EXTRA_PERTURBATIONS)
}

_NUM_FRAMES = 31
_OTHER_LENGTHS: Mapping[str, Mapping[int, int]] = {
    "motion_blur": {32: 21},
    "translate": {32: 16, 224: 41},
}

# What the numbers of a tuple are is said by the function of that name in `sequence`.
TABLES: Mapping[str, Mapping[int, tuple[float, ...]]] = {
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


def num_official_frames(name: str, size: int) -> int:
    """How many frames the official sequence of a name has at a native size."""
    return _OTHER_LENGTHS.get(name, {}).get(size, _NUM_FRAMES)
