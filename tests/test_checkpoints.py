"""What version 0.1.0 stored is read in today's words: from checkpoints, and from run folders."""

from importlib import import_module
from pathlib import Path

import pytest
import torch

from ser_lightning.checkpoints import (
    CHECKPOINT_KEY,
    MOVED,
    RENAMED,
    checkpoint_config,
    read_config,
    upgraded,
)

STORED = (Path(__file__).parent / "runtime" / "fit_0.1.0.yaml").read_text()
CLASSES = {  # what a configuration of version 0.1.0 could name, by its module then
    "backbones": ["SplitViT"],
    "data": [
        "CropViews", "FashionMNISTFiles", "ImageFolder", "InvertibleViews", "LocalCrops",
        "PhotometricRecipe", "RotatedCrops", "Shapes", "TorchvisionSet",
    ],
    "data.bench3d": ["ObjectDataModule", "ThreeDIEBench"],
    "data.benchmarks": ["CorruptedDataModule", "PerturbedDataModule", "ShiftedDataModule"],
    "data.coco": ["CocoDetection"],
    "data.crops": ["LocalCrops", "RotatedCrops"],
    "data.detection": ["DetectionDataModule"],
    "data.fashion_mnist": ["FashionMNISTFiles"],
    "data.finetune": ["FinetuneDataModule"],
    "data.folder": ["ImageFolder"],
    "data.labelled": ["LabelledDataModule"],
    "data.photometric": ["PhotometricRecipe"],
    "data.shapes": ["Shapes"],
    "data.sources.folder": ["ImageFolder"],
    "data.torchvision_set": ["TorchvisionSet"],
    "data.views": ["CropViews", "InvertibleViews"],
    "evaluation.stages.imagenet_c": ["CorruptionStage"],
    "evaluation.stages.imagenet_p": ["PerturbationStage"],
    "evaluation.stages.knn": ["KNNStage"],
    "groups": ["GroupSampler"],
    "objectives.dino": ["DINO"],
    "objectives.moco_v3": ["MoCoV3"],
    "regularizers": ["PerLayer", "SERRegularizer"],
    "regularizers.augself": ["AugSelf"],
    "runtime": ["ProgressLines"],
}  # fmt: skip
PATHS = [f"ser_lightning.{module}.{name}" for module, names in CLASSES.items() for name in names]


@pytest.mark.parametrize("path", PATHS)
def test_class_of_an_earlier_version_is_found(path):
    node = upgraded({"section": [{"class_path": path, "init_args": {"kept": 1}}]})["section"][0]
    module, _, name = node["class_path"].rpartition(".")
    assert hasattr(import_module(module), name), node["class_path"]
    assert node["init_args"] == {"kept": 1}
    assert upgraded(node) == node


def test_every_move_is_tried():
    parts = [path.rpartition(".") for path in PATHS]
    assert RENAMED.keys() <= {name for _, _, name in parts}
    renamed = [f"{module}.{RENAMED.get(name, name)}" for module, _, name in parts]
    assert all(any(path.startswith(old) for path in renamed) for old in MOVED)


def test_short_name_of_an_earlier_version_is_found():
    assert upgraded({"class_path": "CorruptionStage"}) == {"class_path": "ImageNetCStage"}
    assert upgraded({"class_path": "torch.optim.AdamW"}) == {"class_path": "torch.optim.AdamW"}


def test_checkpoint_tells_its_configuration(tmp_path):
    torch.save({CHECKPOINT_KEY: {"config": STORED}}, tmp_path / "old.ckpt")
    torch.save({}, tmp_path / "none.ckpt")
    assert checkpoint_config(tmp_path / "old.ckpt") == read_config(STORED)
    assert checkpoint_config(tmp_path / "none.ckpt") is None
