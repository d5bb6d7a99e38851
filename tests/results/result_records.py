"""Records and run folders for the tests of this folder."""

import yaml

from ser_lightning.corruptions import CORRUPTIONS, PERTURBATIONS
from ser_lightning.results.record import ResultRecord, write_record


def record(stage="linear", dataset="imagenet1k", **changes):
    """A valid record of a checkpoint whose hash is 64 times one letter."""
    defaults = {
        "stage": stage,
        "dataset": dataset,
        "checkpoint": "runs/a/checkpoints/last.ckpt",
        "checkpoint_sha256": "a" * 64,
        "weights_key": "student",
        "layer": None,
        "cls_layer": 3,
        "feature": {"blocks": [9, 10, 11, 12], "pooling": "cls"},
        "transform": {"resize": 256, "crop": 224},
        "protocol": {"epochs": 50},
        "seed": 0,
        "data_root": "/data/imagenet",
        "num_samples": 50_000,
        "class_map_sha256": None,
        "metrics": {"top1": 69.0},
        "counts": {"top1_hits": 34_500},
        "unofficial_reasons": (),
        "wall_seconds": 12.5,
    }
    return ResultRecord(**{**defaults, **changes})


def corrupted(error, clean=None, severities=(1, 2, 3, 4, 5), **changes):
    """A record of imagenet-c with the same error rate for all corruptions and severities.

    Args:
        error: that rate, of 1000 images; or the rates by corruption and severity.
        clean: rate on clean images.
        severities: measured ones.
        changes: further fields.
    """
    if not isinstance(error, dict):
        error = {name: dict.fromkeys(severities, error) for name in CORRUPTIONS}
    rates = {f"{name}/{s}": e for name, of in error.items() for s, e in of.items()}
    rates |= {} if clean is None else {"clean": clean}
    counts = {f"samples/{key}": 1000 for key in rates}
    counts |= {f"hits/{key}": round(1000 * (1 - e)) for key, e in rates.items()}
    protocol = {"severities": list(severities), "generated": False}
    made = {"protocol": protocol, "counts": counts, "metrics": {"top1/avg": 50.0}, **changes}
    return record("imagenet-c", made.pop("dataset", "imagenet_c"), **made)


def perturbed(flips=4.0, distance=2.0, videos=10, **changes):
    """A record of imagenet-p with equal numbers for all perturbations."""
    metrics = {f"flip_probability/{name}": flips for name in PERTURBATIONS}
    metrics |= {f"top5_distance/{name}": distance for name in PERTURBATIONS}
    counts = {f"videos/{name}": videos for name in PERTURBATIONS}
    protocol = {"generated": False, "frame_stride": 1, "difficulty": 1}
    made = {"metrics": metrics, "counts": counts, "protocol": protocol, **changes}
    return record("imagenet-p", made.pop("dataset", "imagenet_p"), **made)


def alexnet(**changes):
    """What AlexNet does on the videos of `perturbed`."""
    return perturbed(network="alexnet", checkpoint=None, checkpoint_sha256=None, **changes)


def config(objective="MoCoV3", regularizer="SERRegularizer", weight=1.0, layer=3, local=None):
    """What fit.yaml holds of the paper's run."""
    package = "ser_lightning"
    ser = {"class_path": f"{package}.regularizers.{regularizer}", "init_args": {"weight": weight}}
    backbone = {"name": "vit_small_patch16_224", "layer": layer, "vit_options": None}
    invertible = {"class_path": f"{package}.data.InvertibleViews", "init_args": {"ratio": 0.01}}
    return {
        "seed_everything": 0,
        "trainer": {"max_epochs": 100, "max_steps": -1, "devices": 8},
        "model": {
            "class_path": f"{package}.objectives.x.{objective}",
            "init_args": {
                "backbone": {"class_path": f"{package}.SplitViT", "init_args": backbone},
                "regularizer": ser if regularizer else None,
            },
        },
        "data": {
            "source": {"class_path": f"{package}.data.ImageFolder"},
            "global_batch_size": 2048,
            "crop": {"class_path": f"{package}.data.CropViews", "init_args": {"local": local}},
            "invertible": invertible if regularizer else None,
            "num_workers": 8,
        },
    }


def run_folder(folder, records, configuration=None):
    """A run folder with its configuration and records."""
    folder.mkdir(parents=True, exist_ok=True)
    if configuration is not None:
        (folder / "fit.yaml").write_text(yaml.safe_dump(configuration))
    for i, item in enumerate(records):
        write_record(item, folder, f"v{i}")
    return folder
