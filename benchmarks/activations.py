"""Bytes that the forward pass of a ViT keeps per image for the backward pass, in float32."""

import argparse

import torch
from torch import Tensor

from ser_lightning.backbones import SplitViT


def kept_bytes(name: str, grad_checkpointing: bool) -> float:
    """Counts each kept storage once, without the weights; per image of 224 pixels, in float32."""
    model = SplitViT(name, grad_checkpointing=grad_checkpointing)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes: dict[int, int] = {}
    alive = []  # so that no address is used twice

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
            alive.append(x)
        return x

    num_bytes = []
    for num_images in (2, 4):  # the difference leaves out what is kept once
        sizes.clear()
        alive.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            model(torch.zeros(num_images, 3, 224, 224))
        num_bytes.append(sum(sizes.values()))
    return (num_bytes[1] - num_bytes[0]) / 2


def main() -> None:
    """Prints a row for each ViT and precision."""
    parser = argparse.ArgumentParser(description=__doc__)
    sizes = ("small", "base", "large")
    parser.add_argument("--names", nargs="+", default=[f"vit_{s}_patch16_224" for s in sizes])
    for name in parser.parse_args().names:
        plain, again = (kept_bytes(name, is_on) / 1e6 for is_on in (False, True))
        print(f"{name}: {plain:.1f} MB per image, {again:.1f} MB with grad_checkpointing")


if __name__ == "__main__":
    main()
