"""Our results next to the paper's: one table for each of its tables.

Rows come in threes: ours, the paper's, and the difference ours - paper. What the paper does not
have stays without a difference.
"""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ser_lightning.files import atomic_path
from ser_lightning.reporting.groups import Cell, OurRow, Source, our_rows
from ser_lightning.reporting.paper import (
    MEASURES,
    Measure,
    PaperRow,
    PaperTable,
    Subject,
    paper_tables,
)
from ser_lightning.reporting.rendering import ReportRow, ReportTable, to_html, to_markdown
from ser_lightning.results.record import LoadedRecord, find_records

_TITLE = "ser-lightning: ours and the paper's"
_INTRODUCTION = (
    "delta is ours - paper. Where several runs share everything but the seed, ours is their mean "
    "+- their sample standard deviation (n of them); the paper's +- is as printed. An unofficial "
    "row was not measured by the published protocol: its delta is no comparison. The notes say how "
    "a run departs from the paper's pretraining. Accuracies are in percent."
)


class ReportFiles(NamedTuple):
    """The written report: report.md and report.html."""

    markdown: Path
    html: Path


def write_report(paths: Iterable[Path], output_dir: Path) -> ReportFiles:
    """Compares the results of runs with the paper's and writes report.md and report.html.

    Args:
        paths: run folders, folders above them, or single record files.
        output_dir: where to write.

    Returns:
        The files.

    Raises:
        ValueError: if a path holds no record, or a record or configuration cannot be read.
    """
    tables = report_tables(find_records(paths))
    files = ReportFiles(output_dir / "report.md", output_dir / "report.html")
    for path, render in zip(files, (to_markdown, to_html), strict=True):
        with atomic_path(path) as partial:
            partial.write_text(render(_TITLE, _INTRODUCTION, tables), encoding="utf-8")
    return files


def report_tables(records: Sequence[LoadedRecord]) -> list[ReportTable]:
    """Sorts results into the paper's tables, and the others into tables of their own.

    A table of the paper is left out where an earlier one shows all its numbers already.

    Args:
        records: of any runs and stages.

    Returns:
        The tables in the paper's order, then one for each other stage and data set.
    """
    rows = our_rows(records)
    tables = []
    shown: set[tuple[int, Source]] = set()
    for key, paper in paper_tables().items():
        measures = [measure for measure in MEASURES if measure.table == key]
        lines = [
            (subject, i)
            for i, row in enumerate(rows)
            for subject in _subjects(key, paper, measures, row)
        ]
        order = [row.subject for row in paper.rows]
        lines.sort(key=lambda line: order.index(line[0]) if line[0] in order else len(order))
        cells = {
            (i, _source(m))
            for subject, i in lines
            for m in measures
            if m.task == subject.task and _source(m) in rows[i].cells
        }
        if cells - shown:
            shown |= cells
            pairs = [(subject, rows[i]) for subject, i in lines]
            tables.append(_paper_table(key, paper, measures, pairs))
    return tables + _other_tables(rows)


def main(args: list[str] | None = None) -> None:
    """Writes a report from the command line and prints it.

    Args:
        args: of the command; those of the process by default.
    """
    parser = argparse.ArgumentParser(
        prog="ser-fit report", description="Compare the results of runs with the paper's."
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="run folder, or a file of its results"
    )
    parser.add_argument("--output_dir", type=Path, default=Path("report"), help="where to write")
    options = parser.parse_args(args)
    files = write_report(options.runs, options.output_dir)
    print(files.markdown.read_text(encoding="utf-8"))
    print(f"Written: {files.markdown}, {files.html}")


def _subjects(
    key: str, paper: PaperTable, measures: Sequence[Measure], row: OurRow
) -> list[Subject]:
    """Which lines of a table a row fills: none, one, or one for each task."""
    subjects = []
    for task in dict.fromkeys(measure.task for measure in measures):
        subject = row.subject._replace(task=task)
        measured = [m for m in measures if m.task == task and _source(m) in row.cells]
        if measured and (paper.row(subject) or any(_is_home(key, m, row) for m in measured)):
            subjects.append(subject)
    return subjects


def _is_home(key: str, measure: Measure, row: OurRow) -> bool:
    """Whether a number that no table of the paper has for this subject goes to this table."""
    listing = [m for m in MEASURES if _source(m) == _source(measure)]
    known = any(paper_tables()[m.table].row(row.subject._replace(task=m.task)) for m in listing)
    return listing[0].table == key and not known


