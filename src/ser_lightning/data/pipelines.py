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

from ser_lightning.data import crops, photometric, render
from ser_lightning.data.crops import Cut, Interpolation
from ser_lightning.data.photometric import (
    MOCO_VIEW_1,
    MOCO_VIEW_2,
    PhotometricRecipe,
    PhotometricRecord,
)
from ser_lightning.data.plan import BatchKey
from ser_lightning.data.render import HostView
from ser_lightning.data.settings import LocalCrops, RotatedCrops
from ser_lightning.groups import GroupElement, GroupSampler
from ser_lightning.randomness import Stream, generator, uniforms


class CropViews:
    """The crop pipeline: two random resized crops, flipped and recoloured, and maybe local ones.

    The defaults are MoCo-v3's asymmetric recipe. Source: MoCo-v3; SER, pretraining settings.

    Args:
        view_1: colours of the first view (MoCo-v3: always blurred).
        view_2: colours of the second view (MoCo-v3: rarely blurred, sometimes solarized).
        scale: smallest and largest area of a crop, as a share of the image.
        ratio: smallest and largest aspect (width / height) of a crop.
        p_flip: probability of a horizontal flip.
        interpolation: the resize filter.
        local: the local views that follow the two; null for none. The invertible pipeline makes
            as many. Their aspect, flips and filter are those of the other crops.
    """

    def __init__(
        self,
        view_1: PhotometricRecipe = MOCO_VIEW_1,
        view_2: PhotometricRecipe = MOCO_VIEW_2,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        p_flip: float = 0.5,
        interpolation: Interpolation = "bilinear",
        local: LocalCrops | None = None,
    ) -> None:
        self.recipes = (view_1, view_2)
        self.scale = scale
        self.ratio = ratio
        self.p_flip = p_flip
        self.interpolation: Interpolation = interpolation
        self.local = local

    def make(
        self,
        images: Sequence[Tensor],
        indices: np.ndarray,
        key: BatchKey,
        seed: int,
        size: int,
        paired: bool = False,
    ) -> tuple[HostView, ...]:
        """Crops every image once per view.

        Args:
            images: uint8 images (3, H, W), of any sizes.
            indices: (B,) their positions in the data set.
            key: epoch and step; crops depend on the epoch alone.
            seed: the run's seed.
            size: side of the two global views in pixels.
            paired: images 2i and 2i + 1 show the same part of them, in shares of their sides.

        Returns:
            Two global views, then the local ones.
        """
        views = [(recipe, self.scale, size) for recipe in self.recipes]
        if self.local is not None:
            views += [(self.local.view, self.local.scale, self.local.size)] * self.local.num
        made = []
        for number, (recipe, scale, side) in enumerate(views):
            box, colours = render.draws(seed, key, indices, number)
            where = self.place(images, box, scale, paired)
            record = photometric.draw(recipe, colours)
            pixels = crops.cut(images, where, side, self.interpolation)
            made.append(HostView(pixels, record, packed=render.pack(where, record)))
        return tuple(made)

    def crop(
        self, images: Sequence[Tensor], draws: np.ndarray, scale: tuple[float, float], size: int
    ) -> Tensor:
        """Crops an area within `scale`, resizes and flips: uint8 (B, 3, size, size)."""
        return crops.cut(images, self.place(images, draws, scale), size, self.interpolation)

    def place(
        self,
        images: Sequence[Tensor],
        draws: np.ndarray,
        scale: tuple[float, float],
        paired: bool = False,
    ) -> Cut:
        """Turns uniform numbers, for the box and then the flip, into crops of an area."""
        sizes = crops.image_sizes(images)
        drawn_in = np.repeat(sizes[::2], 2, axis=0) if paired else sizes
        boxes = crops.crop_boxes(draws, drawn_in[:, 0], drawn_in[:, 1], scale, self.ratio)
        boxes = crops.carried(boxes, drawn_in, sizes) if paired else boxes
        return Cut(sizes, boxes, draws[:, crops.NUM_UNIFORMS] < self.p_flip)


