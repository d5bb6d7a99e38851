"""Soft Equivariance Regularization: token maps of two views agree in a common frame.

Its InfoNCE is in `info_nce.py`; the weighted sum with the invariance loss (SER Eq. 3) is in
`objectives/base.py`.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from ser_lightning.batch import (
    NUM_GLOBAL_VIEWS,
    BranchFeatures,
    LossOutput,
    PartitionedBatch,
    ViewNeeds,
)
from ser_lightning.distributed import gather, gather_with_gradient, rank
from ser_lightning.groups import Frame, GroupElement, act, relative, transport
from ser_lightning.losses import at_least_float
from ser_lightning.numbers import NonNegative, Positive, PositiveInt, checked
from ser_lightning.regularizers.base import Regularizer, default_hidden
from ser_lightning.regularizers.info_nce import token_info_nce

Carry = Callable[[int, int, Tensor], tuple[Tensor, Tensor | None]]
"""Other view, anchor view and the other's map to the map in the anchor's frame, and its mask."""


@checked
class SERRegularizer(Regularizer):
    """Token InfoNCE between one view's token map and the other's, carried to its frame.

    Source: SER, equivariance loss. Both directions are averaged; for anchors of view i:

        anchors = unit(project(maps[i]))                            # online branch, own frame
        moved = act(relative(elements[j], elements[i]), project(target_maps[j]))
        loss_i = token_info_nce(anchors, gather(unit(moved)), first, temperature)

    project = LayerNorm over channels, 1x1 convolution, GELU, 1x1 convolution. The target branch's
    maps pass the same layers without gradient. Without a target branch the candidates are the
    online branch's own tokens, and gradients flow through both sides and over ranks.

    A batch with local views has several pairs of views; `regularize` adds their losses up. Source:
    SER, "2+4 views": one global and two local pairs.

    Views that are turned by any angle (`data.invertible.group.angle`) are compared where both see
    the image, by `groups/frame.py`: Differs, the paper names continuous turns as open.

    A training loop of your own needs no more than `forward` and the two elements. A subclass may
    build another `projector`: convolutions of one pixel, and layers that act on channels, in a row.

    Args:
        width: channels C of the token maps; null for the backbone's.
        weight: lambda. The public scripts use 1 for MoCo-v3 and Barlow Twins, 0.3 for DINO.
        temperature: tau. The paper uses 0.3 for MoCo-v3 and Barlow Twins, 0.5 for DINO.
        hidden: channels of the projector; null for 512, or twice the width where that is less.
    """

    needs: ClassVar[ViewNeeds] = ViewNeeds(invertible=True)

    # Differs: the public code normalises the target's maps with a momentum copy of the LayerNorm,
    # here one LayerNorm and one projector serve both branches, as its projector does already.
    # Differs: the public code's loss carries no gradient (both sides pass a gather under
    # no_grad), here the anchors carry it. Without that, weight and temperature train nothing.
    # Differs: the public code's loss for 2+4 views contrasts student with student on the matrix
    # of all tokens of both views, reads its positives at wrong offsets, and carries no gradient
    # either. Here each pair has the loss of a batch of two views.
    def __init__(
        self,
        width: PositiveInt | None = None,
        weight: NonNegative = 1.0,
        temperature: Positive = 0.3,
        hidden: PositiveInt | None = None,
    ) -> None:
        super().__init__(width, weight)
        self.temperature = temperature
        self.hidden = hidden
        if width is not None:
            self.build(width)

    @override
    def build(self, width: int) -> None:
        hidden = self.hidden or default_hidden(width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.projector = nn.Sequential(
            nn.Conv2d(width, hidden, 1, bias=False),
            nn.GELU(),
            nn.Conv2d(hidden, hidden, 1, bias=False),
        )

    def forward(
        self,
        maps: tuple[Tensor, Tensor],
        elements: tuple[GroupElement, GroupElement],
        target_maps: tuple[Tensor, Tensor] | None = None,
    ) -> LossOutput:
        """The loss of two views of the same images, of equal number and shapes on every rank.

        Args:
            maps: the online branch's token maps, (B, C, h1, w1) and (B, C, h2, w2).
            elements: the group elements that made the views.
            target_maps: the momentum branch's token maps, same shapes; no gradient flows to them.

        Returns:
            () loss, the mean over this rank's anchors and both directions; in `logs` the value
            that indifferent features would have.

        Raises:
            ValueError: if they are not two, a map does not have its element's shape and the width
                that the modules were built for, or the width is not known.
        """
        if self.width is None:
            raise ValueError(
                "SERRegularizer does not know the width of the token maps; in a loop of your own "
                f"give it: SERRegularizer(width={maps[0].shape[1]})"
            )
        for name, views in (("maps", maps), ("target_maps", target_maps or maps)):
            _check_shapes(name, views, elements, self.width)
        if any(element.angle is not None for element in elements):
            frames = [Frame.of_element(element.to(maps[0].device)) for element in elements]

        def carry(other: int, anchor: int, view: Tensor) -> tuple[Tensor, Tensor | None]:
            if elements[other].angle is None and elements[anchor].angle is None:
                return act(relative(elements[other], elements[anchor]), view), None
            return transport(view, frames[other], frames[anchor])

        return mean_of(self.contrast(maps, target_maps, carry, ((0, 1), (1, 0))))

    def contrast(
        self,
        maps: tuple[Tensor, ...],
        target_maps: tuple[Tensor, ...] | None,
        carry: Carry,
        directions: Sequence[tuple[int, int]],
    ) -> list[LossOutput]:
        """The loss of each direction (anchor view, other view).

        Args:
            maps: the online branch's token maps, (B, C, h, w) of each view.
            target_maps: the momentum branch's, for the places that are other views; None without.
            carry: other view, anchor view and the other's projected map to that map in the
                anchor's frame, and (B, h, w) where it is valid; None for everywhere.
            directions: pairs of places in `maps`.
        """
        # Differs: in the paper the action comes before the projection. As in its public code, maps
        # are projected first here: the same for flips and turns, not where a resize blends tokens.
        online = self._project(maps)
        target = online
        if target_maps is not None:
            with torch.no_grad():
                target = self._project(target_maps)
        outputs = []
        for anchor, other in directions:
            moved, valid = carry(other, anchor, at_least_float(target[other]))
            tokens = _unit_tokens(moved, target[other].dtype)
            candidates = gather_with_gradient(tokens) if target_maps is None else gather(tokens)
            if len(candidates) == 1:
                warnings.warn(
                    "SER's loss of one image is 0, for its negatives are tokens of other images; "
                    "give it two or more",
                    stacklevel=2,
                )
            everywhere = None if valid is None else gather(valid.flatten(1))
            anchors = _unit_tokens(at_least_float(online[anchor]), online[anchor].dtype)
            first, tau = rank() * len(anchors), self.temperature
            loss = token_info_nce(anchors, candidates, first, tau, valid=everywhere)
            outputs.append(LossOutput(loss, _logs(loss.detach(), candidates, everywhere)))
        return outputs

    @override
    def regularize(
        self, online: BranchFeatures, target: BranchFeatures | None, batch: PartitionedBatch
    ) -> LossOutput:
        """The loss of the invertible sub-batch, the sum over pairs of views (2k, 2k + 1).

        Logs of losses are added up likewise, others are means.

        A momentum branch has seen the global pair only. The candidates of a local pair are then
        the online branch's own tokens, detached like the momentum branch's; without a momentum
        branch they carry a gradient in every pair.
        """
        elements = [view.element for view in batch.invertible if view.element is not None]
        num_views = len(batch.invertible)
        if num_views == 0 or num_views % 2 or len(elements) != num_views:
            raise ValueError(
                f"the batch has {num_views} invertible views, {len(elements)} with a group "
                "element; SER compares them in pairs: give the run an invertible sub-batch and an "
                "even number of local crops"
            )
        pairs = []
        for start in range(0, num_views, 2):
            pair = slice(start, start + 2)
            branch = online if target is not None and start >= NUM_GLOBAL_VIEWS else target
            target_maps = None if branch is None else _maps(branch, pair)
            pairs.append(self(_maps(online, pair), elements[pair], target_maps))
        return LossOutput.sum_of(pairs)

    def _project(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """(B, C, h, w) -> (B, hidden, h, w) of each map, in one pass over the tokens of all.

        A convolution of one pixel is a matrix product over the tokens.
        """
        tokens = self.norm(torch.cat([view.flatten(2).mT.flatten(0, 1) for view in maps]))
        for layer in self.projector:
            if isinstance(layer, nn.Conv2d):
                tokens = F.linear(tokens, layer.weight.flatten(1), layer.bias)
            else:
                tokens = layer(tokens)
        sizes = [len(view) * math.prod(view.shape[-2:]) for view in maps]
        return [
            part.unflatten(0, (len(view), -1)).mT.unflatten(2, view.shape[-2:])
            for part, view in zip(tokens.split(sizes), maps, strict=True)
        ]


def mean_of(outputs: Sequence[LossOutput]) -> LossOutput:
    """The mean of losses, and of each of their logs."""
    logs = {name: torch.stack([o.logs[name] for o in outputs]).mean() for name in outputs[0].logs}
    return LossOutput(torch.stack([output.loss for output in outputs]).mean(), logs)


def _logs(loss: Tensor, candidates: Tensor, valid: Tensor | None) -> dict[str, Tensor]:
    """The loss of features all alike, log of the number of candidates; and how many are valid."""
    num_images, num_tokens = candidates.shape[:2]
    if valid is None:
        chance = math.log1p((num_images - 1) * num_tokens)
        return {"loss/equivariance_chance": torch.full_like(loss, chance)}
    own = valid.sum(1, dtype=loss.dtype)
    total = own.sum()
    mean = (own * (total - own).log1p()).sum() / total.clamp_min(1)
    return {"loss/equivariance_chance": mean, "valid_tokens": total / num_images}


def _maps(features: BranchFeatures, pair: slice) -> tuple[Tensor, ...]:
    return tuple(view.taps[0].tokens for view in features.invertible[pair])


def _check_shapes(
    name: str,
    maps: tuple[Tensor, Tensor],
    elements: tuple[GroupElement, GroupElement],
    width: int,
) -> None:
    if others := [type(view).__name__ for view in maps if not isinstance(view, Tensor)]:
        raise ValueError(f"{name} are {' and '.join(others)}; give tensors (B, C, h, w)")
    shapes = [tuple(view.shape) for view in maps]
    made = [(len(element.flip), width, *element.shape) for element in elements]
    if len(made) != 2 or shapes != made:
        raise ValueError(
            f"{name} of shapes {shapes} for elements that give {made}; pass two views, each one's "
            "(B, C, h, w) map with the element that made the view"
        )


def _unit_tokens(maps: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, D, h, w) -> (B, h * w, D) of unit length, in the dtype of the products."""
    return F.normalize(maps.flatten(2).mT, dim=-1).to(dtype)
