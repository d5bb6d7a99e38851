"""What is nearest to a few images, for people to look at."""

from typing import NamedTuple

import torch
from torch import Tensor

from ser_lightning.evaluation.metrics.knn import nearest
from ser_lightning.evaluation.per_image import GatheredRows

NUM_QUERIES, NUM_NEIGHBOURS = 6, 5


class Neighbours(NamedTuple):
    """The (Q,) slots of some queries, the (Q, K) slots of their neighbours, and cosines."""

    queries: Tensor
    bank: Tensor
    cosine: Tensor


def some_neighbours(bank: GatheredRows, queries: GatheredRows) -> Neighbours | None:
    """What is nearest to a few queries, always the same ones; None where there are too few.

    They are drawn, since images may be sorted by class.
    """
    if len(queries.slots) < NUM_QUERIES or len(bank.slots) < NUM_NEIGHBOURS:
        return None
    rng = torch.Generator().manual_seed(0)
    rows = torch.randperm(len(queries.slots), generator=rng)[:NUM_QUERIES]
    cosine, nearest_rows = nearest(bank.values, queries.values[rows], NUM_NEIGHBOURS)
    return Neighbours(queries.slots[rows], bank.slots[nearest_rows], cosine)
