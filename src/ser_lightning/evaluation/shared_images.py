"""Whether two sets share images, of which a classification by neighbours would be a tautology."""

import os
from collections.abc import Hashable
from functools import lru_cache

import numpy as np

from ser_lightning.sources.base import ImageSet, origin
from ser_lightning.sources.folder import FileImages


def num_shared(first: "ImageSet | Chosen", second: "ImageSet | Chosen") -> int:
    """How many images are in both sets (or the chosen ones): one file, or place in one set."""
    return len(_identities(first) & _identities(second))


Chosen = tuple[ImageSet, np.ndarray | None]


def _identities(chosen: ImageSet | Chosen) -> set[Hashable]:
    images, positions = chosen if isinstance(chosen, tuple) else (chosen, None)
    positions = np.arange(len(images)) if positions is None else positions
    images, positions = origin(images, positions)
    if not isinstance(images, FileImages):
        return {(id(images), position) for position in positions.tolist()}
    real = lru_cache(maxsize=None)(os.path.realpath)  # of folders: links to them are common
    found: set[Hashable] = set()
    for position in positions.tolist():
        folder, name = os.path.split(images.path(position))
        found.add((real(folder), name))
    return found
