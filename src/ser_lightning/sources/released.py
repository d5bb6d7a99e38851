"""What the released data sets are known by: ImageNet's class folders, and how many files there are.

A measurement on other classes or on fewer files may have the same name, but not the same meaning.
"""

from collections.abc import Mapping
from functools import cache
from importlib.resources import files

from lightning.pytorch.utilities import rank_zero_warn
from timm.data.imagenet_info import ImageNetInfo

from ser_lightning.sources.base import HOLDOUT_STEP, HeldOut, ImageSet, Source

IMAGENET = "imagenet1k"
"""What results on ImageNet's classes are called."""

IMAGENET_TRAIN = 1_281_167
"""Training images of ImageNet-1k."""

IMAGENET_VAL = 50_000
"""Validation images of ImageNet-1k, and of every severity of ImageNet-C."""

RELEASED_SIDE = 224
"""Height and width of ImageNet-C's images and of ImageNet-P's videos, in pixels."""

COCO_VAL = 5_000
"""Images of val2017."""

VOC2012_VAL = 1_449
"""Images of VOC2012's list `val` for segmentation."""

ADE20K_VAL = 2_000
"""Validation images of ADE20K's scene parsing challenge."""

BENCH3D_VAL = 527_600
"""Test images of 3DIEBench: 50 views of each of 10,552 objects."""

CIFAR_CLASSES: Mapping[int, tuple[str, ...]] = {
    10: (
        "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
    ),
    100: (
        "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle",
        "bottle", "bowl", "boy", "bridge", "bus", "butterfly", "camel", "can", "castle",
        "caterpillar", "cattle", "chair", "chimpanzee", "clock", "cloud", "cockroach", "couch",
        "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish", "forest", "fox",
        "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion",
        "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom",
        "oak_tree", "orange", "orchid", "otter", "palm_tree", "pear", "pickup_truck", "pine_tree",
        "plain", "plate", "poppy", "porcupine", "possum", "rabbit", "raccoon", "ray", "road",
        "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper", "snail", "snake",
        "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank",
        "telephone", "television", "tiger", "tractor", "train", "trout", "tulip", "turtle",
        "wardrobe", "whale", "willow_tree", "wolf", "woman", "worm",
    ),
}  # fmt: skip
"""The classes of CIFAR-10 and CIFAR-100, by how many there are, in the order of their ids."""


@cache
def imagenet_synsets() -> tuple[str, ...]:
    """The 1000 class folders of ImageNet-1k, in the order of the class ids."""
    return tuple(ImageNetInfo("imagenet-1k").label_names())


@cache
def imagenet_r_synsets() -> tuple[str, ...]:
    """The 200 class folders of ImageNet-R, sorted."""
    return tuple((files("timm.data") / "_info" / "imagenet_r_synsets.txt").read_text().split())


@cache
def coco_categories() -> dict[int, str]:
    """The 80 categories of COCO 2017, by id."""
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights  # noqa: PLC0415 - slow

    names = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    gaps = ("__background__", "N/A")
    return {number: name for number, name in enumerate(names) if name not in gaps}


def imagenet_name(source: Source) -> str:
    """What results on ImageNet are called; a source of ImageNet adds its unusual options."""
    try:
        is_imagenet = source.train().class_names == imagenet_synsets()
    except (OSError, ValueError):  # the source is not always needed
        is_imagenet = False
    return source.named(IMAGENET) if is_imagenet else IMAGENET


def count_reasons(found: Mapping[str, int], *released: int) -> tuple[str, ...]:
    """A reason for the record, and a warning, where sets have other numbers of files than released.

    `found` has the number of files by set, `released` the right ones.
    """
    wrong = {name: number for name, number in found.items() if number not in released}
    if not wrong:
        return ()
    some = ", ".join(f"{name} has {number:,}" for name, number in list(wrong.items())[:3])
    more = f" (and {len(wrong) - 3} more like it)" if len(wrong) > 3 else ""
    right = " or ".join(f"{number:,}" for number in released)
    message = f"{some} files{more}, the released set has {right}"
    rank_zero_warn(f"{message}; fetch it again, or its numbers are not comparable")
    return (message,)


def held_out_reasons(images: ImageSet) -> tuple[str, ...]:
    """A reason for the record where a source without an evaluation split kept training images."""
    if not isinstance(images, HeldOut):
        return ()
    every = f"every {HOLDOUT_STEP}th training image of each class"
    return (f"tested on {every}, there is no evaluation split",)
