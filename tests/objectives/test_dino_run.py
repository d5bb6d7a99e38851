"""DINO in a run: its schedules, what is frozen, and what moves when."""

import math
from itertools import pairwise
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from objectives.tiny_run import assert_equal_trees, tiny_fit
from ser_lightning.objectives.dino import DINO, teacher_temperature_at
from support import WIDTH, tiny_batch, tiny_objective

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*isinstance.*treespec.*"),
]

STEPS_PER_EPOCH, NUM_STEPS = 625, 62_500  # ImageNet, batch 2048, 100 epochs


def tiny_dino(**options):
    return tiny_objective(DINO, **options)


def set_clock(module, monkeypatch, step):
    """Puts the module at a step of the ImageNet run; returns what it will log."""
    module._trainer = SimpleNamespace(
        train_dataloader=(),
        max_epochs=NUM_STEPS // STEPS_PER_EPOCH,
        max_steps=-1,
        num_training_batches=STEPS_PER_EPOCH,
        accumulate_grad_batches=1,
        global_step=step,
        precision_plugin=None,
    )
    logged = {}
    monkeypatch.setattr(module, "log", lambda name, value, **_: logged.update({name: value}))
    return logged


@pytest.mark.parametrize(
    ("step", "learning_rate", "temperature", "decay", "momentum"),
    [
        (0, 0.0, 0.04, 0.04, 0.982),
        (3_125, 4e-4, 0.055, None, None),
        (6_250, 8e-4, 0.07, None, None),
        (31_250, None, 0.07, 0.22, 0.991),
        (62_500, 1e-5, 0.07, 0.4, 1.0),
    ],
)
def test_schedules_of_the_papers_run(
    step, learning_rate, temperature, decay, momentum, monkeypatch
):
    module = tiny_dino(base_learning_rate=1e-4, global_batch_size=2048, final_learning_rate=0.0125)
    logged = set_clock(module, monkeypatch, step)
    configured = module.configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    if learning_rate is not None:
        rates = [
            group["initial_lr"] * schedule(step)
            for group, schedule in zip(optimizer.param_groups, scheduler.lr_lambdas, strict=True)
        ]
        assert rates == pytest.approx([learning_rate] * 2, abs=1e-12)
    module.on_before_optimizer_step(optimizer)
    assert logged["schedule/teacher_temperature"] == pytest.approx(temperature)
    decays = [group["weight_decay"] for group in optimizer.param_groups]
    assert decays == [logged["schedule/weight_decay"], 0.0]
    module.target_features(tiny_batch())
    if decay is not None:
        assert decays[0] == pytest.approx(decay)
        assert logged["schedule/momentum"] == pytest.approx(momentum)


@pytest.mark.parametrize("batch", [256, 2048])
def test_minimum_learning_rate_is_absolute_for_any_batch(batch, monkeypatch):
    module = tiny_dino(base_learning_rate=1e-4, global_batch_size=batch, minimum_learning_rate=1e-5)
    set_clock(module, monkeypatch, 0)
    configured = module.configure_optimizers()
    schedule = configured["lr_scheduler"]["scheduler"].lr_lambdas[0]
    peak = configured["optimizer"].param_groups[0]["initial_lr"]
    assert peak * schedule(6_250) == pytest.approx(1e-4 * batch / 256)
    assert peak * schedule(62_500) == pytest.approx(1e-5)


def test_minimum_learning_rate_above_the_peak_is_refused():
    with pytest.raises(ValueError, match=r"minimum_learning_rate 0\.1 is above the peak of"):
        tiny_dino(minimum_learning_rate=0.1)


def test_teacher_temperature_rises_linearly_per_step_and_may_have_no_warmup():
    values = [teacher_temperature_at(step, 4, 0.04, 0.08) for step in range(6)]
    assert values == pytest.approx([0.04, 0.05, 0.06, 0.07, 0.08, 0.08])
    assert teacher_temperature_at(0, 0, 0.04, 0.07) == 0.07


def test_loss_uses_the_scheduled_teacher_temperature(monkeypatch):
    module = tiny_dino()
    embeddings = (torch.randn(4, WIDTH), torch.randn(4, WIDTH))
    early = module.invariance_loss(embeddings, embeddings)
    set_clock(module, monkeypatch, NUM_STEPS)
    late = module.invariance_loss(embeddings, embeddings)
    raw = module.momentum_projector(torch.cat(embeddings))
    for output, temperature in ((early, 0.04), (late, 0.07)):
        p = torch.softmax(raw / temperature, 1)
        expected = -(p * p.log()).sum(1).mean()
        torch.testing.assert_close(output.logs["diagnostics/teacher_entropy"], expected)


