"""`make bench` in a short form, and what it makes of the benchmarks' figures."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import ratios
from benchmarks.start_up import GOALS

ROOT = Path(__file__).parents[2]


def test_each_benchmark_is_a_file():
    for benchmark in ratios.BENCHMARKS.values():
        assert (ROOT / "benchmarks" / f"{benchmark.module}.py").is_file()


def test_a_ratio_is_over_its_baseline():
    row = {"operations": {"base": 100, "SER": 150}, "seconds": {"base": 2.0, "SER": 3.0}}
    values = [ratio.value for ratio in ratios.of_operations({"small": row, "ViT-S": row})]
    assert values == [1.5, 1.5, 1.5, 1.5]
    seconds = {"import torch": 2.0, "import torch, lightning": 4.0} | dict.fromkeys(GOALS, 1.0)
    found = {ratio.what: ratio.value for ratio in ratios.of_start_up(seconds)}
    assert found["--help over `import torch`"] == 0.5
    assert found["fit --print_config over `import torch, lightning`"] == 0.25


@pytest.mark.slow
def test_one_benchmark_runs_and_prints_its_ratios():
    short = ["--queries", "40", "--chosen", "8", "--image_size", "16", "--repeats", "1"]
    command = [sys.executable, "-m", "benchmarks.ratios", "--only", "validation", "--arguments"]
    done = subprocess.run([*command, *short], cwd=ROOT, capture_output=True, text=True, check=True)
    title, passes, images, seconds = done.stdout.splitlines()
    assert "load" in title
    assert passes.startswith("  passes, version 0.1.0 over now")
    assert float(passes.split()[-1]) > 1
    assert images.startswith("  images")
    assert seconds.startswith("  seconds")


def test_what_peers_lack_is_said(monkeypatch):
    monkeypatch.setattr(ratios.importlib.util, "find_spec", lambda name: None)
    assert "ser-lightning[bench]" in ratios.why_not("peers", "/images")
    monkeypatch.setattr(ratios.importlib.util, "find_spec", lambda name: object())
    assert "--root" in ratios.why_not("peers", None)
    assert ratios.why_not("peers", "/images") == ratios.why_not("loss", None) == ""
