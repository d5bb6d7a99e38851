"""The comparison with lightly's parts runs, and both sides train models of the same size."""

import json
import sys

import pytest
import timm
import torch

from benchmark_trees import write_images
from benchmarks import peer_parts, peers

pytest.importorskip("lightly")

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # lightly's weight norm
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    for split in ("train", "test"):
        write_images(folder / split, ("cats", "dogs"), per_class=16, size=32)
    return str(folder)


def test_every_objective_runs_quickly(photographs, tmp_path, monkeypatch, capfd):
    file = tmp_path / "result.json"
    arguments = ["peers", "--root", photographs, "--quick", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", arguments)
    peers.main()
    rows = json.loads(file.read_text())
    assert [row["objective"] for row in rows] == list(peer_parts.HEADS)
    for row in rows:
        assert row["ours"]["windows"] == row["lightly"]["windows"] == 2
        assert row["speed"] == pytest.approx(
            row["ours"]["images_per_second"] / row["lightly"]["images_per_second"]
        )
    assert "BarlowTwins" in capfd.readouterr().out


@pytest.mark.slow
def test_a_measurement_has_a_process_of_its_own(photographs, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["peers", "--root", photographs, "--quick"])
    options = peers.parse()
    sizes = {name: vars(options)[name] for name in peers.QUICK}
    setting = peer_parts.Setting(photographs, "SimCLR", num_workers=1, **sizes)
    found = peers.in_a_process("lightly", setting, options, 1)
    assert len(found["images_per_second"]) == options.windows
    assert found["first_step"] > 0
    assert found["megabytes"] > 0
    assert found["worker_megabytes"] > 0


def size(module):
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", list(peer_parts.HEADS))
def test_both_sides_train_as_many_parameters(name, photographs):
    setting = peer_parts.Setting(photographs, name, width=32, depth=2, heads=2)
    vit = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, img_size=32, patch_size=4, **setting.vit
    )
    with torch.random.fork_rng():
        theirs = peer_parts.METHODS[name](vit, setting.width)
        ours = peer_parts.objective(setting)
    # biases beside norms are the only difference: less than one in a hundred
    assert size(ours) == pytest.approx(size(theirs), rel=0.01)
