"""Our results next to the paper's: one table for each of its tables.

Rows come in threes: ours, the paper's, and the difference ours - paper. What the paper does not
have stays without a difference.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ser_lightning.files import atomic_path
from ser_lightning.reporting.groups import Cell, Sample, average, conditions, data_notes, group_runs
from ser_lightning.reporting.paper import (
    MEASURES,
    Measure,
    PaperRow,
    PaperTable,
    Source,
    Subject,
    paper_tables,
)
from ser_lightning.reporting.runs import Run
from ser_lightning.reporting.tables import ReportRow, ReportTable, to_html, to_markdown
from ser_lightning.results.division import find_baselines, with_ratios
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


class OurRow(NamedTuple):
    """Results that belong together: one configuration, one checkpoint name, one protocol.

    Attributes:
        subject: which row of the paper they are compared with.
        official: whether they may be.
        samples: what was measured.
        cells: by source.
        note: provenance in words.
    """

    subject: Subject
    official: bool
    samples: tuple[Sample, ...]
    cells: dict[Source, Cell]
    note: str

    @property
    def data(self) -> dict[tuple[str, str], str]:
        """Numbered name of the data by stage and data set."""
        return {sample.stage: sample.data for sample in self.samples}


def write_report(
    paths: Iterable[Path], output_dir: Path, baseline: Path | None = None
) -> ReportFiles:
    """Compares the results of runs with the paper's and writes report.md and report.html.

    Args:
        paths: run folders, folders above them, or single record files.
        output_dir: where to write.
        baseline: run or record of another network, for ratios such as mCE relative to it.

    Returns:
        The files.

    Raises:
        ValueError: if a path holds no record, or a record or configuration cannot be read, or the
            baseline was measured in another way.
    """
    baselines = [] if baseline is None else find_baselines(baseline)
    tables = report_tables(with_ratios(find_records(paths), baselines))
    files = ReportFiles(output_dir / "report.md", output_dir / "report.html")
    for path, render in zip(files, (to_markdown, to_html), strict=True):
        with atomic_path(path) as partial:
            partial.write_text(render(_TITLE, _INTRODUCTION, tables), encoding="utf-8")
    return files


def our_rows(records: Sequence[LoadedRecord]) -> list[OurRow]:
    """Averages over seeds and puts the stages of the same runs side by side.

    Runs of the same configuration with checkpoints of the same name share a row; official and
    unofficial results never do, nor do results of one stage by two protocols or on other data.

    Args:
        records: results of any runs and stages.

    Returns:
        The rows in order of subject.
    """
    rows = []
    for group in group_runs(records):
        alike: dict[tuple[object, ...], list[Sample]] = {}
        for sample in group.samples:
            record = sample.record
            checkpoint = Path(record.checkpoint or "").name
            key = checkpoint, record.weights_key, record.official
            alike.setdefault(key, []).append(sample)
        rows += [_our_row(group.run, b) for samples in alike.values() for b in _blocks(samples)]
    return sorted(rows, key=lambda row: (row.subject.label(), not row.official))


def _blocks(samples: Sequence[Sample]) -> list[list[Sample]]:
    """Splits samples so that no stage has two protocols, or other data, in one block."""
    stages: dict[tuple[str, str], dict[tuple[str, str], list[Sample]]] = {}
    for sample in samples:
        key = conditions(sample.record), sample.data
        stages.setdefault(sample.stage, {}).setdefault(key, []).append(sample)
    lists = [list(protocols.values()) for protocols in stages.values()]
    return [
        [sample for parts in lists if i < len(parts) for sample in parts[i]]
        for i in range(max(map(len, lists)))
    ]


def _our_row(run: Run, samples: Sequence[Sample]) -> OurRow:
    sources: dict[Source, list[Sample]] = {}
    for sample in samples:
        for metric in sample.record.metrics:
            sources.setdefault((*sample.stage, metric), []).append(sample)
    cells = {source: average(found, source[2]) for source, found in sources.items()}
    note = _note(run, samples)
    return OurRow(run.subject, samples[0].record.official, tuple(samples), cells, note)


def _note(run: Run, samples: Sequence[Sample]) -> str:
    """Says what was measured, and why it may not compare."""
    first = samples[0].record
    what = first.network or "random weights"
    if first.checkpoint:
        what = f"{Path(first.checkpoint).name}, {first.weights_key} weights"
    folders = sorted({str(sample.run_dir) for sample in samples})
    parts = [what, "from " + ", ".join(folders), *run.departures]
    seeds = {(*sample.stage, sample.record.seed) for sample in samples}
    hashes, stages = {s.record.checkpoint_sha256 for s in samples}, {s.stage for s in samples}
    if len(hashes) == 1 and len(seeds) > len(stages):
        parts.append("the spread is over seeds of the evaluation, not of pretraining")
    for sample in samples:
        stage = " on ".join(filter(None, (sample.record.stage, sample.data)))
        parts.append(f"{stage}: {json.dumps(sample.record.protocol, sort_keys=True)}")
        if not sample.record.official:
            reasons = "; ".join(sample.record.unofficial_reasons)
            parts.append(f"{stage} is not official: {reasons}")
    return "; ".join(dict.fromkeys(parts))


def report_tables(records: Sequence[LoadedRecord]) -> list[ReportTable]:
    """Sorts results into the paper's tables, and the others into tables of their own.

    A table of the paper is left out where an earlier one shows all its numbers already.

    Args:
        records: results of any runs and stages.

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
            (i, m.source)
            for subject, i in lines
            for m in measures
            if m.task == subject.task and m.source in rows[i].cells
        }
        if cells - shown:
            shown |= cells
            pairs = [(subject, rows[i]) for subject, i in lines]
            tables.append(_paper_table(key, paper, measures, pairs))
    return tables + _other_tables(rows)


