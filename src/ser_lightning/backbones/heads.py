"""Projection and prediction heads, and batch normalisation over all ranks."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from ser_lightning.distributed import gather_with_gradient, world_size


class CrossRankBatchNorm1d(nn.BatchNorm1d):
    """BatchNorm1d whose training statistics are those of the global batch.

    One gather per forward, of every rank's mean and variance; gradients flow through it to all
    ranks, so that N processes train like one with the same global batch. Unlike SyncBatchNorm it
    runs on the CPU too. Every rank must hold the same number of samples. The statistics are
    computed in float32 at least.
    """

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Normalises (B, C) over the B of all ranks, or (B, C, L) over B and L."""
        uses_running_statistics = not self.training and self.running_mean is not None
        if world_size() == 1 or uses_running_statistics:
            return super().forward(x)
        self._check_input_dim(x)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        dims = [d for d in range(x.ndim) if d != 1]
        variance, mean = torch.var_mean(wide, dim=dims, correction=0)
        variances, means = gather_with_gradient(torch.stack([variance, mean])[None]).unbind(1)
        mean = means.mean(0)
        variance = variances.mean(0) + means.var(0, correction=0)
        if self.training and self.running_mean is not None:
            self._track(mean.detach(), variance.detach(), world_size() * x.numel() // x.shape[1])
        scale = torch.rsqrt(variance + self.eps)
        if self.weight is not None:
            scale = scale * self.weight
        shape = [-1 if d == 1 else 1 for d in range(x.ndim)]
        result = (wide - mean.view(shape)) * scale.view(shape)
        if self.bias is not None:
            result = result + self.bias.view(shape)
        return result.to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, num_samples: int) -> None:
        """Moves the running statistics as BatchNorm1d does, with the unbiased variance."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        # without a momentum, the average over all batches so far
        step = 1.0 / self.num_batches_tracked if self.momentum is None else self.momentum
        unbiased = variance * (num_samples / (num_samples - 1))
        self.running_mean.add_(step * (mean - self.running_mean))
        self.running_var.add_(step * (unbiased - self.running_var))


LastNorm = Literal["none", "affine", "affine_free"]


def mlp(
    widths: Sequence[int], last_norm: LastNorm = "none", bias: bool = False, last_bias: bool = False
) -> nn.Sequential:
    """Linear layers with batch normalisation over all ranks and ReLU between them.

    Args:
        widths: widths of the input, the hidden layers and the output; two make a single layer.
        last_norm: batch normalisation after the last layer: none, with or without learnt affine.
        bias: whether the layers before the last have a bias.
        last_bias: whether the last one has.

    Raises:
        ValueError: if there are fewer than two widths.
    """
    if len(widths) < 2:
        raise ValueError(f"widths {tuple(widths)} make no layer; give at least input and output")
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths[:-1]):
        layers += [
            nn.Linear(fan_in, fan_out, bias=bias),
            CrossRankBatchNorm1d(fan_out),
            nn.ReLU(inplace=True),
        ]
    layers.append(nn.Linear(widths[-2], widths[-1], bias=last_bias))
    if last_norm != "none":
        layers.append(CrossRankBatchNorm1d(widths[-1], affine=last_norm == "affine"))
    return nn.Sequential(*layers)
