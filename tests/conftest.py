"""What all rooms share: a finished run, trained once per test process."""

import gc
from pathlib import Path

import pytest
from hypothesis import settings

from ser_lightning.cli import main

settings.register_profile("suite", max_examples=30, deadline=None)
settings.load_profile("suite")
gc.disable()  # until all is imported: a million objects that no collection need look at


def pytest_collection_finish():
    """Collects garbage again, but not among what the imports have left."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory):
    """The folder of a finished run of tiny.yaml; to be left as it is."""
    run = tmp_path_factory.mktemp("trained") / "run"
    main(["fit", "--config", str(Path(__file__).with_name("tiny.yaml")), "--run_dir", str(run)])
    return run
