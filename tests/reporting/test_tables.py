"""Tables for a terminal are at most 80 columns wide and lose nothing."""

from pathlib import Path

import matplotlib.figure

from ser_lightning.reporting.tables import ReportRow, ReportTable, text_lines, to_html, to_text


def test_narrow_table_is_aligned():
    assert text_lines([("run", "top-1"), ("a", "9.50"), ("long", "60.00")], 1) == [
        "run   top-1",
        "-----------",
        "a      9.50",
        "long  60.00",
    ]


def test_wide_table_goes_on_below_with_its_labels():
    names = [f"measure number {i}" for i in range(12)]
    cells = [f"{i}1.00 +- 0.00 (n=3)" for i in range(12)]
    label = "SER on MoCo-v3, 2 views, equiv_layer 3 0.5, lambda 2"
    lines = text_lines([("method", "row", *names), (label, "ours [1]", *cells)], 2)
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert all(cell in text for cell in cells)
    blocks = text.split("\n\n")
    assert len(blocks) > 1
    assert all("ours [1]" in block and block.startswith("method") for block in blocks)
    assert " ".join(line[:28].strip() for line in blocks[0].splitlines()[-2:]) == label


def test_notes_and_captions_are_folded():
    table = ReportTable("T", "word " * 40, ("a", "b"), (ReportRow(("x", "1")),), ("note " * 40,), 1)
    text = to_text("Title", "Some introduction. " * 9, [table])
    assert max(map(len, text.splitlines())) <= 80
    assert "[1] note" in text


def test_table_of_labels_alone():
    assert text_lines([("run",), ("a",)], 1) == ["run", "---", "a"]


def test_picture_is_named_after_its_run_wherever_the_path_begins(tmp_path, monkeypatch):
    results = tmp_path / "mine" / "results"
    results.mkdir(parents=True)
    matplotlib.figure.Figure().savefig(results / "lee-shapes.png")
    monkeypatch.chdir(results)
    assert "mine: lee-shapes" in to_html("Title", "", [], [Path("lee-shapes.png")])
