"""The learning rate of every step a stage trains against its closed form, however long it is told.

Epochs have four batches here.
"""

import math
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import StochasticWeightAveraging
from torch import nn
from torch.utils.data import DataLoader

from ser_lightning.commands.evaluate import StageCommandLine, evaluate
from ser_lightning.data.benchmarks.detection import DetectionBatch
from ser_lightning.evaluation.features import FeatureBatch
from ser_lightning.evaluation.probe import Probe, fit_probe
from ser_lightning.evaluation.stages.detection import DetectionStage
from ser_lightning.evaluation.stages.linear import LinearHeads
from ser_lightning.evaluation.stages.mlp import DeepHead
from ser_lightning.evaluation.stages.transformation import Task, VersionHeads
from ser_lightning.results.record import read_record
from tiny_names import SHAPES

ROOT = Path(__file__).parents[3]
NUM_BATCHES = 4
PEAK, WARMUP_STEPS = 0.01, 2

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*isinstance.*treespec.*"),
    pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training.*"),
]

LENGTHS = {
    # steps of the run, steps of an epoch
    "epochs": ({"max_epochs": 3}, 12, 4),
    "steps": ({"max_epochs": -1, "max_steps": 7}, 7, 4),
    "steps without max_epochs": ({"max_steps": 7}, 7, 4),
    "steps within an epoch": ({"max_steps": 3}, 3, 4),
    "steps before epochs": ({"max_epochs": 3, "max_steps": 5}, 5, 4),
    "epochs before steps": ({"max_epochs": 2, "max_steps": 50}, 8, 4),
    "limited batches": ({"max_epochs": 3, "limit_train_batches": 2}, 6, 2),
    "limited batches by steps": ({"max_steps": 5, "limit_train_batches": 3}, 5, 3),
    "accumulation": ({"max_epochs": 3, "accumulate_grad_batches": 2}, 6, 2),
    "accumulation by steps": ({"max_steps": 5, "accumulate_grad_batches": 2}, 5, 2),
}
RESUMED = [
    ({"max_epochs": 1}, {"max_epochs": 3}, 12),
    ({"max_steps": 4}, {"max_steps": 9}, 9),
    ({"max_steps": 4}, {"max_epochs": 2}, 8),
]


class Rates(L.Callback):
    """Notes the learning rate of the last group at every optimizer step."""

    def __init__(self):
        self.used = []

    def on_train_start(self, trainer, module):
        trainer.optimizers[0].register_step_pre_hook(
            lambda optimizer, *_: self.used.append(optimizer.param_groups[-1]["lr"])
        )


def new_trainer(*callbacks, **options):
    settings = {"accelerator": "cpu", "devices": 1, "logger": False}
    settings |= {"enable_progress_bar": False, "enable_checkpointing": False}
    settings |= {"enable_model_summary": False, "callbacks": list(callbacks)}
    return L.Trainer(**settings | options)


def loader(batch):
    return DataLoader([batch] * NUM_BATCHES, batch_size=None, collate_fn=lambda batch: batch)


def half_cosine(progress, start=1.0, end=0.0):
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


# probes


def features(shape=(4,)):
    return loader(FeatureBatch(torch.randn(8, *shape), torch.arange(8) % 3, torch.arange(8)))


def heads_of(kind):
    if kind == "linear":
        return LinearHeads(4, 3, [1.0], 256)
    if kind == "mlp":
        return DeepHead(4, 3, hidden=5, learning_rate=PEAK)
    return VersionHeads([Task("", "flip", "pair", 0)], 4, 5, PEAK, 0)


