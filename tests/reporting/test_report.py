"""The report sets ours next to the paper's, and never compares what does not compare."""

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from results.result_records import config, corrupted, record, run_folder
from ser_lightning.reporting.paper import paper_tables
from ser_lightning.reporting.report import our_rows, report_tables, write_report
from ser_lightning.results.record import find_records, write_record

SER = "SER on MoCo-v3, 2 views"


def tables_of(*paths):
    return {table.title: table for table in report_tables(find_records(paths))}


def lines_of(table):
    return [row.cells for row in table.rows]


def seeds(tmp_path, values, **changes):
    """One run folder for each seed of pretraining."""
    folders = []
    for seed, value in enumerate(values):
        configuration = config() | {"seed_everything": seed}
        made = record(checkpoint_sha256=f"{seed:064x}", metrics={"top1": value}, **changes)
        folders.append(run_folder(tmp_path / f"seed{seed}", [made], configuration))
    return folders


def test_one_run_next_to_the_paper(tmp_path):
    metrics = {"top1": 69.5, "top5": 88.0}
    run = run_folder(tmp_path / "run", [record(metrics=metrics)], config())
    tables = tables_of(run)
    assert list(tables) == ["Table 1"]
    assert tables["Table 1"].header == ("method", "row", "imagenet1k top-1", "imagenet1k top-5")
    assert lines_of(tables["Table 1"]) == [
        (SER, "ours [1]", "69.50", "88.00"),
        ("", "paper", "69.28 +- 0.01", "88.79 +- 0.02"),
        ("", "delta", "+0.22", "-0.79"),
    ]
    (note,) = tables["Table 1"].notes
    assert note.startswith("last.ckpt, student weights; from ")
    assert 'linear on imagenet1k: {"epochs": 50}' in note


def test_stages_of_one_run_share_a_row(tmp_path):
    made = [
        record(metrics={"top1": 69.0}),
        record("shift", "imagenet_r", metrics={"top1": 26.0, "top1_1000way": 18.0}),
        record("3diebench", "3diebench", metrics={"top1": 70.0}),
    ]
    tables = tables_of(run_folder(tmp_path, made, config()))
    ours, paper, delta = lines_of(tables["Table 1"])
    assert tables["Table 1"].header[2:] == (
        "imagenet1k top-1",
        "imagenet_r top-1 among 1000 classes",
        "3diebench top-1",
    )
    assert ours[2:] == ("69.00", "18.00", "70.00")
    assert paper[2:] == ("69.28 +- 0.01", "18.95", "70.17")
    assert delta[2:] == ("-0.28", "-0.95", "-0.17")
    assert lines_of(tables["shift on imagenet_r"]) == [("top-1", "26")]


def test_runs_that_differ_in_the_seed_are_averaged(tmp_path):
    ours, _, delta = lines_of(tables_of(*seeds(tmp_path, [69.0, 70.0, 71.0]))["Table 1"])
    assert ours[2] == "70.00 +- 1.00 (n=3)"
    assert delta[2] == "+0.72"


def test_runs_that_differ_in_more_are_not_averaged(tmp_path):
    first = seeds(tmp_path / "a", [69.0])
    other = config()
    other["trainer"]["max_epochs"] = 300
    second = run_folder(tmp_path / "b", [record(checkpoint_sha256="b" * 64)], other)
    table = tables_of(*first, second)["Table 1"]
    assert [line[1] for line in lines_of(table)] == [
        "ours [1]", "paper", "delta", "ours [2]", "paper", "delta",
    ]  # fmt: skip
    assert ["epochs 300 (paper 100)" in note for note in table.notes] == [False, True]


