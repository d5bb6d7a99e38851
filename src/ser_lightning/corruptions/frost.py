"""Frost: a weighted sum of the image and a photograph of ice, or of a grown texture."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator
from PIL import Image
from torch import Tensor

from ser_lightning.corruptions.filters import smear, to_uint8
from ser_lightning.corruptions.weather import plasma

# the official script comes with a sixth one, which it never draws
FROST_FILES = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")
_SCALES = {32: 0.2, 64: 0.3, 224: 1.0}
_TINT = (0.95, 0.99, 1.03)  # ice is a little blue


def frost(
    image: Tensor,
    rng: Generator,
    image_share: float,
    frost_share: float,
    *,
    frost_dir: Path,
    size: int,
) -> Tensor:
    """Adds a random part of one of the official photographs, reduced for the native size.

    Raises:
        ValueError: a photograph is missing, damaged, or smaller than the image.
    """
    path = frost_dir / FROST_FILES[rng.integers(len(FROST_FILES))]
    ice = _photograph(path, _SCALES[size])
    height, width = image.shape[-2:]
    room = (ice.shape[1] - height, ice.shape[2] - width)
    if min(room) <= 0:
        raise ValueError(
            f"{path} has {ice.shape[1]} x {ice.shape[2]} pixels after reduction, an image has "
            f"{height} x {width}; frost needs photographs larger than the images"
        )
    top, left = (int(rng.integers(number)) for number in room)
    part = ice[:, top : top + height, left : left + width]
    return to_uint8(image.float().mul_(image_share).add_(part, alpha=frost_share))


@lru_cache(maxsize=len(FROST_FILES))
def _photograph(path: Path, scale: float) -> Tensor:
    """(3, H, W) float levels, bilinearly reduced without antialiasing, as officially."""
    if not path.is_file():
        raise ValueError(
            f"{path} is missing; frost_dir must hold the official {', '.join(FROST_FILES)}"
        )
    try:
        with Image.open(path) as file:
            pixels = torch.from_numpy(np.array(file.convert("RGB"))).permute(2, 0, 1).float()
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); fetch the photograph again") from error
    if scale != 1:
        size = [round(side * scale) for side in pixels.shape[1:]]
        pixels = F.interpolate(pixels[None], size, mode="bilinear")[0].round_()
    return pixels.contiguous()


def frost_procedural(
    image: Tensor, rng: Generator, image_share: float, frost_share: float
) -> Tensor:
    """Adds a texture of clouded ice with needles instead of a photograph. Not official.

    Its mean is that of the photographs (about 160), which decides how pale the image becomes; its
    structure is not theirs, so accuracies are not comparable.
    """
    height, width = image.shape[-2:]
    side = max(height, width)
    ice = torch.from_numpy(plasma(side, 1.8, rng)[:height, :width]).float().mul_(90).add_(95)
    seeds = torch.from_numpy(rng.random((1, height, width), dtype=np.float32) > 0.98).float()
    for angle in rng.uniform(0, 360, 3):
        needles = smear(seeds * 255, max(2, side / 12), max(1, side / 24), float(angle))
        ice = torch.maximum(ice, needles[0].mul_(4).add_(115).clamp_(max=235))
    levels = ice * torch.tensor(_TINT)[:, None, None]
    return to_uint8(image.float().mul_(image_share).add_(levels, alpha=frost_share))
