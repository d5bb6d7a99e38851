"""Every argument of Lightning's Trainer, the usual callbacks and loggers: works, or one sentence.

A row is what stands behind `--trainer.`, and what happens: nothing where it works, or words of the
refusal. The fast suite runs a part of them, `-m slow` all.
"""

import inspect
import json
from importlib.util import find_spec
from pathlib import Path

import lightning as L
import pytest
import torch

from mistakes.command_line import outcome_of

TINY = str(Path(__file__).parents[1] / "tiny.yaml")
SHORT = ["--model.warmup_epochs", "0", "--evaluation.num_equivariance_images", "2"]
SHORT += ["--data.num_queries", "2", "--data.bank_size", "4"]
LIMITS = {"max_epochs": "1", "limit_train_batches": "2"}  # which accumulation by 2 divides
GPU = torch.cuda.is_available()
WORKS = ""

pytestmark = pytest.mark.filterwarnings("ignore")


def callback(name, **arguments):
    """A value for `callbacks`, of Lightning's or of another module."""
    path = name if "." in name else f"lightning.pytorch.callbacks.{name}"
    return json.dumps([{"class_path": path, "init_args": arguments}])


def logger(*names, **arguments):
    """A value for `logger`."""
    made = [{"class_path": f"lightning.pytorch.loggers.{n}", "init_args": arguments} for n in names]
    return json.dumps(made)


