"""Keeps measurements in float32 whose numbers half precision or TF32 would move."""

from collections.abc import Iterator
from contextlib import contextmanager

import lightning as L
import torch


def refuse_half_weights(trainer: L.Trainer) -> None:
    """Refuses a precision that leaves no weights in float32.

    Raises:
        ValueError: if it does.
    """
    if str(trainer.precision) in ("16-true", "bf16-true"):
        raise ValueError(
            f"precision {trainer.precision} turns the weights into half precision, whose noise "
            "moves a score by 0.01; use 32-true or bf16-mixed"
        )


@contextmanager
def full_float32() -> Iterator[None]:
    """Keeps GPUs from rounding factors to the 10 bits of TF32, whose noise shows in a score."""
    matmul, convolution = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = convolution
