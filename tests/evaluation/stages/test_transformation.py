"""The transformation stage: stored features, balanced labels, and a record from a tiny run."""

from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ser_lightning.commands.evaluate import evaluate
from ser_lightning.data import BatchKey, Shapes
from ser_lightning.data.labelled import LabelledDataModule
from ser_lightning.data.plan import Plan
from ser_lightning.evaluation.features import (
    CleanRows,
    FeatureBatch,
    Features,
    TrainingRows,
    write_features,
)
from ser_lightning.evaluation.probe import Probe
from ser_lightning.evaluation.stages.transformation import (
    VersionHeads,
    list_tasks,
    task_input,
    version_features,
)
from ser_lightning.results.record import read_record
from ser_lightning.run_length import RunLength
from ser_lightning.sources.base import ImageSet
from support import tiny_backbone
from tiny_names import SHAPES

ROOT = Path(__file__).parents[3]

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*isinstance.*treespec.*"),
]


def run_stage(checkpoint, folder, *options):
    config = str(ROOT / "configs" / "eval" / "transformation.yaml")
    args = ["--config", config, "--checkpoint", str(checkpoint), "--run_dir", str(folder)]
    args += ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--data.num_workers", "0"]
    args += ["--trainer.max_epochs", "2", "--model.batch_size", "16", "--model.hidden", "32"]
    evaluate([*args, *options])
    return read_record(folder / "results" / f"transformation-{SHAPES}.json")


def trainer(**options):
    return L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        **options,
    )


def frozen():
    return tiny_backbone().eval().requires_grad_(False)


def untrained(modes=("pair", "single"), layers=(1, 4)):
    return VersionHeads(list_tasks(layers, modes, baseline=False), 32, 16, 1e-3, seed=0)


def batch_of(features, slot):
    return FeatureBatch(features, torch.full_like(slot, -1), slot)


def test_stored_features_are_those_of_the_images(tmp_path):
    data = LabelledDataModule(
        Shapes(num_train=24, num_evaluation=24, image_size=16),
        image_size=16,
        num_workers=0,
        evaluation_batch_size=5,
    )
    data.setup("fit")
    num_images = len(data.images("train"))
    backbone, loader = frozen(), data.clean_loader("train")
    extractor = version_features([backbone], [1, 4])
    path, _ = write_features(extractor, loader, num_images, tmp_path, trainer())
    pixels = torch.cat([batch.pixels for batch in data.clean_loader("train")])
    expected = extractor(pixels)
    torch.testing.assert_close(torch.from_numpy(np.load(path)), expected)

    features = Features(
        np.load(path, mmap_mode="r"), torch.zeros(num_images), np.arange(num_images)
    )
    rows = TrainingRows(features, Plan(num_images, 8, 0, seed=3))
    seen = torch.cat([rows[BatchKey(0, step)].features for step in range(len(rows))])
    order = Plan(num_images, 8, 0, seed=3)
    positions = np.concatenate([order.indices(BatchKey(0, s))[0] for s in range(len(rows))])
    torch.testing.assert_close(seen, expected[torch.from_numpy(positions)])


def test_labels_are_balanced_over_ranks_and_change_with_the_epoch(tmp_path):
    values = np.arange(32, dtype=np.float32).reshape(32, 1, 1, 1)
    features, labels = Features(values, torch.zeros(32), np.arange(32)), []
    for epoch in range(2):
        parts = [
            TrainingRows(features, Plan(32, 16, 0, 0, rank, 2))[BatchKey(epoch, 0)]
            for rank in range(2)
        ]
        slot = torch.cat([part.slot for part in parts])
        assert slot.tolist() == list(range(32 * epoch, 32 * epoch + 16))  # of two steps
        image = torch.cat([part.features.flatten() for part in parts]).long().tolist()
        labels.append(dict(zip(image, (slot % 4).tolist(), strict=True)))
    shared = labels[0].keys() & labels[1].keys()
    assert any(labels[0][image] != labels[1][image] for image in shared)


@pytest.mark.parametrize(("num_images", "size"), [(12, 2), (12, 6), (3, 3), (2, 2), (9, 4)])
def test_steps_of_any_size_train_every_label_as_often(num_images, size):
    values = np.zeros((num_images, 1, 1, 1), dtype=np.float32)
    features = Features(values, torch.zeros(num_images), np.arange(num_images))
    rows = TrainingRows(features, Plan(num_images, size, 0, 0))
    keys = [BatchKey(epoch, step) for epoch in range(8) for step in range(len(rows))]
    labels = torch.cat([rows[key].slot for key in keys]) % 4
    counts = labels.bincount(minlength=4)
    assert counts.max() - counts.min() <= 1


