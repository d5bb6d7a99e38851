"""What `make <stage>-eval DATA=...` hands to a stage."""

import os
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
    # a make within `make test` would inherit its flags and print the folders it enters
    alone = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True, env=alone
    )
    (line,) = (line for line in result.stdout.splitlines() if "--checkpoint a.ckpt" in line)
    return line.partition("--checkpoint a.ckpt")[2].split()


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
