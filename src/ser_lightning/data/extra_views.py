"""Settings of further views: local crops, rotated crops, and crops turned each on its own.

The two global crops are `CropViews` in `pipelines.py`.
"""

from collections.abc import Set
from dataclasses import dataclass

import numpy as np

from ser_lightning.data.photometric import PhotometricRecipe
from ser_lightning.numbers import Angle, PositiveInt, Ratio, RatioInterval, checked

# Source: DINO, local views. Differs: SER's public 2+4 code, which cites DINO, has no grayscale
# here (p_gray 0, here 0.2).
DINO_LOCAL_VIEW = PhotometricRecipe(p_blur=0.5)
ROTATED_VIEW = PhotometricRecipe(p_blur=0.1)


@checked
@dataclass(frozen=True)
class LocalCrops:
    """Additional small views of every image, cut from a small part of it.

    Source: SER, "2+4 views"; DINO, multi-crop, with 8 crops of area 0.05-0.4.

    Args:
        num: local views of an image. With an invertible sub-batch they come in pairs: an even
            number.
        size: side of a local view in pixels, a multiple of the patch size.
        scale: smallest and largest area of a local crop, as a share of the image.
        view: colours of the local views (DINO: blurred half of the time, never solarized).
    """

    num: PositiveInt = 4
    size: PositiveInt = 96
    scale: RatioInterval = (0.05, 0.25)
    view: PhotometricRecipe = DINO_LOCAL_VIEW


@checked
@dataclass(frozen=True)
class RotatedCrops:
    """A small crop of every image, seen in each of its four quarter turns.

    Source: E-SSL, rotation prediction on ImageNet.

    Args:
        size: side of the crop in pixels, a multiple of the patch size; less than E-SSL's 96 where
            images are smaller than 224.
        scale: smallest and largest area of the crop, as a share of the image.
        view: its colours, the same in all four turns (E-SSL: rarely blurred, never solarized).
    """

    size: PositiveInt = 96
    scale: RatioInterval = (0.05, 0.14)
    view: PhotometricRecipe = ROTATED_VIEW


@checked
@dataclass(frozen=True)
class TurnedCrops:
    """A share of the crop sub-batch whose global crops are turned, each view on its own.

    `OverlapRegularizer` compares such views where they overlap; the invariance objective sees them
    as they are. Corners that lie outside of the crop are reflected.

    Args:
        ratio: share of the crop sub-batch, the same as the add-on's.
        angle: degrees up to which a view is turned either way; null for exact quarter turns, each
            of the four equally likely.

    Raises:
        ValueError: the angle is 0.
    """

    ratio: Ratio = 0.01
    angle: Angle | None = None

    def __post_init__(self) -> None:
        if self.angle == 0:
            raise ValueError(
                "`data.crop.turned.angle` 0 turns no crop; give more degrees, null for quarter "
                "turns, or set `data.crop.turned` to null"
            )

    def degrees(self, uniforms: np.ndarray) -> np.ndarray:
        """Degrees counter-clockwise from (B,) uniform numbers in [0, 1)."""
        if self.angle is None:
            return 90 * np.floor(4 * uniforms)
        return self.angle * (2 * uniforms - 1)


def check_turned(turned: TurnedCrops, add_on: str | None, compared: Set[float]) -> None:
    """Refuses, by ValueError, turned crops other than those that the add-on compares.

    Args:
        turned: which crops are turned.
        add_on: name of the add-on; None without one.
        compared: shares of the crop sub-batch that it compares.
    """
    turns = f"`data.crop.turned` turns {turned.ratio:g} of the crops, but"
    if not compared:
        nothing = f"{add_on} compares none" if add_on else "without an add-on nothing compares them"
        raise ValueError(
            f"{turns} {nothing}; set it to null, or use OverlapRegularizer with the same `ratio` "
            "(and `weight` 0 for a control)"
        )
    if compared != {turned.ratio}:
        shares = " and ".join(f"{share:g}" for share in sorted(compared))
        raise ValueError(
            f"{turns} {add_on} compares {shares}, other images; give "
            "`data.crop.turned.ratio` and the add-on's `ratio` the same value"
        )


def check_size(name: str, size: int, patch_size: int) -> None:
    """Refuses, by ValueError, images that patches do not tile."""
    if size % patch_size:
        nearest = max(round(size / patch_size), 1) * patch_size
        raise ValueError(
            f"{name} {size} is not a multiple of the patch size {patch_size}; use {nearest}"
        )


def check_local(local: LocalCrops, patch_size: int, in_pairs: bool) -> None:
    """Refuses, by ValueError, local crops that patches do not tile, or an odd number of pairs."""
    check_size("local crop size", local.size, patch_size)
    if in_pairs and local.num % 2:
        raise ValueError(
            f"{local.num} local crops do not form pairs, as the invertible sub-batch needs; use "
            f"{local.num + 1}, or set `data.invertible` to null"
        )
