"""Trainer settings that would change what a step means are refused; others are followed."""

from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch import callbacks
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy
from torch.utils.data import DataLoader

from ser_lightning import trainer_rules
from ser_lightning.objectives.moco_v3 import MoCoV3
from ser_lightning.trainer_rules import check_options, check_trainer
from support import tiny_batch, tiny_objective

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*isinstance.*treespec.*"),
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`.*"),
    pytest.mark.filterwarnings("ignore:.*is not supported on CPU.*"),
]


class Freezing(callbacks.BaseFinetuning):
    """Freezes nothing."""

    def freeze_before_training(self, pl_module):
        pass

    def finetune_function(self, pl_module, epoch, optimizer):
        pass


class Losses(L.Callback):
    """Notes every loss."""

    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.values.append(outputs["loss"].item())


def fit(module=None, **options):
    """Two epochs of two batches; returns the losses."""
    module = module or tiny_objective(MoCoV3, warmup_epochs=0)
    losses = Losses()
    options["callbacks"] = [losses, *options.get("callbacks", [])]
    settings = {"max_epochs": 2, "accelerator": "cpu", "devices": 1, "logger": False}
    settings |= {"enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(enable_model_summary=False, **settings | options)
    batches = [tiny_batch(seed=seed) for seed in range(2)]
    trainer.fit(module, DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch))
    return losses.values


def set_up(module=None, **options):
    """What `fit` does at its start."""
    module = module or tiny_objective(MoCoV3)
    settings = {"accelerator": "cpu", "devices": 1, "logger": False}
    module.trainer = L.Trainer(**settings | options)
    module.setup("fit")


@pytest.fixture(scope="module")
def plain():
    return fit()


@pytest.mark.parametrize(
    ("callback", "remedy"),
    [
        (callbacks.GradientAccumulationScheduler({1: 2}), "trainer.accumulate_grad_batches"),
        (callbacks.StochasticWeightAveraging(0.1), "average checkpoints"),
        (callbacks.EMAWeightAveraging(), "momentum branch"),
        (Freezing(), "freeze_patch_embed"),
        (callbacks.ModelPruning("l1_unstructured"), "exported backbone"),
        (callbacks.BatchSizeFinder(), "data.global_batch_size"),
        (callbacks.LearningRateFinder(), "base_learning_rate"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_callback_that_changes_a_step_is_refused_with_a_remedy(callback, remedy):
    with pytest.raises(ValueError, match=f"{type(callback).__name__} .*{remedy}"):
        set_up(callbacks=[callback])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overfit_batches": 1}, "overfit_batches 1 .*limit_train_batches"),
        ({"limit_train_batches": 0}, "limit_train_batches 0 trains nothing"),
        ({"sync_batchnorm": True}, "sync_batchnorm .*leave it out"),
        ({"precision": "bf16-true"}, 'precision "bf16-true" .*use bf16-mixed'),
        ({"precision": "16-true"}, 'precision "16-true" .*use bf16-mixed'),
        ({"gradient_clip_val": -1.0}, "gradient_clip_val -1.0 clips nothing"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_setting_that_changes_a_step_is_refused_with_a_remedy(options, message):
    with pytest.raises(ValueError, match=message):
        set_up(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"min_epochs": 5, "max_epochs": 1},
            "min_epochs 5 .*max_epochs 1, .*lower it, or raise",
        ),
        ({"min_steps": 7, "max_steps": 3}, "min_steps 7 .*max_steps 3, .*lower it, or raise"),
        ({"limit_predict_batches": 2}, "limit_predict_batches 2 has no effect; leave it out"),
        ({"gradient_clip_algorithm": "value"}, "algorithm value .*give trainer.gradient_clip_val"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_setting_without_effect_is_refused_with_a_remedy(options, message):
    with pytest.raises(ValueError, match=message):
        check_options(options)


@pytest.mark.parametrize(
    "options",
    [
        {"min_epochs": 1, "max_epochs": 1},
        {"min_steps": 7, "max_steps": -1},
        {"gradient_clip_algorithm": "value", "gradient_clip_val": 1.0},
    ],
)
def test_setting_with_an_effect_is_followed(options):
    check_options(options)


def test_fit_is_refused_before_its_first_batch():
    with pytest.raises(ValueError, match=r"overfit_batches 1"):
        fit(overfit_batches=1)


def test_sharded_parameters_are_refused():
    trainer = SimpleNamespace(
        callbacks=[],
        overfit_batches=0.0,
        limit_train_batches=1.0,
        precision="32-true",
        gradient_clip_val=None,
        strategy=object.__new__(FSDPStrategy),
        _accelerator_connector=SimpleNamespace(_layer_sync=None),
    )
    with pytest.raises(ValueError, match=r"FSDPStrategy splits .*use ddp"):
        check_trainer(trainer, tiny_objective(MoCoV3))


def name_of(strategy):
    """A strategy's name, the same in every process."""
    return strategy if isinstance(strategy, str) else type(strategy).__name__


NAMES = ("spawn", "fork", "notebook", "spawn_find_unused_parameters_true")


@pytest.mark.parametrize("keeps_checkpoints", [True, False])
@pytest.mark.parametrize(
    "strategy", [*(f"ddp_{name}" for name in NAMES), DDPStrategy(start_method="spawn")], ids=name_of
)
def test_processes_that_are_not_started_by_a_command_are_refused(strategy, keeps_checkpoints):
    with pytest.raises(ValueError, match=r"strategy \S+ .*; use --trainer.strategy ddp$"):
        check_options({"strategy": strategy}, keeps_checkpoints)


@pytest.mark.parametrize(
    "strategy", ["auto", "ddp", "ddp_find_unused_parameters_true", DDPStrategy()], ids=name_of
)
def test_processes_that_are_started_by_a_command_are_not_refused(strategy):
    check_options({"strategy": strategy})


def test_optimizing_by_hand_is_refused():
    module = tiny_objective(MoCoV3)
    module.automatic_optimization = False
    with pytest.raises(ValueError, match="MoCoV3 optimizes by hand"):
        set_up(module)


@pytest.mark.parametrize("has_bf16", [True, False])
@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_bf16_on_a_processor_without_it_is_told_with_the_remedy(has_bf16, precision, monkeypatch):
    monkeypatch.setattr(trainer_rules, "multiplies_in_bf16", lambda: has_bf16)
    device = SimpleNamespace(root_device=torch.device("cpu"))
    note = trainer_rules.slow_precision(SimpleNamespace(strategy=device, precision=precision))
    is_slow = precision == "bf16-mixed" and not has_bf16
    assert ("--trainer.precision 32-true" in note) == is_slow


@pytest.mark.parametrize(
    "options",
    [
        {"reload_dataloaders_every_n_epochs": 1},
        {"detect_anomaly": True},
        {"min_epochs": 5, "min_steps": 50},
        {"num_sanity_val_steps": 0},
        {"callbacks": [callbacks.EarlyStopping("loss", patience=9, check_on_train_epoch_end=True)]},
        {"gradient_clip_val": 1e9},
        {"limit_train_batches": 1.0},
        {"barebones": True, "logger": None},
    ],
    ids=lambda options: next(iter(options)),
)
@pytest.mark.filterwarnings("ignore")
def test_setting_that_changes_no_step_leaves_the_losses(options, plain):
    assert fit(**options) == plain


def test_double_precision_trains_alike(plain):
    module = tiny_objective(MoCoV3, warmup_epochs=0)
    assert fit(module, precision="64-true") == pytest.approx(plain, rel=1e-3)
