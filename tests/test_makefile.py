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


def test_data_is_the_folder_of_the_images_that_are_measured():
    for stage in ("linear", "shift"):
        assert options(stage, "/data/there") == ["--images", "/data/there"]
    assert options("linear", "") == []
