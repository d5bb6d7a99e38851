"""One pass over clean images, kept on disk and shared by the stages that read frozen features."""

import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.utils.data import Dataset
from typing_extensions import override

from ser_lightning.backbones import SplitViT
from ser_lightning.batch import EvaluationBatch
from ser_lightning.data.labelled import LabelledDataModule, Split
from ser_lightning.data.loaders import BatchLoader
from ser_lightning.data.plan import BatchKey, Plan
from ser_lightning.distributed import gather_ragged
from ser_lightning.evaluation.per_image import test_on_all
from ser_lightning.files import new_folder, put_in_place
from ser_lightning.sealed import content_hash, read_array

VERSION = 1
"""Of what the code here computes; raise it with every change that moves a feature."""

MAX_LAYERS = 4  # the linear probe reads [CLS] of the last four blocks


class Features(NamedTuple):
    """Frozen features of a split, in its order.

    Attributes:
        values: (N, layers, C) float32 [CLS] tokens of the last blocks, each through the final norm,
            the last one last; or other features. A memory map: reading rows reads these only.
        label: (n,) int64 classes of the rows.
        rows: (n,) which of the N images count: all, but for unreadable ones.
    """

    values: np.ndarray
    label: Tensor
    rows: np.ndarray

    def last(self, num_layers: int) -> "Features":
        """The [CLS] tokens of fewer of the last blocks."""
        return self._replace(values=self.values[:, -num_layers:])

    def embeddings(self) -> Tensor:
        """(n, C) final [CLS] embeddings."""
        return torch.from_numpy(np.array(self.values[:, -1])[self.rows])


def cls_layers(backbone: SplitViT) -> list[int]:
    """The last blocks after which there is a [CLS] token, at most four.

    Differs: the public evaluation reads a patch token in place of [CLS] from blocks that have
    none; here such blocks are left out, and a record says which were read.
    """
    first = max(backbone.first_with_cls, backbone.depth - MAX_LAYERS + 1, 1)
    return list(range(first, backbone.depth + 1))


