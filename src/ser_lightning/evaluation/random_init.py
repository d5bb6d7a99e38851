"""The baseline of every number: the same backbone, freshly initialised."""

import torch

from ser_lightning.backbones import SplitViT


def random_init(backbone: SplitViT, seed: int = 0) -> SplitViT:
    """Builds a backbone with the same arguments and new weights, frozen, in evaluation mode.

    Args:
        backbone: whose arguments to take.
        seed: of the weights, the same on every process; the global generator stays as it is.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = SplitViT(**backbone.arguments)
    return fresh.requires_grad_(False).eval()
