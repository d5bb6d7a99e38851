"""The precision of losses."""

import torch
from torch import Tensor


def at_least_float(x: Tensor) -> Tensor:
    """The tensor in float32, or in float64 if it is: what losses are computed in under autocast."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
