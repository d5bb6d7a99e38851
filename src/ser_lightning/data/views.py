"""The two pipelines: crops for invariance, invertible views for equivariance.

A pipeline works in two halves. `make` runs on the host, in the workers: it draws every random
number as a function of (seed, epoch, step, index) and returns small uint8 images with the record
of what is to be done to them. `render` runs on the device, in batches: colours, normalisation and
geometry.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ser_lightning.batch import PartitionedBatch, View
from ser_lightning.data import crops, photometric
from ser_lightning.data.crops import Interpolation
from ser_lightning.data.partition import BatchKey
from ser_lightning.data.photometric import (
    MOCO_VIEW_1,
    MOCO_VIEW_2,
    PhotometricRecipe,
    PhotometricRecord,
)
from ser_lightning.data.randomness import Stream, generator, uniforms
from ser_lightning.groups import GroupElement, GroupSampler, act

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_NUM_CROP_UNIFORMS = crops.NUM_UNIFORMS + 1  # the box, then the flip
_NUM_UNIFORMS = _NUM_CROP_UNIFORMS + photometric.NUM_UNIFORMS


class HostView(NamedTuple):
    """A view before its colours and geometry.

    Attributes:
        pixels: (B, 3, S, S) uint8, cropped or squashed and resized.
        record: the photometric draws; numpy arrays, which stay on the host.
        element: the group element still to be applied; None for a crop.
    """

    pixels: Tensor
    record: PhotometricRecord
    element: GroupElement | None = None


class HostBatch(NamedTuple):
    """What a worker hands over; the fields are those of `PartitionedBatch` before rendering."""

    crop: tuple[HostView, ...]
    invertible: tuple[HostView, ...]
    indices: Tensor
    label: Tensor
    num_unreadable: Tensor


class CropViews:
    """The crop pipeline: two random resized crops, flipped and recoloured.

    The defaults are MoCo-v3's asymmetric recipe. Source: MoCo-v3; SER, pretraining settings.

    Args:
        view_1: colours of the first view (MoCo-v3: always blurred).
        view_2: colours of the second view (MoCo-v3: rarely blurred, sometimes solarized).
        scale: smallest and largest area of a crop, as a share of the image.
        ratio: smallest and largest aspect (width / height) of a crop.
        p_flip: probability of a horizontal flip.
        interpolation: the resize filter.
    """

    def __init__(
        self,
        view_1: PhotometricRecipe = MOCO_VIEW_1,
        view_2: PhotometricRecipe = MOCO_VIEW_2,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        p_flip: float = 0.5,
        interpolation: Interpolation = "bilinear",
    ) -> None:
        self.recipes = (view_1, view_2)
        self.scale = scale
        self.ratio = ratio
        self.p_flip = p_flip
        self.interpolation: Interpolation = interpolation

    def make(
        self,
        images: Sequence[Tensor],
        indices: np.ndarray,
        key: BatchKey,
        seed: int,
        size: int,
    ) -> tuple[HostView, ...]:
        """Crops every image once per view.

        Args:
            images: uint8 images (3, H, W), of any sizes.
            indices: (B,) their positions in the data set.
            key: epoch and step; crops depend on the epoch alone.
            seed: the run's seed.
            size: side of the views in pixels.
        """
        return tuple(
            self._view(
                images,
                uniforms(seed, Stream.AUGMENT, key.epoch, indices, view, _NUM_UNIFORMS),
                recipe,
                size,
            )
            for view, recipe in enumerate(self.recipes)
        )

    def _view(
        self, images: Sequence[Tensor], draws: np.ndarray, recipe: PhotometricRecipe, size: int
    ) -> HostView:
        pixels = self.crop(images, draws[:, :_NUM_CROP_UNIFORMS], size)
        return HostView(pixels, photometric.draw(recipe, draws[:, _NUM_CROP_UNIFORMS:]))

    def crop(self, images: Sequence[Tensor], draws: np.ndarray, size: int) -> Tensor:
        """Crops, resizes and flips: uint8 (B, 3, size, size)."""
        boxes = crops.crop_boxes(
            draws,
            np.array([image.shape[-2] for image in images]),
            np.array([image.shape[-1] for image in images]),
            self.scale,
            self.ratio,
        )
        flips = draws[:, crops.NUM_UNIFORMS] < self.p_flip
        return torch.stack(
            [
                crops.crop_and_resize(image, box, size, bool(flip), self.interpolation)
                for image, box, flip in zip(images, boxes, flips, strict=True)
            ]
        )


class InvertibleViews:
    """The invertible pipeline: whole images, recoloured per view, then flipped, turned, scaled.

    Source: SER, Eq. 4 and section on transformation sampling.

    Args:
        ratio: share p of the global batch that takes this pipeline instead of crops. The paper's
            table has 0.005 to 0.02; at least two images per global batch are required.
        group: which transformations, and how they are drawn.
        view_1: colours of the first view; the same recipes as the crops by default.
        view_2: colours of the second view.
        crop: "none" squashes the whole image into the square, as the paper describes. "shared"
            cuts one random crop (area 0.08-1) that both views share, as the public code does.
        interpolation: the resize filter.
    """

    # Differs: the public code shares one random resized crop (area 0.08-1) between both views
    # where the paper says that cropping is disabled; `crop: shared` reproduces the code.
    def __init__(
        self,
        ratio: float = 0.01,
        group: GroupSampler | None = None,
        view_1: PhotometricRecipe = MOCO_VIEW_1,
        view_2: PhotometricRecipe = MOCO_VIEW_2,
        crop: Literal["none", "shared"] = "none",
        interpolation: Interpolation = "bilinear",
    ) -> None:
        self.ratio = ratio
        self.group = group or GroupSampler()
        self.recipes = (view_1, view_2)
        self.shared_crop = CropViews(interpolation=interpolation) if crop == "shared" else None
        self.interpolation: Interpolation = interpolation

    def make(
        self,
        images: Sequence[Tensor],
        indices: np.ndarray,
        key: BatchKey,
        seed: int,
        size: int,
        grid: tuple[int, int],
    ) -> tuple[HostView, ...]:
        """Makes both views of every image, with the group elements still to be applied.

        Args:
            images: uint8 images (3, H, W), of any sizes.
            indices: (B,) their positions in the data set.
            key: epoch and step; grid size and parity of the turns depend on the step.
            seed: the run's seed.
            size: side of the upright views in pixels.
            grid: (h, w) tokens of an upright view.
        """
        draws = [
            uniforms(seed, Stream.AUGMENT, key.epoch, indices, view, _NUM_UNIFORMS)
            for view in range(len(self.recipes))
        ]
        pixels = self._upright(images, draws[0][:, :_NUM_CROP_UNIFORMS], size)
        elements = self.group.sample(
            len(indices),
            grid,
            generator(seed, Stream.STEP, key.epoch, key.step),
            uniforms(seed, Stream.GROUP, key.epoch, indices, 0, 4).reshape(-1, 2, 2),
        )
        return tuple(
            HostView(pixels, photometric.draw(recipe, own[:, _NUM_CROP_UNIFORMS:]), element)
            for recipe, own, element in zip(self.recipes, draws, elements, strict=True)
        )

    def _upright(self, images: Sequence[Tensor], draws: np.ndarray, size: int) -> Tensor:
        if self.shared_crop is not None:
            return self.shared_crop.crop(images, draws, size)
        return torch.stack(
            [crops.squash(image, size, interpolation=self.interpolation) for image in images]
        )


def render(
    batch: HostBatch,
    patch_size: int,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> PartitionedBatch:
    """Applies colours, normalisation and geometry on the device where the pixels are.

    Args:
        batch: what a worker made, moved to the device.
        patch_size: side of a token in pixels.
        mean: (3,) channel means.
        std: (3,) channel standard deviations.
    """

    def view(host: HostView) -> View:
        pixels = normalise(photometric.apply(host.record, host.pixels / 255), mean, std)
        if host.element is None:
            return View(pixels)
        return View(act(host.element, pixels, patch_size), host.element)

    return PartitionedBatch(
        tuple(map(view, batch.crop)),
        tuple(map(view, batch.invertible)),
        batch.indices,
        batch.label,
        batch.num_unreadable,
    )


def normalise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Standardises float pixels (B, 3, H, W) in [0, 1] per channel."""
    scale = pixels.new_tensor(std).reshape(-1, 1, 1)
    return (pixels - pixels.new_tensor(mean).reshape(-1, 1, 1)) / scale
