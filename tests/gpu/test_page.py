"""The page of GPU figures: it says what was not measured, and the CPU can fill it."""

from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.operations import Size

DOCS = Path(__file__).parents[2] / "docs" / "gpu.md"
TINY = Size("vit_tiny_patch16_224", 16, 4, 1, {"embed_dim": 32, "depth": 2, "num_heads": 2}, 16, 2)


def test_page_in_the_repository_is_the_scripts():
    text = DOCS.read_text()
    if "Measured on" not in text:  # as it is before somebody has measured
        assert text == gpu.page({}, "")
    assert all(f"| {name} |" in text for name in gpu.ROWS)


@pytest.mark.slow
def test_every_row_but_memory_can_be_measured_on_a_cpu(monkeypatch):
    monkeypatch.setattr(gpu, "NUM_WORKERS", 0)
    figures = gpu.measure(torch.device("cpu"), {"small": TINY}, repeats=1)
    assert set(figures) == set(gpu.ROWS)
    assert figures["peak memory of SER, GiB"] == {"small": None}
    assert figures["share of the matrix peak"]["small"] > 0
    assert figures["SER over base, operations"]["small"] > 1
    text = gpu.page(figures, "a test")
    assert "Measured on a test" in text
    assert text.count(gpu.UNKNOWN) == len(gpu.ROWS) + 1  # all of ViT-S, and memory
