"""Which checkpoint a run goes on with, and whether it fits, told before anything is started.

The last one or the one before it: `latest_checkpoint` of `checkpoints.py`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from packaging.version import InvalidVersion, Version
from torch import Tensor

from ser_lightning.checkpoints import (
    CHECKPOINT_FOLDER,
    CHECKPOINT_KEY,
    latest_checkpoint,
    load_checkpoint,
    require_whole,
)
from ser_lightning.runtime.configuration import options
from ser_lightning.trusted import printable

_OF_TRAINING = ("optimizer_states", "lr_schedulers", "loops", "global_step", "epoch")
_NUM_SHOWN = 3


def require_configuration(path: Path, args: list[str]) -> None:
    """Refuses a checkpoint that does not say what it is of, where the options do not either."""
    _require_file(path)
    if not options(args, "--model"):
        raise ValueError(f"{path} has no configuration of a run; give one as --config FILE")


def resolved_checkpoint(path: str | None, run_dir: Path, command: str) -> str | None:
    """The file that a command goes on with, "last" being the run's own; None to start afresh.

    "fit" takes the checkpoint before the last where that is damaged, and says so; commands that
    measure stop, and name it.

    Raises:
        ValueError: there is no such file, it is damaged, or `fit` would overwrite another run.
    """
    if path != "last":
        if path is not None:
            _require_file(Path(path))
            require_whole(Path(path))
        return path
    last, wrong = latest_checkpoint(run_dir / CHECKPOINT_FOLDER)
    if last.is_file():
        _say_it_is_older(last, wrong, command)
        return str(last)
    if command != "fit":
        raise ValueError(f"{last} does not exist; give --run_dir or a file as --ckpt_path")
    rank_zero_info(f"no checkpoint in {last.parent} yet: starting afresh")
    return None


def refuse_another_run(path: str | None, run_dir: Path) -> None:
    """Refuses to train in the folder of a run, other than to go on with its last whole checkpoint.

    Raises:
        ValueError: says so, and what to do.
    """
    last, _ = latest_checkpoint(run_dir / CHECKPOINT_FOLDER)
    if last.is_file() and not (path and Path(path).resolve() == last.resolve()):
        raise ValueError(
            f"{run_dir} already holds a run; continue it with --ckpt_path last, or give another "
            "--run_dir"
        )


def _require_file(path: Path) -> None:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ValueError(f'checkpoint {path} {what}; give a file, or "last"')


def _say_it_is_older(path: Path, wrong: str, command: str) -> None:
    """Says that not the last checkpoint is taken; to measure another one, it must be named."""
    if not wrong:
        return
    step = load_checkpoint(path, map_location="cpu", mmap=True).get("global_step")
    if command != "fit":
        raise ValueError(f"{wrong}: --ckpt_path {path} measures it as of step {step}")
    rank_zero_warn(
        f"{wrong}. Going on with {path}, of step {step}: later steps are trained again, alike"
    )


def require_fit(path: Path, model: Any, command: str) -> None:
    """Refuses a checkpoint that an objective cannot take; every byte of the file is looked at.

    The command "fit" takes the state of the training too, others the weights alone.

    Raises:
        ValueError: says what does not fit, and what to do.
    """
    content = require_whole(path)
    stored = content.get("state_dict")
    new_run = f"--model.backbone.weights {path} starts a new run from its weights"
    if not isinstance(stored, dict):
        raise ValueError(f"{path} is no checkpoint of a run: it has no state_dict; {new_run}")
    wrong = _differing({str(k): v for k, v in stored.items() if isinstance(v, Tensor)}, model)
    if wrong and CHECKPOINT_KEY not in content:
        raise ValueError(
            f"{path}, which ser-fit did not write, does not fit the model: {wrong}; give a "
            "checkpoint of ser-fit, or a ViT's weights as --model.backbone.weights FILE"
        )
    if wrong:
        raise ValueError(
            f"the weights in {path} do not fit the model: {wrong}; leave --config and --model "
            f"options out to build it as it was trained, or {new_run}"
        )
    if command != "fit":
        return
    loops = content.get("loops")
    is_stripped = not (isinstance(loops, dict) and loops.get("fit_loop"))
    missing = [
        name for name in _OF_TRAINING if name not in content or (name == "loops" and is_stripped)
    ]
    if missing:
        raise ValueError(f"{path} is no training to go on with: no {', '.join(missing)}; {new_run}")
    _require_known_version(path, content)
    wrong = _other_optimizer(content["optimizer_states"], model)
    if wrong:
        raise ValueError(
            f"the optimizer in {path} is not this one: {wrong}; go on with the options it was "
            f"trained with, or {new_run}"
        )


def _differing(stored: Mapping[str, Tensor], model: Any) -> str:
    """How a state dict differs from a model's, in words; empty where it fits."""
    own = model.state_dict()
    shapes = [
        f"{name} {tuple(stored[name].shape)} for {tuple(own[name].shape)}"
        for name in own
        if name in stored and stored[name].shape != own[name].shape
    ]
    parts = {
        "of another shape": shapes,
        "missing": [name for name in own if name not in stored],
        "unknown": [name for name in stored if name not in own],
    }
    return "; ".join(
        f"{len(names)} {what}, such as {printable(', '.join(names[:_NUM_SHOWN]))}"
        for what, names in parts.items()
        if names
    )


def _require_known_version(path: Path, content: Mapping[str, Any]) -> None:
    """Refuses the loops' state of a later Lightning, in which names may have changed."""
    written = printable(str(content.get("pytorch-lightning_version", "0")))
    try:
        is_later = Version(written).release[:2] > Version(L.__version__).release[:2]
    except InvalidVersion:
        is_later = True
    if is_later:
        raise ValueError(
            f"{path} was written with Lightning {written}, and this is {L.__version__}; go on with "
            "that version"
        )


def _other_optimizer(states: Any, model: Any) -> str:
    """How a stored optimizer differs from a model's, in words; empty where it fits.

    Values of its options may differ: those of the configuration are used (`StepSchedule`).
    """
    own = model.optimizer_factory(model.parameter_groups(), model.learning_rate).param_groups
    try:
        (state,) = states
        stored = [dict(group) for group in state["param_groups"]]
        sizes = [len(group["params"]) for group in stored]
    except (KeyError, TypeError, ValueError):
        return "it has another form"
    own_sizes = [len(group["params"]) for group in own]
    if sizes != own_sizes:
        return f"{sizes} parameters in {len(sizes)} groups for {own_sizes} in {len(own_sizes)}"
    for group, new in zip(stored, own, strict=True):
        only, lacking = group.keys() - new.keys() - {"initial_lr"}, new.keys() - group.keys()
        if only and lacking:  # versions of one optimizer add options, or remove some
            return f"it has {', '.join(sorted(only))}, this one {', '.join(sorted(lacking))}"
    return ""
