"""Two processes with half the batch each do the same mathematics as one with all of it."""

import os
from pathlib import Path

import pytest
import torch

from objectives.two_processes import step
from support import run_processes

TOLERANCE = 1e-10  # relative; measured 3e-13 in float64


@pytest.mark.parametrize("ser", [True, False])
def test_loss_and_gradients_equal_those_of_one_process(ser, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]), prepend=os.pathsep)
    run_processes(Path(__file__).with_name("two_processes.py"), ser, tmp_path)
    loss, gradients = step(ser)
    for rank in range(2):
        rank_loss, rank_gradients = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(rank_loss, loss, rtol=TOLERANCE, atol=0)
        largest = max(g.abs().max() for g in gradients.values())
        for name, gradient in gradients.items():
            difference = (rank_gradients[name] - gradient).abs().max()
            assert difference <= TOLERANCE * largest, name
