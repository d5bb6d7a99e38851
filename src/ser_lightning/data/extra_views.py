"""Settings of further views: local crops and rotated crops.

The two global crops are `CropViews` in `pipelines.py`.
"""

from dataclasses import dataclass

from ser_lightning.data.photometric import PhotometricRecipe
from ser_lightning.numbers import PositiveInt, RatioInterval, checked

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