def _paper_table(
    key: str,
    paper: PaperTable,
    measures: Sequence[Measure],
    lines: Sequence[tuple[Subject, OurRow]],
) -> ReportTable:
    """Sets ours, paper and delta below each other, for the columns that we measured."""
    columns = {
        measure.column: measure.digits
        for measure in measures
        if any(_source(measure) in row.cells and measure.task == s.task for s, row in lines)
    }
    rows, notes = [], []
    for subject, row in lines:
        if row.note not in notes:
            notes.append(row.note)
        sources = {m.column: _source(m) for m in measures if m.task == subject.task}
        ours = {column: row.cells.get(source) for column, source in sources.items()}
        label = f"ours{_mark(row)} [{notes.index(row.note) + 1}]"
        theirs = paper.row(subject) or PaperRow(subject, {}, {})
        texts = [_number(ours.get(column), digits) for column, digits in columns.items()]
        rows.append(ReportRow((subject.label(), label, *texts), f"ours{_mark(row)}"))
        if not theirs.values.keys() & columns.keys():
            continue
        texts = [_paper_number(theirs, column, digits) for column, digits in columns.items()]
        rows.append(ReportRow(("", "paper", *texts), "paper"))
        texts = [
            _delta(ours.get(column), theirs.values.get(column), digits)
            for column, digits in columns.items()
        ]
        rows.append(ReportRow(("", f"delta{_mark(row)}", *texts), f"delta{_mark(row)}"))
    caption = ". ".join(part for part in (paper.caption, paper.note) if part) + "."
    header = ("method", "row", *columns)
    title = f"Table {key.removeprefix('table')}"
    return ReportTable(title, caption, header, tuple(rows), tuple(notes))


def _other_tables(rows: Sequence[OurRow]) -> list[ReportTable]:
    """What the paper has no column for: one table for each stage and data set."""
    known = {_source(measure) for measure in MEASURES}
    found: dict[tuple[str, str], dict[str, None]] = {}
    for row in rows:
        for stage, dataset, metric in row.cells:
            if (stage, dataset, metric) not in known:
                found.setdefault((stage, dataset), {})[metric] = None
    return [
        _other_table(stage, dataset, list(metrics), rows)
        for (stage, dataset), metrics in sorted(found.items())
    ]


def _other_table(
    stage: str, dataset: str, metrics: Sequence[str], rows: Sequence[OurRow]
) -> ReportTable:
    """Sets runs side by side, a metric in each line."""
    rows = [row for row in rows if any((stage, dataset, m) in row.cells for m in metrics)]
    notes = list(dict.fromkeys(row.note for row in rows))
    heads = [f"{r.subject.label()}{_mark(r)} [{notes.index(r.note) + 1}]" for r in rows]
    lines = tuple(
        ReportRow((metric, *(_number(row.cells.get((stage, dataset, metric))) for row in rows)))
        for metric in metrics
    )
    title = " on ".join(part for part in (stage, dataset) if part)
    caption = "Not in the paper's tables."
    return ReportTable(title, caption, ("metric", *heads), lines, tuple(notes), num_labels=1)


def _source(measure: Measure) -> Source:
    return measure.stage, measure.dataset, measure.metric


def _mark(row: OurRow) -> str:
    return "" if row.official else " unofficial"


def _number(cell: Cell | None, digits: int | None = None) -> str:
    if cell is None:
        return "-"
    kind = ".4g" if digits is None else f".{digits}f"
    spread = "" if cell.std is None else f" +- {cell.std:{kind}}"
    return f"{cell.mean:{kind}}{spread}" + (
        f" (n={cell.num_values})" if cell.num_values > 1 else ""
    )


def _paper_number(row: PaperRow, column: str, digits: int) -> str:
    if column not in row.values:
        return "-"
    spread = f" +- {row.std[column]:.{digits}f}" if column in row.std else ""
    return f"{row.values[column]:.{digits}f}{spread}"


def _delta(ours: Cell | None, paper: float | None, digits: int) -> str:
    """Ours - paper, rounded once; "-" where either is missing."""
    if ours is None or paper is None:
        return "-"
    return f"{ours.mean - paper:+.{digits}f}"
