"""From a batch to the features of one branch, and from these to one embedding per view."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ser_lightning.backbones import SplitViT
from ser_lightning.batch import (
    NUM_GLOBAL_VIEWS,
    BranchFeatures,
    PartitionedBatch,
    TapFeatures,
    ViewFeatures,
)


def encode(backbone: SplitViT, batch: PartitionedBatch) -> BranchFeatures:
    """Taps and embeddings of all views of a batch, of extra views the taps alone, in one pass."""
    views = [view.pixels for view in (*batch.crop, *batch.invertible)]
    by_size: dict[torch.Size, list[Tensor]] = {}
    for view in views:
        by_size.setdefault(view.shape[-2:], []).append(view)
    extra = [view.pixels for view in batch.extra]  # all of one size
    groups = [torch.cat(alike) for alike in by_size.values()]
    encoded = backbone.encode([*groups, *([torch.cat(extra)] if extra else [])], int(bool(extra)))
    outputs: dict[torch.Size, Iterator[ViewFeatures]] = {}
    for (size, alike), (prefixes, embedding) in zip(by_size.items(), encoded, strict=False):
        assert embedding is not None, "these are whole"
        counts = [len(view) for view in alike]
        outputs[size] = map(ViewFeatures, _split(prefixes, counts), embedding.split(counts))
    in_order = tuple(next(outputs[view.shape[-2:]]) for view in views)
    num_crop = len(batch.crop)
    taps = _split(encoded[-1][0], [len(view) for view in extra]) if extra else ()
    return BranchFeatures(in_order[:num_crop], in_order[num_crop:], taps)


def _split(
    prefixes: Sequence[TapFeatures], sizes: list[int]
) -> tuple[tuple[TapFeatures, ...], ...]:
    """Taps of all views together, one per layer, to the taps of each view."""
    layers = []
    for prefix in prefixes:
        tokens = prefix.tokens.split(sizes)
        cls = [None] * len(sizes) if prefix.cls is None else prefix.cls.split(sizes)
        layers.append(list(map(TapFeatures, tokens, cls)))
    return tuple(zip(*layers, strict=True))


def global_views(batch: PartitionedBatch) -> PartitionedBatch:
    """The batch without its local and extra views: what a momentum branch sees."""
    return batch._replace(
        crop=batch.crop[:NUM_GLOBAL_VIEWS],
        invertible=batch.invertible[:NUM_GLOBAL_VIEWS],
        extra=(),
    )


def joint_embeddings(features: BranchFeatures | None) -> Any:
    """One embedding (B, C) per view, crops first in the batch; None without features."""
    if features is None:
        return None
    if not (features.crop and features.invertible):
        return tuple(view.embedding for view in features.crop or features.invertible)
    return tuple(
        torch.cat([crop.embedding, invertible.embedding])
        for crop, invertible in zip(features.crop, features.invertible, strict=True)
    )


def sub_batches(features: BranchFeatures | None) -> Sequence[BranchFeatures | None]:
    """The features of the crop and of the invertible sub-batch, each as if it were alone."""
    if features is None:
        return (None, None)
    return (features._replace(invertible=()), features._replace(crop=()))