class _Pair(NamedTuple):
    """How a pair of invertible views is made."""

    recipes: tuple[PhotometricRecipe, PhotometricRecipe]
    scale: tuple[float, float] | None  # area of the crop that both share; None: the whole image
    size: int  # side of the upright views in pixels
    grid: tuple[int, int]  # (h, w) tokens of an upright view


class InvertibleViews:
    """The invertible pipeline: pairs of views that differ in colours, flips, turns and size only.

    The global pair shows the whole image; with local crops, each further pair shows one random
    crop (aspect 3/4-4/3, flipped with probability 1/2), which both of its views share.
    Source: SER, Eq. 4 and section on transformation sampling; "2+4 views" for the local pairs.

    Args:
        ratio: share p of the global batch that takes this pipeline instead of crops. The paper's
            table has 0.005 to 0.02; at least two images per global batch are required.
        group: which transformations, and how they are drawn.
        view_1: colours of the first global view; null takes those of the crops' first view.
        view_2: colours of the second global view; null takes those of the crops' second view.
        crop: "none" squashes the whole image into the square, as the paper describes. "shared"
            cuts one random crop (area 0.08-1) that both global views share, as the public code
            does.
        interpolation: the resize filter.
    """

    # Differs: the public code shares one random resized crop (area 0.08-1) between both views
    # where the paper says that cropping is disabled; `crop: shared` reproduces the code.
    # Differs: with local crops, the public code colours the global pair with the local recipe as
    # well; here it keeps view_1 and view_2, so that local crops add pairs and change none.
    def __init__(
        self,
        ratio: float = 0.01,
        group: GroupSampler | None = None,
        view_1: PhotometricRecipe | None = None,
        view_2: PhotometricRecipe | None = None,
        crop: Literal["none", "shared"] = "none",
        interpolation: Interpolation = "bilinear",
    ) -> None:
        self.ratio = ratio
        self.group = group or GroupSampler()
        self.recipes = (view_1, view_2)
        self.cropper = CropViews(interpolation=interpolation)
        self.scale = self.cropper.scale if crop == "shared" else None
        self.interpolation: Interpolation = interpolation

    def make(
        self,
        images: Sequence[Tensor],
        indices: np.ndarray,
        key: BatchKey,
        seed: int,
        size: int,
        grid: tuple[int, int],
        local: LocalCrops | None = None,
        colours: tuple[PhotometricRecipe, PhotometricRecipe] = (MOCO_VIEW_1, MOCO_VIEW_2),
    ) -> tuple[HostView, ...]:
        """Makes the views of every image, with the group elements still to be applied.

        Args:
            images: uint8 images (3, H, W), of any sizes.
            indices: (B,) their positions in the data set.
            key: epoch and step; grid size and parity of the turns depend on the step.
            seed: the run's seed.
            size: side of the upright global views in pixels.
            grid: (h, w) tokens of an upright global view.
            local: the crop pipeline's local crops, an even number.
            colours: the crop pipeline's, of the global views that have none of their own.

        Returns:
            The global pair, then the local pairs: as many views as the crop pipeline's.
        """
        first, second = self.recipes
        recipes = (first or colours[0], second or colours[1])
        pairs = [_Pair(recipes, self.scale, size, grid)]
        if local is not None:
            assert local.num % 2 == 0, "the data module refuses odd numbers"
            local_grid = (grid[0] * local.size // size, grid[1] * local.size // size)
            pair = _Pair((local.view, local.view), local.scale, local.size, local_grid)
            pairs += [pair] * (local.num // 2)
        views: list[HostView] = []
        for number, pair in enumerate(pairs):
            views += self._pair(images, indices, key, seed, number, pair)
        return tuple(views)

    def _pair(
        self,
        images: Sequence[Tensor],
        indices: np.ndarray,
        key: BatchKey,
        seed: int,
        number: int,
        pair: _Pair,
    ) -> list[HostView]:
        """Makes views 2 * number and 2 * number + 1, which share the crop of the first one."""
        draws = [render.draws(seed, key, indices, 2 * number + view) for view in range(2)]
        where = (
            self.cropper.place(images, draws[0][0], pair.scale)
            if pair.scale is not None
            else crops.whole(images)
        )
        pixels = crops.cut(images, where, pair.size, self.interpolation)
        elements = self.group.sample(
            len(indices),
            pair.grid,
            generator(seed, Stream.STEP, key.epoch, key.step, number),
            uniforms(seed, Stream.GROUP, key.epoch, indices, number, 4).reshape(-1, 2, 2),
        )
        views = []
        for recipe, (_, colours), element in zip(pair.recipes, draws, elements, strict=True):
            record = photometric.draw(recipe, colours)
            views.append(HostView(pixels, record, element, render.pack(where, record)))
        return views


_ROTATED_VIEW = 2**32  # the view's number in random draws: beyond those of local crops


class ExtraViews:
    """Makes the plain view, the rotated ones, or both in this order.

    Args:
        plain: whether to show the whole image as evaluation does, with its colours.
        rotated: the crop to show in four turns; None for none. Its aspect, flips and filter are
            those of the other crops.
        crop: the crop pipeline.
        crop_fraction: share of the resized side that the plain view keeps, as in evaluation.
        patch_size: side of a token in pixels.
    """

    def __init__(
        self,
        plain: bool,
        rotated: RotatedCrops | None,
        crop: CropViews,
        crop_fraction: float,
        patch_size: int,
    ) -> None:
        self.plain = plain
        self.rotated = rotated
        self.crop = crop
        self.crop_fraction = crop_fraction
        self.patch_size = patch_size

    def make(
        self,
        images: Sequence[Tensor],
        indices: np.ndarray,
        key: BatchKey,
        seed: int,
        size: int,
        paired: bool = False,
    ) -> tuple[HostView, ...]:
        """Makes the views of every image; the rotated ones are one host view, turned later.

        Args:
            images: uint8 images (3, H, W), of any sizes.
            indices: (B,) their positions in the data set.
            key: epoch and step; views depend on the epoch alone.
            seed: the run's seed.
            size: side of the plain view in pixels.
            paired: as `CropViews.make`.
        """
        views = []
        if self.plain:
            views.append(self._plain(images, size))
        if self.rotated is not None:
            block = render.draws(seed, key, indices, _ROTATED_VIEW)
            views.append(self._rotated(images, block, self.rotated, paired))
        return tuple(views)

    def _plain(self, images: Sequence[Tensor], size: int) -> HostView:
        sizes, fraction = crops.image_sizes(images), self.crop_fraction
        upright = np.zeros(len(images), dtype=bool)
        where = Cut(sizes, crops.central_boxes(sizes, size, fraction), upright)
        pixels = torch.stack([crops.central_crop(image, size, fraction) for image in images])
        record = PhotometricRecord.identity(len(images))
        return HostView(pixels, record, packed=render.pack(where, record))

    def _rotated(
        self,
        images: Sequence[Tensor],
        draws: tuple[np.ndarray, np.ndarray],
        rotated: RotatedCrops,
        paired: bool,
    ) -> HostView:
        where = self.crop.place(images, draws[0], rotated.scale, paired)
        pixels = crops.cut(images, where, rotated.size, self.crop.interpolation)
        record = photometric.draw(rotated.view, draws[1])
        turns = _quarter_turns(len(images), rotated.size // self.patch_size)
        return HostView(pixels, record, packed=render.pack(where, record), elements=turns)


def _quarter_turns(batch_size: int, side: int) -> tuple[GroupElement, ...]:
    """Turns of every image by 0, 1, 2 and 3 quarters, at their size of (side, side) tokens."""
    upright = GroupElement.identity(batch_size, (side, side))
    halves = upright.half_turn, ~upright.half_turn
    return tuple(
        upright._replace(half_turn=half, quarter_turn=turn) for half in halves for turn in (0, 1)
    )
