"""How pure the neighbourhoods of classes are in an embedding space, as a number."""

import torch
from torch import Tensor

from ser_lightning.evaluation.metrics.knn import nearest


def neighbour_purity(embeddings: Tensor, label: Tensor, k: int) -> Tensor:
    """The share of each image's k nearest neighbours that are of its own class.

    By cosine among all the other images:

        for i: purity[i] = mean_j 1[label[j] = label[i]],   j the k largest of cos(z_i, z_j), j != i

    Args:
        embeddings: (N, C), of any length.
        label: (N,) int64.
        k: the number of neighbours, 1 to N - 1.

    Returns:
        (N,) float32 in [0, 1].

    Raises:
        ValueError: if there are not so many other images.
    """
    if not 1 <= k < len(embeddings):
        raise ValueError(
            f"k {k} neighbours among {len(embeddings) - 1} other images; use 1 to that many"
        )
    _, found = nearest(embeddings, embeddings, k + 1)
    itself = torch.arange(len(found), device=found.device)[:, None]
    # an image with copies may be none of its own k + 1 nearest: then the farthest one goes
    order = (found == itself).int().argsort(dim=1, stable=True)[:, :k]
    others = found.gather(1, order)
    same = label.to(others.device)[others] == label.to(others.device)[:, None]
    return same.float().mean(1)


def mean_by_class(values: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """The mean (num_classes,) of the values (N,) of each class; nan for one without any."""
    sums = label.bincount(values.double(), minlength=num_classes)
    return sums / label.bincount(minlength=num_classes)


def chance_purity(label: Tensor) -> float:
    """The mean over classes of the purity of neighbours that are drawn from all other images."""
    counts = label.unique(return_counts=True)[1].double()
    return ((counts - 1) / (len(label) - 1)).mean().item()