def by_epoch(step, num_steps, steps_per_epoch):
    """The linear probe's rate: a cosine that moves with the epoch."""
    return half_cosine(step // steps_per_epoch / (num_steps / steps_per_epoch))


@pytest.mark.parametrize("how", LENGTHS)
@pytest.mark.parametrize("kind", ["linear", "mlp", "transformation"])
def test_probe_follows_its_closed_form(kind, how):
    options, num_steps, steps_per_epoch = LENGTHS[how]
    rates, heads = Rates(), heads_of(kind)
    probe = Probe(heads)
    fit_probe(
        new_trainer(rates, **options),
        probe,
        features((5, 1, 4) if kind == "transformation" else (4,)),
        None,
    )
    expected = [PEAK] * num_steps
    if kind == "linear":
        expected = [by_epoch(step, num_steps, steps_per_epoch) for step in range(num_steps)]
    assert rates.used == pytest.approx(expected, rel=1e-9)
    if heads.chooses:
        assert probe.selected.epoch == math.ceil(num_steps / steps_per_epoch)


@pytest.mark.parametrize(("before", "after", "num_steps"), RESUMED)
def test_resumed_probe_follows_the_longer_schedule(before, after, num_steps, tmp_path):
    path, rates = tmp_path / "stopped.ckpt", Rates()
    first = new_trainer(**before)
    first.fit(Probe(heads_of("linear")), features())
    first.save_checkpoint(path)
    trainer = new_trainer(rates, **after)
    trainer.fit(Probe(heads_of("linear")), features(), ckpt_path=path, weights_only=True)
    expected = [by_epoch(step, num_steps, NUM_BATCHES) for step in range(NUM_BATCHES, num_steps)]
    assert rates.used == pytest.approx(expected, rel=1e-9)


class Scripted(Probe):
    """Whose held-out hits of ten images are given by epoch."""

    hits = ()

    def count_hits(self, rows):
        return torch.tensor([*self.hits[self.current_epoch], 10])


@pytest.mark.parametrize(
    ("options", "num_epochs"),
    [({"max_steps": 38}, 10), ({"max_epochs": 99, "max_steps": 37}, 10), ({"max_steps": 2}, 1)],
)
def test_last_fifth_is_that_of_the_run_by_steps(options, num_epochs):
    probe = Scripted(LinearHeads(4, 3, [0.3, 1.0, 3.0], 256))
    # 9 comes too early; 5 is there twice in the last two epochs, first in head 2
    probe.hits = [[(9, 9, 9)] * 8 + [(2, 4, 5)], []][num_epochs == 1] + [(3, 5, 4)]
    fit_probe(new_trainer(**options), probe, features(), holdout=object())
    assert len(probe.holdout_top1) == num_epochs
    assert probe.selected[:3] == ((2, 9, 50.0) if num_epochs == 10 else (1, 1, 50.0))
    assert probe.last[:3] == (1, num_epochs, 50.0)


class Stop(L.Callback):
    """Ends a training after some epochs, as an early stop or `max_time` does."""

    def __init__(self, num_epochs):
        self.num_epochs = num_epochs

    def on_train_epoch_end(self, trainer, module):
        trainer.should_stop = trainer.current_epoch + 1 >= self.num_epochs


def test_training_that_ends_before_a_head_is_chosen_is_refused():
    probe = Scripted(LinearHeads(4, 3, [0.3, 1.0], 256))
    probe.hits = [(1, 2)] * 10
    with pytest.raises(ValueError, match=r"ended after 3 of 10 epochs, before .* last fifth.*stop"):
        fit_probe(new_trainer(Stop(3), max_epochs=10), probe, features(), holdout=object())


def test_training_that_ends_in_the_last_fifth_names_the_epoch_it_ended_with():
    probe = Scripted(LinearHeads(4, 3, [0.3, 1.0], 256))
    probe.hits = [(1, 2)] * 8 + [(3, 2)]
    fit_probe(new_trainer(Stop(9), max_epochs=10), probe, features(), holdout=object())
    assert probe.last[:3] == probe.selected[:3] == (0, 9, 30.0)


def test_clipping_the_gradients_of_all_heads_together_is_refused():
    trainer = new_trainer(max_epochs=1, gradient_clip_val=1.0)
    with pytest.raises(ValueError, match=r"gradient_clip_val 1.0 .* all heads .*leave it out"):
        fit_probe(trainer, Probe(heads_of("linear")), features(), None)


# detection


class Detector(nn.Module):
    """Stands for a detector; its loss is its only weight."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, 1))

    def forward(self, images, targets):
        return {"loss": self.weight.sum()}


def detection(checkpoint):
    stage = DetectionStage(str(checkpoint), "fcos", 32, PEAK, warmup_steps=WARMUP_STEPS)
    stage.detector = Detector()
    nothing = torch.zeros(1, 4)
    images = (torch.zeros(3, 16, 16, dtype=torch.uint8),)
    batch = DetectionBatch(images, (nothing,), (torch.ones(1),), nothing, torch.zeros(1))
    return stage, loader(batch)


def dropping(step, num_steps):
    """ViTDet's rate: a linear rise, then a tenth from 8/9 and again from 26/27 of the run on."""
    if step < WARMUP_STEPS:
        return PEAK * (step + 1) / (WARMUP_STEPS + 1)
    return PEAK * 0.1 ** ((step >= round(8 * num_steps / 9)) + (step >= round(26 * num_steps / 27)))


@pytest.fixture(scope="module")
def detection_parts(checkpoint):
    pytest.importorskip("faster_coco_eval")
    return detection(checkpoint)


@pytest.mark.parametrize("how", LENGTHS)
def test_detection_follows_its_closed_form(how, detection_parts):
    options, num_steps, _ = LENGTHS[how]
    (stage, batches), rates = detection_parts, Rates()
    new_trainer(rates, **options).fit(stage, batches)
    expected = [dropping(step, num_steps) for step in range(num_steps)]
    assert rates.used == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("before", "after", "num_steps"), RESUMED)
