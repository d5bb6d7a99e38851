"""One pass over clean images, kept on disk and shared by the stages that read frozen features."""

import hashlib
import json
import math
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ser_lightning.backbones import SplitViT
from ser_lightning.batch import EvaluationBatch
from ser_lightning.data.labelled import LabelledDataModule, Split
from ser_lightning.data.plan import BatchKey, Plan
from ser_lightning.distributed import gather

MAX_LAYERS = 4  # the linear probe reads [CLS] of the last four blocks


class Features(NamedTuple):
    """Frozen features of a split, in its order.

    Attributes:
        cls: (N, layers, C) float32 [CLS] tokens of the last blocks, each through the final norm,
            the last one last; a memory map, so that reading rows reads these rows only.
        label: (N,) int64 classes.
    """

    cls: np.ndarray
    label: Tensor

    def embeddings(self) -> Tensor:
        """(N, C) final [CLS] embeddings."""
        return torch.from_numpy(np.array(self.cls[:, -1]))

    def concatenated(self, num_layers: int) -> Tensor:
        """(N, num_layers * C) the [CLS] tokens of the last blocks, side by side."""
        return torch.from_numpy(np.array(self.cls[:, -num_layers:])).flatten(1)


def cls_layers(backbone: SplitViT) -> list[int]:
    """The last blocks after which there is a [CLS] token, at most four.

    Differs: the public evaluation reads a patch token in place of [CLS] from blocks that have
    none; here such blocks are left out, and a record says which were read.
    """
    first = backbone.cls_layer + (backbone.cls_layer > 0)
    return list(range(max(first, backbone.depth - MAX_LAYERS + 1, 1), backbone.depth + 1))


class FeaturePass(L.LightningModule):
    """Writes the features of a clean loader into a file, each process its own rows.

    Args:
        backbone: frozen.
        path: the `.npy` file to make, in a folder that is there.
        num_images: of the split, over all processes.
    """

    def __init__(self, backbone: SplitViT, path: Path, num_images: int) -> None:
        super().__init__()
        # A split may have fewer images than there are processes.
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.backbone = backbone
        self.layers = cls_layers(backbone)
        self.path = path
        self.shape = (num_images, len(self.layers), backbone.width)
        self.rows: Any = None  # the memory map, from `setup` on
        self.num_written = 0  # by this process

    def setup(self, stage: str) -> None:
        """Makes the file on one process and opens it on all: here they can wait for it."""
        if self.trainer.is_global_zero:
            np.lib.format.open_memmap(self.path, "w+", np.float32, self.shape).flush()
        self.trainer.strategy.barrier("features allocated")
        self.rows = np.load(self.path, mmap_mode="r+")

    def test_step(self, batch: EvaluationBatch, batch_idx: int) -> None:
        """Computes the [CLS] tokens of a batch."""
        tokens = self.backbone.cls_tokens(batch.pixels, self.layers)
        self.rows[batch.indices.cpu().numpy()] = torch.stack(tokens, 1).float().cpu().numpy()
        self.num_written += len(batch.indices)

    def on_test_end(self) -> None:
        """Writes what is still in memory."""
        self.rows.flush()


def cached_features(
    backbone: SplitViT,
    checkpoint_hash: str,
    data: LabelledDataModule,
    split: Split,
    trainer: L.Trainer,
    run_dir: Path,
) -> Features:
    """Computes the features of a split, or finds them from an earlier stage.

    Every rank calls it. The cache's key is what the features depend on: checkpoint, images and
    their preparation, layers, precision. A file appears complete or not at all.

    Args:
        backbone: frozen.
        checkpoint_hash: names its weights: file hash and branch.
        data: gives the clean loader.
        split: which images.
        trainer: runs the pass; its devices share the work.
        run_dir: folder of the run, on a disk that all processes see; the cache is in `features/`.
    """
    data.setup("test")
    images = data.images(split)
    layers = cls_layers(backbone)
    protocol = {
        "checkpoint": checkpoint_hash,
        "split": split,
        "num_images": len(images),
        "labels": hashlib.sha256(images.labels.numpy().tobytes()).hexdigest(),
        "source": _plain(data.source),
        "images": data.describe(),
        "num_train": data.num_train,
        "num_test": data.num_test,
        "holdout_fraction": data.holdout_fraction,
        "layers": layers,
        "precision": str(trainer.precision),
    }
    key = hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()[:24]
    folder = run_dir / "features"
    final, partial = folder / key, folder / f"{key}.partial"
    if not (final / "cls.npy").is_file():
        if trainer.is_global_zero:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            (partial / "protocol.json").write_text(json.dumps(protocol, indent=2))
        writer = FeaturePass(backbone, partial / "cls.npy", len(images))
        trainer.test(writer, data.clean_loader(split), verbose=False)
        _check_complete(writer)
        if trainer.is_global_zero:
            partial.rename(final)
        trainer.strategy.barrier("features in place")
    return Features(np.load(final / "cls.npy", mmap_mode="r"), images.labels)


def _check_complete(writer: FeaturePass) -> None:
    """Waits for all processes, and refuses a pass that has left images out."""
    num_written = int(gather(torch.tensor([writer.num_written])).sum())
    if num_written != writer.shape[0]:
        raise ValueError(
            f"the pass computed features of {num_written} of {writer.shape[0]} images; run the "
            "stage without limits on its batches"
        )


def _plain(source: Any) -> dict[str, str]:
    """What a source was made from, for a cache's key: class, and arguments kept as attributes."""
    simple = {k: str(v) for k, v in vars(source).items() if isinstance(v, str | int | float | Path)}
    return {"class": type(source).__name__, **simple}


class FeatureBatch(NamedTuple):
    """Frozen features in the place of images.

    Attributes:
        features: (B, D) [CLS] tokens of some blocks, side by side.
        label: (B,) class labels.
    """

    features: Tensor
    label: Tensor


class TrainingRows(Dataset):
    """Maps a `BatchKey` to this rank's rows of the features.

    Args:
        features: of the training split.
        num_layers: how many of the last blocks are read.
        plan: which rows a step takes.
    """

    def __init__(self, features: Features, num_layers: int, plan: Plan) -> None:
        self.features = features
        self.num_layers = num_layers
        self.plan = plan

    def __len__(self) -> int:
        return self.plan.steps_per_epoch

    def __getitem__(self, key: BatchKey) -> FeatureBatch:
        return _rows(self.features, self.num_layers, self.plan.indices(key)[0])


class CleanRows(Dataset):
    """Rows of a split in order: item i is this rank's i-th batch, each row exactly once.

    Args:
        features: of the split.
        num_layers: how many of the last blocks are read.
        batch_size: rows per batch.
        rank: this process.
        world_size: number of processes.
    """

    def __init__(
        self,
        features: Features,
        num_layers: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.features = features
        self.num_layers = num_layers
        self.batch_size = batch_size
        self.slots = np.arange(rank, len(features.label), world_size)

    def __len__(self) -> int:
        return math.ceil(len(self.slots) / self.batch_size)

    def __getitem__(self, batch: int) -> FeatureBatch:
        slots = self.slots[batch * self.batch_size : (batch + 1) * self.batch_size]
        return _rows(self.features, self.num_layers, slots)


def _rows(features: Features, num_layers: int, index: np.ndarray) -> FeatureBatch:
    rows = torch.from_numpy(features.cls[index][:, -num_layers:])
    return FeatureBatch(rows.flatten(1), features.label[torch.from_numpy(index)])
