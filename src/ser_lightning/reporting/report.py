"""Our results next to the paper's: one table for each of its tables.

Rows come in threes: ours, the paper's, and the difference ours - paper. What the paper does not
have stays without a difference.

The JSON records that it reads are those of `results/record.py`, their words of
`results/measures.py`.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ser_lightning.files import write_text
from ser_lightning.reporting.groups import Cell, Sample, average, conditions, data_notes, group_runs
from ser_lightning.reporting.paper import (
    COLUMNS,
    PaperColumn,
    PaperRow,
    PaperTable,
    Source,
    Subject,
    paper_tables,
)
from ser_lightning.reporting.runs import Run
from ser_lightning.reporting.tables import ReportRow, ReportTable, to_html, to_markdown, to_text
from ser_lightning.results.division import find_baselines, with_ratios
from ser_lightning.results.measures import describe
from ser_lightning.results.record import LoadedRecord, find_records

_TITLE = "ser-lightning: ours and the paper's"
_INTRODUCTION = (
    "delta is ours - paper. Where several runs share everything but the seed, ours is their mean "
    "+- their sample standard deviation (n of them); the paper's +- is as printed. An unofficial "
    "row was not measured by the published protocol: its delta is no comparison. The notes say how "
    "a run departs from the paper's pretraining. Accuracies are in percent."
)


class ReportFiles(NamedTuple):
    """The written report, report.md and report.html, and its text for a terminal."""

    markdown: Path
    html: Path
    text: str


class OurRow(NamedTuple):
    """Results that belong together: one configuration, one checkpoint name, one protocol.

    The subject is the row of the paper that they are compared with, the note says where they are
    from.
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

    The baseline is a run or record of another network, for ratios such as mCE relative to it.

    Raises:
        ValueError: if a path holds no record, or a record or configuration cannot be read, or the
            baseline was measured in another way.
    """
    baselines = [] if baseline is None else find_baselines(baseline)
    records = find_records(paths)
    content = _TITLE, _INTRODUCTION, report_tables(with_ratios(records, baselines))
    drawn = [record.path.with_suffix(".png") for record in records]
    pictures = list(filter(Path.is_file, drawn))
    files = ReportFiles(output_dir / "report.md", output_dir / "report.html", to_text(*content))
    write_text(files.markdown, to_markdown(*content))
    write_text(files.html, to_html(*content, pictures))
    return files


def our_rows(records: Sequence[LoadedRecord]) -> list[OurRow]:
    """Averages over seeds and puts the stages of the same runs side by side.

    Runs of the same configuration with checkpoints of the same name share a row; official and
    unofficial results never do, nor do results of one stage by two protocols or on other data, nor
    those of a checkpoint before and after it was trained further.
    """
    rows = []
    for group in group_runs(records):
        alike: dict[tuple[object, ...], list[Sample]] = {}
        states: dict[tuple[Path, str], list[str | None]] = {}  # of a file, the newest first
        for sample in sorted(group.samples, key=lambda s: s.record.date, reverse=True):
            record = sample.record
            checkpoint = Path(record.checkpoint or "").name
            known = states.setdefault((sample.run_dir.resolve(), checkpoint), [])
            if record.checkpoint_sha256 not in known:
                known.append(record.checkpoint_sha256)
            state = known.index(record.checkpoint_sha256)
            key = state, checkpoint, record.weights_key, record.official
            alike.setdefault(key, []).append(sample)
        rows += [
            _our_row(group.run, block, is_earlier=key[0] != 0)
            for key, samples in alike.items()
            for block in _blocks(samples[::-1])
        ]
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


def _our_row(run: Run, samples: Sequence[Sample], is_earlier: bool) -> OurRow:
    sources: dict[Source, list[Sample]] = {}
    for sample in samples:
        for metric in sample.record.metrics:
            sources.setdefault((*sample.stage, metric), []).append(sample)
    cells = {source: average(found, source[2]) for source, found in sources.items()}
    note = _note(run, samples)
    note = f"before it was trained further: {note}" if is_earlier else note
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
    """
    rows = our_rows(records)
    tables = []
    shown: set[tuple[int, Source]] = set()
    for key, paper in paper_tables().items():
        columns = [column for column in COLUMNS if column.table == key]
        lines = [line for row in rows for line in _lines(key, paper, columns, row)]
        order = [row.subject for row in paper.rows]
        lines.sort(
            key=lambda line: order.index(line.subject) if line.subject in order else len(order)
        )
        cells = {(id(line.row), c.source) for line in lines for c in line.columns.values()}
        if cells - shown:
            shown |= cells
            tables.append(_paper_table(key, paper, columns, lines))
    return tables + _other_tables(rows)