def test_each_head_gets_the_gradient_of_its_own_loss():
    module = untrained()
    features, slot = torch.randn(8, 5, 2, 32), torch.arange(8)
    module.objective(module.losses(batch_of(features, slot))).backward()
    for task, head in zip(module.tasks, module.heads, strict=True):
        label = slot % (4 if task.family == "rotation" else 2)
        own = F.cross_entropy(head(task_input(task, features, label)), label)
        expected = torch.autograd.grad(own, list(head.parameters()))
        for parameter, gradient in zip(head.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient)
    optimizer = module.configure(RunLength(1, 1, "trainer.max_epochs"))
    optimized = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in optimized} == {id(p) for p in module.parameters()}
    assert optimizer.defaults["lr"] == 1e-3
    assert optimizer.defaults["weight_decay"] == 0


def test_accuracy_counts_every_image_under_every_label():
    heads, features = untrained(), torch.randn(19, 5, 2, 32)
    rows = CleanRows(Features(features.numpy(), torch.full((19,), -1), np.arange(19)), 4)
    assert [len(rows[i].label) for i in range(len(rows))] == [4, 4, 4, 4, 3]
    top1 = Probe(heads).top1(rows)  # in percent of the images, each of which has several labels
    for task, head, accuracy in zip(heads.tasks, heads.heads, top1, strict=True):
        hits = 0
        for number in range(4 if task.family == "rotation" else 2):
            label = torch.full((19,), number)
            predicted = head(task_input(task, features, label)).argmax(1)
            hits += int((predicted == number).sum())
        assert accuracy == pytest.approx(100 * hits / 19)


def test_probe_learns_a_turn_that_the_features_tell():
    """Versions that differ in one channel are told apart; equal ones are not."""
    module = untrained(layers=(1,), modes=("single",))
    features = 0.1 * torch.randn(64, 5, 1, 32, generator=torch.Generator().manual_seed(0))
    features[:, :4, 0, 0] += 2 * torch.arange(4.0)
    features[:, 4] = features[:, 0]
    optimizer = torch.optim.Adam(module.heads.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        module.losses(batch_of(features, torch.randperm(64))).sum().backward()
        optimizer.step()
    accuracy = []
    for task, head in zip(module.tasks, module.heads, strict=True):
        label = torch.arange(64) % (4 if task.family == "rotation" else 2)
        predicted = head(task_input(task, features, label)).argmax(1)
        accuracy.append((predicted == label).float().mean())
    assert accuracy[0] > 0.95
    assert accuracy[1] < 0.8  # its two versions are the same


def test_record_has_every_probe_and_no_file_is_left(checkpoint, tmp_path):
    record = run_stage(checkpoint, tmp_path)
    names = {
        f"{prefix}{family}_layer{layer}{suffix}"
        for prefix in ("", "random_init/")
        for family in ("rotation", "flip")
        for layer in (1, 2)
        for suffix in ("", "_single")
    }
    assert set(record.metrics) == names
    assert all(0 <= value <= 100 for value in record.metrics.values())
    assert record.num_samples == 24
    assert record.protocol["max_epochs"] == 2
    assert record.official
    assert not list((tmp_path / "features").iterdir())
    hits = record.counts["rotation_layer1_hits"]
    assert record.metrics["rotation_layer1"] == pytest.approx(100 * hits / 96, abs=1e-3)


class WatchedImages(ImageSet):
    """Images that note whether training was over when they were read."""

    def __init__(self, images, is_over, notes):
        self.images, self.is_over, self.notes = images, is_over, notes
        self.labels, self.class_names = images.labels, images.class_names

    def read(self, index):
        self.notes.append(bool(self.is_over))
        return self.images.read(index)


def test_test_images_are_read_only_after_training(checkpoint, tmp_path, monkeypatch):
    is_over, notes = [], []
    setup = LabelledDataModule.setup

    def watched_setup(self, stage):
        setup(self, stage)
        if not isinstance(self._splits["test"], WatchedImages):
            self._splits["test"] = WatchedImages(self._splits["test"], is_over, notes)

    monkeypatch.setattr(LabelledDataModule, "setup", watched_setup)
    monkeypatch.setattr(Probe, "on_fit_end", lambda self: is_over.append(True))
    run_stage(checkpoint, tmp_path, "--model.baseline", "false")
    assert notes == [True] * 24


def test_num_train_takes_a_balanced_part(checkpoint, tmp_path):
    record = run_stage(
        checkpoint, tmp_path, "--model.num_train", "48", "--model.modes", "[pair]",
        "--model.baseline", "false", "--model.layers", "[0.5]",
    )  # fmt: skip
    assert record.protocol["num_train"] == 48
    assert set(record.metrics) == {"rotation_layer1", "flip_layer1"}


def test_fewer_images_than_a_step_wants_are_one_step(checkpoint, tmp_path):
    record = run_stage(
        checkpoint, tmp_path, "--model.batch_size", "256", "--model.modes", "[pair]",
        "--model.baseline", "false", "--model.layers", "[0.5]",
    )  # fmt: skip
    assert record.protocol["num_train"] == 95
    assert record.unofficial_reasons == ("95 images a step for want of 256",)


def test_heads_that_diverged_write_nothing(checkpoint, tmp_path):
    with pytest.raises(ValueError, match=r"weights of the heads.*not finite.*no record"):
        run_stage(checkpoint, tmp_path, "--model.learning_rate", "1e30")
    assert not list(tmp_path.glob("results/*"))