def test_weight_decay_acts_on_matrices_and_lengths_but_not_on_vectors():
    module = tiny_dino()
    names = {parameter: name for name, parameter in module.named_parameters()}
    decayed, spared = ({names[p] for p in g["params"]} for g in module.parameter_groups())
    assert {
        "backbone.vit.pos_embed",
        "backbone.vit.cls_token",
        "backbone.vit.blocks.0.attn.qkv.weight",
        "projector.last_layer.parametrizations.weight.original0",
        "regularizer.projector.0.weight",
    } <= decayed
    assert all(name.endswith(".bias") or ".norm" in name for name in spared)
    assert {"projector.mlp.0.bias", "backbone.vit.norm.weight", "regularizer.norm.weight"} <= spared


def snapshot(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


class Snapshots(L.Callback):
    """All parameters after each optimizer step, at index 0 those before the first."""

    def __init__(self):
        self.taken = []
        self.decays = []

    def on_train_start(self, trainer, module):
        self.taken.append(snapshot(module))

    def on_train_batch_end(self, trainer, module, *_):
        self.taken.append(snapshot(module))
        self.decays.append(trainer.optimizers[0].param_groups[0]["weight_decay"])


def fit(module, steps_per_epoch=2, num_epochs=2, **options):
    """Trains on random batches; returns all parameters after each step."""
    batches = [tiny_batch(seed=seed) for seed in range(steps_per_epoch)]
    loader = DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch)
    recorder = Snapshots()
    L.Trainer(
        accelerator="cpu",
        devices=1,
        limit_val_batches=0,
        max_epochs=num_epochs,
        callbacks=[recorder],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    ).fit(module, loader, loader)
    return recorder


def changed(before, after, part):
    return {n for n in before if n.startswith(part) and not torch.equal(before[n], after[n])}


@pytest.mark.parametrize("options", [{}, {"freeze_last_layer": 0.5}, {"freeze_last_layer": 0}])
def test_last_layer_stays_for_the_first_epochs_and_the_rest_trains(options):
    module = tiny_dino(warmup_epochs=0, clip_parameter_norm=0.3, **options)
    taken = fit(module).taken
    last, frozen_steps = "projector.last_layer.", int(2 * options.get("freeze_last_layer", 1))
    for step in range(4):
        both = (taken[step], taken[step + 1])
        assert bool(changed(*both, last)) == (step >= frozen_steps), step
        assert changed(*both, "projector.mlp.0.")
    assert len(changed(taken[0], taken[-1], last)) == 2  # lengths and directions


def test_frozen_last_layer_counts_steps_not_passes():
    module = tiny_dino(warmup_epochs=0)
    taken = fit(module, steps_per_epoch=4, accumulate_grad_batches=2).taken[::2]
    moved = [bool(changed(*pair, "projector.last_layer.")) for pair in pairwise(taken)]
    assert moved == [False, False, True, True]


def test_norm_last_layer_keeps_the_prototypes_lengths():
    module = tiny_dino(warmup_epochs=0, freeze_last_layer=0, norm_last_layer=True)
    fit(module)
    torch.testing.assert_close(module.projector.last_layer.weight.norm(dim=1), torch.ones(16))


def test_weight_decay_of_each_step_is_set_before_it():
    decays = fit(tiny_dino(warmup_epochs=0)).decays
    expected = [0.4 - 0.36 * (1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)]
    assert decays == pytest.approx(expected)


def test_teacher_follows_the_student_after_each_step():
    taken = fit(tiny_dino(warmup_epochs=0, freeze_last_layer=0, momentum=0.5), 1, 1).taken
    for part in ("backbone.", "projector."):
        names = [n for n in taken[0] if n.startswith(part)]
        for name in names:
            teacher = 0.5 * taken[0][f"momentum_{name}"] + 0.5 * taken[1][name]
            torch.testing.assert_close(taken[1][f"momentum_{name}"], teacher)
        assert changed(*taken, f"momentum_{part}")


def test_teachers_update_leaves_the_shared_regularizer_alone():
    module = tiny_dino(warmup_epochs=0, momentum=0.5)
    module.learning_rate = 0.0
    with torch.no_grad():
        for parameter in module.momentum_projector.parameters():
            parameter.add_(1.0)
    taken = fit(module).taken
    assert changed(taken[0], taken[-1], "momentum_projector.")
    assert not changed(taken[0], taken[-1], "regularizer.")
    assert not any("regularizer" in name for name in taken[0] if name.startswith("momentum_"))


@pytest.mark.slow
def test_run_interrupted_while_the_last_layer_is_frozen_ends_bit_identical(tmp_path):
    options, path = {"clip_parameter_norm": 0.3, "num_local": 2}, tmp_path / "stopped.ckpt"
    whole = tiny_fit(DINO, save_after=3, save_to=path, **options)
    resumed = tiny_fit(DINO, resume_from=path, **options)
    assert resumed.losses == whole.losses[3:]
    assert_equal_trees(resumed.module.state_dict(), whole.module.state_dict())
    assert_equal_trees(resumed.optimizer, whole.optimizer)
