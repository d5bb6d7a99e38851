"""How long a run is and where it goes on; schedules as pure functions of the step.

Nothing to checkpoint, exact at a restart. Which parameters are not decayed is in `decay_groups`;
the schedule of the momentum is in `objectives/momentum.py`, those of DINO's weight decay and
temperature in `objectives/dino.py`.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from numbers import Real
from typing import Any, Literal, NamedTuple, get_args

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from typing_extensions import override

OptimizerFactory = Callable[[Iterable[Any], float], torch.optim.Optimizer]
"""Makes an optimizer from parameters, or groups of them, and the peak learning rate."""


def check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Refuses an optimizer that cannot take the steps, or that would fail at the first of them.

    Raises:
        ValueError: names the optimizer, what is wrong with it, and the remedy.
    """
    name = type(optimizer).__name__
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError(
            f"model.init_args.optimizer {name} computes the loss of a step many times, and every "
            "time the momentum branch moves on; use AdamW, SGD or timm.optim.Lars"
        )
    for argument, parameter in inspect.signature(type(optimizer)).parameters.items():
        default = parameter.default
        value = optimizer.defaults.get(argument, default)
        may_be_none = value is None and type(None) in get_args(parameter.annotation)
        if isinstance(default, Real) and not (isinstance(value, Real | Tensor) or may_be_none):
            raise ValueError(
                f"model.init_args.optimizer {name}: {argument} {value} is no number; the default "
                f"is {default}"
            )


def decay_groups(
    parameters: Iterable[nn.Parameter], decay_biases: bool = True
) -> list[dict[str, Any]]:
    """One group of parameters, or without `decay_biases` two: the second is not decayed.

    It has the vectors and scalars, as biases and norms, with a `weight_decay` of 0.
    """
    everything = list(parameters)
    if decay_biases:
        return [{"params": everything}]
    return [
        {"params": [p for p in everything if p.ndim >= 2]},
        {"params": [p for p in everything if p.ndim < 2], "weight_decay": 0.0},
    ]


def clip_each_(parameters: Iterable[nn.Parameter], max_norm: float) -> None:
    """Shortens, in place, the gradient of every parameter whose own norm exceeds `max_norm`.

    Source: DINO's public code. Unlike clipping by the norm of all gradients together, it changes
    their direction as a whole.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return
    norms = torch._foreach_norm(gradients)
    factors = [(max_norm / (norm + 1e-6)).clamp(max=1.0) for norm in norms]
    torch._foreach_mul_(gradients, factors)


Scaling = Literal["linear", "sqrt"]
REFERENCE_BATCH_SIZE = 256


def cosine(step: float, num_steps: float, start: float, end: float) -> float:
    """Moves from `start` at step 0 to `end` at `num_steps` along half a cosine, then stays."""
    progress = min(step / num_steps, 1.0) if num_steps > 0 else 1.0
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))


def warmup_cosine(
    step: float, num_steps: float, warmup_steps: float, floor: float = 0.0, start: float = 0.0
) -> float:
    """Rises linearly from `start` to 1 during warm-up, then falls to `floor` by half a cosine."""
    if step < warmup_steps:
        return start + (1 - start) * step / warmup_steps
    return cosine(step - warmup_steps, num_steps - warmup_steps, 1.0, floor)


class RunLength(NamedTuple):
    """How long a run is, in optimizer steps, and the trainer's option that ends it."""

    num_steps: int
    steps_per_epoch: int
    option: str

    @property
    def num_epochs(self) -> int:
        """Epochs of the run, the last of which may end early."""
        return math.ceil(self.num_steps / self.steps_per_epoch)

    def warmup_steps(self, warmup_epochs: float, option: str) -> float:
        """The steps of a warm-up.

        Args:
            warmup_epochs: its length in epochs.
            option: what sets it.

        Raises:
            ValueError: it takes the whole run.
        """
        steps = warmup_epochs * self.steps_per_epoch
        if steps >= self.num_steps:
            raise ValueError(
                f"warm-up of {warmup_epochs:g} epochs is not shorter than the run of "
                f"{self.num_steps / self.steps_per_epoch:g} epochs ({self.num_steps} steps); lower "
                f"`{option}` or raise `{self.option}`"
            )
        return steps

    def beyond(self, warmup_steps: int, remedy: str) -> int:
        """The steps of the run, of which a warm-up takes a part.

        Raises:
            ValueError: it takes the whole run; with the remedy.
        """
        if self.num_steps <= warmup_steps:
            raise ValueError(
                f"the run of {self.num_steps} steps ({self.option}) does not go beyond the warm-up "
                f"of {warmup_steps} steps; {remedy}"
            )
        return self.num_steps


