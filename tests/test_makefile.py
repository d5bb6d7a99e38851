"""What `make <stage>-eval DATA=...` hands to a stage."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def options(stage, data):
    """The command line that make would run, after the checkpoint."""
    command = ["make", "-n", "-o", ".venv/.ready", f"{stage}-eval", "CKPT=a.ckpt"]
    command += [f"DATA={data}"] if data else []
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return result.stdout.splitlines()[-1].partition("--checkpoint a.ckpt")[2].split()


@pytest.mark.parametrize(
    ("stage", "option"),
    [
        ("linear", "--data.source.root"),
        ("3diebench", "--data.source.root"),
        ("detection", "--data.source.root"),
        ("imagenet-c", "--data.root"),
        ("imagenet-p", "--data.root"),
    ],
)
def test_data_is_the_folder_of_the_images_that_are_measured(stage, option):
    assert options(stage, "/data/there") == [option, "/data/there"]
    assert options(stage, "") == []


def test_data_of_shift_is_the_folder_of_its_sets(tmp_path):
    (tmp_path / "imagenet-r").mkdir()
    assert options("shift", tmp_path) == ["--data.imagenet_r", f"{tmp_path}/imagenet-r"]
    (tmp_path / "imagenet-v2").mkdir()
    assert options("shift", tmp_path)[:2] == ["--data.imagenet_v2", f"{tmp_path}/imagenet-v2"]
    assert options("shift", tmp_path / "none") == []
