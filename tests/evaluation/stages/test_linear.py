"""The linear stage: every head is trained as if alone, and chosen without the test images."""

import math
import os
import subprocess
import sys
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ser_lightning.commands.evaluate import evaluate
from ser_lightning.data import BatchKey, ImageSet, Shapes
from ser_lightning.data.labelled import LabelledDataModule
from ser_lightning.evaluation import probe_stage
from ser_lightning.evaluation.features import CleanRows, TrainingRows, cached_features
from ser_lightning.evaluation.linear_head import LinearClassifier
from ser_lightning.evaluation.probe import CropProbe, Probe, fit_probe
from ser_lightning.evaluation.stages.linear import LinearHeads, LinearStage, head_path
from ser_lightning.results.hits import load_hits
from ser_lightning.results.record import read_record
from ser_lightning.sources.base import MemoryImages
from support import tiny_backbone
from tiny_names import SHAPES

ROOT = Path(__file__).parents[3]
BATCH, EPOCHS = 16, 3
SMALL = ["--trainer.accelerator", "cpu", "--data.num_workers", "0"]
SMALL += ["--data.global_batch_size", "16", "--trainer.max_epochs", "2"]

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*isinstance.*treespec.*"),
]


def hits_of(folder):
    """Which test images the head of a run classified right."""
    (path,) = (folder / "results").glob("*.hits.safetensors")
    return load_hits(path.with_name(path.name.replace(".hits.safetensors", ".json")), "top1").values


def run_stage(checkpoint, folder, *options, devices=1):
    config = str(ROOT / "configs" / "eval" / "linear.yaml")
    args = ["--config", config, "--checkpoint", str(checkpoint), "--run_dir", str(folder), *SMALL]
    evaluate([*args, "--trainer.devices", str(devices), *options])
    return read_record(folder / "results" / f"linear-{SHAPES}.json")


def saved_head(folder, dataset=SHAPES):
    linear = LinearClassifier.load(head_path(folder, dataset)).linear
    return torch.cat([linear.weight, linear.bias[:, None]], dim=1)


def labelled(source=None, **options):
    """48 images to train on, 48 held out, and 24 to test on."""
    data = LabelledDataModule(
        source or Shapes(num_train=96, num_evaluation=24, image_size=16),
        global_batch_size=BATCH,
        image_size=16,
        num_workers=0,
        evaluation_batch_size=10,
        **{"holdout_fraction": 0.5, **options},
    )
    data.setup("fit")
    return data


def new_trainer(data, epochs=EPOCHS, **options):
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )
    data.trainer = trainer
    return trainer


def frozen_backbone():
    torch.manual_seed(0)
    return tiny_backbone(layer=1).eval().requires_grad_(False)


def fitted(heads, tmp_path, crops=False, data=None, epochs=EPOCHS, **options):
    """A probe on the tiny backbone's last two blocks, and the features it saw."""
    backbone, data = frozen_backbone(), data or labelled()
    trainer = new_trainer(data, epochs, **options)
    features = {
        split: cached_features(backbone, "weights", data, split, trainer, tmp_path)
        for split in ("train", "holdout")
    }
    if crops:
        probe, train = CropProbe(backbone, [3, 4], heads), data.train_dataloader()
    else:
        probe = Probe(heads)
        train = data.key_loader(TrainingRows(features["train"].last(2), data.plan()), 0)
    fit_probe(trainer, probe, train, CleanRows(features["holdout"].last(2), 10))
    return probe, data, features


def batches(data, features, crops):
    """Features and labels of every step, epoch by epoch."""
    backbone, plan, crop_data = frozen_backbone().double(), data.plan(), data.train_dataset()
    for epoch in range(EPOCHS):
        for step in range(plan.steps_per_epoch):
            key = BatchKey(epoch, step)
            if crops:
                batch = crop_data[key]
                tokens = backbone.cls_tokens(batch.pixels.double(), [3, 4])
                yield epoch, torch.cat(tokens, dim=1), batch.label
            else:
                index = plan.indices(key)[0]
                rows = torch.from_numpy(features["train"].values[index][:, -2:])
                yield epoch, rows.flatten(1).double(), features["train"].label[index]


