"""What a trainer may be asked for: settings that would change what a step means are refused.

Followed exactly: every way to say how long a run is, accumulation, limited batches, clipping,
several processes, mixed and double precision, reloaded loaders, `fast_dev_run`. A run that
`max_time` or an early stop ends is one that stops in the middle of its schedules.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from itertools import chain, product
from typing import Any

import lightning as L
import torch
from lightning.pytorch import callbacks
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.strategies.strategy import Strategy

PRECISIONS = ("32-true", "64-true", "16-mixed", "bf16-mixed")
_CALLBACKS: dict[type[L.Callback], str] = {
    callbacks.GradientAccumulationScheduler: "changes how many images a step sees; set "
    "`trainer.accumulate_grad_batches`, which divides the global batch",
    callbacks.StochasticWeightAveraging: "replaces the learning rate's schedule; average "
    "checkpoints after the run instead",
    callbacks.WeightAveraging: "measures and saves other weights than those trained; use an "
    "objective with a momentum branch, `model.ema_decay` of fine-tuning, or average checkpoints "
    "after the run",
    callbacks.BaseFinetuning: "freezes and adds parameters behind the schedules; set "
    "`model.init_args.backbone.init_args.freeze_patch_embed` or train all of them",
    callbacks.ModelPruning: "changes weights between steps; prune an exported backbone",
    callbacks.BatchSizeFinder: "takes steps with other batches; set `data.global_batch_size`",
    callbacks.LearningRateFinder: "takes steps with other learning rates; set "
    "`model.init_args.base_learning_rate`",
}
_STRATEGIES: tuple[type[Strategy], ...] = (DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy)


_LEAST = {  # of what Lightning takes as it is, and divides by, or never reaches
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "log_every_n_steps": 0,
    "max_epochs": -1,
    "max_steps": -1,
    "min_epochs": 0,
    "min_steps": 0,
    "num_sanity_val_steps": -1,
}


def check_options(options: Mapping[str, Any], keeps_checkpoints: bool = True) -> None:
    """Refuses options of a trainer that fail late, or not at all, before there is one.

    Args:
        options: of `lightning.Trainer`, by name.
        keeps_checkpoints: whether the command writes checkpoints and logs, as `fit` does.

    Raises:
        ValueError: names the option, the rule, and the remedy.
    """
    given = options.get("callbacks") or []
    own = _objections_to_callbacks(given if isinstance(given, list) else [given])
    for objection in chain(
        _objections_to_numbers(options), own, _objections_to_options(options, keeps_checkpoints)
    ):
        raise ValueError(objection)


def _objections_to_numbers(options: Mapping[str, Any]) -> Iterator[str]:
    for name, least in _LEAST.items():
        value = options.get(name)
        if isinstance(value, int | float) and not value >= least:
            yield f"trainer.{name} {value} must be at least {least}"
    for unit in ("epochs", "steps"):
        fewest, most = options.get(f"min_{unit}"), options.get(f"max_{unit}")
        if isinstance(fewest, int) and isinstance(most, int) and fewest > most > -1:
            yield (
                f"trainer.min_{unit} {fewest} has no effect beyond trainer.max_{unit} {most}, "
                f"where the run ends; lower it, or raise trainer.max_{unit}"
            )
    interval = options.get("val_check_interval")
    if isinstance(interval, int | float) and not 0 < interval < math.inf:
        yield (
            f"trainer.val_check_interval {interval} must be above 0: a share of an epoch, or a "
            "number of batches"
        )
    limit = options.get("max_time")
    try:
        timedelta(**limit if isinstance(limit, dict) else {})
    except (TypeError, OverflowError):
        yield f"trainer.max_time {limit} must be DD:HH:MM:SS, or of days, hours, minutes, seconds"


def _objections_to_options(options: Mapping[str, Any], keeps_checkpoints: bool) -> Iterator[str]:
    if options.get("barebones"):
        yield (
            "trainer.barebones true turns off the bar, the logs and the checkpoints, which the "
            "command writes; leave it out"
        )
    if keeps_checkpoints and options.get("enable_checkpointing") is False:
        yield (
            "trainer.enable_checkpointing false would leave nothing of the run; leave it out, and "
            "write checkpoints seldom by `checkpoint.every_n_epochs`"
        )
    for name in ("model_registry", "limit_predict_batches"):  # no command predicts
        if options.get(name) is not None:
            yield f"trainer.{name} {options[name]} has no effect; leave it out"
    algorithm = options.get("gradient_clip_algorithm")
    if algorithm is not None and not options.get("gradient_clip_val"):
        yield (
            f"trainer.gradient_clip_algorithm {algorithm} has no effect without a value to clip "
            "at; give trainer.gradient_clip_val, or leave it out"
        )
    strategy = options.get("strategy")
    if how := _start_within(strategy):
        name = strategy if isinstance(strategy, str) else f"{type(strategy).__name__}({how})"
        yield (
            f"trainer.strategy {name} starts processes out of this one, to which the run cannot be "
            "handed; use --trainer.strategy ddp"
        )
    has_gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    if options.get("accelerator") in ("gpu", "cuda") and not has_gpu:
        yield (
            f"trainer.accelerator {options['accelerator']}, but torch {torch.__version__} finds no "
            "GPU here; give --config configs/trainer/cpu.yaml, or --trainer.accelerator auto"
        )


def _start_within(strategy: Any) -> str:
    """How a strategy starts processes, where that is not by the command again; else ""."""
    if isinstance(strategy, str):
        found = re.match(r"ddp_(spawn|fork|notebook)", strategy)
        return found[1] if found else ""
    method: str = getattr(strategy, "_start_method", "popen")
    return "" if method == "popen" else method


def _objections_to_callbacks(given: Sequence[L.Callback], of_user: bool = True) -> Iterator[str]:
    for callback, kind in product(given, _CALLBACKS):
        if isinstance(callback, kind):
            yield f"the callback {type(callback).__name__} {_CALLBACKS[kind]}"
    for callback in given if of_user else ():
        if isinstance(callback, callbacks.Timer):
            yield "the callback Timer cannot be kept in fit.yaml; set `trainer.max_time`"
        is_ours = isinstance(callback, callbacks.ModelCheckpoint) and callback.dirpath is None
        if is_ours and (callback.save_last or callback.filename in ("last", "previous")):  # type: ignore[attr-defined]
            yield (
                "the callback ModelCheckpoint would replace the run's own last.ckpt by an older "
                "one; leave `save_last` out, call its files otherwise, or give it a `dirpath`"
            )


def multiplies_in_bf16() -> bool:
    """Whether this machine's processor has instructions for products of bf16 matrices."""
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # absent on other processors
    return any(getattr(torch.cpu, name, bool)() for name in names)


