"""Several add-ons, one at each layer of the backbone."""

from collections.abc import Sequence
from copy import deepcopy
from typing import ClassVar

import torch
from torch import nn
from typing_extensions import override

from ser_lightning.batch import BranchFeatures, LossOutput, PartitionedBatch, Tap, ViewNeeds
from ser_lightning.numbers import NonNegative, checked
from ser_lightning.regularizers.base import Regularizer


@checked
class PerLayer(Regularizer):
    """One add-on for each layer that `backbone.layer` lists, shallowest first.

    The loss is the sum of theirs, each times its own weight; `weight` multiplies all of it. Source:
    SER, Table 10, "all layers"; the paper does not say whether layers share a projector, here each
    has its own.

    Args:
        regularizers: the add-ons, of different classes if you like. A single one stands for one
            at every layer, each with modules of its own.
        weight: a factor of the whole sum.

    Raises:
        ValueError: if there is none, their widths differ, or they ask for different extra views.
    """

    needs: ClassVar[ViewNeeds] = ViewNeeds()

    def __init__(self, regularizers: list[Regularizer], weight: NonNegative = 1.0) -> None:
        widths = sorted({r.width for r in regularizers if r.width is not None})
        if not regularizers or len(widths) > 1:
            raise ValueError(
                f"{len(regularizers)} regularizers of widths {widths}, one width is needed; list "
                "at least one, and leave out their widths for the backbone's"
            )
        super().__init__(widths[0] if widths else None, weight)
        self.regularizers = nn.ModuleList(regularizers)
        # Whatever any of them needs, the batch must hold.
        self.needs = ViewNeeds(*map(any, zip(*(r.needs for r in regularizers), strict=True)))  # type: ignore[misc]
        # Of crops, what any of them compares.
        scales = [r.max_scale for r in regularizers if r.needs.places]
        self.max_scale = max(scales, default=Regularizer.max_scale)
        if self.needs.plain and self.needs.rotated:
            raise ValueError(
                "PerLayer has add-ons for the plain view and for rotated ones, a batch holds extra "
                "views of one kind; use EquiMod or E-SSL, not both"
            )

    @override
    def attach(self, taps: Sequence[Tap], width: int) -> None:
        if len(self.regularizers) == 1:
            self.regularizers.extend([deepcopy(self.regularizers[0]) for _ in taps[1:]])
        if len(taps) != len(self.regularizers):
            raise ValueError(
                f"PerLayer has {len(self.regularizers)} add-ons for {len(taps)} layers; let "
                "`model.init_args.backbone.layer` list one layer for each"
            )
        for regularizer, tap in zip(self.regularizers, taps, strict=True):
            regularizer.attach([tap], width)  # type: ignore[operator]

    @override
    def compared_ratios(self) -> set[float]:
        return set().union(*(r.compared_ratios() for r in self.regularizers))  # type: ignore[operator]

    @override
    def regularize(
        self, online: BranchFeatures, target: BranchFeatures | None, batch: PartitionedBatch
    ) -> LossOutput:
        """Adds up the add-ons' weighted losses; logged values bear the add-on's place, from 1."""
        losses, logs = [], {}
        for place, regularizer in enumerate(self.regularizers):
            at_target = None if target is None else _at(target, place)
            given = regularizer.regularize(_at(online, place), at_target, batch)  # type: ignore[operator]
            with torch.no_grad():  # whether their sum has a gradient is for the objective to see
                output = LossOutput.checked(given, f"{type(regularizer).__name__}.regularize")
            losses.append(regularizer.weight * output.loss)  # type: ignore[operator]
            logs[f"loss/equivariance_{place + 1}"] = output.loss.detach()
            logs |= {f"{name}_{place + 1}": value for name, value in output.logs.items()}
        return LossOutput(torch.stack(losses).sum(), logs)


def _at(features: BranchFeatures, place: int) -> BranchFeatures:
    """The features with a single tap, that of one layer."""
    crop, invertible = (
        tuple(view._replace(taps=view.taps[place : place + 1]) for view in views)
        for views in (features.crop, features.invertible)
    )
    return BranchFeatures(
        crop, invertible, tuple(taps[place : place + 1] for taps in features.extra)
    )
