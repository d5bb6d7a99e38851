"""The pass over images that fills a file of embeddings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from ser_lightning.backbones import SplitViT
from ser_lightning.backbones.vit import block_numbers
from ser_lightning.batch import EvaluationBatch
from ser_lightning.data.datasets import Batches, CleanImages
from ser_lightning.data.labelled import LabelledDataModule
from ser_lightning.data.loaders import BatchLoader, SlotKeys
from ser_lightning.exporting.images import AllImages
from ser_lightning.exporting.opened import Opened, preparation
from ser_lightning.exporting.unfinished import Unfinished

VERSION = 1
"""Of what the code here computes; raise it with every change that moves an embedding."""


class EmbeddingPass(L.LightningModule):
    """Computes embeddings, and token maps after the backbone's layers, batch after batch."""

    def __init__(self, backbone: SplitViT, layers: Sequence[int], unfinished: Unfinished) -> None:
        super().__init__()
        self.backbone = backbone
        self.layers = layers
        self.unfinished = unfinished
        self.first = unfinished.done

    @override
    def test_step(self, batch: EvaluationBatch, batch_idx: int) -> None:
        if self.layers:
            ((prefixes, embedding),) = self.backbone.encode([batch.pixels])
        else:
            prefixes, embedding = (), self.backbone(batch.pixels)
        parts: dict[str, Any] = {"embedding": embedding}
        parts |= {
            f"tokens_{layer}": prefix.tokens
            for layer, prefix in zip(self.layers, prefixes, strict=True)
        }
        slots = np.concatenate([batch.indices.cpu().numpy(), batch.unreadable.cpu().numpy()])
        slots = slots + self.first
        arrays = {name: part.float().cpu().numpy() for name, part in parts.items()}
        self.unfinished.put(int(slots.max()) + 1, slots[: len(batch.indices)], arrays)


def shapes(backbone: SplitViT, layers: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """The shape of one image's part of each array."""
    maps = {f"tokens_{layer}": (backbone.width, *backbone.grid) for layer in layers}
    return {"embedding": (backbone.width,), **maps}


def asked(
    opened: Opened, data: LabelledDataModule, images: AllImages, layers: Sequence[int], trainer: Any
) -> dict[str, Any]:
    """All that the embeddings depend on, to the last bit: so does the size of a batch."""
    return {
        "checkpoint_sha256": opened.sha256,
        "branch": opened.branch,
        "cls_layer": opened.backbone.cls_layer,
        "layers": list(layers),
        "images": images.fingerprint(),
        "decoded": images.describe(),
        "prepared": preparation(data.clean),
        "on_bad_image": data.on_bad_image,
        "batch_size": data.evaluation_batch_size,
        "precision": str(trainer.precision),
        "version": VERSION,
    }


def embed_images(
    opened: Opened, data: LabelledDataModule, images: AllImages, layers: Sequence[int],
    trainer: L.Trainer, folder: Path,
) -> Unfinished:  # fmt: skip
    """Computes the embeddings that are not there yet.

    Args:
        opened: the backbone.
        data: how images are read and prepared.
        images: all of them.
        layers: numbers of blocks after which the token map is kept.
        trainer: with device, precision and progress.
        folder: of what is unfinished.
    """
    backbone, total = opened.backbone, len(images)
    if layers:
        layers = backbone.layers = block_numbers(list(layers), backbone.depth)
    key = asked(opened, data, images, layers, trainer)
    unfinished = Unfinished(folder, key, total, shapes(backbone, layers))
    if unfinished.done:
        rank_zero_info(f"going on after {unfinished.done:,} of {total:,} images")
    left = np.arange(unfinished.done, total)
    if len(left):
        dataset = Batches(CleanImages(data.reader(images), data.clean, left), len(left))
        keys = SlotKeys(dataset, (len(left), data.evaluation_batch_size))
        loader = BatchLoader(dataset, keys, data.num_workers)
        try:
            trainer.test(EmbeddingPass(backbone, layers, unfinished), loader, verbose=False)
        finally:
            unfinished.save()
        # of the last batches perhaps nothing could be read
        unfinished.put(total, left[:0], {})
        unfinished.save()
    return unfinished
