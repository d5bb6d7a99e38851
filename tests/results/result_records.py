"""Records and run folders for the tests of this folder."""

import yaml

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
