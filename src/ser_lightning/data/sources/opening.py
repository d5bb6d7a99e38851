"""Opening a source at the start of a run: what was found is printed, and ranks compare it."""

from typing import Any

import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_info

from ser_lightning.data.sources.base import ImageSet, Source


def open_source(source: Source) -> tuple[ImageSet, ImageSet | None]:
    """Opens both splits and prints what was found. A collective call: every rank makes it.

    Raises:
        ValueError: ranks found different images.
    """
    train, evaluation = source.train(), source.evaluation()
    check_ranks_agree(train)
    if evaluation is not None:
        check_ranks_agree(evaluation)
    rank_zero_info(source.summary())
    return train, evaluation


def check_ranks_agree(images: ImageSet) -> None:
    """Refuses ranks that found different images. A collective call: every rank makes it.

    Raises:
        ValueError: on every rank, with the number of images on each.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, (len(images), images.listing()))
    if len(set(found)) > 1:
        counts = ", ".join(f"{count:,}" for count, _ in found)
        raise ValueError(
            f"ranks found different images ({counts} of them, by rank); give all nodes the same "
            "files, and start once nothing changes them any more"
        )
