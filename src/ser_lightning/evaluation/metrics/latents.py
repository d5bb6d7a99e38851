"""What two views of an object differ by, and how much of it is told: R2.

Sources: SIE's public code (eval_angle_prediction.py, eval_color_prediction.py); EquiCaps' for
translations in 3DIEBench-T.
"""

from collections.abc import Mapping

import numpy as np
from scipy.spatial.transform import Rotation
from torch import Tensor
from torchmetrics.functional.regression import r2_score

from ser_lightning.sources.threediebench import NUM_TRANSLATED

_HUES = [3, 6]  # of the floor and of the light


def relative_latents(first: np.ndarray, second: np.ndarray) -> dict[str, np.ndarray]:
    """From latents of two views of each object to what leads from one to the other.

    Args:
        first: (N, 7) or, with translations, (N, 10) latents; see `NUM_LATENTS`.
        second: the same of the other view.

    Returns:
        `rotation`, (N, 4) quaternions x, y, z, w of R1^-1 R2, where R turns about the fixed axes
        x, y and z; their sign is that of the product, as in the source. `colour`, (N, 2)
        differences of the hues of floor and light, not around the circle. With translations t
        also `translation_object`, (N, 3) differences of t, and `translation_base`, of R t. All
        float32.
    """
    turned = [Rotation.from_euler("xyz", latents[:, :3]) for latents in (first, second)]
    found = {
        "rotation": (turned[0].inv() * turned[1]).as_quat(),
        "colour": second[:, _HUES] - first[:, _HUES],
    }
    if first.shape[1] == NUM_TRANSLATED:
        moved = first[:, 7:], second[:, 7:]
        found["translation_object"] = moved[1] - moved[0]
        found["translation_base"] = turned[1].apply(moved[1]) - turned[0].apply(moved[0])
    return {name: values.astype(np.float32) for name, values in found.items()}


def target_widths(num_latents: int) -> Mapping[str, int]:
    """How many numbers each target has, in the order of `relative_latents`."""
    nothing = np.zeros((1, num_latents))
    return {name: values.shape[1] for name, values in relative_latents(nothing, nothing).items()}


def joint_r2(predicted: Tensor, truth: Tensor) -> float:
    """1 - sum (t - p)^2 / sum (t - mean t)^2 over all (N, T) numbers, with one mean for all.

    As in the source. The mean of each of the T numbers apart would give another value.
    """
    flat = predicted.double().flatten(), truth.double().flatten()
    return float(r2_score(*flat))