def test_resumed_detection_follows_the_longer_schedule(
    before, after, num_steps, detection_parts, tmp_path
):
    (stage, batches), rates, path = detection_parts, Rates(), tmp_path / "stopped.ckpt"
    first = new_trainer(**before)
    first.fit(stage, batches)
    first.save_checkpoint(path)
    new_trainer(rates, **after).fit(stage, batches, ckpt_path=path, weights_only=True)
    expected = [dropping(step, num_steps) for step in range(NUM_BATCHES, num_steps)]
    assert rates.used == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": 2}, r"run of 2 steps \(trainer.max_steps\) does not go beyond .* 2 steps"),
        ({"max_epochs": 1, "limit_train_batches": 1}, r"run of 1 steps \(trainer.max_epochs\)"),
    ],
)
def test_detection_no_longer_than_its_warmup_is_refused(options, message, detection_parts):
    stage, batches = detection_parts
    with pytest.raises(ValueError, match=message):
        new_trainer(**options).fit(stage, batches)


# fine-tuning

SMALL = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--data.num_workers", "0"]
SMALL += ["--trainer.max_epochs", "null", "--data.num_train", "32", "--model.warmup_epochs", "0.5"]
SMALL += ["--data.global_batch_size", "8", "--model.base_learning_rate", "0.32"]


def command(checkpoint, stage, *more, **trainer):
    config = str(ROOT / "configs" / "eval" / f"{stage}.yaml")
    options = [
        part for name, value in trainer.items() for part in (f"--trainer.{name}", str(value))
    ]
    small = SMALL if stage == "finetune" else [*SMALL[:8], "--data.global_batch_size", "8"]
    return ["--config", config, "--checkpoint", str(checkpoint), *small, *more, *options]


def finetuned(step, num_steps, steps_per_epoch):
    """The head's rate: a linear rise from 1e-6 to the peak of 0.01, then a cosine to 1e-6."""
    warmup = steps_per_epoch / 2
    if step < warmup:
        return 1e-6 + (PEAK - 1e-6) * step / warmup
    return half_cosine((step - warmup) / (num_steps - warmup), PEAK, 1e-6)


def few(values, *fast):
    """Values of which the fast suite takes those that are named, and `-m slow` the others."""
    return [v if v in fast else pytest.param(v, marks=pytest.mark.slow) for v in values]