FLAGS = [
    ("accelerator", "cpu", WORKS),
    ("accelerator", "auto", WORKS),
    ("accelerator", "gpu", WORKS if GPU else "finds no GPU here; give --config"),
    ("accelerator", "nonsense", "invalid accelerator name"),
    ("strategy", "auto", WORKS),
    ("strategy", "fsdp", "FSDPStrategy splits" if GPU else "requires a GPU accelerator"),
    ("strategy", "ddp_spawn", "use --trainer.strategy ddp"),
    ("strategy", "nonsense", "invalid strategy name"),
    ("devices", "1", WORKS),
    ("devices", "auto", WORKS if GPU else ""),
    ("devices", "0", "devices"),
    ("devices", "100000", "devices"),
    ("num_nodes", "1", WORKS),
    ("num_nodes", "2", "other machines, but MASTER_ADDR and MASTER_PORT are not set"),
    ("num_nodes", "-1", "`num_nodes` must be a positive integer"),
    ("precision", "bf16-mixed", WORKS),
    ("precision", "64-true", WORKS),
    ("precision", "16-true", "in which small updates vanish"),
    ("precision", "7", "trainer.precision"),
    ("logger", "true", WORKS),
    ("logger", "false", WORKS),
    ("logger", logger("CSVLogger", save_dir="logs"), WORKS),
    ("logger", logger("TensorBoardLogger", "CSVLogger", save_dir="logs"), WORKS),
    ("logger", logger("WandbLogger", offline=True), WORKS if find_spec("wandb") else "wandb"),
    ("logger", logger("MLFlowLogger"), WORKS if find_spec("mlflow") else "mlflow"),
    ("logger", logger("CSVLogger"), "save_dir"),
    ("logger", logger("CSVLogger", save_dir="file/below"), "file"),
    ("logger", "nonsense", "nonsense is no class"),
    ("callbacks", "[]", WORKS),
    ("callbacks", "nonsense", "nonsense is no class"),
    ("callbacks", callback("EarlyStopping", monitor="loss", check_on_train_epoch_end=True), WORKS),
    ("callbacks", callback("EarlyStopping", monitor="nothing"), "metric `nothing` which is not"),
    ("callbacks", callback("EarlyStopping"), "monitor"),
    ("callbacks", callback("LearningRateMonitor"), WORKS),
    ("callbacks", callback("ModelCheckpoint", dirpath="more", save_top_k=-1), WORKS),
    ("callbacks", callback("ModelCheckpoint", dirpath="more", monitor="nothing"), "nothing"),
    ("callbacks", callback("ModelCheckpoint", dirpath="file/below"), "file"),
    ("callbacks", callback("OnExceptionCheckpoint", dirpath="more"), WORKS),
    ("callbacks", callback("StochasticWeightAveraging", swa_lrs=0.1), "replaces the learning rate"),
    ("callbacks", callback("GradientAccumulationScheduler", scheduling={"0": 2}), "accumul"),
    ("callbacks", callback("Timer", duration="00:01:00:00"), "set `trainer.max_time`"),
    ("callbacks", callback("ModelCheckpoint", save_last="link"), "replace the run's own last.ckpt"),
    ("callbacks", callback("ModelCheckpoint", filename="last"), "replace the run's own last.ckpt"),
    ("callbacks", callback("RichProgressBar"), WORKS if find_spec("rich") else "`rich`"),
    ("callbacks", callback("TQDMProgressBar", refresh_rate=5), WORKS),
    ("callbacks", callback("DeviceStatsMonitor", cpu_stats=True),
     WORKS if find_spec("psutil") else "psutil"),
    ("callbacks", callback("DeviceStatsMonitor"), WORKS if find_spec("psutil") else "psutil"),
    ("callbacks", callback("ModelSummary", max_depth=2), WORKS),
    ("callbacks", callback("RichModelSummary"), WORKS if find_spec("rich") else "`rich`"),
    ("callbacks", callback("LambdaCallback"), WORKS),
    ("callbacks", callback("BatchSizeFinder"), "takes steps with other batches"),
    ("callbacks", callback("LearningRateFinder"), "takes steps with other learning rates"),
    ("callbacks", callback("ModelPruning", pruning_fn="l1_unstructured"), "changes weights"),
    ("callbacks", callback("EMAWeightAveraging"), "measures and saves other weights"),
    ("fast_dev_run", "true", WORKS),
    ("fast_dev_run", "2", WORKS),
    ("fast_dev_run", "-1", "fast_dev_run"),
    ("max_epochs", "1", WORKS),
    ("max_epochs", "-1", "the run has no end"),
    ("max_epochs", "-3", "max_epochs -3 must be at least -1"),
    ("min_epochs", "1", WORKS),
    ("min_epochs", "2", "min_epochs 2 has no effect beyond trainer.max_epochs 1"),
    ("min_epochs", "-1", "min_epochs -1 must be at least 0"),
    ("max_steps", "1", WORKS),
    ("max_steps", "-7", "max_steps -7 must be at least -1"),
    ("min_steps", "1", WORKS),
    ("min_steps", "-1", "min_steps -1 must be at least 0"),
    ("max_time", "00:01:00:00", WORKS),
    ("max_time", "{minutes: 5}", WORKS),
    ("max_time", "{fortnights: 1}", "must be DD:HH:MM:SS"),
    ("max_time", "{days: 1000000000000}", "must be DD:HH:MM:SS"),
    ("max_time", "soon", "not a valid duration"),
    ("limit_train_batches", "0.5", WORKS),
    ("limit_train_batches", "0", "trains nothing"),
    ("limit_train_batches", "-1", "invalid value -1"),
    ("limit_val_batches", "0", WORKS),
    ("limit_val_batches", "-1", "invalid value -1"),
    ("limit_test_batches", "1", WORKS),
    ("limit_test_batches", "-1", "invalid value -1"),
    ("limit_predict_batches", "null", WORKS),
    ("limit_predict_batches", "1", "limit_predict_batches 1 has no effect; leave it out"),
    ("limit_predict_batches", "-1", "limit_predict_batches -1 has no effect"),
    ("overfit_batches", "0.0", WORKS),
    ("overfit_batches", "1", "repeats the same images"),
    ("overfit_batches", "-1", "invalid value -1"),
    ("val_check_interval", "0.5", WORKS),
    ("val_check_interval", "0", "val_check_interval 0 must be above 0"),
    ("val_check_interval", "99", "val_check_interval"),
    ("check_val_every_n_epoch", "2", WORKS),
    ("check_val_every_n_epoch", "0", "check_val_every_n_epoch 0 must be at least 1"),
    ("num_sanity_val_steps", "0", WORKS),
    ("num_sanity_val_steps", "-2", "must be at least -1"),
    ("log_every_n_steps", "0", WORKS),
    ("log_every_n_steps", "-1", "must be at least 0"),
    ("enable_checkpointing", "true", WORKS),
    ("enable_checkpointing", "false", "would leave nothing of the run; leave it out"),
    ("enable_progress_bar", "false", WORKS),
    ("enable_progress_bar", "maybe", "enable_progress_bar"),
    ("enable_model_summary", "true", WORKS),
    ("enable_model_summary", "maybe", "enable_model_summary"),
    ("accumulate_grad_batches", "2", WORKS),
    ("accumulate_grad_batches", "0", "must be at least 1"),
    ("accumulate_grad_batches", "3", "does not divide by"),
    ("gradient_clip_val", "1.0", WORKS),
    ("gradient_clip_val", "-1.0", "clips nothing"),
    ("gradient_clip_algorithm", "null", WORKS),
    ("gradient_clip_algorithm", "value", "has no effect without a value to clip at; give"),
    ("gradient_clip_algorithm", "nonsense", "gradient_clip_algorithm nonsense has no effect"),
    ("deterministic", "true", WORKS),
    ("deterministic", "maybe", "deterministic"),
    ("benchmark", "false", WORKS),
    ("benchmark", "maybe", "benchmark"),
    ("inference_mode", "false", WORKS),
    ("inference_mode", "maybe", "inference_mode"),
    ("use_distributed_sampler", "true", WORKS),
    ("use_distributed_sampler", "maybe", "use_distributed_sampler"),
    ("profiler", "simple", WORKS),
    ("profiler", "nonsense", "profiler"),
    ("detect_anomaly", "true", WORKS),
    ("detect_anomaly", "maybe", "detect_anomaly"),
    ("barebones", "false", WORKS),
    ("barebones", "true", "which the command writes; leave it out"),
    ("plugins", "[]", WORKS),
    ("plugins", "nonsense", "nonsense is no class"),
    ("sync_batchnorm", "false", WORKS),
    ("sync_batchnorm", "true", "replaces norms that span all processes"),
    ("reload_dataloaders_every_n_epochs", "1", WORKS),
    ("reload_dataloaders_every_n_epochs", "-1", "should be an int >= 0"),
    ("default_root_dir", "elsewhere", "default_root_dir elsewhere has no effect"),
    ("default_root_dir", "null", WORKS),
    ("enable_autolog_hparams", "false", WORKS),
    ("enable_autolog_hparams", "maybe", "enable_autolog_hparams"),
    ("model_registry", "null", WORKS),
    ("model_registry", "a/model", "model_registry a/model has no effect"),
]  # fmt: skip


