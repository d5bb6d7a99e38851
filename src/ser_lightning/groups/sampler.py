"""Draws the group elements of the two invertible views."""

import math
from typing import Literal

import numpy as np
import torch

from ser_lightning.groups.element import GroupElement, Interpolation
from ser_lightning.numbers import Angle, AreaInterval, PositiveInt, PositiveInterval, checked, fits

Pairing = Literal["independent", "complementary"]


@checked
class GroupSampler:
    """Draws one group element per image for each of two views.

    Per image: half turn and flip, each with probability 1/2. Per view and step, shared by the
    batch and by every rank, so that shapes stack: the parity of the quarter turns and the grid,
    of area U(area) times the base grid and aspect log-uniform(aspect), rounded to whole tokens.
    So each of the 8 flips and turns is equally likely for every image, and scaling is uniform in
    area. Source: SER, section on transformation sampling.

    The same numbers are drawn whatever is switched off, so that runs of an ablation share the
    remaining ones.

    Args:
        rotation: turn the views (quarter and half turns).
        flip: flip the views horizontally.
        scale: resize the views; without it every grid is the base grid.
        area: least and greatest area, as a multiple of the base grid's.
        aspect: least and greatest height over width, relative to the base grid's.
        pairing: "independent" draws the second view independently of the first.
            "complementary" reproduces the public code: half turn and flip of view 2 are the
            negations of view 1's, on top of a number of quarter turns 0..3 shared by each view.
            The relative element is then always one of the 4 reflections.
        interpolation: kernel of the resize, for pixels and token maps alike: "bicubic", as the
            public code; "bilinear", as MoCo-v3's crops.
        angle: degrees up to which each view of an image is turned further, uniformly and either
            way, after all else; 0 for none. Corners are reflected, and maps are compared where
            both views see the image, bilinearly whatever the interpolation of the resize.

    Raises:
        ValueError: if nothing is switched on, or pairing or interpolation are unknown.
    """

    # Differs: the paper describes two independently sampled elements, its public code draws
    # complementary ones. The default follows the paper, so that pure rotations occur as well.
    def __init__(
        self,
        rotation: bool = True,
        flip: bool = True,
        scale: bool = True,
        area: AreaInterval = (0.7, 1.3),
        aspect: PositiveInterval = (3 / 4, 4 / 3),
        pairing: Pairing = "independent",
        interpolation: Interpolation = "bicubic",
        angle: Angle = 0.0,
    ) -> None:
        if not (rotation or flip or scale or angle):
            raise ValueError(
                "rotation, flip, scale and angle are all off, so that every view is upright; "
                "switch one on, or set `data.invertible` to null"
            )
        self.rotation = rotation
        self.flip = flip
        self.scale = scale
        self.area = area
        self.aspect = aspect
        self.pairing = pairing
        self.interpolation = interpolation
        self.angle = angle

    def sample(
        self,
        num_images: int,
        grid: tuple[int, int],
        rng_shared: np.random.Generator,
        uniforms: np.ndarray,
        angles: np.ndarray | None = None,
    ) -> tuple[GroupElement, GroupElement]:
        """Draws the elements of both views, on the CPU.

        Args:
            num_images: number of images B.
            grid: (h, w) the backbone's base grid, in tokens.
            rng_shared: generator in the same state on every rank; 8 numbers are taken from it.
            uniforms: (B, 2 views, 2) in [0, 1), the images' own draws: half turn, flip.
            angles: (B, 2 views) in [0, 1), the same for angles, which a sampler without has no use
                for.

        Raises:
            ValueError: if the draws are not those of the images, or the base grid is empty.
        """
        if not isinstance(rng_shared, np.random.Generator):
            raise ValueError(
                f"rng_shared is a {type(rng_shared).__name__}; give a generator of numpy, such as "
                "numpy.random.default_rng(seed), in the same state on every process"
            )
        if not isinstance(uniforms, np.ndarray) or uniforms.shape != (num_images, 2, 2):
            given = f"{type(uniforms).__name__} of shape {(*np.shape(uniforms),)}"
            raise ValueError(
                f"uniforms are a {given} for {num_images} images; give half turn and flip for each "
                f"of two views: a numpy array ({num_images}, 2, 2)"
            )
        shape = angles.shape if isinstance(angles, np.ndarray) else None
        if self.angle and shape != (num_images, 2):
            given = f"of shape {shape}" if shape is not None else type(angles).__name__
            raise ValueError(
                f"angles are {given} for {num_images} images and an angle of {self.angle:g}; give "
                f"one for each of two views: ({num_images}, 2) of numpy, or an angle of 0"
            )
        if not fits(tuple[PositiveInt, PositiveInt], grid):
            raise ValueError(f"base grid {grid} must be (h, w) in whole tokens, at least 1 each")
        shared = rng_shared.random((2, 4))  # per view: area, aspect, parity, half turn
        own = uniforms < 0.5
        if self.pairing == "complementary":
            own = np.stack((own[:, 0], ~own[:, 0]), axis=1)
            own[:, :, 0] ^= shared[:, 3] < 0.5  # quarter turns 0..3 of the view as a whole
        first, second = (self._view(grid, shared[view], own[:, view]) for view in range(2))
        if angles is None or not self.angle:
            return first, second
        degrees = torch.from_numpy((self.angle * (2 * angles - 1)).astype(np.float32))
        return first._replace(angle=degrees[:, 0]), second._replace(angle=degrees[:, 1])

    def _view(self, grid: tuple[int, int], shared: np.ndarray, own: np.ndarray) -> GroupElement:
        half_turn = torch.from_numpy(own[:, 0] & self.rotation)
        flip = torch.from_numpy(own[:, 1] & self.flip)
        parity = int(self.rotation and shared[2] < 0.5)
        drawn = self._grid(grid, shared[0], shared[1])
        return GroupElement(flip, half_turn, parity, drawn, self.interpolation)

    def _grid(self, grid: tuple[int, int], area: float, aspect: float) -> tuple[int, int]:
        if not self.scale:
            return grid
        (low, high), (narrow, wide) = self.area, self.aspect
        scale = math.sqrt(low + (high - low) * area)
        shape = math.sqrt(narrow * (wide / narrow) ** aspect)
        return max(1, round(grid[0] * scale * shape)), max(1, round(grid[1] * scale / shape))
