"""A tiny COCO in its true layout: coloured rectangles on black, written by tests."""

import json

import numpy as np
from PIL import Image

from ser_lightning.sources.released import coco_categories

COLOURS = {1: (250, 20, 20), 3: (20, 250, 20), 90: (20, 20, 250)}  # raw ids, with gaps
# (width, height) of an image and its boxes: category, x, y, width, height, crowd
WIDE = ((48, 32), [(1, 4, 6, 16, 20, 0), (90, 30, 2, 10, 12, 0)])
TALL = ((32, 48), [(3, 6, 20, 20, 18, 0)])
EMPTY = ((40, 40), [])
CROWD = ((48, 40), [(1, 0, 0, 30, 30, 1)])
LINE = ((40, 48), [(3, 5, 5, 0, 9, 0)])
PARTLY = ((44, 32), [(90, 2, 2, 20, 24, 0), (90, 24, 4, 18, 20, 1)])


def write_split(root, name, contents, first_id=100):
    """Writes one split; image ids are `first_id`, then every third number."""
    (root / name).mkdir(parents=True)
    images, annotations = [], []
    for number, ((width, height), boxes) in enumerate(contents):
        image_id = first_id + 3 * number
        pixels = np.zeros((height, width, 3), np.uint8)
        for category, x, y, w, h, crowd in boxes:
            pixels[y : y + h, x : x + w] = COLOURS[category]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category,
                    "bbox": [x, y, w, h],
                    "area": 0.75 * w * h,
                    "iscrowd": crowd,
                    "segmentation": [],
                }
            )
        file = f"{image_id:012d}.png"
        Image.fromarray(pixels).save(root / name / file)
        images.append({"id": image_id, "file_name": file, "width": width, "height": height})
    content = {
        "images": images[::-1],  # files need not be sorted
        "annotations": annotations[::-1],
        "categories": [{"id": number, "name": name} for number, name in coco_categories().items()],
    }
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / f"instances_{name}.json").write_text(json.dumps(content))


def write_coco(root):
    """Writes 8 training images, 6 of them with objects, and 5 for the test."""
    write_split(root, "train2017", [WIDE, TALL, WIDE, EMPTY, PARTLY, CROWD, TALL, WIDE])
    write_split(root, "val2017", [TALL, WIDE, EMPTY, PARTLY, CROWD], first_id=500)
    return root
