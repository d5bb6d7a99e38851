"""From a batch to the features of one branch, and from these to one embedding per view."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ser_lightning.batch import (
    NUM_GLOBAL_VIEWS,
    BranchFeatures,
    PartitionedBatch,
    TapFeatures,
    ViewFeatures,
)


def encode(backbone: nn.Module, batch: PartitionedBatch) -> BranchFeatures:
    """Runs all views of a batch through a backbone, those of equal size in one pass.

    Args:
        backbone: a SplitViT.
        batch: one rank's partitioned batch.

    Returns:
        Taps and embeddings in the batch's order; of extra views the taps alone.
    """
    views = [view.pixels for view in (*batch.crop, *batch.invertible)]
    features: list[ViewFeatures | None] = [None] * len(views)
    shapes = [view.shape[-2:] for view in views]
    for shape in dict.fromkeys(shapes):
        members = [position for position, other in enumerate(shapes) if other == shape]
        outputs = _encode_together(backbone, [views[position] for position in members])
        for position, output in zip(members, outputs, strict=True):
            features[position] = output
    num_crop = len(batch.crop)
    extra = _taps_together(backbone, [view.pixels for view in batch.extra])
    return BranchFeatures(tuple(features[:num_crop]), tuple(features[num_crop:]), extra)  # type: ignore[arg-type]


def _encode_together(backbone: Any, views: Sequence[Tensor]) -> list[ViewFeatures]:
    prefixes = backbone.prefixes(torch.cat(list(views)))
    sizes = [len(view) for view in views]
    embeddings = backbone.suffix(prefixes[-1]).split(sizes)
    taps = _split(prefixes, sizes)
    return [ViewFeatures(*pair) for pair in zip(taps, embeddings, strict=True)]


def _taps_together(backbone: Any, views: Sequence[Tensor]) -> tuple[tuple[TapFeatures, ...], ...]:
    """Taps of views of one size; blocks behind the last tap are not computed."""
    if not views:
        return ()
    return _split(backbone.prefixes(torch.cat(list(views))), [len(view) for view in views])


def _split(prefixes: Sequence[Any], sizes: list[int]) -> tuple[tuple[TapFeatures, ...], ...]:
    """Taps of all views together, one per layer, to the taps of each view."""
    layers = []
    for prefix in prefixes:
        tokens = prefix.tokens.split(sizes)
        cls = [None] * len(sizes) if prefix.cls is None else prefix.cls.split(sizes)
        layers.append([TapFeatures(*pair) for pair in zip(tokens, cls, strict=True)])
    return tuple(zip(*layers, strict=True))


def global_views(batch: PartitionedBatch) -> PartitionedBatch:
    """The batch without its local and extra views: what a momentum branch sees."""
    return batch._replace(
        crop=batch.crop[:NUM_GLOBAL_VIEWS],
        invertible=batch.invertible[:NUM_GLOBAL_VIEWS],
        extra=(),
    )


def joint_embeddings(features: BranchFeatures | None) -> Any:
    """Concatenates the sub-batches, crops first: one embedding (B, C) per view, or None."""
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
