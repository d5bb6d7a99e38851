"""Runs a step again to find the first module whose output, or gradient, is not finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ser_lightning.distributed import all_reduce_mean
from ser_lightning.objectives.finite_guard import Pass
from ser_lightning.run_length import Place

if TYPE_CHECKING:
    from ser_lightning.objectives.base import Objective


class Finding(NamedTuple):
    """Where a step is first not finite."""

    term: str
    """The loss term whose gradient it is; empty where a module's output is not finite already."""
    kind: str
    """"output", "gradient of the output" or "gradient of the weights"."""
    module: str
    """The module's name within the objective."""
    order: int
    """Which call of a module it is, counted in forward order."""
    inputs: tuple[str, ...]
    """What the module was given, a line for each tensor."""


class Examination(NamedTuple):
    """What a step gives when it is run again."""

    terms: dict[str, float]
    """The losses."""
    finding: Finding | None
    """None where all is finite."""
    weights: tuple[str, ...]
    """Parameters and buffers that are not finite before the step."""

    @property
    def is_finite(self) -> bool:
        """Whether losses, outputs and gradients all are."""
        return self.finding is None and all(map(math.isfinite, self.terms.values()))


Precision = Callable[[], AbstractContextManager[Any]]
"""Makes the context that a forward pass runs in."""


def examine(
    objective: Objective,
    one_pass: Pass,
    place: Place,
    precision: Precision = nullcontext,
    scale: float = 1.0,
) -> Examination:
    """Runs a forward and a backward pass with a look at every output and every gradient.

    Outputs are looked at in the order of the forward pass. Where all of them are finite, so are
    gradients in the order of the backward pass, for each loss term by itself, so that the module
    is the one where the trouble arises and not one that it has spread to.

    A collective call: ranks take part in each other's losses. No parameter's `grad` changes.

    Args:
        objective: with the weights that the pass had; its buffers are set to the pass's.
        one_pass: what to run.
        place: the step and the length of the run, which schedules follow.
        precision: of the pass; the backward pass follows it.
        scale: factor of the losses, of a gradient scaler.
    """
    objective.load_state_dict(one_pass.buffers, strict=False)
    weights = tuple(n for n, tensor in objective.state_dict().items() if not _is_finite(tensor))
    torch.manual_seed(one_pass.seed)
    with _apart(objective, place), _Calls(objective) as calls:
        with precision():
            terms, _ = objective.losses(one_pass.batch)
        calls.is_forward = False
        found = calls.finding
        is_bad = float(found is not None or not all(map(_is_finite, terms.values())))
        if float(all_reduce_mean(torch.tensor(is_bad))) == 0:  # the same on every rank
            found = _first_gradient(objective, terms, calls, scale)
    return Examination({name: value.item() for name, value in terms.items()}, found, weights)


def _first_gradient(
    objective: Objective, terms: dict[str, Tensor], calls: _Calls, scale: float
) -> Finding | None:
    """Where a backward pass is first not finite, term by term; the first of them that has any."""
    parameters = dict(objective.named_parameters())
    trained = {name: p for name, p in parameters.items() if p.requires_grad}
    found = []
    for term, value in terms.items():
        if term == "loss" or not value.requires_grad:
            continue
        weight = 1.0
        if term == "loss/equivariance" and objective.regularizer is not None:
            weight = objective.regularizer.weight
        calls.term, calls.finding = term, None
        gradients = torch.autograd.grad(
            value * (weight * scale), list(trained.values()), retain_graph=True, allow_unused=True
        )
        received = zip(trained, gradients, strict=True)
        bad = [name for name, g in received if g is not None and not _is_finite(g)]
        found.append(calls.finding or (calls.of_weights(bad[0]) if bad else None))
    return next(filter(None, found), None)


@contextmanager
def _apart(objective: Objective, place: Place) -> Iterator[None]:
    """Lets an objective compute as if outside of a run: nothing is logged and nothing moves."""
    before = objective._trainer, objective.outside
    objective._trainer, objective.outside = None, place
    try:
        yield
    finally:
        objective._trainer, objective.outside = before


class _Calls:
    """Looks at what every module gives, and at what comes back to it."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.finding: Finding | None = None
        self.term = ""
        self.is_forward = True
        self._made: list[tuple[str, tuple[str, ...]]] = []

    def __enter__(self) -> _Calls:
        self._hooks = [
            module.register_forward_hook(partial(self._look, name))
            for name, module in self.objective.named_modules()
            if name
        ]
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _look(self, name: str, module: Any, inputs: Any, output: Any) -> None:
        if not self.is_forward:  # an activation checkpoint computes it anew
            return
        order = len(self._made)
        self._made.append((name, tuple(map(statistics, _floats(inputs)))))
        for tensor in _floats(output):
            if self.finding is None and not _is_finite(tensor):
                self.finding = self._found("output", order)
            if tensor.requires_grad:
                tensor.register_hook(partial(self._look_back, order))

    def _look_back(self, order: int, gradient: Tensor) -> None:
        if self.finding is None and not _is_finite(gradient):
            self.finding = self._found("gradient of the output", order)

    def _found(self, kind: str, order: int) -> Finding:
        name, inputs = self._made[order]
        return Finding(self.term, kind, name, order, inputs)

    def of_weights(self, name: str) -> Finding:
        """The finding for a parameter, of a module that was perhaps never called."""
        module = name.rpartition(".")[0]
        orders = [order for order, (called, _) in enumerate(self._made) if called == module]
        inputs = self._made[orders[0]][1] if orders else ()
        return Finding(self.term, "gradient of the weights", module, (orders or [0])[0], inputs)


def statistics(x: Tensor) -> str:
    """Shape, type, range, mean and deviation of the finite values, and the share of the others."""
    finite = x.detach()[x.detach().isfinite()].double()
    head = f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}"
    if not finite.numel():
        return f"{head}, no finite value"
    share = 1 - finite.numel() / x.numel()
    return (
        f"{head}, {finite.min():.4g} to {finite.max():.4g}, mean {finite.mean():.4g}, "
        f"deviation {finite.std(correction=0):.4g}, {share:.2%} not finite"
    )


def _floats(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor) and x.is_floating_point()]


def _is_finite(x: Tensor) -> bool:
    return bool(x.isfinite().all())
