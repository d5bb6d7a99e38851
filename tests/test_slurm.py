"""A job that SLURM signals is put back into the queue; sbatch, srun and scontrol are stand-ins."""

import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ser_lightning.checkpoints import load_checkpoint

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "stopping.md").read_text()
STAND_INS = {
    # runs the script, and again for as long as it was put back into the queue
    "sbatch": """
import os, pathlib, subprocess, sys
state, script = pathlib.Path(os.environ["STATE"]), sys.argv[1]
job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train", "SLURM_NODELIST": "localhost"}
while True:
    with (state / "starts").open("a") as file:
        file.write("start\\n")
    code = subprocess.run(["bash", script], env=os.environ | job).returncode
    if not (state / "queue").exists():
        sys.exit(code)
    (state / "queue").unlink()
""",
    "scontrol": """
import os, pathlib, sys
state = pathlib.Path(os.environ["STATE"])
(state / "queue").touch()
with (state / "calls").open("a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n")
""",
    # one process per task; signals are for all of them
    "srun": """
import os, pathlib, subprocess, sys
num = int(os.environ["TASKS"])
common = {"SLURM_NTASKS": str(num), "SLURM_NTASKS_PER_NODE": str(num), "SLURM_NODEID": "0"}
tasks = [
    subprocess.Popen(
        sys.argv[1:],
        env=os.environ | common | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
    )
    for rank in range(num)
]
(pathlib.Path(os.environ["STATE"]) / "tasks").write_text(" ".join(str(t.pid) for t in tasks))
sys.exit(max(task.wait() for task in tasks))
""",
}
ARRAY = {"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "2"}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def finish(run_dir, *options):
    command = [sys.executable, "-m", "ser_lightning", *fit(run_dir), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=300)
    return load_checkpoint(last(run_dir))


def fit(run_dir):
    options = ["--run_dir", str(run_dir), "--ckpt_path", "last"]
    every = ["--checkpoint.every_n_train_steps", "1"]
    return ["fit", "--config", str(ROOT / "tests" / "tiny.yaml"), *options, *every]


def last(run_dir):
    return run_dir / "checkpoints" / "last.ckpt"


def two_tasks(num_tasks):
    return ["--trainer.devices", "2", "--trainer.strategy", "ddp"] if num_tasks == 2 else []


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Final checkpoints of unbroken runs by number of tasks."""
    folder = tmp_path_factory.mktemp("unbroken")
    return {num: finish(folder / str(num), *two_tasks(num)) for num in (1, 2)}


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A folder for the stand-ins' notes, and the stand-ins first in PATH."""
    state = tmp_path / "state"
    for folder in (state, tmp_path / "bin"):
        folder.mkdir()
    for name, code in STAND_INS.items():
        path = tmp_path / "bin" / name
        path.write_text(f"#!{sys.executable}{code}")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("STATE", str(state))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return state


def submit(tmp_path, num_tasks, monkeypatch):
    """Submits the job of the page, with a tiny configuration, and waits for its first steps."""
    script = re.search(r"^```sbatch\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)[1]
    command = [sys.executable, "-m", "ser_lightning", *fit(tmp_path / "run"), *two_tasks(num_tasks)]
    head, _, _ = script.partition("srun ")
    (tmp_path / "job.sh").write_text(f"{head}srun {' '.join(command)}\n")
    monkeypatch.setenv("TASKS", str(num_tasks))
    job = subprocess.Popen(["sbatch", str(tmp_path / "job.sh")], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 200
    while not last(tmp_path / "run").exists():
        assert job.poll() is None, job.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return job


def send(state, number):
    for pid in (state / "tasks").read_text().split():
        os.kill(int(pid), number)


@pytest.mark.parametrize(
    ("num_tasks", "array", "name"),
    [
        (1, {}, "7"),
        (1, {"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "2"}, "5_2"),
        (2, {}, "7"),
    ],
    ids=["one-task", "array", "two-tasks"],
)
def test_signalled_job_is_put_back_and_ends_with_the_weights_of_the_unbroken_run(
    cluster, tmp_path, monkeypatch, unbroken, num_tasks, array, name
):
    for key, value in array.items():
        monkeypatch.setenv(key, value)
    job = submit(tmp_path, num_tasks, monkeypatch)
    send(cluster, signal.SIGUSR1)
    _, errors = job.communicate(timeout=300)
    assert job.returncode == 0, errors.decode()
    assert (cluster / "calls").read_text() == f"requeue {name}\n"
    assert (cluster / "starts").read_text() == "start\n" * 2
    resumed = load_checkpoint(last(tmp_path / "run"))
    assert resumed["global_step"] == unbroken[num_tasks]["global_step"]
    for key, tensor in unbroken[num_tasks]["state_dict"].items():
        assert torch.equal(tensor, resumed["state_dict"][key]), key


def test_terminated_job_saves_and_is_not_put_back(cluster, tmp_path, monkeypatch):
    job = submit(tmp_path, 1, monkeypatch)
    send(cluster, signal.SIGTERM)
    _, errors = job.communicate(timeout=100)
    assert job.returncode == 128 + signal.SIGTERM, errors.decode()
    assert not (cluster / "calls").exists()
    assert last(tmp_path / "run").exists()


def test_script_of_the_page_asks_for_the_signal_and_the_queue():
    assert "#SBATCH --signal=USR1@" in PAGE
    assert "#SBATCH --requeue" in PAGE
