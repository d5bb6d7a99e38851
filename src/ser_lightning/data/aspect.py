"""Batches of wide or of tall images, so that images of different sizes are padded less."""

from dataclasses import dataclass, field

import numpy as np

from ser_lightning.data.partition import BatchKey, Plan
from ser_lightning.data.randomness import Stream, generator


@dataclass(frozen=True)
class AspectPlan(Plan):
    """A plan whose global batches are all wide or all tall images, so that less is padded.

    Attributes:
        is_wide: (num_images,) whether an image is at least as wide as high.
    """

    is_wide: np.ndarray = field(kw_only=True, repr=False, compare=False)

    def indices(self, key: BatchKey) -> tuple[np.ndarray, np.ndarray]:
        """This rank's images of a step; none of them is invertible."""
        order = aspect_order(self.seed, key.epoch, self.is_wide, self.batch_size)
        return self._slice(order[key.step]), self._slice(order[key.step][:0])


def aspect_order(seed: int, epoch: int, is_wide: np.ndarray, batch_size: int) -> np.ndarray:
    """Divides an epoch into batches of images of one orientation, in random order.

    What is left of both orientations forms at most one mixed batch.

    Args:
        seed: of the data path.
        epoch: the epoch.
        is_wide: (N,) orientation of every image.
        batch_size: images per batch.

    Returns:
        (N // batch_size, batch_size) positions, each at most once.
    """
    rng = generator(seed, Stream.ORDER, epoch)
    order = rng.permutation(len(is_wide))
    wide, tall = order[is_wide[order]], order[~is_wide[order]]
    num_wide, num_tall = (len(part) // batch_size * batch_size for part in (wide, tall))
    rest = np.concatenate([wide[num_wide:], tall[num_tall:]])
    rest = rest[: len(rest) // batch_size * batch_size]
    whole = np.concatenate([wide[:num_wide], tall[:num_tall], rest])
    return rng.permutation(whole.reshape(-1, batch_size))
