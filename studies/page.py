"""A study's page: what each row measured, and which of the paper's claims hold at that scale."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from ser_lightning.files import write_text
from ser_lightning.reporting.compare import runs_table
from ser_lightning.reporting.groups import average
from ser_lightning.reporting.tables import markdown_part, markdown_table
from studies.claims import HOLDS, OPPOSITE, Claim, Judged, Measure, StudyRow, judge
from studies.figures import layers_figure, statements_figure

ONLINE = "online.json"
"""File in a run's folder: what was measured while training."""


class Page(NamedTuple):
    """What is written of a study.

    Attributes:
        title: of the page.
        path: the Markdown file; pictures have its name, with .png and _statements.png.
        notes: a paragraph on sizes and settings, below the title.
        claims: what is judged.
        panels: title by measure, of the picture against the layer.
        gains: title by name of what is measured while training: start, end and gain.
        by_block: beginnings of an equivariance score's names, `_block0` to `_final` being their
            ends: the score's, and that at random initialisation.
    """

    title: str
    path: Path
    notes: str
    claims: tuple[Claim, ...]
    panels: Mapping[Measure, str]
    gains: Mapping[str, str] = MappingProxyType({})
    by_block: tuple[str, str] | None = None


def write_page(page: Page, rows: Sequence[StudyRow]) -> None:
    """Writes the page and its pictures beside it, each whole or not at all.

    Args:
        page: what to write, and where.
        rows: in the order of the table; the first one is the baseline.

    Raises:
        ValueError: if hits cannot be read.
    """
    layers = page.path.with_suffix(".png")
    statements = layers.with_stem(f"{layers.stem}_statements")
    judged = judge(page.claims, rows)
    layers_figure(layers, rows, page.panels)
    parts = [f"# {page.title}", page.notes, "## What was asked, and what was seen"]
    if statements_figure(statements, judged):
        parts.append(f"![The difference behind each statement]({statements.name})")
    parts += [_statements(judged), _READING, _table(rows)]
    if page.gains:
        parts += ["## From its own start to the end of training", _gains(page.gains, rows)]
    if page.by_block:
        parts += ["## Turns by block, without the mean token", _by_block(page.by_block, rows)]
    parts += [
        "## Against the layer",
        f"![Accuracy and equivariance against the layer]({layers.name})",
    ]
    write_text(page.path, "\n\n".join(parts) + "\n")


_READING = """\
How to read it: a difference has a 95 % interval. For linear and 20-NN accuracy (points) it covers
the choice of test images, of which both rows see the same, and of seeds; for the other measures
of seeds alone (Student's t with Welch's degrees of freedom). Of one seed it covers images alone.
"Holds" and "the opposite" mean that the interval excludes 0, "cannot be told from noise" that it
does not; of many such lines one in twenty is wrong by chance. A row with one seed cannot decide
anything."""


def _table(rows: Sequence[StudyRow]) -> str:
    """What all rows measured."""
    table = runs_table([row.runs for row in rows], [row.cost for row in rows])
    data = {sample.data for row in rows for sample in row.runs.samples}
    if len(data) == 1:  # need not stand in every title
        header = tuple(title.removesuffix(f", {min(data)}") for title in table.header)
        table = table._replace(header=header)
    return markdown_part(table)


def _gains(gains: Mapping[str, str], rows: Sequence[StudyRow]) -> str:
    """Means over seeds of what was measured while training, the gain with its spread."""
    lines = [["run", "seeds", *gains.values()]]
    for row in rows:
        files = [folder / ONLINE for folder in row.runs.folders]
        told = [json.loads(path.read_text(encoding="utf-8")) for path in files if path.is_file()]
        lines.append([row.runs.name, str(len(told)), *(_gain(told, name) for name in gains)])
    return markdown_table(lines, num_labels=1)


def _gain(told: Sequence[Mapping[str, Any]], name: str) -> str:
    starts = np.array([run["start"].get(name, np.nan) for run in told])
    ends = np.array([run["history"][-1]["metrics"].get(name, np.nan) for run in told])
    if not len(told) or np.isnan(starts + ends).any():
        return "-"
    digits = 1 if "knn" in name else 3
    spread = f" +- {(ends - starts).std(ddof=1):.{digits}f}" if len(told) > 1 else ""
    gain = f"{(ends - starts).mean():+.{digits}f}{spread}"
    return f"{starts.mean():.{digits}f} to {ends.mean():.{digits}f} ({gain})"


def _by_block(names: tuple[str, str], rows: Sequence[StudyRow]) -> str:
    """Means over seeds of a score of equivariance after each block, each with its spread."""
    name, at_random = names
    metrics = {m for row in rows for s in row.runs.newest("equivariance") for m in s.record.metrics}
    ends = [metric.removeprefix(name) for metric in metrics if metric.startswith(name)]
    ends.sort(key=lambda end: (end == "_final", len(end), end))
    lines = [["run", *(end.removeprefix("_").replace("block", "block ") for end in ends)]]
    told = [(f"{rows[0].runs.name}, random initialisation", rows[0], at_random)]
    told += [(row.runs.name, row, name) for row in rows]
    for label, row, start in told:
        lines.append([label, *(_mean(row, Measure("equivariance", start + end)) for end in ends)])
    return markdown_table(lines, num_labels=1)


def _mean(row: StudyRow, measure: Measure) -> str:
    """The mean of the row's runs, of several with their standard deviation."""
    measured = [s for s in row.runs.newest(measure.stage) if measure.metric in s.record.metrics]
    return average(measured, measure.metric).text(".3f", counted=False) if measured else "-"


def _statements(judged: Sequence[Judged]) -> str:
    lines = ["| statement (the paper's numbers) | here | |", "|---|---:|---|"]
    for claim, seen, verdict, _ in judged:
        is_sure = verdict in (HOLDS, OPPOSITE)
        lines.append(f"| {claim.text} | {seen} | {f'**{verdict}**' if is_sure else verdict} |")
    return "\n".join(lines)
