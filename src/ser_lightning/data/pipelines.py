"""The two pipelines: crops for invariance, invertible views for equivariance; and extra views.

Settings of local and rotated crops are in `extra_views.py`, of colours and blur in
`photometric.py`, of flips, turns and scales of the invertible views in `groups/sampler.py`; boxes
and resizing in `crops.py`.

A pipeline works in two halves. `make` runs on the host, in the workers: it draws every random
number as a function of (seed, epoch, step, index) and returns small uint8 images with the record
of what is to be done to them. `render` runs on the device, in batches: colours, normalisation and
geometry.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from torch import Tensor

from ser_lightning.batch import NUM_GLOBAL_VIEWS, ViewRecord
from ser_lightning.data import crops, photometric
from ser_lightning.data.clean import Clean
from ser_lightning.data.crops import Interpolation
from ser_lightning.data.draws import Canvas, Draws
from ser_lightning.data.extra_views import LocalCrops, RotatedCrops, TurnedCrops
from ser_lightning.data.photometric import MOCO_VIEW_1, MOCO_VIEW_2, PhotometricRecipe
from ser_lightning.data.render import HostView
from ser_lightning.groups import GroupElement, GroupSampler
from ser_lightning.numbers import PositiveInterval, Probability, Ratio, RatioInterval, checked


@checked
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
        turned: the share of images whose two views are turned; null for none.
    """

    def __init__(
        self,
        view_1: PhotometricRecipe = MOCO_VIEW_1,
        view_2: PhotometricRecipe = MOCO_VIEW_2,
        scale: RatioInterval = (0.08, 1.0),
        ratio: PositiveInterval = (3 / 4, 4 / 3),
        p_flip: Probability = 0.5,
        interpolation: Interpolation = "bilinear",
        local: LocalCrops | None = None,
        turned: TurnedCrops | None = None,
    ) -> None:
        self.recipes = (view_1, view_2)
        self.scale = scale
        self.ratio = ratio
        self.p_flip = p_flip
        self.interpolation: Interpolation = interpolation
        self.local = local
        self.turned = turned

    def without_local(self) -> "CropViews":
        """The same pipeline with its two global views alone."""
        alone = copy(self)
        alone.local = None
        return alone

    def make(self, images: Sequence[Tensor], draws: Draws, canvas: Canvas) -> tuple[HostView, ...]:
        """Crops uint8 images (3, H, W), of any sizes: two global views, then the local ones."""
        views = enumerate(self._views(canvas.size))
        return tuple(self.view(images, draws, number, *view) for number, view in views)

    def _views(self, size: int) -> list[tuple[PhotometricRecipe, tuple[float, float], int]]:
        """Colours, area and side in pixels of every view."""
        views = [(recipe, self.scale, size) for recipe in self.recipes]
        if self.local is not None:
            views += [(self.local.view, self.local.scale, self.local.size)] * self.local.num
        return views

    def needed_side(self, size: int) -> int:
        """Height and width of an image that suffice for views of which the global have a size."""
        views = self._views(size)
        return max(crops.needed_side(side, scale, self.ratio) for _, scale, side in views)

    def view(
        self,
        images: Sequence[Tensor],
        draws: Draws,
        number: int,
        recipe: PhotometricRecipe,
        scale: tuple[float, float],
        size: int,
    ) -> HostView:
        """Crops every image once, as view `number` of the draws, with a recipe's colours.

        `scale` is the smallest and largest area, as a share of the image's, `size` in pixels.
        """
        box, colours = draws.view(number)
        record = self.place(images, box, scale, draws.paired)
        if self.turned is not None and draws.turned is not None and number < NUM_GLOBAL_VIEWS:
            degrees = self.turned.degrees(draws.turns(number, 1)[:, 0])
            record = record._replace(turn=np.where(draws.turned, degrees, 0.0))
        pixels = crops.cut(images, record, size, self.interpolation)
        return HostView(pixels, photometric.draw(recipe, colours, record))

    def cut(self, images: Sequence[Tensor], draws: np.ndarray, size: int) -> Tensor:
        """Crops, resizes and flips as uniform numbers say: uint8 (B, 3, size, size)."""
        return crops.cut(images, self.place(images, draws, self.scale), size, self.interpolation)

    def place(
        self,
        images: Sequence[Tensor],
        draws: np.ndarray,
        scale: tuple[float, float],
        paired: bool = False,
    ) -> ViewRecord[np.ndarray]:
        """Turns uniform numbers, for the box and then the flip, into crops of an area."""
        record = crops.whole(images)
        sizes = record.source_size
        drawn_in = np.repeat(sizes[::2], 2, axis=0) if paired else sizes
        boxes = crops.crop_boxes(draws, drawn_in[:, 0], drawn_in[:, 1], scale, self.ratio)
        boxes = crops.carried(boxes, drawn_in, sizes) if paired else boxes
        return record._replace(box=boxes, flip=draws[:, crops.NUM_UNIFORMS] < self.p_flip)


