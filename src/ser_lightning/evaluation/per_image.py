"""Per-image results of an evaluation, each image counted once whatever the number of processes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from typing_extensions import override

from ser_lightning.backbones import SplitViT
from ser_lightning.distributed import gather_ragged


class GatheredRows(NamedTuple):
    """(N,) classes, -1 for none, (N, width) float32 results, and the (N,) slots, in their order."""

    label: Tensor
    values: Tensor
    slots: Tensor


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
        return GatheredRows(keys[order, 1], values[order], keys[order, 0])


def test_on_all(trainer: L.Trainer, module: L.LightningModule, loader: DataLoader) -> None:
    """Tests a module, in which every process takes part, also one without an image.

    A set may have fewer images than there are processes. Lightning leaves out the hooks of one
    without a batch, while the others wait for what it has to gather at the end.
    """
    module.allow_zero_length_dataloader_with_multiple_devices = True
    trainer.test(module, loader, verbose=False)
    if len(loader) == 0:
        module.on_test_epoch_start()
        module.on_test_epoch_end()


class _PerImagePass(L.LightningModule):
    def __init__(self, backbone: SplitViT, values: Callable[[Any], Tensor], rows: Rows) -> None:
        super().__init__()
        self.backbone = backbone  # goes to the trainer's device
        self.values = values
        self.rows = rows

    @override
    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.rows.add(batch.indices, batch.label, self.values(batch))


def per_image(
    trainer: L.Trainer,
    backbone: SplitViT,
    loader: DataLoader,
    width: int,
    values: Callable[[Any], Tensor],
) -> GatheredRows:
    """Measures the images of a loader with a frozen backbone, each once; a collective call.

    `values` makes the (B, width) numbers of a batch.
    """
    rows = Rows(width)
    test_on_all(trainer, _PerImagePass(backbone, values, rows), loader)
    return rows.gather()


def even_subset(index: Tensor, total: int, count: int) -> tuple[Tensor, Tensor]:
    """Picks images at even distances from a data set that may be sorted by class.

    Whether an image belongs to the subset depends on its index alone, not on its batch.

    Args:
        index: (B,) positions in the data set, 0..total-1.
        total: the size of the data set.
        count: how many of all to pick; at most all of them.

    Returns:
        (n,) which of the B are picked, and (n,) their positions 0..count-1 in the subset.
    """
    count = min(count, total)
    chosen = ((index * count) % max(total, 1) < count).nonzero()[:, 0]
    return chosen, index[chosen] * count // max(total, 1)


def full_batches(parts: list[tuple[Tensor, ...]], size: int) -> list[tuple[Tensor, ...]]:
    """Columns of parts of batches, as (positions, pixels), put together in batches of a size."""
    if not parts:
        return []
    columns = (torch.cat(column).split(size) for column in zip(*parts, strict=True))
    return list(zip(*columns, strict=True))
