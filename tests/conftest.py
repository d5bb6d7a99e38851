"""What all rooms share: a finished run, trained once per test process."""

import gc
from pathlib import Path

import pytest

from ser_lightning.cli import main


def pytest_collection_finish():
    """Keeps what the imports left out of every later garbage collection."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory):
    """The folder of a finished run of tiny.yaml; to be left as it is."""
    run = tmp_path_factory.mktemp("trained") / "run"
    main(["fit", "--config", str(Path(__file__).with_name("tiny.yaml")), "--run_dir", str(run)])
    return run
