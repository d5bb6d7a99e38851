"""Loaders that ask for whole batches by key, and start where the trainer's counters say.

The data set returns a finished batch for a key, so a loader has nothing to remember: a resumed run
asks for the keys that are left, and gets the batches that the uninterrupted run would have got.
"""

import signal
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset, DistributedSampler

from ser_lightning.data.partition import BatchKey


class _WholeKeys(DistributedSampler):
    """Base of the samplers here. A rank's keys are already its own.

    Being a DistributedSampler keeps Lightning from wrapping it in another one that would split
    the keys over ranks once more.
    """

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(dataset, num_replicas=1, rank=0, shuffle=False)


class StepKeys(_WholeKeys):
    """Yields the keys of the steps left in the current epoch.

    Args:
        dataset: the data set that the keys are for.
        steps_per_epoch: number of steps in an epoch.
        position: returns (epoch, step) of the next step to train; asked when iteration begins.
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


class LazyLoader(DataLoader):
    """A DataLoader whose workers start at the first `next()`, not at `iter()`.

    Lightning calls `iter()` before it has restored its counters; a generator waits until the
    first batch is wanted, and only then does the sampler ask for the position.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        yield from super().__iter__()

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
    pin_memory: bool,
) -> LazyLoader:
    """The loader of training batches.

    Args:
        dataset: returns a finished batch for a `BatchKey`.
        steps_per_epoch: number of steps in an epoch.
        position: returns the key of the next step to train.
        num_workers: worker processes; 0 loads in the training process.
        pin_memory: whether to hand over page-locked memory, for a GPU.
    """
    return LazyLoader(
        dataset,
        batch_size=None,
        sampler=StepKeys(dataset, steps_per_epoch, position),
        collate_fn=_as_it_is,
        worker_init_fn=_ignore_signals,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=pin_memory,
    )


def evaluation_loader(dataset: Dataset, num_workers: int, pin_memory: bool) -> DataLoader:
    """The loader of evaluation batches, in order, each exactly once and without padding."""
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=_WholeKeys(dataset),
        collate_fn=_as_it_is,
        worker_init_fn=_ignore_signals,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=pin_memory,
    )


def _as_it_is(batch: Any) -> Any:
    """Keeps the records' numpy arrays, which torch's default would turn into tensors."""
    return batch


def _ignore_signals(worker: int) -> None:
    """Leaves signals to the training process, which needs its workers until it has saved.

    Cluster managers and terminals signal whole groups of processes. A worker ends with its parent.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
