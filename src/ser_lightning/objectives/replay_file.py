"""Ends a run whose step is not finite, and keeps that step in a file that runs it again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ser_lightning.batch import PartitionedBatch, View, ViewRecord
from ser_lightning.checkpoints import load_checkpoint
from ser_lightning.distributed import all_reduce_mean, gather, rank, world_size
from ser_lightning.files import atomic_path
from ser_lightning.groups import GroupElement
from ser_lightning.objectives.examine import Examination, examine
from ser_lightning.objectives.finite_guard import NonFinite, Pass
from ser_lightning.run_length import Place, RunLength

if TYPE_CHECKING:
    from ser_lightning.objectives.base import Objective

KEY = "replay"
_TYPES: dict[str, Any] = {
    kind.__name__: kind for kind in (PartitionedBatch, View, ViewRecord, GroupElement)
}
_REMEDY = (
    "Lower the learning rate, lengthen the warm-up, raise the temperature, or train with "
    "`--trainer.precision bf16-mixed` or 32"
)
_NOWHERE = 2**62


class NonFiniteError(RuntimeError):
    """A loss term or gradient is NaN or infinite; no optimizer step was taken on it."""


class Replay(NamedTuple):
    """A step that was not finite, as its file has it."""

    found: str
    """What was not finite, in words."""
    one_pass: Pass
    place: Place
    precision: str
    """The trainer's, such as "bf16-mixed"."""
    scale: float
    """Factor of the losses, of a gradient scaler."""
    world_size: int
    terms: dict[str, float]
    """The losses when the step was run again before the run ended."""
    weights: dict[str, Tensor]
    """The objective's state before the step."""


def stop(objective: Objective, found: NonFinite) -> NonFiniteError:
    """Runs the passes again, writes the file, and returns the error to raise.

    A collective call. The file, `replay.step<N>.pt` in the run's folder, is of the rank where the
    trouble arises: whose first module that is not finite comes first.
    """
    trainer: Any = objective.trainer
    precision, scaler = trainer.precision_plugin.train_step_context, objective._scaler
    scale = 1.0 if scaler is None else scaler.get_scale()
    culprit = 0
    for one_pass in found.passes:  # the first that is not finite again, or the last
        place = Place(one_pass.step, objective.run_length)
        seen = examine(objective, one_pass, place, precision, scale)
        orders = gather(torch.tensor([_order(seen)], device=objective.device))
        if int(orders.min()) < _NOWHERE:
            culprit = int(orders.argmin())
            break
    path = Path(trainer.default_root_dir) / f"replay.step{one_pass.step}.pt"
    replay = Replay(
        ", ".join(found.values),
        one_pass,
        place,
        trainer.precision,
        scale,
        world_size(),
        seen.terms,
        {},
    )
    where = f"rank {culprit} of {world_size()} wrote {path}"
    if rank() == culprit:
        where = _written(objective, replay, path)
    all_reduce_mean(torch.zeros(1, device=objective.device))  # no rank leaves before it is written
    first = f"First not finite: {describe(seen)}. " if rank() == culprit else ""
    return NonFiniteError(
        f"step {one_pass.step}: {replay.found}. {first}The run stopped before the optimizer step, "
        f"the last checkpoint, if there is one, is good; {where}. {_REMEDY}"
    )


def describe(seen: Examination) -> str:
    """The first thing that is not finite, in words."""
    if seen.finding is not None:
        term = f" (of {seen.finding.term})" if seen.finding.term else ""
        return f"the {seen.finding.kind} of {seen.finding.module}{term}"
    return "nothing when the step was run again" if seen.is_finite else "the loss itself"


def read_replay(path: Path) -> Replay:
    """The step in a file that a run wrote.

    Raises:
        ValueError: the file is something else, or damaged.
    """
    content = load_checkpoint(path, map_location="cpu")
    record = content.get(KEY)
    if record is None:
        raise ValueError(
            f"{path} holds no step to run again; give a replay.step<N>.pt, which a run writes into "
            "its folder when a loss or gradient is not finite"
        )
    try:
        return _read(content["state_dict"], dict(record))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} does not hold a step as this version writes it ({type(error).__name__}: "
            f"{error}); run it again with the version that wrote it"
        ) from error


def _read(weights: dict[str, Tensor], record: dict[str, Any]) -> Replay:
    one_pass = Pass(**record.pop("one_pass") | {"batch": _batch(record.pop("batch"))})
    place = Place(int(record.pop("step")), RunLength(*record.pop("length")))
    if not isinstance(one_pass.batch, PartitionedBatch):
        raise TypeError(f"a batch is a {type(one_pass.batch).__name__}")
    return Replay(one_pass=one_pass, place=place, weights=weights, **record)


def _written(objective: Objective, replay: Replay, path: Path) -> str:
    """Writes the file; says so, or why it could not be written."""
    trainer: Any = objective.trainer
    objective.load_state_dict(replay.one_pass.buffers, strict=False)
    one_pass = replay.one_pass._asdict()
    record = replay._asdict() | {
        "one_pass": one_pass | {"batch": None},
        "batch": _plain(one_pass["batch"]),
        "step": replay.place.step,
        "length": list(replay.place.length),
    }
    del record["place"], record["weights"]
    content = {"state_dict": objective.state_dict(), KEY: record}
    for callback in trainer.callbacks:  # the configuration
        callback.on_save_checkpoint(trainer, objective, content)
    try:
        with atomic_path(path) as partial:
            torch.save(tree_map_only(Tensor, Tensor.cpu, content), partial)
    except (OSError, RuntimeError) as error:  # torch's writer raises the latter on a full disk
        return f"{path} could not be written: {getattr(error, 'strerror', None) or error}"
    parts = (objective, objective.backbone, objective.regularizer)
    modules = {type(part).__module__.partition(".")[0] for part in parts if part is not None}
    if modules != {"ser_lightning"}:  # the command builds no other
        return f"from Python, `read_replay` of {path} and `examine` run the step again"
    return f"`ser-fit replay {path}` runs the step again"


def _order(seen: Examination) -> int:
    """Which call of a module is the first that is not finite; beyond all of them for a loss."""
    if seen.finding is not None:
        return seen.finding.order
    return _NOWHERE if seen.is_finite else _NOWHERE - 1


def _plain(value: Any) -> Any:
    """Named tuples as dicts that a checkpoint may hold."""
    if type(value).__name__ in _TYPES:
        return {"type": type(value).__name__} | {k: _plain(v) for k, v in value._asdict().items()}
    return [_plain(v) for v in value] if isinstance(value, tuple | list) else value


def _batch(value: Any) -> Any:
    """What `_plain` was made of."""
    if isinstance(value, dict):
        fields = {k: _batch(v) for k, v in value.items()}
        return _TYPES[fields.pop("type")](**fields)
    return tuple(_batch(v) for v in value) if isinstance(value, list) else value
