"""Per-image results of an evaluation, each image counted once whatever the number of processes."""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor
from typing_extensions import override

from ser_lightning.backbones import SplitViT
from ser_lightning.distributed import gather_ragged


class GatheredRows(NamedTuple):
    """(N,) classes, -1 for none, and (N, width) float32 results, by index, each once."""

    label: Tensor
    values: Tensor


class Rows:
    """Collects `width` results per image on the CPU and gathers them at the end."""

    def __init__(self, width: int) -> None:
        self._keys = [torch.empty(0, 2, dtype=torch.int64)]
        self._values = [torch.empty(0, width)]

    def add(self, index: Tensor, label: Tensor, values: Tensor) -> None:
        """Appends a batch: (B,) positions in the data set, (B,) classes, (B, width) results."""
        self._keys.append(torch.stack([index, label], dim=1).cpu())
        self._values.append(values.detach().float().cpu())

    def gather(self) -> GatheredRows:
        """Unites the rows of all ranks; no gradient flows. Every rank must call it.

        Images that a padding sampler handed to two ranks are kept once.
        """
        keys = gather_ragged(torch.cat(self._keys))
        values = gather_ragged(torch.cat(self._values))
        order = keys[:, 0].argsort(stable=True)
        index = keys[order, 0]
        first = torch.ones_like(index, dtype=torch.bool)
        first[1:] = index[1:] != index[:-1]
        order = order[first]
        return GatheredRows(keys[order, 1], values[order])


class PerImagePass(L.LightningModule, ABC):
    """Measures the images of a loader with a frozen backbone, each once, by `trainer.test`."""

    def __init__(self, backbone: SplitViT, width: int) -> None:
        super().__init__()
        self.backbone = backbone
        self._rows = Rows(width)

    @abstractmethod
    def values(self, batch: Any) -> Tensor:
        """(B, width) numbers of a batch."""

    @abstractmethod
    def finish(self, values: Tensor) -> None:
        """Takes the (N, width) numbers of all images, on every process."""

    @override
    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._rows.add(batch.indices, batch.label, self.values(batch))

    @override
    def on_test_epoch_end(self) -> None:
        self.finish(self._rows.gather().values)