@pytest.mark.parametrize("crops", [True, False], ids=["crops", "cached"])
def test_every_head_equals_a_loop_of_its_own(crops, tmp_path):
    rates = (0.3, 3.0, 30.0)
    heads = LinearHeads(64, 12, rates, BATCH, seed=5)
    draws = torch.Generator().manual_seed(5)
    initial = 0.01 * torch.randn(12, 64, generator=draws)
    probe, data, features = fitted(heads, tmp_path, crops, precision="64-true")
    for number, rate in enumerate(rates):
        weight, bias = initial.double(), torch.zeros(12, dtype=torch.float64)
        weight_step, bias_step = torch.zeros_like(weight), torch.zeros_like(bias)
        for epoch, x, label in batches(data, features, crops):
            wrong = (x @ weight.T + bias).softmax(1) - F.one_hot(label, 12)  # d loss / d logits
            weight_step = 0.9 * weight_step + wrong.T @ x / len(x)
            bias_step = 0.9 * bias_step + wrong.mean(0)
            learning_rate = rate * BATCH / 256 * 0.5 * (1 + math.cos(math.pi * epoch / EPOCHS))
            weight = weight - learning_rate * weight_step
            bias = bias - learning_rate * bias_step
        head = probe.heads.single(number)
        # measured 2e-9, the learning rates are kept in float32
        tolerance = 1e-7
        torch.testing.assert_close(head.weight, weight, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(head.bias, bias, rtol=tolerance, atol=tolerance)
        assert (weight - initial).abs().max() > 0.01


def test_diverged_head_does_not_disturb_the_others(tmp_path):
    alone, _, _ = fitted(LinearHeads(64, 12, [1.0], BATCH), tmp_path)
    both, _, _ = fitted(LinearHeads(64, 12, [1e40, 1.0], BATCH), tmp_path)
    assert not both.heads.single(0).weight.isfinite().all()
    torch.testing.assert_close(both.heads.single(1).weight, alone.heads.single(0).weight)


def test_backbone_stays_as_it_is_and_in_evaluation_mode(tmp_path):
    heads, trained = LinearHeads(64, 12, [1.0, 3.0], BATCH), set()
    for name, parameter in heads.named_parameters():
        parameter.register_hook(lambda gradient, name=name: trained.add((name, gradient.any())))
    probe, _, _ = fitted(heads, tmp_path, crops=True)
    assert {name for name, is_nonzero in trained if is_nonzero} == {"weight", "bias"}
    expected = frozen_backbone().state_dict()
    state = probe.backbone.state_dict()
    assert all(torch.equal(state[name], value) for name, value in expected.items())
    assert all(p.grad is None for p in probe.backbone.parameters())
    probe.train()
    assert probe.heads.training
    assert not any(module.training for module in probe.backbone.modules())


def test_features_of_crops_and_heads_are_float32_under_autocast(tmp_path):
    heads = LinearHeads(64, 12, [1.0], BATCH)
    seen = []
    heads.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    fitted(heads, tmp_path, crops=True, precision="bf16-mixed")
    assert {x.dtype for pair in seen for x in pair} == {torch.float32}


class Scripted(Probe):
    """Whose held-out hits of ten images are given by epoch."""

    hits = ()

    def count_hits(self, rows):
        return torch.tensor([*self.hits[self.current_epoch], 10])


def test_best_head_of_the_last_fifth_is_chosen(tmp_path):
    data = labelled(num_train=32)
    trainer = new_trainer(data, epochs=10)
    features = cached_features(frozen_backbone(), "weights", data, "train", trainer, tmp_path)
    train = data.key_loader(TrainingRows(features.last(2), data.plan()), 0)
    probe = Scripted(LinearHeads(64, 12, [0.3, 1.0, 3.0], BATCH))
    # the best of all comes too early; 5 is there twice in the last two epochs, first in head 2
    probe.hits = [(9, 9, 9)] * 8 + [(2, 4, 5), (3, 5, 4)]
    fit_probe(trainer, probe, train, CleanRows(features.last(2), 10))
    assert probe.selected[:3] == (2, 9, 50.0)
    assert probe.last[:3] == (1, 10, 50.0)
    assert torch.equal(probe.last.classifier.weight, probe.heads.single(1).weight)
    assert not torch.equal(probe.selected.classifier.weight, probe.heads.single(2).weight)


def test_holdout_accuracy_is_that_of_the_chosen_head(tmp_path):
    probe, _, features = fitted(LinearHeads(64, 12, [1.0, 30.0], BATCH), tmp_path)
    values, label, _ = features["holdout"].last(2)
    x = torch.from_numpy(np.array(values)).flatten(1)
    hits = (probe.selected.classifier(x).argmax(1) == label).double().mean()
    assert probe.selected.holdout_top1 == pytest.approx(100 * hits.item())
    assert probe.selected.holdout_top1 == max(probe.holdout_top1[-1])


class Locked(ImageSet):
    """Images that nobody may look at before they are unlocked."""

    def __init__(self, images, labels):
        self.images = images
        self.labels = labels
        self.class_names = images.class_names
        self.locked = True

    def read(self, index):
        assert not self.locked, "the test images were read before a head was chosen"
        return self.images.read(index)


class LockedShapes(Shapes):
    """Whose test images are locked, and whose test labels are shifted."""

    def __init__(self, shift):
        super().__init__(num_train=96, num_evaluation=24, image_size=16)
        images = super().evaluation()
        self.test = Locked(images, (images.labels + shift) % 12)

    def evaluation(self):
        return self.test


@pytest.mark.parametrize(
    "cached", [pytest.param(True, marks=pytest.mark.slow), False], ids=["cached", "crops"]
)
def test_selection_never_reads_the_test_split(cached, checkpoint, tmp_path, monkeypatch):
    def fit(trainer, probe, train, holdout):
        fit_probe(trainer, probe, train, holdout)
        assert probe.selected is not None
        source.test.locked = False

    monkeypatch.setattr(probe_stage, "fit_probe", fit)
    results, heads = [], []
    for shift in range(3):
        source = LockedShapes(shift)
        data = labelled(source)
        stage = LinearStage(str(checkpoint), [0.3, 3.0, 30.0], cache_features=cached)
        folder = tmp_path / str(shift)
        (result,) = stage.run(new_trainer(data), data, folder)
        results.append(result)
        heads.append(saved_head(folder, f"lockedshapes_shift_{shift}"))
    assert results[0].selected == results[1].selected == results[2].selected
    assert torch.equal(heads[0], heads[1])
    assert torch.equal(heads[0], heads[2])
    assert len({r.counts["hits"] for r in results}) > 1  # the labels did matter for the test


class UnevenShapes(Shapes):
    """Whose test split has 24 images of six of the twelve classes, most of them of one."""

    def evaluation(self):
        images = super().evaluation()
        chosen = torch.tensor([0] * 14 + list(range(1, 11)))
        return MemoryImages(images.pixels[chosen], images.labels[chosen], images.class_names)


def test_accuracy_counts_each_test_image_once(checkpoint, tmp_path):
    data = labelled(UnevenShapes(num_train=96, num_evaluation=24, image_size=16))
    stage = LinearStage(str(checkpoint), [1.0, 10.0])
    (result,) = stage.run(new_trainer(data), data, tmp_path)
    classifier = LinearClassifier.load(head_path(tmp_path, f"uneven{SHAPES}"))
    hits = [
        classifier(stage.backbone, b.pixels).argmax(1) == b.label for b in data.clean_loader("test")
    ]
    assert [len(h) for h in hits] == [10, 10, 4]
    assert result.counts["hits"] == int(torch.cat(hits).sum())
    assert result.num_samples == 24
    assert result.metrics["top1"] == pytest.approx(100 * result.counts["hits"] / 24)
    assert result.hits["top1"].tolist() == torch.cat(hits).tolist()  # in the order of the split
    assert torch.equal(result.label, data.images("test").labels)


def test_record_and_head_of_the_command(checkpoint, tmp_path):
    record = run_stage(checkpoint, tmp_path, "--data.holdout_fraction", "0.25")
    assert set(record.metrics) == {"top1", "top5", "top1_last_epoch", "top5_last_epoch"}
    assert record.num_samples == 24
    few = f"selected on {record.protocol['num_holdout']} held-out images, fewer than 1,000"
    assert record.unofficial_reasons == (few,)
    assert record.feature["cls_of_blocks"] == [2]  # [CLS] joins after the first of two
    assert record.protocol["max_epochs"] == 2
    assert record.protocol["num_train"] + record.protocol["num_holdout"] == 96
    assert record.selected["base_learning_rate"] in record.protocol["base_learning_rates"]
    assert record.selected["epoch"] == 2
    assert len(record.selected["holdout_top1_last_epoch"]) == 5
    classifier = LinearClassifier.load(head_path(tmp_path, SHAPES))
    assert classifier.layers == [2]
    assert len(classifier.class_names) == 12
    assert hits_of(tmp_path).sum() == record.counts["hits"]
    head = hits_of(tmp_path)
    run_stage(checkpoint, tmp_path, "--data.holdout_fraction", "0.25")
    assert hits_of(tmp_path).tolist() == head.tolist()  # not appended


def test_cached_features_are_marked_and_repeat_exactly(checkpoint, tmp_path):
    options = ["--model.cache_features", "true", "--data.holdout_fraction", "0.25"]
    first = run_stage(checkpoint, tmp_path, *options)
    head = saved_head(tmp_path)
    again = run_stage(checkpoint, tmp_path, *options)
    assert first.unofficial_reasons[0] == "trained on clean images, without crops"
    assert first.metrics == again.metrics
    assert torch.equal(head, saved_head(tmp_path))
    assert len(list((tmp_path / "features").iterdir())) == 3


def test_trainer_that_has_trained_before_gives_the_same_result(checkpoint, tmp_path):
    data = labelled()
    stage = LinearStage(str(checkpoint), [1.0, 10.0])
    trainer = new_trainer(data)
    first = stage.run(trainer, data, tmp_path)
    assert stage.run(trainer, data, tmp_path) == first


def test_nothing_held_out_needs_a_single_learning_rate(checkpoint, tmp_path):
    data = labelled(holdout_fraction=0.0)
    with pytest.raises(ValueError, match="2 heads and no held-out image"):
        LinearStage(str(checkpoint), [1.0, 3.0]).run(new_trainer(data), data, tmp_path)
    (result,) = LinearStage(str(checkpoint), [1.0]).run(new_trainer(data), data, tmp_path)
    assert result.selected["epoch"] == EPOCHS
    assert result.selected["holdout_top1"] is None
    assert result.metrics["top1"] == result.metrics["top1_last_epoch"]


def test_choice_is_official_from_a_stated_number_of_images_on(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(probe_stage, "MIN_HOLDOUT", 48)
    for fraction, reasons in (
        (0.5, ()),
        (0.25, ("selected on 24 held-out images, fewer than 48",)),
    ):
        data = labelled(holdout_fraction=fraction)
        (result,) = LinearStage(str(checkpoint), [1.0, 3.0]).run(new_trainer(data), data, tmp_path)
        assert result.unofficial_reasons == reasons


def test_head_that_diverged_writes_nothing(checkpoint, tmp_path):
    data = labelled()
    with pytest.raises(ValueError, match=r"base_learning_rate.: 1e\+40.*not finite.*no record"):
        LinearStage(str(checkpoint), [1e40]).run(new_trainer(data), data, tmp_path)
    assert not (tmp_path / "results").exists()


def test_length_of_the_training_is_needed(checkpoint, tmp_path):
    data = labelled()
    with pytest.raises(ValueError, match="max_epochs None says not how long to train"):
        LinearStage(str(checkpoint)).run(new_trainer(data, epochs=None), data, tmp_path)


@pytest.mark.parametrize("rates", [[], [1.0, 1.0], [0.0], [-1.0], [math.inf], [math.nan]])
def test_learning_rates_that_make_no_grid_are_refused(rates, checkpoint):
    with pytest.raises(ValueError, match=r"must be (different|tuple\[float > 0, \.\.\.\])"):
        LinearStage(str(checkpoint), rates)


def run_on_two_processes(checkpoint, folder, *options):
    config = str(ROOT / "configs" / "eval" / "linear.yaml")
    args = ["--config", config, "--checkpoint", str(checkpoint), "--run_dir", str(folder), *SMALL]
    command = [sys.executable, "-m", "ser_lightning", "evaluate", *args, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "--trainer.devices", "2"], check=True, env=environment, timeout=250)
    return read_record(folder / "results" / f"linear-{SHAPES}.json")


@pytest.mark.slow
@pytest.mark.parametrize("cached", ["true", "false"])
def test_two_processes_agree_with_one(cached, checkpoint, tmp_path):
    # 23 test images and one held out: shares differ, and one rank holds out nothing
    options = ["--data.num_test", "23", "--data.holdout_fraction", "0.011"]
    options += ["--model.cache_features", cached, "--data.evaluation_batch_size", "4"]
    one = run_stage(checkpoint, tmp_path / "one", *options)
    two = run_on_two_processes(checkpoint, tmp_path / "two", *options)
    assert one.protocol["num_holdout"] == 1
    assert one.num_samples == two.num_samples == 23
    assert one.counts == two.counts
    assert one.selected == two.selected
    hits = [hits_of(tmp_path / name).tolist() for name in ("one", "two")]
    assert hits[0] == hits[1]  # interleaved from both processes
    torch.testing.assert_close(saved_head(tmp_path / "two"), saved_head(tmp_path / "one"))


@pytest.mark.slow
def test_runs_on_two_processes_agree(checkpoint, tmp_path):
    options = ["--data.holdout_fraction", "0.25"]
    first, second = (
        run_on_two_processes(checkpoint, tmp_path / name, *options) for name in ("a", "b")
    )
    assert first.metrics == second.metrics
    assert first.selected == second.selected
    assert torch.equal(saved_head(tmp_path / "a"), saved_head(tmp_path / "b"))