def test_checkpoints_weigh_the_same_whatever_their_number_of_probe_seeds(tmp_path):
    one, _ = seeds(tmp_path, [60.0, 72.0])
    run_folder(one, [record(checkpoint_sha256=f"{0:064x}", metrics={"top1": 60.0})], config())
    more = record(checkpoint_sha256=f"{0:064x}", seed=1, metrics={"top1": 64.0})
    (one / "results" / "extra.json").write_text(
        (run_folder(tmp_path / "x", [more]) / "results" / "linear-imagenet1k-v0.json").read_text()
    )
    (row,) = our_rows(find_records([tmp_path / "seed0", tmp_path / "seed1"]))
    cell = row.cells["linear", "imagenet1k", "top1"]
    assert cell.mean == (62.0 + 72.0) / 2
    assert cell.std == pytest.approx(10.0 / math.sqrt(2))
    assert cell.num_values == 2


def test_spread_over_probe_seeds_is_called_so(tmp_path):
    made = [record(seed=seed, metrics={"top1": 69.0 + seed}) for seed in range(2)]
    table = tables_of(run_folder(tmp_path, made, config()))["Table 1"]
    assert lines_of(table)[0][2] == "69.50 +- 0.71 (n=2)"
    assert "not of pretraining" in table.notes[0]
    assert (
        "not of pretraining"
        not in tables_of(*seeds(tmp_path / "s", [1.0, 2.0]))["Table 1"].notes[0]
    )


def test_a_checkpoint_that_was_trained_further_is_no_further_seed(tmp_path):
    folder = run_folder(tmp_path / "a", [], config())
    for day, sha, top1 in ((1, "a" * 64, 60.0), (2, "b" * 64, 70.0)):
        made = record(
            metrics={"top1": top1}, checkpoint_sha256=sha, seed=day,
            date=f"2026-01-0{day}T00:00:00+00:00",
        )  # fmt: skip
        write_record(made, folder, f"seed{day}")
    rows = our_rows(find_records([folder]))
    found = sorted((row.note.startswith("before it was trained further: "), *(
        (cell.mean, cell.num_values) for cell in row.cells.values()
    )) for row in rows)  # fmt: skip
    assert found == [(False, (70.0, 1)), (True, (60.0, 1))]


def test_a_repeated_measurement_is_no_further_seed(tmp_path):
    made = [
        record(metrics={"top1": 60.0}, date="2026-01-02T00:00:00+00:00"),
        record(metrics={"top1": 50.0}, date="2026-01-01T00:00:00+00:00"),
    ]
    (row,) = our_rows(find_records([run_folder(tmp_path, made, config())]))
    assert row.cells["linear", "imagenet1k", "top1"] == (60.0, None, 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"protocol": {"epochs": 100}},
        {"num_samples": 10},
        {"weights_key": "teacher"},
        {"checkpoint": "runs/a/checkpoints/epoch50.ckpt"},
    ],
)
def test_other_protocols_and_checkpoints_have_rows_of_their_own(tmp_path, changes):
    made = [record(), record(**changes, seed=1)]
    rows = our_rows(find_records([run_folder(tmp_path, made, config())]))
    assert [row.cells["linear", "imagenet1k", "top1"].num_values for row in rows] == [1, 1]


def test_unofficial_rows_are_marked_and_kept_apart(tmp_path):
    made = [
        record(metrics={"top1": 69.0}),
        record(metrics={"top1": 80.0}, seed=1, unofficial_reasons=("a tenth only",)),
    ]
    run = run_folder(tmp_path / "run", made, config())
    table = tables_of(run)["Table 1"]
    assert [(line[1], line[2]) for line in lines_of(table)] == [
        ("ours [1]", "69.00"),
        ("paper", "69.28 +- 0.01"),
        ("delta", "-0.28"),
        ("ours unofficial [2]", "80.00"),
        ("paper", "69.28 +- 0.01"),
        ("delta unofficial", "+10.72"),
    ]
    assert "linear on imagenet1k is not official: a tenth only" in table.notes[1]
    page = write_report([run], tmp_path / "out").html.read_text()
    assert '<tr class="ours unofficial">' in page


def test_an_unofficial_stage_does_not_mark_the_others(tmp_path):
    reason = {"unofficial_reasons": ("generated on the fly",)}
    made = [record(), record("imagenet-c", "imagenet_c", metrics={"mce": 75.0}, **reason)]
    tables = tables_of(run_folder(tmp_path, made, config()))
    assert lines_of(tables["Table 1"])[0][1] == "ours [1]"
    assert lines_of(tables["Table 12"])[0][1] == "ours unofficial [1]"
    assert "generated on the fly" not in tables["Table 1"].notes[0]


