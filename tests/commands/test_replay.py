"""`ser-fit replay` tells where a step of a run is first not finite, and in which precision."""

from pathlib import Path

import lightning as L
import pytest
import torch

from ser_lightning.cli import main
from ser_lightning.commands.fit import SERCommandLine
from ser_lightning.commands.rebuild import rebuilt
from ser_lightning.objectives.moco_v3 import MoCoV3
from ser_lightning.objectives.replay_file import _plain
from ser_lightning.trusted import Untrusted
from support import tiny_batch

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*isinstance.*treespec.*"),
]
TINY = str(Path(__file__).parents[1] / "tiny.yaml")


class InfiniteWeight(L.Callback):
    """Damages a weight before a step."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == 2:
            with torch.no_grad():
                module.backbone.vit.blocks[1].mlp.fc1.weight[0, 0] = float("inf")


def broken_run(folder, monkeypatch, *options):
    made = SERCommandLine.instantiate_trainer

    def with_fault(self, **kwargs):
        trainer = made(self, **kwargs)
        trainer.callbacks.append(InfiniteWeight())
        return trainer

    monkeypatch.setattr(SERCommandLine, "instantiate_trainer", with_fault)
    options = ["--trainer.limit_val_batches", "0", *options]
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", TINY, "--run_dir", str(folder), *options])
    return str(stopped.value)


def test_run_says_how_to_run_its_step_again_and_that_shows_where_it_broke(
    tmp_path, monkeypatch, capsys
):
    file = tmp_path / "replay.step2.pt"
    message = broken_run(tmp_path, monkeypatch, "--trainer.precision", "bf16-mixed")
    assert f"`ser-fit replay {file}`" in message
    capsys.readouterr()
    main(["replay", str(file)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "Step 2 (epoch 0, batch 2, rank 0 of 1) in bf16-mixed: loss is nan, loss/invariance is nan."
    )
    assert lines[1] == "Run again in bf16-mixed on cpu:"
    assert all(line.endswith(" (as before)") for line in lines[2:5])
    place = "the output of backbone.vit.blocks.1.mlp.fc1"
    assert f"  First not finite: {place}." in lines
    assert any(line.startswith("  It was given: (") for line in lines)
    assert any("before the step: backbone.vit.blocks.1.mlp.fc1.weight" in line for line in lines)
    assert lines[-2:] == [
        f"In {precision}-true: first not finite: {place}; loss nan." for precision in (32, 64)
    ]
    for device in ("gpu", "cuda:9"):
        with pytest.raises(SystemExit, match=f"--device {device} cannot be used .*; use cpu"):
            main(["replay", str(file), "--device", device])
    content = torch.load(file)
    del content["state_dict"]["backbone.vit.pos_embed"]
    torch.save(content, file)
    with pytest.raises(SystemExit, match="weights are not those of the model"):
        main(["replay", str(file)])


def test_file_of_an_own_loop_is_refused_with_the_way_to_read_it(tmp_path, capsys):
    record = {
        "found": "",
        "one_pass": {"step": 0, "epoch": 0, "batch_idx": 0, "rank": 0, "seed": 0},
    }
    record |= {
        "batch": _plain(tiny_batch()),
        "step": 0,
        "length": [1, 1, ""],
        "precision": "32-true",
    }
    record |= {"scale": 1.0, "world_size": 1, "terms": {}}
    torch.save({"state_dict": {}, "replay": record}, tmp_path / "x.pt")
    with pytest.raises(SystemExit, match=r"x\.pt does not say how to build its model"):
        main(["replay", str(tmp_path / "x.pt")])


def test_run_with_a_class_of_ones_own_is_replayed_from_python(tmp_path, monkeypatch):
    mine = type("Mine", (MoCoV3,), {"__module__": "mine"})

    def become_mine(self, trainer, module):
        module.__class__ = mine

    monkeypatch.setattr(InfiniteWeight, "on_train_start", become_mine)
    message = broken_run(tmp_path, monkeypatch)
    assert f"from Python, `read_replay` of {tmp_path / 'replay.step2.pt'} and `examine`" in message


def test_class_of_ones_own_is_not_to_be_given_where_no_option_takes_it():
    config = {"model": {"class_path": "mine.Own", "init_args": {"backbone": {}}}}
    with pytest.raises(
        Untrusted, match=r"mine\.Own.*; build an objective of your own from Python$"
    ):
        rebuilt(config, Path("fit.yaml"))