def slow_precision(trainer: L.Trainer) -> str:
    """What to say where a precision that is meant to be fast is slow here; "" where it is not."""
    is_cpu = trainer.strategy.root_device.type == "cpu"
    if not is_cpu or trainer.precision != "bf16-mixed" or multiplies_in_bf16():
        return ""
    return (
        "trainer.precision bf16-mixed: this processor has no instructions for it, and takes some "
        "ten times as long as with --trainer.precision 32-true"
    )


def check_trainer(trainer: L.Trainer, module: L.LightningModule) -> None:
    """Refuses what would train something else than the configuration says.

    Raises:
        ValueError: names the setting, what it does, and what to set instead.
    """
    for objection in _objections(trainer, module):
        raise ValueError(objection)


def _objections(trainer: L.Trainer, module: L.LightningModule) -> Iterator[str]:
    yield from _objections_to_callbacks(trainer.callbacks, of_user=False)  # type: ignore[attr-defined]
    overfit = getattr(trainer, "overfit_batches", 0)
    if overfit:
        yield (
            f"trainer.overfit_batches {overfit} repeats the same images, but every epoch draws its "
            "own; limit epochs by `trainer.limit_train_batches`, or train on a source of few images"
        )
    if trainer.limit_train_batches == 0:
        yield (
            "trainer.limit_train_batches 0 trains nothing; raise it, or measure without training "
            "by `validate`"
        )
    if trainer._accelerator_connector._layer_sync is not None:
        yield "trainer.sync_batchnorm replaces norms that span all processes already; leave it out"
    if trainer.precision not in PRECISIONS:
        yield (
            f'trainer.precision "{trainer.precision}" keeps the weights themselves in few bits, '
            "in which small updates vanish; use bf16-mixed, 16-mixed, 32-true or 64-true"
        )
    if isinstance(trainer.strategy, _STRATEGIES):
        yield (
            f"{type(trainer.strategy).__name__} splits parameters over processes, but momentum "
            "branch, clipping, weight decay by shape and checkpoints need them whole; use ddp (a "
            "ViT-L with all of its states takes 8 GiB), and where activations are too large, "
            "`model.init_args.backbone.init_args.grad_checkpointing`"
        )
    if (trainer.gradient_clip_val or 0) < 0:
        yield (
            f"trainer.gradient_clip_val {trainer.gradient_clip_val} clips nothing; use a positive "
            "norm, or null for none"
        )
    if not module.automatic_optimization:
        yield (
            f"{type(module).__name__} optimizes by hand, so that steps cannot be counted; leave "
            "`automatic_optimization` on: one optimizer step per batch or group of batches"
        )
