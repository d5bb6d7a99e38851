"""Opening images at the start of a run: what was found is printed, and ranks compare it."""

from typing import Any

import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_info

from ser_lightning.sources.base import ImageSet, Source


def open_source(source: Source) -> tuple[ImageSet, ImageSet | None]:
    """Opens both splits and prints what was found.

    Raises:
        ValueError: there are labels without a class name, or as `check_ranks_agree`.
    """
    train, evaluation = source.train(), source.evaluation()
    sets = [images for images in (train, evaluation) if images is not None]
    for images in sets:
        last = int(images.labels.max()) if len(images) else -1
        known = len(images.class_names)
        if last >= known:
            raise ValueError(
                f"{type(images).__name__} of {type(source).__name__} has labels up to {last} and "
                f"{known} class_names; give a name for each class, and labels of -1 for images "
                "without one"
            )
    announce(source.summary(), *sets)
    return train, evaluation


def announce(summary: str, *sets: ImageSet) -> None:
    """Prints what was found, once ranks agree on it; raises as `check_ranks_agree`."""
    check_ranks_agree(*sets)
    rank_zero_info(summary)


def check_ranks_agree(*sets: ImageSet) -> None:
    """Refuses ranks that found different images: a ValueError on all; every rank calls it."""
    if not (dist.is_available() and dist.is_initialized()):
        return
    found: list[Any] = [None] * dist.get_world_size()
    own = sum(map(len, sets)), tuple(images.listing() for images in sets)
    dist.all_gather_object(found, own)
    if len(set(found)) > 1:
        counts = ", ".join(f"{count:,}" for count, _ in found)
        raise ValueError(
            f"ranks found different images ({counts} of them, by rank); give all nodes the same "
            "files, and start once nothing changes them any more"
        )
