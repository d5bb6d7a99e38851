"""Per-image results of an evaluation, each image counted once whatever the number of processes."""

from typing import NamedTuple

import torch
from torch import Tensor

from ser_lightning.distributed import gather_ragged


class GatheredRows(NamedTuple):
    """The images of all ranks, sorted by index, each once.

    Attributes:
        label: (N,) int64 classes, -1 where there are none.
        values: (N, width) float32 results.
    """

    label: Tensor
    values: Tensor


class Rows:
    """Collects results batch by batch on the CPU and gathers them at the end.

    Args:
        width: the number of values per image.
    """

    def __init__(self, width: int) -> None:
        self._keys = [torch.empty(0, 2, dtype=torch.int64)]
        self._values = [torch.empty(0, width)]

    def add(self, index: Tensor, label: Tensor, values: Tensor) -> None:
        """Appends a batch.

        Args:
            index: (B,) positions in the data set.
            label: (B,) classes, -1 where there are none.
            values: (B, width) results.
        """
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
