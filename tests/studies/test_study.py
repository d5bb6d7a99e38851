"""Studies: what is left to run, that it goes on where it was stopped, and what its page says."""

import json
from pathlib import Path

import pytest
import torch

from parsed import build
from results.result_records import config, record, run_folder
from ser_lightning.reporting.compare import GroupCost
from ser_lightning.reporting.groups import group_folders
from ser_lightning.results.hits import hits_path, write_hits
from ser_lightning.results.record import read_record, write_record
from studies import study
from studies.cifar10.run import STUDY as CIFAR10
from studies.claims import LINEAR, StudyRow, judge
from studies.fashion_mnist.run import STUDY as FASHION_MNIST
from studies.figures import statements_figure
from studies.page import ONLINE, write_page
from studies.study import PRETRAINED, TIMES, commands, keep, main, restore, units

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
            f"equivariance/{f}_{place}": rotation + 0.1 * (place == "block2")
            for f in ("rotation", "random_init/rotation", "flip", "scale")
            for place in ("final", "block10", "block2")
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


def of_rows(chosen, study=FASHION_MNIST, **changes):
    """The study with some of its rows."""
    return study._replace(rows=study.rows[chosen], **changes)


@pytest.mark.parametrize(
    ("study", "row"),
    [(s, row) for s in (FASHION_MNIST, CIFAR10) for row in s.rows],
    ids=lambda value: getattr(value, "label", value.name),
)
def test_every_row_is_a_run_that_reads_the_layer_of_its_label(study, row, monkeypatch, tmp_path):
    monkeypatch.chdir(Path(__file__).parents[2])
    unit = units(study._replace(rows=(row,)), tmp_path)[0]
    options = commands(unit, (), True)["fit"][1:]
    place = options.index("--run_dir")  # where it is, and that it goes on, is nothing of its own
    run = build(tuple(options[:place] + options[place + 4 :]))
    if row.layer is not None:
        assert run.model.backbone.layers == (row.layer,)
        assert f"@{row.layer}" in row.label
    plain = {"moco", "late_cls", "moco_10_epochs", "dino", "barlow"}
    assert (run.model.regularizer is None) == (row.name in plain)
    if row.name == "ser_weight_0":
        assert run.model.regularizer.weight == 0
    if row.name == "late_cls":
        assert run.model.backbone.cls_layer == 2
    if row.name == "ser_no_turns":
        assert not run.data.invertible.group.rotation
    if row.name == "ser_all":
        assert run.model.backbone.layers == (1, 2, 3, 4, 5, 6)
        add_ons = run.model.regularizer.regularizers
        share = run.model.regularizer.weight * sum(add_on.weight for add_on in add_ons)
        assert share == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("study", [FASHION_MNIST, CIFAR10], ids=lambda study: study.name)
def test_every_claim_is_about_rows_of_the_study(study):
    names = {row.name for row in study.rows}
    assert {name for c in study.page.claims for name in (c.better, c.worse)} <= names
    assert {c.measure.stage for c in study.page.claims} <= set(study.stages)


def test_every_claim_is_about_what_the_kept_records_measure():
    found = {}
    for file in (Path(__file__).parents[2] / CIFAR10.kept).glob("*/seed*/results/*.json"):
        one = read_record(file)
        found.setdefault(one.stage, set()).update(one.metrics)
    assert set(found) == set(CIFAR10.stages)
    measures = {claim.measure for claim in CIFAR10.page.claims} | set(CIFAR10.page.panels)
    assert {m for m in measures if m.metric not in found[m.stage]} == set()


def test_first_seeds_come_first_and_single_rows_last(tmp_path):
    planned = units(FASHION_MNIST, tmp_path)
    several = [unit for unit in planned if unit.row.seeds > 1]
    assert planned[: len(several)] == several
    seeds = [unit.seed for unit in several]
    assert seeds == sorted(seeds)
    assert len(planned) == sum(row.seeds for row in FASHION_MNIST.rows)


def test_what_is_there_is_not_computed_again(tmp_path):
    unit = units(of_rows(slice(1)), tmp_path)[0]
    assert [c[0] for c in commands(unit, (), False).values()] == ["fit", *["evaluate"] * 4]
    unit.folder.mkdir(parents=True)
    (unit.folder / PRETRAINED).write_text(unit.fingerprint)
    assert list(commands(unit, (), False)) == list(FASHION_MNIST.stages)
    write_record(record("knn", "shapes"), unit.folder)
    assert unit.missing == ["linear", "equivariance", "imagenet-c"]
    for stage in FASHION_MNIST.stages:
        write_record(record(stage, "shapes"), unit.folder)
    assert commands(unit, (), False) == {}


def test_a_run_that_fails_is_reported_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    def fails_for_seed_0(unit, source, short, threads):
        return "" if unit.seed else "seed 0 broke"

    monkeypatch.setattr(study, "run_unit", fails_for_seed_0)
    failed = study.run_all(units(of_rows(slice(1)), tmp_path), (), jobs=1, threads=1, short=True)
    assert failed == ["seed 0 broke"]
    printed = capsys.readouterr().out.splitlines()
    assert printed[2].startswith("[3/3]")
    assert printed[2].endswith("about 0 to go")


