"""`ser-fit replay`: runs a step again that ended a run because it was not finite."""

import argparse
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ser_lightning.checkpoints import checkpoint_config
from ser_lightning.commands.rebuild import rebuilt
from ser_lightning.objectives import Objective
from ser_lightning.objectives.examine import Examination, examine
from ser_lightning.objectives.replay_file import Replay, describe, read_replay

_AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def replay(args: Sequence[str]) -> None:
    """Runs a step again that ended a run: where is it first not finite, and is it in float64?"""
    parser = argparse.ArgumentParser("ser-fit replay", description=replay.__doc__)
    parser.add_argument("file", type=Path, help="replay.step<N>.pt in the folder of the run")
    parser.add_argument("--device", default="cpu", help="where to run it, as cpu or cuda")
    given = parser.parse_args(args)
    step, config = read_replay(given.file), checkpoint_config(given.file)
    if config is None:
        raise ValueError(
            f"{given.file} does not say how to build its model: it was not written by `ser-fit "
            "fit`; from Python, `read_replay` and `examine` run it on an objective of your own"
        )
    device = _usable(given.device)
    objective = rebuilt(config, given.file).to(device)
    one_pass = step.one_pass
    print(
        f"Step {one_pass.step} (epoch {one_pass.epoch}, batch {one_pass.batch_idx}, rank "
        f"{one_pass.rank} of {step.world_size}) in {step.precision}: {step.found}."
    )
    first, *others = dict.fromkeys([step.precision, "32-true", "64-true"])
    seen = run_again(objective, step, first, device)
    print("\n".join([f"Run again in {first} on {device}:", *_lines(step, seen)]))
    for precision in others:
        seen = run_again(objective, step, precision, device)
        result = "finite" if seen.is_finite else f"first not finite: {describe(seen)}"
        print(f"In {precision}: {result}; loss {seen.terms['loss']:.6g}.")


def run_again(
    objective: Objective, step: Replay, precision: str, device: torch.device
) -> Examination:
    """Runs a stored step in a precision of the trainer's, without the other ranks of its run."""
    dtype = torch.float64 if precision == "64-true" else torch.float32
    objective.to(dtype)
    try:
        objective.load_state_dict(step.weights)
    except RuntimeError as error:
        raise ValueError(
            "the file's weights are not those of the model that its configuration describes, so it "
            "was changed after it was written; replay the original file"
        ) from error

    def moved(x: Tensor) -> Tensor:
        return x.to(device, dtype if x.is_floating_point() else None)

    one_pass = tree_map_only(Tensor, moved, step.one_pass)
    make: Callable[[], AbstractContextManager[Any]] = nullcontext
    if precision in _AUTOCAST:
        make = partial(torch.autocast, device.type, _AUTOCAST[precision], cache_enabled=False)
    scale = step.scale if precision == step.precision else 1.0
    return examine(objective, one_pass, step.place, make, scale)


def _usable(name: str) -> torch.device:
    """The device of a name, on which something can be computed."""
    try:
        return torch.zeros(1, device=name).device
    except (AssertionError, RuntimeError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise ValueError(f"--device {name} cannot be used ({reason}); use cpu") from error


def _lines(step: Replay, seen: Examination) -> list[str]:
    """What running a step again showed."""
    lines = []
    for name, value in seen.terms.items():
        before = step.terms.get(name, math.nan)
        same = "as before" if repr(value) == repr(before) else f"{before:.9g} before"
        lines.append(f"  {name} {value:.9g} ({same})")
    lines.append(f"  First not finite: {describe(seen)}.")
    if seen.finding is not None:
        lines += [f"  It was given: {line}" for line in seen.finding.inputs]
    if seen.weights:
        names = ", ".join(seen.weights[:5]) + (", ..." if len(seen.weights) > 5 else "")
        lines.append(f"  Weights that are not finite before the step: {names}")
    return lines
