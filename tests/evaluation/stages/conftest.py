"""The checkpoint that the stages are tested on."""

import shutil

import pytest


@pytest.fixture(scope="module")
def checkpoint(trained_run, tmp_path_factory):
    """The checkpoint of a tiny run, in a run folder of the module's own."""
    run = tmp_path_factory.mktemp("tiny") / "run"
    shutil.copytree(trained_run, run)
    return run / "checkpoints" / "last.ckpt"