def test_runs_of_another_configuration_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    planned = units(of_rows(slice(2)), tmp_path)
    unit = planned[0]
    unit.folder.mkdir(parents=True)
    (unit.folder / PRETRAINED).write_text(unit.fingerprint)
    study.refuse_changed(planned)
    assert len({u.fingerprint for u in planned}) == 2  # of rows, whatever the seed
    (unit.folder / PRETRAINED).write_text("another")
    with pytest.raises(ValueError, match="remove it, or give another --run_dir"):
        study.refuse_changed(planned)


def test_short_study_keeps_to_its_own_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study, "run_unit", lambda unit, source, short, threads: "")
    study.main(FASHION_MNIST, ["--short", "--only", "stl", "--seeds", "1"])
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
    text = FASHION_MNIST.page._replace(path=page, notes="About 1 minute.")
    for each, (start, end) in zip(
        rows, ((10.0, 40.0), (11.0, 42.0), (10.0, 41.0), (9.0, 39.0)), strict=True
    ):
        for folder in each.runs.folders:
            told = {"start": {"knn_top1": start}, "history": [{"metrics": {"knn_top1": end}}]}
            (folder / ONLINE).write_text(json.dumps(told))
    by_block = ("equivariance/rotation", "equivariance/random_init/rotation")
    write_page(text._replace(gains={"knn_top1": "20-NN"}, by_block=by_block), rows)
    text = page.read_text()
    tables = [part.splitlines() for part in text.split("\n\n") if part.startswith("| ")]
    assert len(tables) == 4
    for lines in tables:  # a table is only one where every line has the same columns
        assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert "linear top-1 | minus MoCo-v3" in text  # the data's one name is in no title
    assert "| run | block 2 | block 10 | final |" in text
    assert "| weight 0 | 0.705 +- 0.007 | 0.605 +- 0.007 | 0.605 +- 0.007 |" in text
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
    assert "| weight 0 | 2 | 11.0 to 42.0 (+31.0 +- 0.0) |" in text
    assert not any("STL" in name for name in claims)  # it was not run
    assert (page.parent / "run.png").stat().st_size > 10_000
    assert "![The difference behind each statement](run_statements.png)" in text
    assert (page.parent / "run_statements.png").stat().st_size > 10_000
    assert len(list(page.parent.iterdir())) == 3  # nothing half-written is left


def test_without_intervals_there_is_no_picture_of_statements(tmp_path):
    runs = {name: [evaluated(tmp_path / name / "seed0", 600, 0.5)] for name in ("moco", "ser")}
    rows = [row(name, name, found) for name, found in runs.items()]
    judged = judge(FASHION_MNIST.page.claims, rows)
    assert "cannot be told (one seed)" in {each.verdict for each in judged}
    assert not statements_figure(tmp_path / "statements.png", judged)
    assert not (tmp_path / "statements.png").exists()


def test_a_run_without_hits_leaves_no_fewer_seeds_to_judge_by(tmp_path):
    folders = {name: [tmp_path / name / f"seed{i}" for i in range(3)] for name in ("moco", "ser")}
    rows = {
        name: row(name, name, [evaluated(f, 600 + i, 0.5, i) for i, f in enumerate(found)])
        for name, found in folders.items()
    }
    hits_path(folders["ser"][1] / "results" / "linear-shapes.json").unlink()
    claims = FASHION_MNIST.page.claims
    claim = next(c for c in claims if c.measure == LINEAR and c.better == "ser")
    (judged,) = judge([claim], list(rows.values()))
    assert (judged.verdict, judged.interval) == ("hits of a run are missing", None)


def test_a_page_says_how_much_of_the_study_is_missing(tmp_path):
    planned = units(FASHION_MNIST, tmp_path)
    some = [unit for unit in planned if unit.row.name != "stl" and unit.seed == 0]
    said = study._progress(FASHION_MNIST, some)
    assert said.startswith(
        f"**{len(some)} of {len(planned)} runs so far.** None complete of: + STL"
    )
    assert study._progress(FASHION_MNIST, planned) == ""


def test_what_is_kept_of_a_part_of_a_run_is_not_taken_for_one(tmp_path):
    kept = of_rows(slice(1), kept=tmp_path / "kept")
    unit = units(kept, tmp_path / "runs")[0]
    unit.folder.mkdir(parents=True)
    (unit.folder / PRETRAINED).write_text(unit.fingerprint)
    keep(unit)
    again = units(kept, tmp_path / "elsewhere")[0]
    restore(again)
    assert not again.folder.exists()


def test_numbers_of_jobs_and_seeds_are_checked(capsys):
    for option in ("--jobs", "--seeds"):
        with pytest.raises(SystemExit):
            main(FASHION_MNIST, [option, "0"])
        assert "give 1 or more of each" in capsys.readouterr().err


def test_what_is_kept_of_a_run_is_all_that_a_page_needs(tmp_path):
    kept = of_rows(slice(1), kept=tmp_path / "kept")
    unit = units(kept, tmp_path / "runs")[0]
    evaluated(unit.folder, 600, 0.5)
    (unit.folder / PRETRAINED).write_text(unit.fingerprint)
    (unit.folder / TIMES).write_text("{}")
    (unit.folder / "checkpoints").mkdir()
    (unit.folder / "checkpoints" / "last.ckpt").touch()
    keep(unit)
    again = units(kept, tmp_path / "elsewhere")[0]
    restore(again)
    assert again.is_pretrained
    assert again.missing == []
    assert commands(again, (), False) == {}
    names = {path.name for path in again.folder.rglob("*") if path.is_file()}
    assert "linear-shapes.hits.safetensors" in names
    assert not any(name.endswith(".ckpt") for name in names)
