"""The comparison of finished runs: one row a configuration, then what each measured online."""

from pathlib import Path

import pytest
import torch
import yaml

from results.result_records import record
from ser_lightning.commands import cost
from ser_lightning.commands.compare import compare, comparison_tables, run_names
from ser_lightning.results.hits import write_hits
from ser_lightning.results.record import write_record
from support import TINY_VIT, WIDTH

LABELS = torch.arange(40) % 10


def run(folder, seed=0, weight=None, num_right=20, online=True, objective="MoCoV3"):
    """A run folder with its configuration, a linear result and an online evaluation."""
    backbone = {"name": "vit_tiny_patch16_224", "image_size": 16, "patch_size": 4, "layer": 2}
    backbone = {"init_args": {**backbone, "vit_options": TINY_VIT}}
    backbone["class_path"] = "ser_lightning.backbones.SplitViT"
    ser = {"class_path": "SERRegularizer", "init_args": {"width": WIDTH, "weight": weight}}
    model = {"backbone": backbone, "hidden": 48, "projection": 16}
    model["regularizer"] = None if weight is None else ser
    path = f"ser_lightning.objectives.moco_v3.{objective}"
    content = {"seed_everything": seed, "model": {"class_path": path, "init_args": model}}
    folder.mkdir(parents=True)
    (folder / "fit.yaml").write_text(yaml.safe_dump({**content, "data": {}}))
    made = {"metrics": {"top1": 2.5 * num_right}, "checkpoint_sha256": f"{seed:064x}"}
    write_record(record(dataset="shapes", **made), folder)
    hits = {"top1": torch.arange(40) < num_right}
    write_hits(folder / "results" / "linear-shapes.json", hits, LABELS)
    if online:
        history = [{"step": 12, "metrics": {"knn_top1": 30.0}}]
        measured = {"OnlineEvaluation": {"baseline": {"knn_top1": 10.0}, "history": history}}
        (folder / "checkpoints").mkdir()
        torch.save({"callbacks": measured}, folder / "checkpoints" / "last.ckpt")
    return folder


def lines_of(folder, *args):
    """The lines of the written tables."""
    output = folder / "tables" / "runs.md"
    compare([*map(str, args), "--output", str(output)])
    return output.read_text().splitlines()


def rows(lines, start):
    """The cells below the header that begins with a text."""
    (first,) = [i for i, line in enumerate(lines) if line.startswith(start)]
    body = lines[first + 2 :]
    body = body[: body.index("")] if "" in body else body
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in body]


def test_configurations_have_a_row_and_runs_their_online_one(tmp_path):
    folders = [run(tmp_path / "moco" / f"seed{i}", i) for i in range(2)]
    folders += [run(tmp_path / "ser" / f"seed{i}", i, 1.0, 26 + 4 * i) for i in range(2)]
    lines = lines_of(tmp_path, *folders)
    moco, ser = rows(lines, "| run | seeds |")
    assert moco[:3] == ["moco", "2", "2"]
    assert float(moco[3]) < float(ser[3])
    assert float(moco[4]) < float(ser[4])
    assert moco[5:] == ["50.00 +- 0.00", "baseline"]
    assert ser[5] == "70.00 +- 7.07"
    assert ser[6].startswith("+20.00 [+")
    online = rows(lines, "| run | steps |")
    assert online == [[str(folder), "12", "30.0 % (10.0 %)"] for folder in folders]


def test_baseline_can_be_chosen(tmp_path):
    folders = [run(tmp_path / "moco"), run(tmp_path / "ser", weight=1.0, num_right=30)]
    lines = lines_of(tmp_path, *folders, "--baseline", "ser")
    moco, ser = rows(lines, "| run | seeds |")
    assert moco[6].startswith("-25.00 [-")
    assert ser[6] == "baseline"
    with pytest.raises(ValueError, match=r'no run is called "dino"; .* moco, ser'):
        compare([*map(str, folders), "--baseline", "dino"])


def test_tables_on_the_terminal_hold_the_same_cells_in_80_columns(tmp_path, capsys):
    folders = [run(tmp_path / "moco"), run(tmp_path / "ser", weight=1.0, num_right=30)]
    lines = lines_of(tmp_path, *folders)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    for row in rows(lines, "| run | seeds |") + rows(lines, "| run | steps |"):
        assert all(cell in printed for cell in row)


def test_records_alone_make_a_row(tmp_path):
    lines = lines_of(tmp_path, run(tmp_path / "moco", online=False))
    assert rows(lines, "| run | seeds |")[0][5] == "50.00"
    assert not any(line.startswith("| run | steps |") for line in lines)


def test_cost_that_cannot_be_told_is_a_dash_with_the_reason(tmp_path):
    first, second = run(tmp_path / "a", objective="Nothing"), run(tmp_path / "b")
    (second / "fit.yaml").unlink()
    lines = lines_of(tmp_path, first, second)
    cells = [row[3:5] for row in rows(lines, "| run | seeds |")]
    assert cells == [["- [1]", "- [1]"], ["- [2]", "- [2]"]]
    notes = [line for line in lines if line.startswith(("1.", "2."))]
    assert "a: the model of fit.yaml cannot be counted" in notes[0]
    assert "has no fit.yaml" in notes[1]


def test_run_that_measured_nothing_is_refused(tmp_path):
    folder = run(tmp_path / "a")
    (folder / "results" / "linear-shapes.json").unlink()
    torch.save({"callbacks": {}}, folder / "checkpoints" / "last.ckpt")
    with pytest.raises(ValueError, match="has not been measured yet"):
        compare([str(folder)])
    with pytest.raises(ValueError, match="is no run folder"):
        compare([str(tmp_path)])


def test_a_run_is_named_after_its_folder_from_within_it(tmp_path, monkeypatch):
    folder = run(tmp_path / "mine")
    monkeypatch.chdir(folder)
    assert list(run_names([Path()]).values()) == ["mine"]


def test_cost_is_kept_beside_the_configuration_it_is_of(tmp_path, monkeypatch):
    folder = run(tmp_path / "moco")
    first = comparison_tables([folder])
    monkeypatch.setattr(cost, "run_cost", None)
    assert comparison_tables([folder]) == first
    config = yaml.safe_load((folder / "fit.yaml").read_text())
    config["model"]["init_args"]["hidden"] = 64
    (folder / "fit.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(TypeError):  # counted anew
        comparison_tables([folder])
