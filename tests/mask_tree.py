"""Tiny sets of images and masks in their true layouts, written by tests: coloured rectangles."""

import numpy as np
from PIL import Image

COLOURS = [(20, 20, 20), (230, 40, 40), (40, 200, 60), (50, 60, 230)]  # by class; 0 is background
IGNORED = 255


def pair(rng, height, width, num_classes=4):
    """An image and its mask: two rectangles of some class, and a first row that does not count."""
    mask = np.zeros((height, width), np.uint8)
    for _ in range(2):
        top, left = rng.integers(0, height // 2), rng.integers(0, width // 2)
        label = rng.integers(1, num_classes)
        mask[top : top + height // 2, left : left + width // 2] = label
    image = np.array(COLOURS, np.uint8)[mask % len(COLOURS)]
    mask[0] = IGNORED
    return image, mask


def save(root, image, mask, image_path, mask_path, palette=False):
    """Writes an image and its mask, with a palette of colours as VOC's have or as gray levels."""
    for path in (image_path, mask_path):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(root / image_path, quality=95)
    picture = Image.fromarray(mask)
    if palette:
        picture.putpalette([v for n in range(256) for v in (n * 67 % 256, n * 31 % 256, n)])
    picture.save(root / mask_path)


def sizes(number):
    """Height and width of an image, of several shapes."""
    return (24 + 4 * (number % 3), 32 - 4 * (number % 2))


def write_own(root, layout="{split}/{kind}", splits=(("train", 12), ("val", 5)), seed=0):
    """Writes `images` and `masks`; the layout says where, by split and kind."""
    rng = np.random.default_rng(seed)
    for split, count in splits:
        for number in range(count):
            where = [layout.format(split=split, kind=kind) for kind in ("images", "masks")]
            files = f"{where[0]}/{split}{number}.jpg", f"{where[1]}/{split}{number}.png"
            save(root, *pair(rng, *sizes(number)), *files)
    return root


def write_voc(root, counts=(6, 3)):
    """Writes VOCdevkit/VOC2012 with palette masks, and an image that is in no list."""
    rng = np.random.default_rng(0)
    base = root / "VOCdevkit" / "VOC2012"
    lists = base / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split, count in zip(("train", "val"), counts, strict=True):
        names = [f"2007_{split}{number}" for number in range(count)]
        (lists / f"{split}.txt").write_text("\n".join(names) + "\n")
        for number, name in enumerate([*names, f"{split}_of_another_task"]):
            image, mask = pair(rng, *sizes(number))
            mask[mask == 3] = 20  # the last class
            files = f"JPEGImages/{name}.jpg", f"SegmentationClass/{name}.png"
            save(base, image, mask, *files, palette=True)
    return root


def write_ade(root, counts=(6, 3)):
    """Writes ADEChallengeData2016: 0 is everything else, 1 to 150 are the classes."""
    rng = np.random.default_rng(0)
    base = root / "ADEChallengeData2016"
    for split, count in zip(("training", "validation"), counts, strict=True):
        for number in range(count):
            image, mask = pair(rng, *sizes(number))
            mask[mask == IGNORED] = 0
            mask[mask == 3] = 150
            name = f"ADE_{split}_{number:08d}"
            save(base, image, mask, f"images/{split}/{name}.jpg", f"annotations/{split}/{name}.png")
    names = ["Idx\tRatio\tTrain\tVal\tStuff\tName"]
    names += [f"{n}\t0.1\t1\t1\t0\tthing {n}, thing" for n in range(1, 151)]
    (base / "objectInfo150.txt").write_text("\n".join(names) + "\n")
    return root
