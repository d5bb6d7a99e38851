"""The MLP stage: its head is trained as a naive loop trains it, and chosen by epoch."""

from pathlib import Path

import lightning as L
import pytest
import torch
import torch.nn.functional as F

from ser_lightning.backbones import SplitViT
from ser_lightning.commands.evaluate import evaluate
from ser_lightning.data import BatchKey, Shapes
from ser_lightning.data.labelled import LabelledDataModule
from ser_lightning.evaluation.features import CleanRows, TrainingRows, cached_features
from ser_lightning.evaluation.probe import Probe, fit_probe
from ser_lightning.evaluation.stages.mlp import DeepHead, MLPStage
from ser_lightning.results.record import read_record
from support import tiny_backbone
from tiny_names import SHAPES

ROOT = Path(__file__).parents[3]
EPOCHS = 2

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*isinstance.*treespec.*"),
]


def run_stage(checkpoint, folder, *options):
    config = str(ROOT / "configs" / "eval" / "mlp.yaml")
    args = ["--config", config, "--checkpoint", str(checkpoint), "--run_dir", str(folder)]
    args += ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--data.num_workers", "0"]
    args += ["--data.global_batch_size", "16", "--data.holdout_fraction", "0.25"]
    evaluate([*args, "--trainer.max_epochs", "2", *options])
    return read_record(folder / "results" / f"mlp-{SHAPES}.json")


def naive_adam(parameters, batches, learning_rate=1e-3):
    """Trains x -> relu -> relu -> logits with Adam as its paper writes it."""
    parameters = [p.detach().double().clone().requires_grad_() for p in parameters]
    first = [torch.zeros_like(p) for p in parameters]
    second = [torch.zeros_like(p) for p in parameters]
    for number, (x, label) in enumerate(batches, start=1):
        w1, b1, w2, b2, w3, b3 = parameters
        hidden = torch.clamp(x.double() @ w1.T + b1, min=0)
        hidden = torch.clamp(hidden @ w2.T + b2, min=0)
        logits = hidden @ w3.T + b3
        loss = -logits.log_softmax(1)[torch.arange(len(x)), label].mean()
        for i, g in enumerate(torch.autograd.grad(loss, parameters)):
            first[i] = 0.9 * first[i] + 0.1 * g
            second[i] = 0.999 * second[i] + 0.001 * g * g
            mean, square = first[i] / (1 - 0.9**number), second[i] / (1 - 0.999**number)
            with torch.no_grad():
                parameters[i] -= learning_rate * mean / (square.sqrt() + 1e-8)
    return parameters


def test_head_equals_a_naive_loop(tmp_path):
    torch.manual_seed(0)
    backbone = tiny_backbone(layer=1).eval().requires_grad_(False)
    source = Shapes(num_train=96, num_evaluation=24, image_size=16)
    data = LabelledDataModule(source, 16, 0.5, image_size=16, num_workers=0)
    trainer = data.trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=EPOCHS,
        precision="64-true",
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    features, holdout = (
        cached_features(backbone, "weights", data, split, trainer, tmp_path)
        for split in ("train", "holdout")
    )
    head = DeepHead(32, 12, hidden=20, seed=3)
    initial = [p.detach().clone() for p in head.parameters()]
    probe = Probe(head)
    train = data.key_loader(TrainingRows(features.last(1), data.plan()), 0)
    fit_probe(trainer, probe, train, CleanRows(holdout.last(1), 10))
    x = features.embeddings()
    steps = [
        data.plan().indices(BatchKey(epoch, step))[0]
        for epoch in range(EPOCHS)
        for step in (0, 1, 2)
    ]
    expected = naive_adam(initial, [(x[i], features.label[i]) for i in steps])
    for value, wanted, start in zip(head.parameters(), expected, initial, strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-9, atol=1e-9)  # measured 4e-16
        assert not torch.equal(value.float(), start)
    chosen = probe.selected.classifier(holdout.embeddings().double()).argmax(1)
    hits = (chosen == holdout.label).double().mean().item()
    assert probe.selected.holdout_top1 == pytest.approx(100 * hits)


def test_head_is_three_layers_with_relu_between_them():
    head = DeepHead(8, 5, hidden=6)
    x = torch.randn(3, 8)
    w1, b1, w2, b2, w3, b3 = head.parameters()
    expected = F.relu(F.relu(x @ w1.T + b1) @ w2.T + b2) @ w3.T + b3
    torch.testing.assert_close(head(x)[:, 0], expected)
    torch.testing.assert_close(head.single(0)(x), expected)


def test_initial_weights_depend_on_the_seed_alone():
    state = torch.random.get_rng_state()
    heads = [DeepHead(8, 5, seed=seed).layers[0].weight for seed in (1, 1, 2)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("cached", [pytest.param("true", marks=pytest.mark.slow), "false"])
def test_record_of_the_command(cached, checkpoint, tmp_path):
    record = run_stage(checkpoint, tmp_path, "--model.cache_features", cached)
    assert set(record.metrics) == {"top1", "top5", "top1_last_epoch", "top5_last_epoch"}
    assert record.num_samples == 24
    assert record.counts["hits"] == round(24 * record.metrics["top1"] / 100)
    few = "selected on 24 held-out images, fewer than 1,000"
    clean = ("trained on clean images, without crops",) if cached == "true" else ()
    assert record.unofficial_reasons == (*clean, few)
    assert record.protocol["hidden"] == 1024
    assert record.selected["epoch"] == 2
    (kept,) = (tmp_path / "results").glob("*.safetensors")  # hits, but no head
    assert kept.name == f"mlp-{SHAPES}.hits.safetensors"


def test_feature_is_the_last_block_or_the_last_four(checkpoint, monkeypatch):
    deep = tiny_backbone(cls_layer=0)
    monkeypatch.setattr(SplitViT, "from_checkpoint", lambda *_: deep)
    assert MLPStage(str(checkpoint), feature="cls_last4").layers == [1, 2, 3, 4]
    assert MLPStage(str(checkpoint), feature="cls_last").layers == [4]


@pytest.mark.parametrize("setting", [{"hidden": 0}, {"learning_rate": 0.0}])
def test_settings_that_train_nothing_are_refused(setting, checkpoint):
    with pytest.raises(ValueError, match=r"must be (int >= 1|float > 0); the default is"):
        MLPStage(str(checkpoint), **setting)