class Extractor(nn.Module):
    """What is computed of (B, 3, H, W) images with frozen backbones: (B, *shape) features."""

    def __init__(
        self,
        backbones: Sequence[SplitViT],
        shape: tuple[int, ...],
        compute: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__()
        self.backbones = nn.ModuleList(backbones)  # go to the trainer's device
        self.shape = shape
        self.compute = compute

    @override
    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        return self.compute(pixels)


class FeaturePass(L.LightningModule):
    """Writes features of a number of images into a new `.npy` file, each process its own rows.

    The file lies in a new folder below `folder`, of this start alone: two that compute the same
    features write two files. Rows are written as bytes and not through a memory map: on a disk
    that nodes share, each would write back whole pages, with its neighbour's rows as it knew them.
    """

    def __init__(self, extractor: Extractor, folder: Path, num_images: int) -> None:
        super().__init__()
        self.extractor = extractor
        self.folder = folder
        self.path = folder  # the file, from `setup` on
        self.shape = (num_images, *extractor.shape)
        self.start = 0  # of the rows in it, in bytes
        self.written = [torch.empty(0, dtype=torch.int64)]  # by this process

    @override
    def setup(self, stage: str) -> None:
        if self.trainer.is_global_zero:
            self.path = new_folder(self.folder) / "cls.npy"
            np.lib.format.open_memmap(self.path, "w+", np.float32, self.shape).flush()
            _take_room(self.path)
        self.path = Path(self.trainer.strategy.broadcast(str(self.path)))
        self.start = np.load(self.path, mmap_mode="r").offset

    @override
    def test_step(self, batch: EvaluationBatch, batch_idx: int) -> None:
        index = batch.indices.cpu()
        rows = self.extractor(batch.pixels).float().cpu().numpy()
        with self.path.open("r+b") as file:
            for place, row in zip(index.tolist(), rows, strict=True):
                file.seek(self.start + place * row.nbytes)
                file.write(row.tobytes())
        self.written.append(index)


def cached_features(
    backbone: SplitViT,
    checkpoint_hash: str,
    data: LabelledDataModule,
    split: Split,
    trainer: L.Trainer,
    run_dir: Path,
) -> Features:
    """Computes the features of a split, or finds them from an earlier stage; every rank calls it.

    The cache's key is what the features depend on: checkpoint, images (names, sizes and times of
    files) and their preparation, layers, precision, and the version of this code. A file appears
    complete or not at all. The cache is in `features/` of the run, on a disk that all processes
    see; the trainer's devices share the work.
    """
    data.setup("test")
    images, layers = data.images(split), cls_layers(backbone)

    def cls_tokens(pixels: Tensor) -> Tensor:
        return torch.stack(backbone.cls_tokens(pixels, layers), 1)

    extractor = Extractor([backbone], (len(layers), backbone.width), cls_tokens)
    protocol = {
        "checkpoint": checkpoint_hash,
        "split": split,
        "images": images.fingerprint(),
        "decoded": images.describe(),
        "prepared": data.describe(),
        "on_bad_image": data.on_bad_image,
        "layers": layers,
        "precision": str(trainer.precision),
        "version": VERSION,
    }
    key = content_hash(protocol)[:24]
    folder = run_dir / "features"
    final = folder / key
    if trainer.strategy.broadcast((final / "cls.npy").is_file()):  # one answer for all ranks
        rank_zero_info(f"features of {len(images):,} {split} images: taken from {final}")
    else:
        loader = data.clean_loader(split)
        path, written = write_features(extractor, loader, len(images), folder, trainer)
        if trainer.is_global_zero:
            np.save(path.with_name("rows.npy"), written)
            path.with_name("protocol.json").write_text(json.dumps(protocol, indent=2))
            put_in_place(path.parent, final)
        trainer.strategy.barrier("features in place")
    remedy = f"remove {final}, and it is computed again"
    rows = read_array(final / "rows.npy", remedy)
    values = read_array(final / "cls.npy", remedy, mmap_mode="r")
    shape = (len(images), *extractor.shape)
    if values.shape != shape or np.setdiff1d(rows, np.arange(len(images))).size:
        raise ValueError(f"{final} has features {values.shape} for {shape}; {remedy}")
    left_out = np.setdiff1d(np.arange(len(images)), rows)
    data.unreadable.setdefault(split, set()).update(left_out.tolist())
    label = images.labels[torch.from_numpy(rows)]
    return Features(values, label, rows)


def write_features(
    extractor: Extractor, loader: BatchLoader, num_images: int, folder: Path, trainer: L.Trainer
) -> tuple[Path, np.ndarray]:
    """Writes the features of clean images into a `.npy` file that all processes see.

    Every rank calls it with its loader and the number of images over all ranks.

    Returns:
        The file, in a new folder below `folder`, and (n,) int64 rows that were written, over all
        ranks.

    Raises:
        ValueError: if others than unreadable images were left out.
    """
    writer = FeaturePass(extractor, folder, num_images)
    test_on_all(trainer, writer, loader)
    written = gather_ragged(torch.cat(writer.written)).sort().values
    num_bad = len(gather_ragged(torch.tensor(sorted(loader.unreadable), dtype=torch.int64)))
    if len(written) + num_bad < num_images:
        raise ValueError(
            f"the pass computed features of {len(written)} of {num_images} images; run the stage "
            "without limits on its batches"
        )
    return writer.path, written.numpy()


def _take_room(path: Path) -> None:
    """Gives a sparse file its room on the disk, where the system can.

    A full disk is an error here, and not at the end of a long pass.
    """
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


class FeatureBatch(NamedTuple):
    """Features (B, ...), labels (B,) and places (B,): in the set, or of a training in all of it."""

    features: Tensor
    label: Tensor
    slot: Tensor


class TrainingRows(Dataset):
    """Maps a `BatchKey` to this rank's rows of the training features."""

    def __init__(self, features: Features, plan: Plan) -> None:
        self.features = features
        self.plan = plan

    def __len__(self) -> int:
        return self.plan.steps_per_epoch

    def __getitem__(self, key: BatchKey) -> FeatureBatch:
        indices, _ = self.plan.indices(key)
        before = (key.epoch * len(self) + key.step) * self.plan.batch_size
        return _rows(self.features, indices, before + self.plan.rank * len(indices))


class CleanRows(Dataset):
    """Rows of a split in order: item i is this rank's i-th batch, each row exactly once."""

    def __init__(
        self, features: Features, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.features = features
        self.batch_size = batch_size
        self.slots = np.arange(rank, len(features.label), world_size)

    def __len__(self) -> int:
        return math.ceil(len(self.slots) / self.batch_size)

    def __getitem__(self, batch: int) -> FeatureBatch:
        start = batch * self.batch_size
        return _rows(self.features, self.slots[start : start + self.batch_size])


def _rows(features: Features, index: np.ndarray, first_slot: int = 0) -> FeatureBatch:
    values = torch.from_numpy(features.values[features.rows[index]])
    position = torch.from_numpy(index)
    return FeatureBatch(values, features.label[position], first_slot + torch.arange(len(index)))
