"""What the views of a batch are made from, beside the images: their sizes and random numbers."""

from typing import NamedTuple

import numpy as np

from ser_lightning.data import crops, photometric
from ser_lightning.data.plan import BatchKey
from ser_lightning.groups import GroupElement, GroupSampler
from ser_lightning.randomness import Stream, generator, uniforms

_NUM_CROP_UNIFORMS = crops.NUM_UNIFORMS + 1  # the box, then the flip
_PAIRS = 2**32  # of invertible views, beyond the numbers of crops
_NUM_UNIFORMS = _NUM_CROP_UNIFORMS + photometric.NUM_UNIFORMS


class Canvas(NamedTuple):
    """Sides in pixels of an upright global view and of a token."""

    size: int
    patch_size: int

    def grid(self, size: int | None = None) -> tuple[int, int]:
        """(h, w) tokens of an upright view; of a global one without its size."""
        side = (self.size if size is None else size) // self.patch_size
        return side, side


class Draws(NamedTuple):
    """The random numbers of some images of a step: of each, a function of its own position.

    Attributes:
        seed: the run's seed.
        key: crops depend on its epoch alone, grid size and parity of the turns on the step too.
        indices: (B,) positions of the images in the data set.
        paired: whether images 2i and 2i + 1 share the numbers of image 2i, and show the same part.
        turned: (B,) flag, whether the image is of the share whose global crops are turned; None
            for none.
    """

    seed: int
    key: BatchKey
    indices: np.ndarray
    paired: bool = False
    turned: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> "Draws":
        """The numbers of some rows of the images; of pairs, whole ones."""
        turned = None if self.turned is None else self.turned[rows]
        return self._replace(indices=self.indices[rows], turned=turned)

    def turns(self, view: int, count: int) -> np.ndarray:
        """Uniform numbers (B, count) for the turns of one view, or of a pair of views."""
        return uniforms(self.seed, Stream.TURN, self.key.epoch, self.indices, view, count)

    def view(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Uniform numbers for one view of each image: for its crop and flip, and its colours."""
        indices = np.repeat(self.indices[::2], 2) if self.paired else self.indices
        epoch = self.key.epoch
        block = uniforms(self.seed, Stream.AUGMENT, epoch, indices, number, _NUM_UNIFORMS)
        return block[:, :_NUM_CROP_UNIFORMS], block[:, _NUM_CROP_UNIFORMS:]

    def elements(
        self, group: GroupSampler, grid: tuple[int, int], number: int
    ) -> tuple[GroupElement, GroupElement]:
        """Group elements for one pair of views; grid and parity are drawn once for the step."""
        epoch, step = self.key
        rows = uniforms(self.seed, Stream.GROUP, epoch, self.indices, number, 4)
        shared = generator(self.seed, Stream.STEP, epoch, step, number)
        angles = self.turns(_PAIRS + number, 2) if group.angle else None
        return group.sample(len(self.indices), grid, shared, rows.reshape(-1, 2, 2), angles)