class _Pair(NamedTuple):
    recipes: tuple[PhotometricRecipe, PhotometricRecipe]
    scale: tuple[float, float] | None  # area of the crop that both views share; None: everything
    size: int  # side of the upright views in pixels


@checked
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
        ratio: Ratio = 0.01,
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
        self, images: Sequence[Tensor], draws: Draws, canvas: Canvas, crop: CropViews
    ) -> tuple[HostView, ...]:
        """Makes the views of every image, with the group elements still to be applied.

        The global pair, then as many local pairs as the crop pipeline has pairs of local crops. Its
        colours are those of global views that have none of their own.
        """
        return tuple(
            view
            for number, pair in enumerate(self._pairs(canvas, crop))
            for view in self._pair(images, draws, number, pair, canvas.grid(pair.size))
        )

    def _pairs(self, canvas: Canvas, crop: CropViews) -> list[_Pair]:
        first, second = self.recipes
        recipes = (first or crop.recipes[0], second or crop.recipes[1])
        pairs = [_Pair(recipes, self.scale, canvas.size)]
        if crop.local is not None:
            local = crop.local
            assert local.num % 2 == 0, "the data module refuses odd numbers"
            pairs += [_Pair((local.view, local.view), local.scale, local.size)] * (local.num // 2)
        return pairs

    def needed_side(self, canvas: Canvas, crop: CropViews) -> int:
        """Height and width of an image that suffice for all views; arguments as `make`."""
        ratio = self.cropper.ratio
        return max(
            crops.needed_side(pair.size, *((pair.scale, ratio) if pair.scale else ()))
            for pair in self._pairs(canvas, crop)
        )

    def _pair(
        self,
        images: Sequence[Tensor],
        draws: Draws,
        number: int,
        pair: _Pair,
        grid: tuple[int, int],
    ) -> list[HostView]:
        """Makes views 2 * number and 2 * number + 1, which share the crop of the first one."""
        drawn = [draws.view(2 * number + view) for view in range(2)]
        record = (
            self.cropper.place(images, drawn[0][0], pair.scale)
            if pair.scale is not None
            else crops.whole(images)
        )
        pixels = crops.cut(images, record, pair.size, self.interpolation)
        elements = draws.elements(self.group, grid, number)
        return [
            HostView(pixels, photometric.draw(recipe, colours, record), element)
            for recipe, (_, colours), element in zip(pair.recipes, drawn, elements, strict=True)
        ]


_ROTATED_VIEW = 2**32  # the view's number in random draws: beyond those of local crops


@dataclass(frozen=True)
class ExtraViews:
    """Makes the plain view, the rotated ones, or both in this order.

    The plain view shows the whole image as evaluation does, with its colours; the rotated one is a
    crop in four turns, whose aspect, flips and filter are those of the other crops.
    """

    plain: Clean | None = None
    rotated: RotatedCrops | None = None

    def make(
        self, images: Sequence[Tensor], draws: Draws, canvas: Canvas, crop: CropViews
    ) -> tuple[HostView, ...]:
        """Makes the views of every image; the rotated ones are one host view, turned later."""
        views = []
        if self.plain is not None:
            views.append(self.plain.view(images))
        if self.rotated is not None:
            small = self.rotated
            view = crop.view(images, draws, _ROTATED_VIEW, small.view, small.scale, small.size)
            turns = _quarter_turns(len(images), canvas.grid(small.size))
            views.append(view._replace(elements=turns))
        return tuple(views)

    def needed_side(self, ratio: tuple[float, float]) -> int:
        """Height and width of an image that suffice for the views, with this aspect of crops."""
        plain = 0 if self.plain is None else self.plain.needed_side
        small = self.rotated
        return max(plain, 0 if small is None else crops.needed_side(small.size, small.scale, ratio))


NO_EXTRA_VIEWS = ExtraViews()


def _quarter_turns(batch_size: int, grid: tuple[int, int]) -> tuple[GroupElement, ...]:
    """Turns of every image by 0, 1, 2 and 3 quarters, at their size in tokens."""
    upright = GroupElement.identity(batch_size, grid)
    halves = upright.half_turn, ~upright.half_turn
    return tuple(
        upright._replace(half_turn=half, quarter_turn=turn) for half in halves for turn in (0, 1)
    )
