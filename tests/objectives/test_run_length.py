"""Every schedule at every step against its closed form, however a run says how long it is."""

import math

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from ser_lightning.objectives.dino import DINO
from ser_lightning.objectives.moco_v3 import MoCoV3
from support import tiny_batch, tiny_objective

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*isinstance.*treespec.*"),
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`.*"),
    pytest.mark.filterwarnings("ignore:.*`max_epochs` was not set.*"),
]

NUM_BATCHES = 4
PEAK, FLOOR, WARMUP_EPOCHS = 0.01, 0.1, 0.5
NAMES = ("learning_rate", "weight_decay", "momentum", "teacher_temperature")


def half_cosine(progress, start, end):
    return end + (start - end) * (1 + math.cos(math.pi * min(progress, 1))) / 2


def closed_form(step, num_steps, steps_per_epoch):
    """The four values of a step."""
    warmup = WARMUP_EPOCHS * steps_per_epoch
    if step < warmup:
        rate = PEAK * step / warmup
    else:
        rate = PEAK * half_cosine((step - warmup) / (num_steps - warmup), 1, FLOOR)
    progress = step / num_steps
    temperature = 0.04 + 0.03 * min(1, step / steps_per_epoch)
    return rate, half_cosine(progress, 0.04, 0.4), half_cosine(progress, 0.98, 1), temperature


class Steps(L.Callback):
    """Notes what each optimizer step was taken with."""

    def __init__(self):
        self.taken = []

    def on_train_start(self, trainer, module):
        self.used = []
        trainer.optimizers[0].register_step_post_hook(
            lambda optimizer, *_: self.used.append(dict(optimizer.param_groups[0]))
        )

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if len(self.used) > len(self.taken):
            logged, group = trainer.callback_metrics, self.used[-1]
            values = [group["lr"], group["weight_decay"]]
            values += [logged[f"schedule/{name}"].item() for name in NAMES[2:]]
            self.taken.append(tuple(values))
            assert logged["schedule/learning_rate"] == pytest.approx(group["lr"])


def tiny_dino(**options):
    scheduled = dict(
        base_learning_rate=PEAK,
        final_learning_rate=FLOOR,
        warmup_epochs=WARMUP_EPOCHS,
        momentum=0.98,
        teacher_temperature_warmup_epochs=1,
        global_batch_size=256,
    )
    return tiny_objective(DINO, **scheduled | options)


def fit(module, resume_from=None, save_to=None, callbacks=(), **options):
    batches = [tiny_batch(seed=seed) for seed in range(NUM_BATCHES)]
    steps = Steps()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        callbacks=[steps, *callbacks],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    loader = DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch)
    trainer.fit(module, loader, ckpt_path=resume_from, weights_only=True)
    if save_to:
        trainer.save_checkpoint(save_to)
    return steps.taken


def assert_closed_form(taken, num_steps, steps_per_epoch, first=0):
    assert len(taken) == num_steps - first
    for step, values in enumerate(taken, start=first):
        expected = closed_form(step, num_steps, steps_per_epoch)
        for name, value, right in zip(NAMES, values, expected, strict=True):
            assert value == pytest.approx(right, rel=1e-5), f"{name} at step {step}"


LENGTHS = {
    # steps of the run, steps of an epoch
    "epochs": ({"max_epochs": 3}, 12, 4),
    "steps": ({"max_epochs": -1, "max_steps": 7}, 7, 4),
    "steps without max_epochs": ({"max_steps": 7}, 7, 4),
    "steps before epochs": ({"max_epochs": 3, "max_steps": 5}, 5, 4),
    "epochs before steps": ({"max_epochs": 2, "max_steps": 50}, 8, 4),
    "limited batches": ({"max_epochs": 3, "limit_train_batches": 2}, 6, 2),
    "a share of the batches": ({"max_epochs": 3, "limit_train_batches": 0.5}, 6, 2),
    "limited batches by steps": ({"max_steps": 5, "limit_train_batches": 3}, 5, 3),
    "accumulation": ({"max_epochs": 3, "accumulate_grad_batches": 2}, 6, 2),
    "accumulation by steps": ({"max_steps": 5, "accumulate_grad_batches": 2}, 5, 2),
    "minima": ({"max_steps": 5, "min_steps": 9, "min_epochs": 3}, 5, 4),
    "a time that is not reached": ({"max_epochs": 2, "max_time": "01:00:00:00"}, 8, 4),
    "reloaded data": ({"max_epochs": 3, "reload_dataloaders_every_n_epochs": 1}, 12, 4),
}


SAME = {"a share of the batches", "a time that is not reached", "reloaded data"}  # as others are


@pytest.mark.parametrize(
    "how", [pytest.param(how, marks=[pytest.mark.slow] if how in SAME else []) for how in LENGTHS]
)
def test_schedules_follow_their_closed_form(how):
    options, num_steps, steps_per_epoch = LENGTHS[how]
    assert_closed_form(fit(tiny_dino(), **options), num_steps, steps_per_epoch)


@pytest.mark.parametrize(
    ("before", "after", "num_steps"),
    [
        ({"max_epochs": 1}, {"max_epochs": 3}, 12),
        ({"max_steps": 4}, {"max_steps": 9}, 9),
        ({"max_steps": 4}, {"max_epochs": 2}, 8),
        ({"max_epochs": 3, "max_steps": 4}, {"max_epochs": 2, "max_steps": 50}, 8),
    ],
)
def test_resumed_run_follows_the_longer_schedules_from_its_first_step(
    before, after, num_steps, tmp_path
):
    path = tmp_path / "stopped.ckpt"
    assert_closed_form(fit(tiny_dino(), save_to=path, **before), 4, 4)
    assert_closed_form(fit(tiny_dino(), resume_from=path, **after), num_steps, 4, first=4)


def test_resumed_run_takes_rates_and_decay_from_its_own_configuration(tmp_path):
    def optimizer(decay):
        return lambda params, lr: torch.optim.AdamW(params, lr, weight_decay=decay)

    path, same = tmp_path / "stopped.ckpt", {"warmup_epochs": 0, "global_batch_size": 256}
    first = tiny_objective(MoCoV3, optimizer=optimizer(0.1), base_learning_rate=0.01, **same)
    second = tiny_objective(MoCoV3, optimizer=optimizer(0.3), base_learning_rate=0.02, **same)
    used = []
    second.optimizer_step = lambda *args, **kwargs: (
        used.append(dict(second.optimizers().param_groups[0])),
        MoCoV3.optimizer_step(second, *args, **kwargs),
    )
    trained(first, max_epochs=1, save_to=path)
    trained(second, max_epochs=2, resume_from=path)
    rates = [half_cosine(step / 8, 0.02, 0) for step in range(4, 8)]
    assert [group["lr"] for group in used] == pytest.approx(rates)
    assert {group["weight_decay"] for group in used} == {0.3}


def trained(module, save_to=None, resume_from=None, **options):
    batches = [tiny_batch(seed=seed) for seed in range(NUM_BATCHES)]
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    loader = DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch)
    trainer.fit(module, loader, ckpt_path=resume_from, weights_only=True)
    if save_to:
        trainer.save_checkpoint(save_to)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_epochs": 2}, r"3 epochs is not shorter than the run of 2 epochs \(8 .*max_epochs"),
        ({"max_steps": 8}, r"3 epochs is not shorter than the run of 2 epochs \(8 .*max_steps"),
        ({"max_steps": 2}, r"3 epochs is not shorter than the run of 0.5 epochs \(2 .*max_steps"),
    ],
)
def test_warmup_as_long_as_the_run_is_refused_in_the_runs_own_terms(options, message):
    with pytest.raises(ValueError, match=message):
        fit(tiny_dino(warmup_epochs=3), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_epochs": -1}, "the run has no end; set `trainer.max_epochs` or"),
        ({"max_time": "00:01:00:00"}, "the run has no end; set `trainer.max_epochs` or"),
        ({"max_epochs": 0}, "no step: trainer.max_epochs is 0"),
        ({"max_steps": 0}, "no step: trainer.max_steps is 0"),
        (
            {"max_epochs": 1, "limit_train_batches": 3, "accumulate_grad_batches": 2},
            "3 batches .* do not divide by .* 2.*limit_train_batches` to 2",
        ),
        (
            {"max_epochs": 1, "limit_train_batches": 1, "accumulate_grad_batches": 2},
            "1 batches .* do not divide by .* 2.*raise the number of batches or lower accumulation",
        ),
    ],
)
def test_run_that_cannot_be_scheduled_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        fit(tiny_dino(), **options)


def test_data_of_unknown_length_is_refused():
    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self):
            while True:
                yield tiny_batch()

    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with pytest.raises(ValueError, match="an epoch of inf training batches cannot be scheduled"):
        trainer.fit(tiny_dino(), DataLoader(Endless(), batch_size=None))


def test_trial_run_is_not_asked_for_a_warmup_that_fits():
    assert len(fit(tiny_dino(warmup_epochs=3), fast_dev_run=True)) == 1
