"""Rows of the comparison: means over seeds, differences with intervals, or a dash and why."""

import hashlib
import json

import pytest
import torch

from results.result_records import config, record, run_folder
from ser_lightning.reporting.compare import GroupCost, runs_table
from ser_lightning.reporting.groups import group_folders
from ser_lightning.results.hits import write_hits
from ser_lightning.results.record import write_record

COST = GroupCost(43_349_888, 18.630757e9)
LABELS = torch.arange(100) % 10


def run(folder, num_right=60, seed=0, layer=3, with_hits=True, labels=LABELS, **changes):
    """A run whose linear head is right on the first images."""
    run_folder(folder, [], {**config(layer=layer), "seed_everything": seed})
    defaults = {
        "metrics": {"top1": 100.0 * num_right / len(labels)},
        "checkpoint_sha256": hashlib.sha256(str(folder).encode()).hexdigest(),
    }
    write_record(record(dataset="shapes", **{**defaults, **changes}), folder)
    if with_hits:
        right = torch.arange(len(labels)) < num_right
        write_hits(folder / "results" / "linear-shapes.json", {"top1": right}, labels)
    return folder


def table_of(*folders, baseline=None):
    """Cells by row and column, and the notes."""
    groups = group_folders(folders)
    table = runs_table(groups, [COST] * len(groups), baseline)
    return [dict(zip(table.header, row.cells, strict=True)) for row in table.rows], table.notes


def test_means_over_seeds_and_cost(tmp_path):
    folders = [run(tmp_path / f"ser_seed{i}", right, i) for i, right in enumerate((60, 64, 62))]
    (row,), notes = table_of(*folders)
    assert row == {
        "run": "ser",
        "seeds": "3",
        "views": "2",
        "parameters (M)": "43.35",
        "GMAC per image": "18.631",
        "linear top-1, shapes": "62.00 +- 2.00",
    }
    assert notes == ()


def test_difference_is_to_the_first_or_to_the_baseline(tmp_path):
    a, b = run(tmp_path / "a", 60), run(tmp_path / "b", 70, layer=4)
    first, second = table_of(a, b)[0]
    assert first["minus a [95 %]"] == "baseline"
    # ten of 100 images turn right: 1.96 standard deviations are 5.9 points
    difference, low, high = second["minus a [95 %]"].replace("[", "").strip("]").split()
    assert difference == "+10.00"
    assert float(low.strip(",")) == pytest.approx(4.1, abs=1)
    assert float(high) == pytest.approx(15.9, abs=1)
    first, second = table_of(a, b, baseline="b")[0]
    assert first["minus b [95 %]"].startswith("-10.00 [-1")
    assert second["minus b [95 %]"] == "baseline"
    with pytest.raises(ValueError, match='no run is called "c"; give --baseline one of: a, b'):
        table_of(a, b, baseline="c")


def knn(folder, value):
    write_record(record("knn", "shapes", metrics={"top1_k20": value}), folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"with_hits": False}, "does not say which images were right"),
        ({"labels": LABELS + 1}, "the test sets differ"),
        ({"labels": LABELS[:50], "num_right": 30}, "the test sets differ"),
        ({"protocol": {"epochs": 5}}, "the protocols differ"),
        ({"metrics": {"top1": 61.0}}, "are not those of the record"),
    ],
)
def test_difference_that_is_not_known_is_a_dash_with_the_reason(tmp_path, changes, message):
    a, b = run(tmp_path / "a"), run(tmp_path / "b", layer=4, **changes)
    (_, row), notes = table_of(a, b)
    assert row["minus a [95 %]"] == "- [1]"
    assert message in notes[0]
    assert row["linear top-1, shapes"] != "-"


@pytest.mark.parametrize(
    "changes", [{"num_samples": 7}, {"data_root": "/data/b"}, {"class_map_sha256": "b" * 64}]
)
def test_data_of_one_name_that_differ_have_columns_of_their_own(tmp_path, changes):
    unofficial = {"unofficial_reasons": ("an own folder",)}
    a = run(tmp_path / "a", **unofficial)
    b = run(tmp_path / "b", layer=4, **unofficial, **changes)
    rows, notes = table_of(a, b)
    titles = [title for title in rows[0] if title.startswith("linear")]
    assert titles == ["linear top-1, shapes #1 [1]", "linear top-1, shapes #2 [2]"]
    assert [[row[title].split()[0] for title in titles] for row in rows] == [
        ["60.00", "-"],
        ["-", "60.00"],
    ]
    assert rows[1]["minus a [95 %]"] == "-"
    assert "linear on shapes #1: 50000 samples from /data/imagenet; data of one name" in notes[0]
    assert "have different numbers" in notes[1]


