"""A tiny 3DIEBench in its true layout, written by tests: each view has a shade of its own."""

import numpy as np
from PIL import Image

SYNSETS = ("02691156", "02747177", "04554684")
NUM_VIEWS = 50


def shade(view):
    """The green value of a view."""
    return 5 * view


def write_latents(folder, view, rng, high=np.pi / 2, low=0.0, num=7):
    """A view's latents: random angles from `low` to `high` of either sign; its shade is a hue."""
    angles = rng.uniform(low, high, 3) * rng.choice([-1, 1], 3)
    light = rng.uniform(size=2) * (np.pi / 4, 2 * np.pi)
    moved = rng.uniform(-0.5, 0.5, num - 7)
    hues = shade(view) / 250, rng.uniform()
    np.save(folder / f"latent_{view}.npy", np.array([*angles, hues[0], *light, hues[1], *moved]))


def write_objects(root, split, per_class, num_latents=7):
    """Writes the views and the lists of a split: objects of a class are alike but for the view."""
    objects, labels = [], []
    rng = np.random.default_rng(len(split))
    for number in range(per_class):
        for label, synset in enumerate(SYNSETS):
            folder = root / synset / f"{split}{number}"
            folder.mkdir(parents=True)
            for view in range(NUM_VIEWS):
                colour = (100 * label, shade(view), 100)
                Image.new("RGB", (8, 8), colour).save(folder / f"image_{view}.jpg", quality=95)
                write_latents(folder, view, rng, num=num_latents)
            objects.append(f"/{synset}/{folder.name}/")  # as the official lists have them
            labels.append(label)
    np.save(root / f"{split}_images.npy", np.array(objects))
    np.save(root / f"{split}_labels.npy", np.array(labels))


def write_bench(root, num_train=8, num_val=2, num_latents=7):
    """Writes `num_train` and `num_val` objects of each of three classes."""
    write_objects(root, "train", num_train, num_latents)
    write_objects(root, "val", num_val, num_latents)
    return root


def write_out_of_range(root, objects, num_views):
    """Writes the first views of some objects, seen from angles of more than a quarter turn."""
    rng = np.random.default_rng(1)
    for name in objects:
        folder = root / name
        folder.mkdir(parents=True)
        for view in range(num_views):
            Image.new("RGB", (8, 8), (0, shade(view), 9)).save(folder / f"image_{view}.jpg")
            write_latents(folder, view, rng, high=np.pi, low=np.pi / 2)
    return root
