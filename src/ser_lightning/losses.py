"""Small pieces that several losses share."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ser_lightning.distributed import gather, rank


def at_least_float(x: Tensor) -> Tensor:
    """The tensor in float32, or in float64 if it is: what losses are computed in under autocast."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def negative_cosine(predictions: Tensor, targets: Tensor) -> Tensor:
    """Negative cosine similarity of predictions and targets, mean over the local images.

        result = -mean_i p_i . z_i / (|p_i| |z_i|)

    Computed in float32. No gradient flows to the targets. Source: SimSiam, Eq. 1 and 3.

    Args:
        predictions: (b, C) p, predictions from one view.
        targets: (b, C) z, projections of the other view of the same images.
    """
    with torch.autocast(predictions.device.type, enabled=False):
        predictions, targets = at_least_float(predictions), at_least_float(targets.detach())
        return -F.cosine_similarity(predictions, targets, dim=1).mean()


def projection_std(projections: Tensor) -> Tensor:
    """Mean over channels of the standard deviation of the unit-length projections.

    About 1 / sqrt(C) where they spread over the sphere, 0 where they have collapsed. Detached, of
    this rank's images only. Source: SimSiam, section 4.1.

    Args:
        projections: (b, C).
    """
    return F.normalize(projections.detach().float(), dim=1).std(dim=0, correction=0).mean()


def contrastive_loss(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """InfoNCE of local queries against the keys of all ranks, scaled by twice the temperature.

    For query i of rank r, with b rows per rank and q, k of unit length:

        loss_i = -log(exp(q_i . k_{r b + i} / t) / sum_j exp(q_i . k_j / t))
        result = 2 t * mean_i loss_i

    Computed in float32. No gradient flows to the keys. Source: MoCo-v3, Algorithm 1.

    Args:
        queries: (b, C) predictions of one view.
        keys: (b, C) momentum projections of the other view of the same images.
        temperature: t.
    """
    with torch.autocast(queries.device.type, enabled=False):
        queries = F.normalize(at_least_float(queries), dim=1)
        keys = gather(F.normalize(at_least_float(keys), dim=1))
        logits = queries @ keys.T / temperature
        labels = torch.arange(len(queries), device=queries.device) + rank() * len(queries)
        return 2 * temperature * F.cross_entropy(logits, labels)
