"""Geometric maps of one image to many frames, with black where nothing is left to show."""

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ser_lightning.corruptions.filters import to_uint8

Size = tuple[int, int]
_GUARD = 1 / 64  # levels: what a rounded float32 coordinate may change between two pixels


def centre_crop(image: Tensor, size: Size) -> Tensor:
    """The middle (..., height, width) of an image (..., H, W)."""
    top, left = _corner(image, size)
    return image[..., top : top + size[0], left : left + size[1]]


def _corner(image: Tensor, size: Size) -> tuple[int, int]:
    height, width = image.shape[-2:]
    return round((height - size[0]) / 2), round((width - size[1]) / 2)


def warp(image: Tensor, size: Size, matrices: Iterable[np.ndarray]) -> Tensor:
    """Maps the whole image and cuts the middle out, once per matrix: (T, 3, height, width) uint8.

    Linear interpolation and truncation, as PIL; a pixel whose place lies outside the image is
    black. Matrices (3, 3) map (x, y, 1), measured from the centre of the image, to the place in
    the frame, up to a factor.
    """
    top, left = _corner(image, size)
    height, width = image.shape[-2:]
    x = (left + np.arange(size[1]) + 0.5 - width / 2)[None, :]
    y = (top + np.arange(size[0]) + 0.5 - height / 2)[:, None]
    levels = image[None].float()
    frames = []
    for matrix in matrices:
        across, down, depth = (a * x + b * y + c for a, b, c in np.linalg.inv(matrix))
        across /= depth * (width / 2)
        down /= depth * (height / 2)
        grid = torch.from_numpy(np.stack([across, down], axis=-1).astype(np.float32))[None]
        frame = F.grid_sample(levels, grid, padding_mode="border", align_corners=False)[0]
        outside = torch.from_numpy((np.abs(across) > 1) | (np.abs(down) > 1))
        frames.append(to_uint8(frame.add_(_GUARD).masked_fill_(outside, 0)))
    return torch.stack(frames)


def shift(image: Tensor, size: Size, dx: int) -> Tensor:
    """Moves the whole image dx whole pixels to the right and cuts the middle out."""
    width = image.shape[-1]
    moved = torch.zeros_like(image)
    moved[..., max(0, dx) : width + min(0, dx)] = image[..., max(0, -dx) : width - max(0, dx)]
    return centre_crop(moved, size)


def rotation(degrees: float) -> np.ndarray:
    """Clockwise."""
    angle = np.deg2rad(degrees)
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])


def scaling(factor: float) -> np.ndarray:
    """The same in both directions."""
    return np.diag([factor, factor, 1.0])


def shearing(degrees: float) -> np.ndarray:
    """Turns the vertical axis alone.

    Source: the affine map of torchvision 0.2, with which the official set was made; later
    versions keep the height instead of the axis' length.
    """
    angle = np.deg2rad(degrees)
    return np.array([[1, -np.sin(angle), 0], [0, np.cos(angle), 0], [0, 0, 1]])


def tilting(degrees: float, size: Size) -> np.ndarray:
    """Turns the image plane round both axes, seen from the distance of the image's diagonal."""
    angle = np.deg2rad(degrees)
    cosine, sine = np.cos(angle), np.sin(angle)
    focal = float(np.hypot(*size))
    about_x = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
    about_y = np.array([[cosine, 0, -sine], [0, 1, 0], [sine, 0, cosine]])
    matrix = about_x @ about_y  # of (x, y, 1): the plane lies one pixel before the axes
    matrix[2, 2] += focal
    return np.diag([focal, focal, 1.0]) @ matrix