@pytest.mark.parametrize("how", few(LENGTHS, "limited batches by steps"))
def test_finetuning_follows_its_closed_form(how, checkpoint):
    options, num_steps, steps_per_epoch = LENGTHS[how]
    if "accumulate_grad_batches" in options:  # the data give each pass a part of the batch
        num_steps, steps_per_epoch = options.get("max_steps", 12), 4
    cli, rates = StageCommandLine(command(checkpoint, "finetune", **options)), Rates()
    cli.trainer.callbacks.append(rates)
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    expected = [finetuned(step, num_steps, steps_per_epoch) for step in range(num_steps)]
    assert rates.used == pytest.approx(expected, rel=1e-9)


@pytest.mark.slow
def test_resumed_finetuning_follows_the_longer_schedule(checkpoint, tmp_path):
    path, rates = tmp_path / "stopped.ckpt", Rates()
    first = StageCommandLine(command(checkpoint, "finetune", max_steps=4))
    first.trainer.fit(first.model, datamodule=first.datamodule)
    first.trainer.save_checkpoint(path)
    cli = StageCommandLine(command(checkpoint, "finetune", max_epochs=2))
    cli.trainer.callbacks.append(rates)
    cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=path, weights_only=True)
    expected = [finetuned(step, 8, 4) for step in range(4, 8)]
    assert rates.used == pytest.approx(expected, rel=1e-9)


# what a step means, and what the record says


def test_transformation_divides_its_batch_by_the_accumulated_passes(checkpoint, monkeypatch):
    sizes = []
    monkeypatch.setattr(
        VersionHeads, "losses", lambda self, batch: sizes.append(len(batch.slot)) or _loss(self)
    )
    options = ["--model.num_train", "32", "--model.batch_size", "16", "--model.layers", "[1]"]
    args = command(checkpoint, "transformation", *options, accumulate_grad_batches=2, max_epochs=1)
    cli = StageCommandLine(args)
    cli.model.run(cli.trainer, cli.datamodule, Path(checkpoint).parent)
    assert sizes == [8] * 4
    assert cli.trainer.global_step == 2


def _loss(heads):
    return torch.stack([sum(p.sum() for p in head.parameters()) for head in heads.heads])


STAGES = ["finetune", "linear", "mlp", "transformation"]


@pytest.mark.parametrize("stage", few(STAGES, "finetune", "linear"))
def test_setting_that_changes_a_step_is_refused_before_anything_is_read(stage, checkpoint):
    cli = StageCommandLine(command(checkpoint, stage, overfit_batches=1, max_epochs=1))
    cli.datamodule.setup = None  # would fail
    with pytest.raises(ValueError, match=r"overfit_batches 1 .*limit_train_batches"):
        cli.model.run(cli.trainer, cli.datamodule, Path())
    cli = StageCommandLine(command(checkpoint, stage, max_epochs=1))
    cli.trainer.callbacks.append(StochasticWeightAveraging(0.1))
    with pytest.raises(ValueError, match="StochasticWeightAveraging replaces the learning rate"):
        cli.model.run(cli.trainer, cli.datamodule, Path())


@pytest.mark.parametrize("stage", few(STAGES, "finetune", "linear"))
def test_training_that_is_not_told_how_long_it_is_is_refused(stage, checkpoint):
    cli = StageCommandLine(command(checkpoint, stage, max_epochs="null"))
    with pytest.raises(ValueError, match=r"max_epochs None .*max_steps"):
        cli.model.run(cli.trainer, cli.datamodule, Path())


@pytest.mark.slow
def test_record_says_how_many_batches_an_epoch_has_and_where_it_ended(checkpoint, tmp_path):
    folder = ["--run_dir", str(tmp_path)]
    evaluate(command(checkpoint, "finetune", *folder, max_steps=3, limit_train_batches=2))
    record = read_record(tmp_path / "results" / f"finetune-{SHAPES}.json")
    assert record.protocol["limit_train_batches"] == 2
    assert record.unofficial_reasons == ("measured on a part of the images",)
    evaluate(command(checkpoint, "finetune", *folder, max_epochs=2, max_time="00:00:00:00"))
    record = read_record(tmp_path / "results" / f"finetune-{SHAPES}.json")
    assert record.unofficial_reasons[0] == "trained 0 of 8 steps"
