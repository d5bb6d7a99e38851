"""`make bench` in a short form, and what it makes of the benchmarks' figures."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import ratios
from benchmarks.operations import SIZES, counted, steps
from benchmarks.start_up import GOALS
from benchmarks.step import First

ROOT = Path(__file__).parents[2]


def test_each_benchmark_is_a_file():
    for benchmark in ratios.BENCHMARKS.values():
        assert (ROOT / "benchmarks" / f"{benchmark.module}.py").is_file()


def test_a_ratio_is_over_its_baseline():
    row = {
        "operations": {"base": 100, "SER": 150, "overlap": 120},
        "seconds": {"base": 2.0, "SER": 3.0},
    }
    values = [ratio.value for ratio in ratios.of_operations({"small": row, "ViT-S": row})]
    assert values == [1.5, 1.2, 1.5] * 2
    seconds = {"import torch": 2.0, "import torch, lightning": 4.0} | dict.fromkeys(GOALS, 1.0)
    found = {ratio.what: ratio.value for ratio in ratios.of_start_up(seconds)}
    assert found["--help over `import torch`"] == 0.5
    assert found["fit --print_config over `import torch, lightning`"] == 0.25


@pytest.mark.slow
def test_comparing_crops_takes_few_operations_more():
    size = SIZES["small"]._replace(batch_size=16)
    made = {name: sum(counted(step).values()) for name, step in steps(size).items()}
    # Of any batch size. Of 256 images the base step has 2133: 318 more are 1.149 times as many.
    assert 0 < made["overlap"] - made["base"] <= 319
    assert made["overlap"] < made["SER"]


def test_step_is_the_better_one_over_timms():
    row = {"timm": 6.0, "eager": 4.0, "compiled": 3.0}
    found = {ratio.what: ratio.value for ratio in ratios.of_step({"small": row})}
    assert found["small: step over timm's default"] == 2.0
    assert found["small: compiled over eager"] == pytest.approx(4 / 3)


def test_first_step_with_timm_trains_all_but_what_is_frozen():
    size = SIZES["small"]._replace(batch_size=4, num_invertible=2)
    module = First(size)
    before = [parameter.clone() for parameter in module.followers[0].parameters()]
    module(*torch.randn(2, 4, 3, 32, 32)).backward()
    without = {name for name, p in module.named_parameters() if p.grad is None}
    assert without == {"vit.patch_embed.proj.weight", "vit.patch_embed.proj.bias"}
    module.follow()
    for was, now, leader in zip(
        before, module.followers[0].parameters(), module.vit.parameters(), strict=True
    ):
        torch.testing.assert_close(now, 0.99 * was + 0.01 * leader)


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
    assert "ser-lightning[bench]" in ratios.why_not("peers", "/images", None)
    monkeypatch.setattr(ratios.importlib.util, "find_spec", lambda name: object())
    assert "--root" in ratios.why_not("peers", None, "/photographs")
    assert "--images" in ratios.why_not("worker", "/images", None)
    assert ratios.why_not("peers", "/images", None) == ratios.why_not("loss", None, None) == ""