def test_the_hash_of_the_data_tells_more_than_its_folder(tmp_path):
    unofficial = {"unofficial_reasons": ("an own folder",)}
    a = run(tmp_path / "a", data_sha256="a" * 64, **unofficial)
    b = run(tmp_path / "b", layer=4, data_sha256="a" * 64, data_root="/elsewhere", **unofficial)
    c = run(tmp_path / "c", layer=5, data_sha256="c" * 64, **unofficial)
    rows, _ = table_of(a, b)
    assert rows[1]["linear top-1, shapes"].startswith("60.00")
    rows, _ = table_of(a, c)
    assert rows[1]["linear top-1, shapes #1 [1]"] == "-"


def test_published_sets_are_the_same_wherever_they_lie(tmp_path):
    a, b = run(tmp_path / "a"), run(tmp_path / "b", layer=4, data_root="/elsewhere")
    assert table_of(a, b)[0][1]["minus a [95 %]"].startswith("+0.00 [")


def test_kinds_of_features_may_differ_between_configurations_only(tmp_path):
    def table(layer):
        changed = {"feature": {"cls_of_blocks": [12]}, "cls_layer": 0}
        folders = [
            run(tmp_path / f"{layer}" / "a_seed0"),
            run(tmp_path / f"{layer}" / "b_seed1", seed=1, layer=layer, **changed),
        ]
        return table_of(*folders)

    across, notes = table(4)
    assert across[1]["minus a [95 %]"].startswith("+0.00 [")
    assert notes == ()
    (within,), notes = table(3)
    assert within["linear top-1, shapes"] == "- [1]"
    assert "were not evaluated alike" in notes[0]


def test_what_some_or_no_run_measured_is_said(tmp_path):
    a, b = run(tmp_path / "a_seed0"), run(tmp_path / "a_seed1", seed=1)
    c = run(tmp_path / "c", layer=4)
    knn(a, 50.0)
    (first, second), _ = table_of(a, b, c)
    assert first["20-NN top-1, shapes"] == "50.00 (n=1)"
    assert second["20-NN top-1, shapes"] == "-"


def test_number_that_is_none_is_a_dash_with_the_reason(tmp_path):
    (row,), notes = table_of(run(tmp_path / "a", metrics={"top1": None}))
    assert row["linear top-1, shapes"] == "- [1]"
    assert "is not a number in every run" in notes[0]


def test_unofficial_number_says_why(tmp_path):
    changes = {"unofficial_reasons": ("measured on a part of the images",)}
    (row,), notes = table_of(run(tmp_path / "a", **changes))
    assert row["linear top-1, shapes"] == "60.00 [1]"
    assert notes == ("linear: measured on a part of the images",)


def test_corruptions_and_equivariance_have_columns(tmp_path):
    folder = run(tmp_path / "a")
    write_record(record("imagenet-c", "shapes_c", metrics={"top1/avg": 40.0}), folder)
    scores = {"equivariance/flip_final": 0.9876, "equivariance/flip_block3": 0.1}
    write_record(record("equivariance", "shapes", metrics=scores), folder)
    (row,), _ = table_of(folder)
    assert row["imagenet-c top-1, shapes_c"] == "40.00"
    assert row["raw eq. flip, shapes"] == "0.988"
    assert len(row) == 8


def test_unknown_cost_is_a_dash_with_the_reason(tmp_path):
    groups = group_folders([run(tmp_path / "a")])
    table = runs_table(groups, [GroupCost(None, None, "no model")])
    assert table.rows[0].cells[3:5] == ("- [1]", "- [1]")
    assert table.notes == ("no model",)


def test_record_of_an_unknown_format_is_refused(tmp_path):
    folder = run(tmp_path / "a")
    (folder / "results" / "linear-shapes.json").write_text(json.dumps({"format": 0}))
    with pytest.raises(ValueError, match="no result record"):
        table_of(folder)
