"""A tiny 3DIEBench in its true layout, written by tests: each view has a shade of its own."""

import numpy as np
from PIL import Image

SYNSETS = ("02691156", "02747177", "04554684")
NUM_VIEWS = 50


def shade(view):
    """The green value of a view."""
    return 5 * view


def write_objects(root, split, per_class):
    """Writes the views and the lists of a split: objects of a class are alike but for the view."""
    objects, labels = [], []
    for number in range(per_class):
        for label, synset in enumerate(SYNSETS):
            folder = root / synset / f"{split}{number}"
            folder.mkdir(parents=True)
            for view in range(NUM_VIEWS):
                colour = (100 * label, shade(view), 100)
                Image.new("RGB", (8, 8), colour).save(folder / f"image_{view}.jpg", quality=95)
            objects.append(f"/{synset}/{folder.name}/")  # as the official lists have them
            labels.append(label)
    np.save(root / f"{split}_images.npy", np.array(objects))
    np.save(root / f"{split}_labels.npy", np.array(labels))


def write_bench(root, num_train=8, num_val=2):
    """Writes `num_train` and `num_val` objects of each of three classes."""
    write_objects(root, "train", num_train)
    write_objects(root, "val", num_val)
    return root
