"""The study: what is left to run, that it goes on where it was stopped, and what its page says."""

from pathlib import Path

import pytest
import torch
from studies.fashion_mnist.page import StudyRow, write_study

from commands.test_fit import Parsed
from results.result_records import config, record, run_folder
from ser_lightning.reporting.compare import GroupCost
from ser_lightning.reporting.groups import group_folders
from ser_lightning.results.hits import write_hits
from ser_lightning.results.record import write_record
from studies.fashion_mnist import run
from studies.fashion_mnist.run import PRETRAINED, ROWS, STAGES, commands, units

LABELS = torch.arange(1000) % 10

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*isinstance.*treespec.*"),
]


def evaluated(folder, linear, rotation, seed=0, layer=3):
    """A run folder of which every stage has a record; the first `linear` images are right."""
    run_folder(folder, [], {**config(layer=layer), "seed_everything": seed})
    right = torch.arange(1000) < linear
    metrics = {
        "linear": {"top1": linear / 10},
        "knn": {"top1_k20": 50.0},
        "imagenet-c": {"top1/avg_without_frost": 40.0 + seed},
        "equivariance": {
            f"equivariance/{f}_final": rotation for f in ("rotation", "flip", "scale")
        },
    }
    for stage, values in metrics.items():
        write_record(
            record(stage, "shapes", metrics=values, checkpoint_sha256=f"{seed:064x}"), folder
        )
    write_hits(folder / "results" / "linear-shapes.json", {"top1": right}, LABELS)
    return folder


def row(name, label, folders, family="SER", layer=2):
    (group,) = group_folders(folders)
    return StudyRow(name, family, layer, group._replace(name=label), GroupCost(1_000, 2e6))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_row_is_a_run_that_reads_the_layer_of_its_label(row, monkeypatch, tmp_path):
    root = Path(__file__).parents[2]
    monkeypatch.chdir(root)
    unit = units([row], tmp_path)[0]
    cli = Parsed([*commands(unit, short=True)[0], "--trainer.enable_progress_bar", "false"])
    if row.layer is not None:
        assert cli.model.backbone.layers == (row.layer,)
        assert f"@{row.layer}" in row.label
    assert (cli.model.regularizer is None) == (row.name == "moco")
    if row.name == "ser_weight_0":
        assert cli.model.regularizer.weight == 0
    if row.name == "ser_all":
        assert cli.model.backbone.layers == (1, 2, 3, 4, 5, 6)
        add_ons = cli.model.regularizer.regularizers
        share = cli.model.regularizer.weight * sum(add_on.weight for add_on in add_ons)
        assert share == pytest.approx(1, abs=1e-3)


def test_first_seeds_come_first_and_single_rows_last(tmp_path):
    planned = units(ROWS, tmp_path)
    several = [unit for unit in planned if unit.row.seeds > 1]
    assert planned[: len(several)] == several
    seeds = [unit.seed for unit in several]
    assert seeds == sorted(seeds)
    assert len(planned) == sum(row.seeds for row in ROWS)


def test_what_is_there_is_not_computed_again(tmp_path):
    unit = units(ROWS[:1], tmp_path)[0]
    assert [command[0] for command in commands(unit, False)] == ["fit", *["evaluate"] * 4]
    unit.folder.mkdir(parents=True)
    (unit.folder / PRETRAINED).write_text(unit.fingerprint)
    assert len(commands(unit, False)) == 4
    write_record(record("knn", "shapes"), unit.folder)
    assert unit.missing == ["linear", "equivariance", "imagenet-c"]
    for stage in STAGES:
        write_record(record(stage, "shapes"), unit.folder)
    assert commands(unit, False) == []


def test_a_run_that_fails_is_reported_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    def fails_for_seed_0(unit, short, threads):
        return "" if unit.seed else "seed 0 broke"

    monkeypatch.setattr(run, "run_unit", fails_for_seed_0)
    failed = run.run_all(units(ROWS[:1], tmp_path), jobs=1, threads=1, short=True)
    assert failed == ["seed 0 broke"]
    printed = capsys.readouterr().out.splitlines()
    assert printed[2].startswith("[3/3]")
    assert printed[2].endswith("about 0 to go")


def test_runs_of_another_configuration_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    planned = units(ROWS[:2], tmp_path)
    unit = planned[0]
    unit.folder.mkdir(parents=True)
    (unit.folder / PRETRAINED).write_text(unit.fingerprint)
    run.refuse_changed(planned)
    assert len({u.fingerprint for u in planned}) == 2  # of rows, whatever the seed
    (unit.folder / PRETRAINED).write_text("another")
    with pytest.raises(ValueError, match="remove it, or give another --run_dir"):
        run.refuse_changed(planned)


def test_short_study_keeps_to_its_own_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "run_unit", lambda unit, short, threads: "")
    run.main(["--short", "--only", "stl", "--seeds", "1"])
    assert "no page yet: MoCo-v3, the baseline" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_page_says_what_holds_what_does_not_and_what_cannot_be_told(tmp_path):
    def runs(name, linear, rotation, layer):
        return [
            evaluated(tmp_path / name / f"seed{i}", linear + i, rotation + i / 100, i, layer)
            for i in range(2)
        ]

    rows = [
        row("moco", "MoCo-v3", runs("moco", 600, 0.5, 1), "", None),
        row("ser_weight_0", "weight 0", runs("ser_weight_0", 602, 0.6, 4), "control"),
        row("ser", "SER", runs("ser", 700, 0.505, 2)),
        row("augself", "AugSelf", runs("augself", 800, 0.5, 3), "AugSelf", 6),
    ]
    page = tmp_path / "docs" / "run.md"
    page.parent.mkdir()
    write_study(rows, page, "About 1 minute.")
    text = page.read_text()
    assert "About 1 minute." in text
    assert "| MoCo-v3 | 2 | 2 | 0.001 | 0.002 | 60.05 +- 0.07" in text
    claims = {line.split("|")[1].strip(): line for line in text.splitlines() if "Table" in line}
    assert "+10.00 [+" in claims["SER raises linear accuracy (Table 1: 68.44 to 69.28)"]
    verdicts = {name: line.split("|")[3].strip() for name, line in claims.items()}
    assert verdicts["SER raises linear accuracy (Table 1: 68.44 to 69.28)"] == "**holds**"
    assert verdicts["SER is ahead of AugSelf (Table 1: 67.55)"] == "**the opposite**"
    assert (
        verdicts["SER raises final equivariance to turns (Table 4: .804 to .840)"]
        == "cannot be told from noise"
    )
    assert not any("STL" in name for name in claims)  # it was not run
    assert (page.parent / "run.png").stat().st_size > 10_000
    assert len(list(page.parent.iterdir())) == 2  # nothing half-written is left