class Place(NamedTuple):
    """Where in a run something is computed: what schedules follow."""

    step: int
    length: RunLength


def run_length(trainer: L.Trainer) -> RunLength:
    """The length of a run that is limited by epochs, by steps, or by what comes first of both.

    Args:
        trainer: in the middle of its `fit`: it knows the training batches.

    Raises:
        ValueError: nothing can be scheduled: the run has no end or no step, or its epochs none; or
            the last step of an epoch would see fewer images.
    """
    if trainer.train_dataloader is None:  # it says how many batches an epoch has
        trainer.fit_loop.setup_data()
    batches, accumulate = trainer.num_training_batches, trainer.accumulate_grad_batches
    if not 0 < batches < math.inf:
        raise ValueError(
            f"an epoch of {batches} training batches cannot be scheduled; give training data "
            "of a known length, and more of it than none"
        )
    steps_per_epoch = math.ceil(batches / accumulate)
    epochs = math.inf if trainer.max_epochs in (None, -1) else trainer.max_epochs * steps_per_epoch
    steps = math.inf if trainer.max_steps == -1 else trainer.max_steps
    num_steps, option = min((epochs, "trainer.max_epochs"), (steps, "trainer.max_steps"))
    if num_steps == math.inf:
        raise ValueError("the run has no end; set `trainer.max_epochs` or `trainer.max_steps`")
    if num_steps < 1:
        raise ValueError(
            f"the run has no step: {option} is {num_steps}; raise it, or measure without training "
            "by `validate`"
        )
    if batches % accumulate and not is_trial(trainer):
        remedy = "raise the number of batches or lower accumulation"
        if whole := int(batches // accumulate * accumulate):
            remedy = f"set `trainer.limit_train_batches` to {whole}"
        raise ValueError(
            f"{batches} batches of an epoch do not divide by trainer.accumulate_grad_batches "
            f"{accumulate}, so that its last step would see fewer images; {remedy}"
        )
    return RunLength(int(num_steps), steps_per_epoch, option)


def is_trial(trainer: L.Trainer | None) -> bool:
    """Whether it runs a few batches only, of which nobody expects the right schedule."""
    return bool(getattr(trainer, "fast_dev_run", False))


def before_resuming(module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
    """Prepares checkpoint and module, in place, for what Lightning makes of them.

    See `restate_progress`. Double precision begins here: Lightning would begin it after it has
    loaded the weights, which would have passed through float32.
    """
    if module._trainer is not None:
        _restate_end_of_epoch(checkpoint.get("loops", {}).get("fit_loop", {}), module.trainer)
        if module.trainer.precision == "64-true":
            module.double()
    restate_progress(checkpoint)


def restate_progress(checkpoint: dict[str, Any]) -> None:
    """Restates, in place, where in its epoch a checkpoint was written.

    Where a run is limited by steps, Lightning goes on from the end of an epoch as if from its
    middle: it trains on one batch more of it, and counts that as an epoch. Where steps have ended a
    run within an epoch, and epochs limit it now, the rest of that epoch is left out. Restated, the
    end of an epoch is the start of the next, and a part of one is a part.

    Args:
        checkpoint: as Lightning writes it, without effect on one of weights alone.
    """
    loops = checkpoint.get("loops", {}).get("fit_loop", {})
    epochs, batches = loops.get("epoch_progress"), loops.get("epoch_loop.batch_progress")
    if not (epochs and batches):
        return
    was_left = epochs["total"]["processed"] == epochs["total"]["started"] > 0
    if not was_left:
        return
    is_whole = batches["is_last_batch"]
    for tracker in (epochs["total"], epochs["current"]):
        tracker["processed"] -= not is_whole
        tracker["completed"] = tracker["processed"]
    if is_whole:
        batches["current"] = dict.fromkeys(batches["current"], 0)
        batches["is_last_batch"] = False


def _restate_end_of_epoch(loops: dict[str, Any], trainer: L.Trainer) -> None:
    """Restates, in place, the end of an epoch's last batch as what comes next.

    Lightning would leave out the validation of that epoch, and count one epoch too few from there
    on, so that a run that is stopped once more trains too long. What comes next is the validation,
    or the next epoch; at the end of the run Lightning itself is right.
    """
    epochs, batches = loops.get("epoch_progress"), loops.get("epoch_loop.batch_progress")
    if not (epochs and batches and batches["is_last_batch"]):
        return
    is_left = epochs["total"]["processed"] == epochs["total"]["started"]
    if is_left or batches["total"]["completed"] == batches["total"]["processed"]:
        return
    number = epochs["current"]["started"]  # of epochs, this one included
    if (
        trainer.enable_validation
        and trainer.val_check_interval == 1
        and number % (trainer.check_val_every_n_epoch or 1) == 0
    ):
        restate_validation(loops)
    elif trainer.max_epochs in (None, -1) or number < trainer.max_epochs:
        for tracker in (epochs["total"], epochs["current"]):
            tracker["processed"] = tracker["started"]  # it is left: see `restate_progress`
        batches["total"]["completed"] = batches["total"]["processed"]


def restate_validation(loops: dict[str, Any]) -> None:
    """Restates, in place, progress taken before or amid a validation as that of its beginning.

    Lightning would go on with the batch after the last one, of a validation whose other batches
    are forgotten.
    """
    batches = loops["epoch_loop.batch_progress"]
    for tracker in (batches["total"], batches["current"]):
        tracker["completed"] = tracker["processed"]
    validation = loops["epoch_loop.val_loop.batch_progress"]
    validation["current"] = dict.fromkeys(validation["current"], 0)
    validation["total"] = {"ready": 1, "completed": 0, "started": 1, "processed": 0}
    validation["is_last_batch"] = False


def scheduled(
    optimizer: torch.optim.Optimizer, *schedules: Callable[[int], float]
) -> OptimizerLRSchedulerConfig:
    """What Lightning takes for an optimizer whose learning rates follow the step.

    Args:
        optimizer: its groups have their peak learning rates.
        schedules: the factor at a step: one function per group, or one for all.
    """
    if len(schedules) == 1:
        schedules *= len(optimizer.param_groups)
    scheduler = StepSchedule(optimizer, schedules)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class StepSchedule(LambdaLR):
    """Learning rates that follow functions of the step, and this run's configuration.

    A restart takes the step from the checkpoint. Rates, weight decay and whatever else is no state
    of the optimizer come from the configuration, so that a longer run, or one with other values,
    goes on as it was asked to, from its first step.

    Args:
        optimizer: its groups have their peak learning rates.
        schedules: the factor at a step, one function per group.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, schedules: Sequence[Callable[[int], float]]
    ) -> None:
        self._configured = [
            {name: value for name, value in group.items() if name != "params"}
            for group in optimizer.param_groups
        ]
        super().__init__(optimizer, list(schedules))

    @override
    def state_dict(self) -> dict[str, Any]:
        return {k: v for k, v in super().state_dict().items() if k != "_configured"}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        peaks = self.base_lrs
        super().load_state_dict(state_dict)
        self.base_lrs = peaks
        groups = zip(
            self.optimizer.param_groups, self._configured, peaks, self.lr_lambdas, strict=True
        )
        for group, configured, peak, schedule in groups:
            group.update(configured, initial_lr=peak, lr=peak * schedule(self.last_epoch))
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]


def scaled_learning_rate(
    base_learning_rate: float, global_batch_size: int, scaling: Scaling = "linear"
) -> float:
    """The peak learning rate: `base_learning_rate` at a batch of 256, scaled to another batch.

    "linear" in the batch size, as most methods; "sqrt" as SimCLR for its long runs.
    """
    factor = global_batch_size / REFERENCE_BATCH_SIZE
    return base_learning_rate * (math.sqrt(factor) if scaling == "sqrt" else factor)
