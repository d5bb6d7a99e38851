"""Which images of an epoch make up a step, and which of them are invertible, on every rank.

The global batch and its partition are a function of (seed, epoch, step). The ranks take slices of
it, so another number of processes sees the same global batches.
"""

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ser_lightning.randomness import Stream, generator

MIN_INVERTIBLE = 2


class BatchKey(NamedTuple):
    """The name of a step's batch: it and the seed determine everything in it."""

    epoch: int
    step: int


def count_invertible(
    partition_ratio: float, global_batch_size: int, num_devices: int = 1, accumulate: int = 1
) -> int:
    """Images of a forward pass over all ranks that go through the invertible pipeline.

    The share of the global batch, rounded to the same number for each rank and each of the passes
    that share an optimizer step, at least one on each rank and two in all.

    Raises:
        ValueError: the ratio is outside (0, 1], or gives fewer than two images: a single image
            has no negatives, and its equivariance loss is identically zero.
    """
    if not 0 < partition_ratio <= 1:
        raise ValueError(
            f"partition ratio {partition_ratio} is outside (0, 1]; set `data.invertible` to null "
            "for a run without an invertible sub-batch"
        )
    count = round(partition_ratio * global_batch_size)
    if count < MIN_INVERTIBLE:
        raise ValueError(
            f"partition ratio {partition_ratio} with a global batch of {global_batch_size} gives "
            f"{count} invertible images, at least {MIN_INVERTIBLE} are needed; use a ratio of at "
            f"least {MIN_INVERTIBLE / global_batch_size:.4g} or a larger global batch"
        )
    share = round(partition_ratio * global_batch_size / (accumulate * num_devices))
    return max(share, math.ceil(MIN_INVERTIBLE / num_devices)) * num_devices


def per_device(global_batch_size: int, num_devices: int, accumulate: int = 1) -> int:
    """Images per device and forward pass.

    Raises:
        ValueError: the global batch size does not divide; names the nearest sizes that do, and the
            nearest numbers of devices that it does divide by.
    """
    parts = num_devices * accumulate
    if global_batch_size % parts or global_batch_size < parts:
        lower = max(global_batch_size // parts, 1) * parts
        share, rest = divmod(global_batch_size, accumulate)
        devices = "" if rest else f", or {nearest_divisors(share, num_devices)} devices"
        raise ValueError(
            f"global batch size {global_batch_size} does not divide by {num_devices} devices x "
            f"{accumulate} accumulation steps; use {lower} or {lower + parts}{devices}"
        )
    return global_batch_size // parts


def nearest_divisors(number: int, wanted: int) -> str:
    """The divisors next to `wanted`, which is none, in words: "2 or 4"."""
    divisors = [n for n in range(1, number + 1) if number % n == 0]
    near = [n for n in divisors if n < wanted][-1:] + [n for n in divisors if n > wanted][:1]
    return " or ".join(map(str, near))


@dataclass(frozen=True)
class Plan:
    """One rank's share of every global batch.

    Attributes:
        batch_size: images per step over all ranks.
        num_invertible: how many of them are invertible, over all ranks; 0 without a partition.
        accumulate: steps that share one optimizer step; an epoch has whole groups of them.
    """

    num_images: int
    batch_size: int
    num_invertible: int
    seed: int
    rank: int = 0
    world_size: int = 1
    accumulate: int = 1

    def __post_init__(self) -> None:
        if self.num_images < self.batch_size * self.accumulate:
            parts = self.world_size * self.accumulate
            most = self.num_images // parts * parts
            fewer = "fewer accumulation steps or devices" if self.num_images else "more images"
            remedy = f"--data.global_batch_size {most} or less" if most else fewer
            raise ValueError(
                f"the data set has {self.num_images} images, fewer than one global batch of "
                f"{self.batch_size * self.accumulate}; use {remedy}"
            )
        per_device(self.batch_size, self.world_size)
        if self.num_invertible % self.world_size:
            common = math.gcd(self.batch_size, self.num_invertible)
            near = nearest_divisors(common, self.world_size)
            raise ValueError(
                f"{self.num_invertible} invertible images of {self.batch_size} do not divide by "
                f"{self.world_size} processes; go on with {near} processes, or start a new run in "
                "another --run_dir"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Steps in an epoch of whole global batches; the rest of its images is left out."""
        return self.num_images // (self.batch_size * self.accumulate) * self.accumulate

    def indices(self, key: BatchKey) -> tuple[np.ndarray, np.ndarray]:
        """Positions of this rank's images of a step: the crop and the invertible sub-batch.

        The last `num_invertible` images of the global batch are the invertible ones; every rank
        takes a contiguous slice of both parts.
        """
        start = key.step * self.batch_size
        batch = _epoch_order(self.seed, key.epoch, self.num_images)[start : start + self.batch_size]
        num_crop = self.batch_size - self.num_invertible
        return self._slice(batch[:num_crop]), self._slice(batch[num_crop:])

    def _slice(self, part: np.ndarray) -> np.ndarray:
        share = len(part) // self.world_size
        return part[self.rank * share : (self.rank + 1) * share]


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, num_images: int) -> np.ndarray:
    return generator(seed, Stream.ORDER, epoch).permutation(num_images)


@dataclass(frozen=True)
class AspectPlan(Plan):
    """A plan whose global batches are all wide or all tall images, so that less is padded."""

    is_wide: np.ndarray = field(kw_only=True, repr=False, compare=False)

    def indices(self, key: BatchKey) -> tuple[np.ndarray, np.ndarray]:
        """This rank's images of a step; none of them is invertible."""
        order = aspect_order(self.seed, key.epoch, self.is_wide, self.batch_size)
        return self._slice(order[key.step]), self._slice(order[key.step][:0])


def aspect_order(seed: int, epoch: int, is_wide: np.ndarray, batch_size: int) -> np.ndarray:
    """Divides an epoch into batches of images of one orientation, in random order.

    What is left of both orientations forms at most one mixed batch. Returns (N // batch_size,
    batch_size) positions, each at most once.
    """
    rng = generator(seed, Stream.ORDER, epoch)
    order = rng.permutation(len(is_wide))
    wide, tall = order[is_wide[order]], order[~is_wide[order]]
    num_wide, num_tall = (len(part) // batch_size * batch_size for part in (wide, tall))
    rest = np.concatenate([wide[num_wide:], tall[num_tall:]])
    rest = rest[: len(rest) // batch_size * batch_size]
    whole = np.concatenate([wide[:num_wide], tall[:num_tall], rest])
    return rng.permutation(whole.reshape(-1, batch_size))