def test_what_the_paper_lacks_stays_without_a_delta(tmp_path):
    simclr = run_folder(tmp_path / "simclr", [record()], config(objective="SimCLR"))
    assert lines_of(tables_of(simclr)["Table 1"]) == [
        ("SER on SimCLR, 2 views", "ours [1]", "69.00")
    ]
    stl = run_folder(
        tmp_path / "stl",
        [record(), record("3diebench", "3diebench")],
        config(regularizer="STL", layer=12),
    )
    assert lines_of(tables_of(stl)["Table 1"])[2] == ("", "delta", "+3.51", "-")


def test_dino_goes_to_its_table_and_not_to_the_first(tmp_path):
    run = run_folder(tmp_path, [record()], config(objective="DINO", weight=0.3))
    tables = tables_of(run)
    assert list(tables) == ["Table 2"]
    assert lines_of(tables["Table 2"])[1][2] == "67.63 +- 0.01"


def test_ablations_appear_with_the_rows_they_compare_with(tmp_path):
    usual = run_folder(tmp_path / "a", [record()], config())
    control = run_folder(tmp_path / "b", [record(metrics={"top1": 68.0})], config(weight=0.0))
    tables = tables_of(usual, control)
    assert list(tables) == ["Table 1", "Table 5"]
    assert [line[0] for line in lines_of(tables["Table 1"])] == [SER, "", ""]
    assert [(line[0], line[2]) for line in lines_of(tables["Table 5"])] == [
        (f"{SER}, lambda 0", "68.00"),
        ("", "68.82"),
        ("", "-0.82"),
        (SER, "69.00"),
        ("", "69.28"),
        ("", "-0.28"),
    ]


def test_equivariance_scores_have_three_digits(tmp_path):
    made = record("equivariance", metrics={"equivariance/flip_final": 0.8866})
    table = tables_of(run_folder(tmp_path, [made], config(layer=9)))["Table 4"]
    assert [line[2] for line in lines_of(table)] == ["0.887", "0.886", "+0.001"]


def test_transformation_probes_have_a_line_for_each_task(tmp_path):
    made = record("transformation", metrics={"rotation_layer3": 93.0, "flip_layer3": 79.0})
    table = tables_of(run_folder(tmp_path, [made], config()))["Table 7"]
    assert [(line[0], line[2]) for line in lines_of(table)[::3]] == [
        (f"{SER}, rotation", "93.00"),
        (f"{SER}, hflip", "79.00"),
    ]
    assert [line[2] for line in lines_of(table)[2::3]] == ["-0.34", "+0.32"]


def test_corruptions_go_to_both_tables_and_the_rest_to_one_of_its_own(tmp_path):
    metrics = {"top1/avg": 41.58, "top5/avg": 63.0, "mce": 75.0, "relative_mce": 99.5}
    made = record("imagenet-c", "imagenet_c", metrics=metrics)
    tables = tables_of(run_folder(tmp_path, [made], config()))
    assert list(tables) == ["Table 12", "Table 15", "imagenet-c on imagenet_c"]
    assert lines_of(tables["Table 12"])[2] == ("", "delta", "+1.00", "-0.07")
    assert lines_of(tables["imagenet-c on imagenet_c"]) == [("relative mCE", "99.5")]


def test_results_on_other_data_have_tables_of_their_own(tmp_path):
    first = run_folder(tmp_path / "a", [record("linear", "fashion_mnist")], config())
    second = run_folder(
        tmp_path / "b", [record("linear", "fashion_mnist")], config(regularizer=None)
    )
    (table,) = tables_of(first, second).values()
    assert table.title == "linear on fashion_mnist"
    assert table.header == ("metric", "MoCo-v3, 2 views [1]", f"{SER} [2]")
    assert lines_of(table) == [("top-1", "69", "69")]