class _Line(NamedTuple):
    """A row of ours in a table of the paper, and by key the columns that it has a number for."""

    row: OurRow
    subject: Subject
    columns: dict[str, PaperColumn]


def _lines(key: str, paper: PaperTable, columns: Sequence[PaperColumn], row: OurRow) -> list[_Line]:
    """Which lines of a table a row fills: none, one, or one for each task."""
    lines = []
    for task in dict.fromkeys(column.task for column in columns):
        subject = row.subject._replace(task=task)
        found = {c.column: c for c in columns if c.task == task and c.source in row.cells}
        if found and (paper.row(subject) or any(_is_home(key, c, row) for c in found.values())):
            lines.append(_Line(row, subject, found))
    return lines


def _is_home(key: str, column: PaperColumn, row: OurRow) -> bool:
    """Whether a number that no table of the paper has for this subject goes to this table."""
    listing = [other for other in COLUMNS if other.source == column.source]
    tables = paper_tables()
    known = any(tables[c.table].row(row.subject._replace(task=c.task)) for c in listing)
    return listing[0].table == key and not known


def _paper_table(
    key: str, paper: PaperTable, columns: Sequence[PaperColumn], lines: Sequence[_Line]
) -> ReportTable:
    """Sets ours, paper and delta below each other, for the columns that we measured."""
    measured = {column.column for line in lines for column in line.columns.values()}
    kinds = {c.column: f".{c.digits}f" for c in columns if c.column in measured}
    notes = list(dict.fromkeys(line.row.note for line in lines))
    rows = []
    for row, subject, found in lines:
        in_paper = paper.row(subject) or PaperRow(subject, {}, {})
        ours = [row.cells[found[name].source] if name in found else None for name in kinds]
        theirs = [
            Cell(in_paper.values[name], in_paper.std.get(name), 1)
            if name in in_paper.values
            else None
            for name in kinds
        ]
        mark = _mark(row)
        label = f"ours{mark} [{notes.index(row.note) + 1}]"
        texts = map(_number, ours, kinds.values())
        rows.append(ReportRow((subject.label(), label, *texts), f"ours{mark}"))
        if any(theirs):
            texts = map(_number, theirs, kinds.values())
            rows.append(ReportRow(("", "paper", *texts), "paper"))
            texts = map(_delta, ours, theirs, kinds.values())
            rows.append(ReportRow(("", f"delta{mark}", *texts), f"delta{mark}"))
    caption = ". ".join(part for part in (paper.caption, paper.note) if part) + "."
    header = ("method", "row", *(_heading(name, columns) for name in kinds))
    title = f"Table {key.removeprefix('table')}"
    return ReportTable(title, caption, header, tuple(rows), tuple(notes))


def _heading(name: str, columns: Sequence[PaperColumn]) -> str:
    """A column in words, with its data set, or stage, where the table has several of a kind."""
    sources = {column.source for column in columns if column.column == name}
    if len(sources) > 1:  # one for each task
        return name.replace("layer", "after block ")
    ((stage, dataset, metric),) = sources
    title = describe(metric).title
    others = [column.source for column in columns if column.source not in sources]
    if any(other[1] not in ("", dataset) for other in others):
        return f"{dataset} {title}".strip()
    return f"{stage} {title}" if any(other[2] == metric for other in others) else title


def _other_tables(rows: Sequence[OurRow]) -> list[ReportTable]:
    """What the paper has no column for: one table for each stage and data."""
    known = {column.source for column in COLUMNS}
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
        told = list(dict.fromkeys(row.note for row in shown))
        heads = [f"{r.subject.label()}{_mark(r)} [{told.index(r.note) + 1}]" for r in shown]
        lines = []
        for source in sources:
            numbers = (_number(row.cells.get(source), ".4g") for row in shown)
            lines.append(ReportRow((describe(source[2]).title, *numbers)))
        table = ReportTable(title, caption, ("metric", *heads), tuple(lines), tuple(told), 1)
        tables.append(table)
    return tables


def _mark(row: OurRow) -> str:
    return "" if row.official else " unofficial"


def _number(cell: Cell | None, kind: str) -> str:
    return "-" if cell is None else cell.text(kind, cell.num_values > 1)


def _delta(ours: Cell | None, theirs: Cell | None, kind: str) -> str:
    """Ours - paper, rounded once; "-" where either is missing."""
    return "-" if ours is None or theirs is None else f"{ours.mean - theirs.mean:+{kind}}"
