"""Two processes with half of the images each train the add-ons as one with all of them does."""

from pathlib import Path

import pytest

from regularizers.equimod_stl_parts import assert_ranks_agree
from ser_lightning.regularizers.equimod import EquiMod
from ser_lightning.regularizers.stl import STL
from support import run_processes

WORLD = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    script = Path(__file__).with_name("equimod_stl_parts.py")
    run_processes(script, folder, world_size=WORLD)
    return folder


@pytest.mark.parametrize("cls", [EquiMod, STL])
def test_loss_and_gradients_of_two_processes_equal_those_of_one(cls, folder):
    assert_ranks_agree(cls, folder, WORLD)