def test_every_argument_of_the_trainer_has_a_typical_and_an_odd_value():
    arguments = {*inspect.signature(L.Trainer.__init__).parameters} - {"self"}
    rows = {name: [value for n, value, _ in FLAGS if n == name] for name in arguments}
    assert {name for name, values in rows.items() if len(values) < 2} == set()
    assert {name for name, _, _ in FLAGS} == arguments


def check(name, value, words, capsys):
    """Asserts that a flag does what its row says."""
    Path("file").touch()
    limits = {n: v for n, v in LIMITS.items() if n != name}
    options = [f"--trainer.{n}={v}" for n, v in (limits | {name: value}).items()]
    outcome = outcome_of(["fit", "--config", TINY, "--run_dir", "run", *SHORT, *options], capsys)
    assert outcome.kind == ("refused" if words else "works"), outcome.text[-2000:]
    if words:
        said = outcome.text[outcome.text.rindex("ser-fit: error: ") :]
        assert words in said
        assert len(said.splitlines()) <= 25


def identity(value):
    """A short name of a row."""
    return value[:40] if isinstance(value, str) else None


REFUSED = [row for row in FLAGS if row[2]]


@pytest.mark.parametrize(("name", "value", "words"), REFUSED[::9], ids=identity)
def test_flag_works_or_is_refused_in_a_sentence(name, value, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    check(name, value, words, capsys)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "value", "words"), FLAGS, ids=identity)
def test_every_flag_works_or_is_refused(name, value, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    check(name, value, words, capsys)
