"""Signals are acted on in every phase of a fit, and the run goes on as if nothing had been."""

import os
import runpy
import shutil
import signal
import subprocess
from pathlib import Path

import lightning as L
import pytest
import torch

from ser_lightning.checkpoints import load_checkpoint
from ser_lightning.cli import main
from ser_lightning.evaluation import OnlineEvaluation
from ser_lightning.runtime import preemption

TINY = str(Path(__file__).parents[1] / "tiny.yaml")
PACKAGE = Path(__file__).parents[2] / "src" / "ser_lightning"
SMALL_BATCHES = ["--data.evaluation_batch_size", "16"]  # five of them in a validation

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*isinstance.*treespec.*"),
]


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def fit(run, *options):
    place = ["--run_dir", str(run), "--ckpt_path", "last"]
    main(["fit", "--config", TINY, *place, *SMALL_BATCHES, *options])


def last(run):
    return load_checkpoint(run / "checkpoints" / "last.ckpt")


def history(checkpoint):
    return next(v for k, v in checkpoint["callbacks"].items() if "OnlineEvaluation" in k)["history"]


@pytest.fixture
def signalled(monkeypatch):
    """Sends a signal in the second batch of the validation after a step."""
    plain = OnlineEvaluation.on_validation_batch_end
    seen = []

    def at(step, number=signal.SIGTERM):
        def with_signal(self, trainer, *args):
            plain(self, trainer, *args)
            if trainer.global_step == step:
                seen.append(step)
                if len(seen) == 2:
                    os.kill(os.getpid(), number)

        monkeypatch.setattr(OnlineEvaluation, "on_validation_batch_end", with_signal)
        return seen

    return at


@pytest.fixture
def slurm(monkeypatch):
    """What a task of an array asks of SLURM."""
    calls = []
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "5")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    monkeypatch.setattr(preemption.subprocess, "run", lambda call, **_: calls.append(call))
    return calls


@pytest.mark.parametrize(
    ("step", "options"),
    [
        (6, []),
        slow(6, ["--checkpoint.every_n_train_steps", "1"]),
        slow(9, ["--trainer.val_check_interval", "3"]),
        slow(12, []),
        slow(12, ["--trainer.check_val_every_n_epoch", "5"]),
    ],
    ids=["epoch-end", "saved-before", "within-epoch", "last-epoch", "after-training"],
)
def test_signal_in_a_validation_saves_and_the_run_repeats_it(
    trained_run, tmp_path, signalled, slurm, step, options
):
    seen = signalled(step, signal.SIGUSR1)
    with pytest.raises(SystemExit) as left:
        fit(tmp_path, *options)
    assert left.value.code == 128 + signal.SIGUSR1
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # as it was before
    assert slurm == [["scontrol", "requeue", "5_2"]]
    assert len(seen) in (2, 3)  # the signal came in the second of five batches
    assert last(tmp_path)["global_step"] == step
    fit(tmp_path, *options)
    resumed, unbroken = last(tmp_path), last(trained_run)
    assert resumed["global_step"] == 12
    for name, tensor in unbroken["state_dict"].items():
        assert torch.equal(tensor, resumed["state_dict"][name]), name
    measured = {entry["step"]: entry["metrics"] for entry in history(resumed)}
    assert step in measured
    assert len(measured) == len(history(resumed))
    for entry in history(unbroken):
        if entry["step"] in measured:
            assert measured[entry["step"]] == pytest.approx(entry["metrics"], rel=1e-4)


def test_sigterm_that_lightning_has_noted_ends_the_start(tmp_path, monkeypatch):
    plain = L.Trainer._run_sanity_check

    def signalled_before(trainer):  # its handlers are there, ours not yet
        os.kill(os.getpid(), signal.SIGTERM)
        plain(trainer)

    monkeypatch.setattr(L.Trainer, "_run_sanity_check", signalled_before)
    with pytest.raises(SystemExit) as left:
        fit(tmp_path / "run", "--data.num_workers", "0")
    assert left.value.code == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


def test_measurement_ends_at_a_sigterm_that_lightning_has_noted(monkeypatch):
    raised = []
    monkeypatch.setattr(preemption.signal, "raise_signal", raised.append)
    trainer = L.Trainer(logger=False, accelerator="cpu")
    for callback in (preemption.EndsAtOnce(), preemption.Preemption(None)):
        trainer._signal_connector.received_sigterm = True
        callback.on_test_start(trainer, None)
    assert raised == [signal.SIGTERM, signal.SIGTERM]


def test_signal_before_the_first_step_ends_the_start(tmp_path, signalled, slurm):
    seen = signalled(0)
    with pytest.raises(SystemExit) as left:
        fit(tmp_path / "run", "--data.num_workers", "1")
    assert left.value.code == 128 + signal.SIGTERM
    assert len(seen) in (2, 3)
    assert list(tmp_path.iterdir()) == []
    assert slurm == []  # SIGTERM asks for nothing


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("command", [slow("validate"), "evaluate"])
def test_measurement_ends_at_sigterm(trained_run, tmp_path, monkeypatch, command):
    handlers = []
    monkeypatch.setattr(
        "ser_lightning.data.datasets.CleanImages.__call__",
        lambda *_: handlers.append(signal.getsignal(signal.SIGTERM)) or 1 / 0,
    )
    run = shutil.copytree(trained_run, tmp_path / "run")
    checkpoint = str(run / "checkpoints" / "last.ckpt")
    stage = str(PACKAGE.parents[1] / "configs" / "eval" / "knn.yaml")
    options = {
        "validate": ["--ckpt_path", checkpoint],
        "evaluate": ["--config", stage, "--checkpoint", checkpoint, "--data.num_workers", "0"],
    }[command]
    with pytest.raises(ZeroDivisionError):
        main([command, *options, "--debug"])
    assert handlers == [signal.SIG_DFL]


def test_job_that_is_signalled_before_its_run_is_put_back(slurm):
    before = signal.getsignal(signal.SIGUSR1)
    preemption.Preemption(None).await_queue()
    try:
        with pytest.raises(SystemExit, match=str(128 + signal.SIGUSR1)):
            os.kill(os.getpid(), signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert slurm == [["scontrol", "requeue", "5_2"]]


def test_files_that_know_signals_are_imported_where_there_are_few(monkeypatch):
    for name in ("SIGUSR1", "SIGKILL", "SIGALRM", "SIGHUP", "pthread_sigmask"):  # as on Windows
        monkeypatch.delattr(signal, name)
    files = [path for path in PACKAGE.rglob("*.py") if "signal" in path.read_text()]
    names = {path.name for path in files if "\nimport signal" in path.read_text()}
    assert names == {"processes.py", "preemption.py"}
    for path in files:
        if path.name in names:
            runpy.run_path(str(path))


@pytest.mark.parametrize("error", [FileNotFoundError("scontrol"), "exit status 1"])
def test_job_that_cannot_be_put_back_is_told_so(monkeypatch, error):
    def fails(call, **_):
        raise error if isinstance(error, OSError) else subprocess.CalledProcessError(1, call)

    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(preemption.subprocess, "run", fails)
    with pytest.warns(UserWarning, match=r"job 7 was not put back .*: scontrol requeue 7"):
        preemption._requeue()
