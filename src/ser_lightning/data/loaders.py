"""Loaders whose items are whole batches, and the samplers that name the batches of a rank.

How many workers is an option of `base.py`; they need no seeds, see `randomness.py`.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler
from typing_extensions import override

from ser_lightning.data.datasets import LeftOut
from ser_lightning.data.plan import BatchKey
from ser_lightning.distributed import rank, world_size
from ser_lightning.processes import Leash, signals_held


class _WholeKeys(DistributedSampler):
    """Base of the samplers here. A rank's keys are already its own.

    Being a DistributedSampler keeps Lightning from wrapping it in another one that would split
    the keys over ranks once more.
    """

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(dataset, num_replicas=1, rank=0, shuffle=False)


class StepKeys(_WholeKeys):
    """Yields the keys of the steps left in the current epoch.

    `position` gives the next step to train; it is asked when iteration begins.
    """

    def __init__(
        self, dataset: Dataset, steps_per_epoch: int, position: Callable[[], BatchKey]
    ) -> None:
        super().__init__(dataset)
        self.steps_per_epoch = steps_per_epoch
        self.position = position

    def __iter__(self) -> Iterator[BatchKey]:
        epoch, first = self.position()
        return (BatchKey(epoch, step) for step in range(first, self.steps_per_epoch))

    def __len__(self) -> int:
        return self.steps_per_epoch


class SlotKeys(_WholeKeys):
    """Yields the slots of each batch of this rank's share of a set, in order, each slot once.

    The ranks take turns. Rank and number of ranks are those of the process group when iteration
    begins, so that a loader may be made before there is one. `parts` are numbers of images, and of
    images per batch; no batch has images of two parts.
    """

    def __init__(self, dataset: Dataset, *parts: tuple[int, int]) -> None:
        super().__init__(dataset)
        self.parts = parts

    def __iter__(self) -> Iterator[np.ndarray]:
        first = 0
        for num_images, batch_size in self.parts:
            mine = np.arange(first + rank(), first + num_images, world_size())
            first += num_images
            for start in range(0, len(mine), batch_size):
                yield mine[start : start + batch_size]

    def __len__(self) -> int:
        shares = [(len(range(rank(), n, world_size())), size) for n, size in self.parts]
        return sum(math.ceil(share / size) for share, size in shares)


class BatchLoader(DataLoader):
    """A DataLoader that keeps count of unreadable images, and whose workers end with it.

    Args:
        dataset: finished batches by key.
        sampler: the keys of this rank.
        num_workers: worker processes; 0 loads in the training process.
        note: told the unreadable images of every batch that has some.

    Attributes:
        unreadable: images of this loader's batches that could not be read, so far.
    """

    def __init__(
        self,
        dataset: Dataset,
        sampler: Sampler,
        num_workers: int,
        note: Callable[[list[int]], None] | None = None,
    ) -> None:
        self._leash = Leash()
        super().__init__(
            dataset,
            batch_size=None,
            sampler=sampler,
            collate_fn=_as_it_is,
            worker_init_fn=self._leash,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )
        self.note = note
        self.unreadable: set[int] = set()

    @override
    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        for batch in self._batches():
            found = batch.unreadable.tolist() if hasattr(batch, "unreadable") else []
            self.unreadable.update(found)
            if found and self.note is not None:
                self.note(found)
            if not isinstance(batch, LeftOut):
                yield batch

    def _batches(self) -> Iterator[Any]:
        with signals_held():
            batches = super().__iter__()
        if self.num_workers:
            self._leash.hold()
        return batches


class LazyLoader(BatchLoader):
    """A loader whose workers start at the first `next()`, not at `iter()`.

    Lightning calls `iter()` before it has restored its counters; a generator waits until the
    first batch is wanted, and only then does the sampler ask for the position.
    """

    def state_dict(self) -> dict[str, Any]:
        """Empty: the position follows from the trainer's counters."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Does nothing: see `state_dict`."""


def step_loader(
    dataset: Dataset,
    steps_per_epoch: int,
    position: Callable[[], BatchKey],
    num_workers: int,
    note: Callable[[list[int]], None] | None = None,
) -> LazyLoader:
    """The loader of training batches; arguments as `StepKeys` and `BatchLoader`."""
    keys = StepKeys(dataset, steps_per_epoch, position)
    return LazyLoader(dataset, keys, num_workers, note)


def evaluation_loader(dataset: Dataset, num_workers: int) -> BatchLoader:
    """The loader of a data set with a length, whose items are a rank's batches, in order."""
    return BatchLoader(dataset, _WholeKeys(dataset), num_workers)


def _as_it_is(batch: Any) -> Any:
    """Keeps the records' numpy arrays, which torch's default would turn into tensors."""
    return batch