def _subjects(
    key: str, paper: PaperTable, measures: Sequence[Measure], row: OurRow
) -> list[Subject]:
    """Which lines of a table a row fills: none, one, or one for each task."""
    subjects = []
    for task in dict.fromkeys(measure.task for measure in measures):
        subject = row.subject._replace(task=task)
        measured = [m for m in measures if m.task == task and m.source in row.cells]
        if measured and (paper.row(subject) or any(_is_home(key, m, row) for m in measured)):
            subjects.append(subject)
    return subjects


def _is_home(key: str, measure: Measure, row: OurRow) -> bool:
    """Whether a number that no table of the paper has for this subject goes to this table."""
    listing = [m for m in MEASURES if m.source == measure.source]
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
        if any(measure.source in row.cells and measure.task == s.task for s, row in lines)
    }
    rows, notes = [], []
    for subject, row in lines:
        if row.note not in notes:
            notes.append(row.note)
        label = f"ours{_mark(row)} [{notes.index(row.note) + 1}]"
        found = {m.column: row.cells.get(m.source) for m in measures if m.task == subject.task}
        ours = [found.get(column) for column in columns]
        row_of_paper = paper.row(subject) or PaperRow(subject, {}, {})
        values, std = row_of_paper.values, row_of_paper.std
        theirs = [Cell(values[c], std.get(c), 1) if c in values else None for c in columns]
        kinds = [f".{digits}f" for digits in columns.values()]
        texts = map(_number, ours, kinds)
        rows.append(ReportRow((subject.label(), label, *texts), f"ours{_mark(row)}"))
        if any(theirs):
            rows.append(ReportRow(("", "paper", *map(_number, theirs, kinds)), "paper"))
            texts = map(_delta, ours, theirs, kinds)
            rows.append(ReportRow(("", f"delta{_mark(row)}", *texts), f"delta{_mark(row)}"))
    caption = ". ".join(part for part in (paper.caption, paper.note) if part) + "."
    header = ("method", "row", *columns)
    title = f"Table {key.removeprefix('table')}"
    return ReportTable(title, caption, header, tuple(rows), tuple(notes))


def _other_tables(rows: Sequence[OurRow]) -> list[ReportTable]:
    """What the paper has no column for: one table for each stage and data."""
    known = {measure.source for measure in MEASURES}
    found: dict[tuple[str, str], dict[Source, None]] = {}
    for row in rows:
        for source in row.cells:
            if source not in known:
                found.setdefault((source[0], row.data[source[:2]]), {})[source] = None
    notes = data_notes(sample for row in rows for sample in row.samples)
    tables = []
    for (stage, data), sources in sorted(found.items()):
        shown = [row for row in rows if row.data.get(next(iter(sources))[:2]) == data]
        shown = [row for row in shown if sources.keys() & row.cells.keys()]
        caption = " ".join(filter(None, ["Not in the paper's tables.", notes.get((stage, data))]))
        title = " on ".join(filter(None, (stage, data)))
        tables.append(_other_table(title, caption, list(sources), shown))
    return tables


def _other_table(
    title: str, caption: str, sources: Sequence[Source], rows: Sequence[OurRow]
) -> ReportTable:
    """Sets runs side by side, a metric in each line."""
    notes = list(dict.fromkeys(row.note for row in rows))
    heads = [f"{r.subject.label()}{_mark(r)} [{notes.index(r.note) + 1}]" for r in rows]
    lines = tuple(
        ReportRow((source[2], *(_number(row.cells.get(source), ".4g") for row in rows)))
        for source in sources
    )
    return ReportTable(title, caption, ("metric", *heads), lines, tuple(notes), num_labels=1)


def _mark(row: OurRow) -> str:
    return "" if row.official else " unofficial"


def _number(cell: Cell | None, kind: str) -> str:
    return "-" if cell is None else cell.text(kind, cell.num_values > 1)


def _delta(ours: Cell | None, theirs: Cell | None, kind: str) -> str:
    """Ours - paper, rounded once; "-" where either is missing."""
    return "-" if ours is None or theirs is None else f"{ours.mean - theirs.mean:+{kind}}"
