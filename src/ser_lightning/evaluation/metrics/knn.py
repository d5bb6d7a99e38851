"""Weighted k-nearest-neighbour classification of frozen features.

Source: DINO eval_knn.py. The neighbours of a query q are the k bank rows with the largest cosine
s_j; each votes for its class with weight exp(s_j / temperature).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class KNNAccuracy(NamedTuple):
    """Accuracy in percent; `top5` is over the best five classes that have votes."""

    top1: float
    top5: float

    @classmethod
    def of(cls, hits: Tensor) -> "KNNAccuracy":
        """Averages the hits of `knn_hits` over the queries."""
        top1, top5 = hits[:, 0].double().mean(), hits.any(1).double().mean()
        return cls(100 * top1.item(), 100 * top5.item())


def knn_accuracy(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, query_labels: Tensor, *args: Any, **how: Any
) -> dict[int, KNNAccuracy]:
    """How often the neighbours of a query vote for its class, for every k; as `knn_hits`."""
    hits = knn_hits(bank, bank_labels, queries, query_labels, *args, **how)
    return {k: KNNAccuracy.of(right) for k, right in hits.items()}


def knn_hits(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    k: int | Sequence[int] = 20,
    temperature: float = 0.07,
    chunk_size: int = 256,
) -> dict[int, Tensor]:
    """Says of each query which of its best classes is the true one; see `knn_predict`.

    Args:
        bank: (N, K) features of the labelled bank, of any length.
        bank_labels: (N,) int64 classes, none negative.
        queries: (M, K) features to classify, at least one.
        query_labels: (M,) int64 true classes, none negative.
        k: the number of neighbours, or several.
        temperature: temperature of the votes.
        chunk_size: queries compared with the bank at a time; memory is chunk_size * N floats.

    Returns:
        For every k (M, 5) bool, best class first; at most one is set in a row.

    Raises:
        ValueError: if there is no query or a label is negative, and as `knn_predict`.
    """
    if len(queries) == 0:
        raise ValueError("there are no queries to classify; give at least one image")
    lowest = min(int(bank_labels.min()), int(query_labels.min())) if len(bank_labels) else 0
    if lowest < 0:
        raise ValueError(f"label {lowest} is negative; k-NN needs a label for every image")
    predictions = knn_predict(bank, bank_labels, queries, k, temperature, chunk_size)
    return {
        num_neighbours: classes == query_labels.to(classes.device)[:, None]
        for num_neighbours, classes in predictions.items()
    }


@torch.no_grad()
def knn_predict(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    k: int | Sequence[int] = 20,
    temperature: float = 0.07,
    chunk_size: int = 256,
) -> dict[int, Tensor]:
    """Ranks the classes of every query by the votes of its neighbours.

    The naive loop, with s_j = cos(q, bank_j) and N_k(q) the k largest of them:

        for q: for j in N_k(q): votes[q, bank_labels[j]] += exp(s_j / temperature)

    Votes are divided by the largest one of the query, so that no temperature overflows. Classes
    with equal votes rank by their number. Arguments are those of `knn_hits`; computed on the bank's
    device.

    Returns:
        For every k the (M, 5) best classes of each query, best first, and then -1 where fewer
        classes have votes.

    Raises:
        ValueError: if a k is not in 1..N, or the temperature is not positive.
    """
    counts = [k] if isinstance(k, int) else list(k)
    for count in counts:
        if not 1 <= count <= len(bank):
            raise ValueError(
                f"k {count} with a bank of {len(bank)} images; k must be between 1 and the size of "
                "the bank: lower k or use a larger bank"
            )
    if temperature <= 0:
        raise ValueError(f"k-NN temperature {temperature} must be positive; 0.07 is the usual one")
    bank = F.normalize(bank.float(), dim=1)
    bank_labels = bank_labels.to(bank.device)
    num_classes = max(5, 1 + int(bank_labels.max()))
    ranked: dict[int, list[Tensor]] = {count: [] for count in counts}
    for chunk in queries.split(chunk_size):
        similarity, neighbours = _nearest(bank, chunk, max(counts))
        weights = ((similarity - similarity[:, :1]) / temperature).exp()
        labels = bank_labels[neighbours]
        for count in counts:
            votes = weights.new_zeros(len(chunk), num_classes)
            votes.scatter_add_(1, labels[:, :count], weights[:, :count])
            has_none = torch.ones_like(votes, dtype=torch.bool)
            votes[has_none.scatter_(1, labels[:, :count], False)] = -1
            best, order = votes.sort(dim=1, descending=True, stable=True)
            ranked[count].append(order.where(best >= 0, -1)[:, :5])
    return {count: torch.cat(chunks) for count, chunks in ranked.items()}


@torch.no_grad()
def nearest(bank: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The cosines (M, k) and bank rows (M, k) of each query's neighbours, nearest first.

    Of a bank of (N, K) features, at least k of them, and (M, K) queries.
    """
    return _nearest(F.normalize(bank.float(), dim=1), queries, k)


def _nearest(bank: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """As `nearest`, with a bank whose rows have length 1."""
    found = (F.normalize(queries.to(bank.device).float(), dim=1) @ bank.T).topk(k, dim=1)
    return found.values, found.indices