def test_data_of_one_name_that_differ_have_tables_of_their_own(tmp_path):
    unofficial = {"unofficial_reasons": ("an own folder",)}
    made = [
        record(dataset="photos", data_root=root, num_samples=number, metrics={"top1": top1})
        for root, number, top1 in (("/data/a", 100, 50.0), ("/data/b", 100, 60.0))
    ]
    made = [replace(item, **unofficial) for item in made]
    runs = [run_folder(tmp_path / f"{i}", [item], config(layer=i)) for i, item in enumerate(made)]
    first, second = tables_of(*runs).values()
    assert (first.title, second.title) == ("linear on photos #1", "linear on photos #2")
    assert "linear on photos #2: 100 samples from /data/b; data of one name" in second.caption
    assert [lines_of(table) for table in (first, second)] == [[("top-1", "50")], [("top-1", "60")]]


def test_one_run_may_have_measured_two_folders_of_one_name(tmp_path):
    made = [
        record(dataset="photos", unofficial_reasons=("own",), data_sha256=letter * 64)
        for letter in "ab"
    ]
    tables = tables_of(run_folder(tmp_path, made, config()))
    assert list(tables) == ["linear on photos #1", "linear on photos #2"]


def test_mce_is_relative_to_alexnet(tmp_path):
    run = run_folder(tmp_path / "run", [corrupted(0.5)], config())
    table = write_report([run], tmp_path / "out").markdown.read_text()
    assert "| method | row | top-1, average | mCE |" in table
    assert '"divided_by": {"mce": "alexnet", "relative_mce": "left out: the error' in table


def test_numbers_that_are_not_finite_are_shown(tmp_path):
    made = [
        record("diagnostics", metrics={"rankme": None}),
        record("diagnostics", metrics={"rankme": 3.0}, seed=1),
    ]
    (table,) = tables_of(run_folder(tmp_path, made, config())).values()
    assert lines_of(table) == [("RankMe", "nan (n=2)")]


def test_paper_against_itself_has_no_delta(tmp_path):
    rows = {row.subject: row for row in paper_tables()["table12"].rows}
    (values,) = (row.values for subject, row in rows.items() if subject.label() == SER)
    metrics = {name if name == "mce" else f"top1/{name}": value for name, value in values.items()}
    made = record("imagenet-c", "imagenet_c", metrics=metrics)
    table = tables_of(run_folder(tmp_path, [made], config()))["Table 12"]
    assert set(lines_of(table)[2][2:]) == {"+0.00"}
    assert len(table.header) == 2 + 15 + 2


class _Page(HTMLParser):
    """Checks that tags are balanced and collects what they hold."""

    def __init__(self):
        super().__init__()
        self.open, self.cells, self.tags = [], [], set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        assert not {name for name, _ in attrs} & {"src", "href"}
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in {"td", "th"}:
            self.cells.append(data)


def test_files_hold_the_same_cells_and_need_nothing_else(tmp_path):
    run = run_folder(tmp_path / "a<b>|c*", [record("linear", "other", metrics={"x|y": 1.0})], None)
    files = write_report([run], tmp_path / "out")
    page = _Page()
    page.feed(files.html.read_text())
    assert not page.open
    assert not page.tags & {"script", "link", "img", "iframe"}
    assert page.cells == ["metric", "a<b>|c* [1]", "x|y", "1"]
    text = files.markdown.read_text()
    assert "| metric | a&lt;b>\\|c\\* [1] |\n| --- | ---: |\n| x\\|y | 1 |" in text
    assert re.search(r"^1\. last\.ckpt, student weights; from .*; no fit\.yaml", text, re.M)


def test_a_broken_record_is_named(tmp_path):
    run = run_folder(tmp_path / "run", [record()], config())
    path = run / "results" / "linear-imagenet1k-v0.json"
    path.write_text(json.dumps({"format": 1}))
    with pytest.raises(ValueError, match="missing fields"):
        write_report([run], tmp_path / "out")
    assert not (tmp_path / "out").exists()
