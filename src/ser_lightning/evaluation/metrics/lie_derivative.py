"""The Lie derivative of an encoder: how it fails to follow a transformation that sets in.

Source: Gruver et al. 2023 (arXiv 2210.02984), the local equivariance error (LEE).
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from ser_lightning.groups.generators import generate

Encoder = Callable[[Tensor], Sequence[Tensor]]
"""From (B, 3, H, W) images to several outputs: maps (B, C, h, w), or embeddings (B, C)."""


class Derivative(NamedTuple):
    """How outputs change with a transformation of the image.

    Attributes:
        output: what the encoder makes of the images.
        lie: the Lie derivative, of the shape of the output; 0 where the encoder is equivariant.
        change: the output's own rate of change, without an action on it; the Lie derivative of an
            embedding, on which the transformation does not act.
    """

    output: Tensor
    lie: Tensor
    change: Tensor


def lie_derivatives(
    encode: Encoder, images: Tensor, names: Sequence[str]
) -> Iterator[tuple[str, list[Derivative]]]:
    """Differentiates the outputs of an encoder along transformations of the image.

    For a transformation g_t, which acts on maps as on images and leaves embeddings alone,

        L f(x) = d/dt g_t^-1 f(g_t x) at t = 0  =  J_f(x) [X x] - X f(x)

    with X x = d/dt g_t x, by forward-mode differentiation: one pass for each transformation, no
    step size. Scaled dot product attention is the written-out one, as fused kernels have no
    forward derivative.

    Args:
        encode: the encoder f, in evaluation mode.
        images: (B, 3, H, W).
        names: of `GENERATORS`.

    Yields:
        Each name with the derivatives of every output.
    """
    # neither inference mode nor its tensors know forward-mode differentiation
    with torch.inference_mode(False), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        images = images.clone()
        for name in names:
            with forward_ad.dual_level():
                outputs = encode(_with_tangent(images, generate(name, images)))
                pairs = [forward_ad.unpack_dual(output) for output in outputs]
            yield name, [_derivative(name, *pair) for pair in pairs]


def mean_square(values: Tensor) -> Tensor:
    """The mean square (B,) of the entries of each output: its squared norm / its dimension."""
    return values.flatten(1).square().mean(1)


def _with_tangent(images: Tensor, tangent: Tensor) -> Tensor:
    with warnings.catch_warnings():  # torch compiles its own formulas here, the deprecated way
        warnings.filterwarnings("ignore", ".*torch.jit.script.*", FutureWarning)
        warnings.filterwarnings("ignore", ".*torch.jit.script.*", DeprecationWarning)
        dual: Tensor = forward_ad.make_dual(images, tangent)
    return dual


def _derivative(name: str, output: Tensor, change: Tensor | None) -> Derivative:
    change = torch.zeros_like(output) if change is None else change  # of a constant
    lie = change - generate(name, output) if output.dim() == 4 else change
    return Derivative(output, lie, change)
