"""How long a run is in optimizer steps, and where in it a checkpoint goes on."""

import math
from typing import Any, NamedTuple

import lightning as L


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
        """The steps of a warm-up, whose length in epochs an option sets.

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

    Raises:
        ValueError: the run would end before what the checkpoint has done.
    """
    if not checkpoint.get("loops", True):  # stripped: enough to measure, but Lightning looks within
        del checkpoint["loops"]
    if module._trainer is not None:
        loop = checkpoint.get("loops", {}).get("fit_loop", {})
        if "epoch_progress" in loop:
            _refuse_shorter_run(loop["epoch_progress"], checkpoint["global_step"], module.trainer)
        _restate_end_of_epoch(loop, module.trainer)
        if module.trainer.precision == "64-true":
            module.double()
    restate_progress(checkpoint)


def _refuse_shorter_run(epochs: dict[str, Any], steps: int, trainer: L.Trainer) -> None:
    """Raises where nothing is left to train, other than of a run that is finished as it stands."""
    if trainer.state.fn != "fit" or is_trial(trainer):
        return
    for unit, limit, done in (
        ("epoch", trainer.max_epochs, epochs["current"]["started"]),
        ("step", trainer.max_steps, steps),
    ):
        if limit not in (None, -1) and limit < done:
            raise ValueError(
                f"trainer.max_{unit}s {limit} ends before the checkpoint, which has reached {unit} "
                f"{done}; raise it, or measure without training by `validate`"
            )


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
