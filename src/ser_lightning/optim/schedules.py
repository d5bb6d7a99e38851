"""Schedules as pure functions of the step: nothing to checkpoint, exact at a restart."""

import math
from typing import Literal

Scaling = Literal["linear", "sqrt"]
REFERENCE_BATCH_SIZE = 256


def cosine(step: float, num_steps: float, start: float, end: float) -> float:
    """Moves from `start` at step 0 to `end` at `num_steps` along half a cosine, then stays."""
    progress = min(step / num_steps, 1.0) if num_steps > 0 else 1.0
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))


def warmup_cosine(step: float, num_steps: float, warmup_steps: float, floor: float = 0.0) -> float:
    """Rises linearly from 0 to 1 during warm-up, then falls to `floor` along half a cosine.

    Args:
        step: optimizer steps taken so far.
        num_steps: optimizer steps of the whole run.
        warmup_steps: length of the warm-up.
        floor: the value at the end.
    """
    if step < warmup_steps:
        return step / warmup_steps
    return cosine(step - warmup_steps, num_steps - warmup_steps, 1.0, floor)


def scaled_learning_rate(
    base_learning_rate: float, global_batch_size: int, scaling: Scaling = "linear"
) -> float:
    """The peak learning rate: `base_learning_rate` at a batch of 256, scaled to another batch.

    Args:
        base_learning_rate: peak for 256 images.
        global_batch_size: images per optimizer step.
        scaling: "linear" in the batch size, as most methods; "sqrt" as SimCLR for its long runs.
    """
    factor = global_batch_size / REFERENCE_BATCH_SIZE
    return base_learning_rate * (math.sqrt(factor) if scaling == "sqrt" else factor)
