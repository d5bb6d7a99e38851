"""A run goes on with the batch that comes next, whichever limits it had and has now."""

from contextlib import nullcontext

import lightning as L
import pytest

from objectives.tiny_run import STEPS_PER_EPOCH
from ser_lightning.data import CropViews, InvertibleViews, PartitionedDataModule, Shapes
from ser_lightning.objectives.simclr import SimCLR
from ser_lightning.run_length import restate_progress
from ser_lightning.runtime import RunCheckpoint
from support import PATCH, tiny_objective

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*isinstance.*treespec.*"),
    pytest.mark.filterwarnings("ignore:.*`max_epochs` was not set.*"),
]

NUM_STEPS = 3 * STEPS_PER_EPOCH


class Places(L.Callback):
    """Notes epoch, place in it, step and images of every batch."""

    def __init__(self):
        self.seen = []
        self.validated = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        place = (trainer.current_epoch, batch_idx, trainer.global_step)
        self.seen.append((*place, tuple(batch.indices.tolist())))

    def on_validation_start(self, trainer, module):
        self.validated.append(trainer.global_step)


def places(folder, resumes=False, every_n_train_steps=None, **options):
    return run(folder, resumes, every_n_train_steps, **options).seen


class Stopped(SimCLR):
    """Stops after a step, when its checkpoint has been written: callbacks come first."""

    def on_train_batch_end(self, outputs, batch, batch_idx):
        super().on_train_batch_end(outputs, batch, batch_idx)
        if self.trainer.global_step == self.stop_after:
            raise SystemExit


def run(folder, resumes=False, every_n_train_steps=None, stop_after=None, **options):
    module = tiny_objective(Stopped, warmup_epochs=0, global_batch_size=8)
    module.stop_after = stop_after
    data = PartitionedDataModule(
        Shapes(num_train=8 * STEPS_PER_EPOCH, num_evaluation=4, image_size=16),
        global_batch_size=8,
        crop=CropViews(),
        invertible=InvertibleViews(ratio=0.25),
        image_size=16,
        patch_size=PATCH,
        num_workers=0,
        needs=module.regularizer.needs,
    )
    checkpoint, seen = RunCheckpoint(every_n_train_steps), Places()
    checkpoint.dirpath = str(folder)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        num_sanity_val_steps=0,
        callbacks=[seen, checkpoint],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"limit_val_batches": 0} | options,
    )
    path = checkpoint.path if resumes else None
    with nullcontext() if stop_after is None else pytest.raises(SystemExit):
        trainer.fit(module, data, ckpt_path=path, weights_only=True)
    return seen


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    return places(tmp_path_factory.mktemp("unbroken"), max_epochs=3)


def test_run_by_steps_sees_the_batches_of_a_run_by_epochs(unbroken, tmp_path):
    assert len(unbroken) == NUM_STEPS
    assert places(tmp_path, max_steps=NUM_STEPS) == unbroken


def slow(*rows):
    return [pytest.param(*row, marks=pytest.mark.slow) for row in rows]


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({"max_steps": 9}, {"max_epochs": 3}),
        ({"max_epochs": 1}, {"max_epochs": 3, "max_steps": 100}),
        *slow(
            ({"max_steps": 6}, {"max_steps": NUM_STEPS}),
            ({"max_epochs": 2, "max_steps": 9}, {"max_epochs": 3, "max_steps": 100}),
        ),
    ],
)
@pytest.mark.parametrize(
    "options",
    [{}, *slow(({"every_n_train_steps": 1, "limit_val_batches": 1},))],
    ids=["epochs", "steps"],
)
def test_resumed_run_sees_the_batches_of_an_unbroken_one(first, then, options, unbroken, tmp_path):
    before = places(tmp_path, **options, **first)
    after = places(tmp_path, resumes=True, **options, **then)
    assert before + after == unbroken


@pytest.mark.slow
@pytest.mark.parametrize(
    "stops", [(6, 9), *slow(((6, 7, 8),), ((12, 13),), ((6, 12),), ((18,),))], ids=str
)
@pytest.mark.parametrize(
    ("options", "validated"),
    [
        ({"limit_val_batches": 1}, {6, 12, 18}),
        *slow(({"limit_val_batches": 1, "check_val_every_n_epoch": 2}, {12}), ({}, set())),
    ],
    ids=["every epoch", "every other epoch", "never"],
)
@pytest.mark.parametrize("limit", [{"max_epochs": 3}, *slow(({"max_steps": NUM_STEPS},))], ids=str)
def test_run_stopped_at_the_end_of_an_epoch_and_again_ends_where_it_should(
    stops, options, validated, limit, unbroken, tmp_path
):
    how = {"every_n_train_steps": 1, **limit, **options}
    parts = [run(tmp_path, number > 0, stop_after=step, **how) for number, step in enumerate(stops)]
    parts.append(run(tmp_path, True, **how))
    assert [place for part in parts for place in part.seen] == unbroken
    if stops[-1] < NUM_STEPS or "max_epochs" in limit:  # else nothing is left to go on with
        assert {step for part in parts for step in part.validated} == validated


def test_accumulating_run_by_steps_goes_on_with_the_next_batch(unbroken, tmp_path):
    whole = places(tmp_path / "whole", max_steps=9, accumulate_grad_batches=2)
    before = places(tmp_path, max_steps=3, accumulate_grad_batches=2)
    after = places(tmp_path, resumes=True, max_steps=9, accumulate_grad_batches=2)
    assert before + after == whole


@pytest.mark.parametrize("checkpoint", [{}, {"state_dict": {}}, {"loops": {"fit_loop": {}}}])
def test_checkpoint_without_progress_stays_as_it_is(checkpoint):
    restate_progress(checkpoint)
    assert "epoch_progress" not in str(checkpoint)
