"""InfoNCE between two sets of vectors, as MoCo-v3 and the add-ons on it use it."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ser_lightning.distributed import gather, rank
from ser_lightning.precision import at_least_float


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
