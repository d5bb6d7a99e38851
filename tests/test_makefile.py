"""What `make <stage>-eval DATA=...` hands to a stage."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def options(stage, data):
    """The options that make would run a stage with."""
    command = ["make", "-n", "-o", ".venv/.ready", f"{stage}-eval", "CKPT=my runs/a.ckpt"]
    command += [f"DATA={data}"] if data else []
    # a make within `make test` would inherit its flags and print the folders it enters
    alone = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True, env=alone
    )
    (line,) = (line for line in result.stdout.splitlines() if "--checkpoint" in line)
    return shlex.split(line.partition("--config")[2])[1:]


def test_data_is_the_folder_of_the_images_that_are_measured():
    for stage in ("linear", "shift"):
        found = options(stage, "/my data/there")
        assert found == ["--checkpoint", "my runs/a.ckpt", "--images", "/my data/there"]
    assert options("linear", "") == ["--checkpoint", "my runs/a.ckpt"]


def test_help_lists_every_target():
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    (phony,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(phony.split()) == set(re.findall(r"^  make ([\w-]+)", shown.stdout, re.MULTILINE))
