"""The checkpoint that the stages are tested on: trained once per test process."""

import shutil
from pathlib import Path

import pytest

from ser_lightning.cli import main

TINY = Path(__file__).parents[2] / "tiny.yaml"


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory):
    """The folder of a finished tiny run; to be copied, not written to."""
    run = tmp_path_factory.mktemp("trained") / "run"
    main(["fit", "--config", str(TINY), "--run_dir", str(run)])
    return run


@pytest.fixture(scope="module")
def checkpoint(trained_run, tmp_path_factory):
    """The checkpoint of a tiny run, in a run folder of the module's own."""
    run = tmp_path_factory.mktemp("tiny") / "run"
    shutil.copytree(trained_run, run)
    return run / "checkpoints" / "last.ckpt"
