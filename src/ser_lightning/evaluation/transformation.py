"""Probes that predict from frozen features which transformation an image went through.

Source: SER Table 7, "following Garrido et al. 2023", whose probe sees features of both images.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ser_lightning.backbones import SplitViT
from ser_lightning.backbones.vit import block_number

Mode = Literal["pair", "single"]

# Which of the versions below each label of a family means; label 0 is the image as it is.
FAMILIES: Mapping[str, tuple[int, ...]] = {"rotation": (0, 1, 2, 3), "flip": (0, 4)}
NUM_VERSIONS = 5


class Probe(NamedTuple):
    """One probe of a stage.

    Attributes:
        name: of its accuracy among the metrics.
        family: a key of `FAMILIES`.
        mode: "pair" for MLP([f(x), f(g.x)]), "single" for MLP(f(g.x)).
        place: which of the places of the features it reads.
    """

    name: str
    family: str
    mode: Mode
    place: int


def probed_layers(layers: Sequence[int | float], depth: int) -> list[int]:
    """Turns layers of a configuration into sorted numbers of blocks, each once.

    Args:
        layers: integers beyond the depth mean the depth, floats are fractions of it.
        depth: number of blocks.

    Raises:
        ValueError: if there is none, or one is negative.
    """
    numbers = sorted({min(block_number(layer, depth), depth) for layer in layers})
    if not numbers or numbers[0] < 0:
        raise ValueError(f"layers {list(layers)} must name blocks from 0 on; use for instance [3]")
    return numbers


def list_probes(layers: Sequence[int], modes: Sequence[Mode], baseline: bool) -> list[Probe]:
    """Lists all probes of a stage, in the order of their metrics.

    Args:
        layers: numbers of the blocks.
        modes: "pair", "single" or both.
        baseline: whether the features have a second backbone's places, the random one's.
    """
    suffixes = {"pair": "", "single": "_single"}
    return [
        Probe(f"{prefix}{family}_layer{layer}{suffixes[mode]}", family, mode, first + i)
        for first, prefix in ((0, ""), (len(layers), "random_init/"))[: 1 + baseline]
        for mode in modes
        for family in FAMILIES
        for i, layer in enumerate(layers)
    ]


def versions(images: Tensor) -> tuple[Tensor, ...]:
    """Shows square images in every way that a family knows, without any interpolation.

    Args:
        images: (B, 3, S, S).

    Returns:
        `NUM_VERSIONS` tensors of that shape: 0 to 3 quarter turns, then the horizontal flip.
    """
    return (*(torch.rot90(images, turns, (-2, -1)) for turns in range(4)), images.flip(-1))


@torch.no_grad()
def version_features(
    backbones: Sequence[SplitViT], layers: Sequence[int], images: Tensor
) -> Tensor:
    """Averages the patch tokens of every version of every image, the same way at every layer.

    [CLS] is left out: it joins late, and early layers have none.

    Args:
        backbones: frozen, of one width.
        layers: after which blocks; the depth means after the final norm.
        images: (B, 3, S, S).

    Returns:
        (B, NUM_VERSIONS, places, C) float32, places being the layers of the first backbone, then
        those of the next one.
    """
    features = [
        torch.stack([m.float().mean((2, 3)) for m in backbone.token_maps(version, layers)], 1)
        for version in versions(images)
        for backbone in backbones
    ]
    return torch.stack(features, 1).unflatten(1, (NUM_VERSIONS, len(backbones))).flatten(2, 3)


def probe_input(probe: Probe, features: Tensor, label: Tensor) -> Tensor:
    """Picks what a probe sees of images transformed as their labels say.

    Args:
        probe: the probe.
        features: (B, NUM_VERSIONS, places, C) as `version_features`.
        label: (B,) int64 labels of the probe's family.

    Returns:
        (B, 2 C) for a pair, (B, C) for a single image.
    """
    here = features[:, :, probe.place]
    version = torch.tensor(FAMILIES[probe.family], device=label.device)[label]
    moved = here[torch.arange(len(here), device=here.device), version]
    return torch.cat([here[:, 0], moved], 1) if probe.mode == "pair" else moved


def probe_head(probe: Probe, width: int, hidden: int = 1024) -> nn.Sequential:
    """Builds the MLP of a probe: two hidden layers with ReLU.

    Source: the angle prediction of SIE (Garrido et al. 2023), with this input, Adam and 1e-3.

    Args:
        probe: the probe.
        width: channels C of a token.
        hidden: channels of the hidden layers.
    """
    return nn.Sequential(
        nn.Linear(width * (2 if probe.mode == "pair" else 1), hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, len(FAMILIES[probe.family])),
    )
