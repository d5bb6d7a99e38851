"""A study's page: what each row measured, and which of the paper's claims hold at that scale."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ser_lightning.files import write_text
from ser_lightning.reporting.compare import GroupCost, runs_table
from ser_lightning.reporting.groups import RunGroup, average
from ser_lightning.reporting.intervals import Interval, paired_difference, seed_difference
from ser_lightning.reporting.panels import save_picture
from ser_lightning.reporting.tables import markdown_table, to_markdown
from ser_lightning.results.hits import load_hits
from ser_lightning.results.measures import describe

COLOURS = {"SER": "#0b6fb8", "AugSelf": "#d1570a", "EquiMod": "#8a4fb0"}
BASELINE = "0.35"


class Measure(NamedTuple):
    """A number that rows are compared by.

    Attributes:
        stage: which evaluation.
        metric: its name in the record.
        is_paired: whether records say which test images were right.
    """

    stage: str
    metric: str
    is_paired: bool = False


LINEAR = Measure("linear", "top1", is_paired=True)
KNN = Measure("knn", "top1_k20", is_paired=True)
CORRUPTED = Measure("imagenet-c", "top1/avg_without_frost")


def study_figure(path: Path, rows: Sequence["StudyRow"], measures: Mapping[Measure, str]) -> None:
    """Draws one panel per measure and writes them as PNG, whole or not at all.

    Lines join the means over seeds; small dots are single runs. The baseline is a band from its
    smallest to its largest run.

    Args:
        path: the PNG.
        rows: add-ons at layers, and the baseline.
        measures: title by measure, in the order of the panels.
    """
    figure = Figure(figsize=(4.1 * len(measures), 4.3), dpi=110, facecolor="white")
    panels = figure.subplots(1, len(measures), squeeze=False)[0]
    figure.subplots_adjust(left=0.05, right=0.99, top=0.88, bottom=0.24, wspace=0.24)
    for axes, (measure, title) in zip(panels, measures.items(), strict=True):
        _draw(axes, rows, measure)
        axes.set_title(title, fontsize=11, fontweight="bold", loc="left")
        axes.set_xlabel("the add-on reads block", fontsize=10)
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="lower center", ncol=5, frameon=False, fontsize=10)
    save_picture(figure, path)


def _draw(axes: Axes, rows: Sequence["StudyRow"], measure: Measure) -> None:
    for row in rows:
        runs = _values(row, measure)
        if runs and not row.family:
            axes.axhspan(min(runs), max(runs), color=BASELINE, alpha=0.2, linewidth=0)
            axes.axhline(float(np.mean(runs)), color=BASELINE, linestyle="--", label="MoCo-v3")
    for family, colour in COLOURS.items():
        found = sorted(
            (row.layer, runs)
            for row in rows
            if row.family == family and row.layer is not None and (runs := _values(row, measure))
        )
        if not found:
            continue
        means = [float(np.mean(runs)) for _, runs in found]
        axes.plot([layer for layer, _ in found], means, "-o", color=colour, label=family, lw=2)
        for layer, runs in found:
            axes.plot([layer] * len(runs), runs, "o", color=colour, markersize=3, alpha=0.6)
    layers = sorted({r.layer for r in rows if r.family in COLOURS and r.layer is not None})
    if layers:
        axes.set_xticks(layers)
        axes.set_xlim(layers[0] - 0.5, layers[-1] + 0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)


ONLINE = "online.json"
"""File in a run's folder: what was measured while training."""


class StudyRow(NamedTuple):
    """A row of the study with its runs.

    Attributes:
        name: as claims call it.
        family: the add-on, for the figure; "" for the baseline.
        layer: the block that it reads; None without one.
        runs: one per seed; its name is the row's label.
        cost: what one of them takes.
    """

    name: str
    family: str
    layer: int | None
    runs: RunGroup
    cost: GroupCost


class Claim(NamedTuple):
    """Something that the paper says.

    Attributes:
        text: in words, with its place and numbers.
        better: name of the row that should measure more.
        worse: name of the row that it is compared with.
        measure: what is compared.
    """

    text: str
    better: str
    worse: str
    measure: Measure


class Page(NamedTuple):
    """What is written of a study.

    Attributes:
        title: of the page.
        path: the Markdown file; the picture has its name with .png.
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
    """Writes the page and its picture beside it, each whole or not at all.

    Args:
        page: what to write, and where.
        rows: in the order of the table; the first one is the baseline.

    Raises:
        ValueError: if hits cannot be read.
    """
    picture = page.path.with_suffix(".png")
    study_figure(picture, rows, page.panels)
    table = runs_table([row.runs for row in rows], [row.cost for row in rows])
    data = {sample.data for row in rows for sample in row.runs.samples}
    if len(data) == 1:  # need not stand in every title
        header = tuple(title.removesuffix(f", {min(data)}") for title in table.header)
        table = table._replace(header=header)
    parts = [
        to_markdown(page.title, page.notes, [table]).rstrip(),
        "## What was asked, and what was seen",
        _claims(page.claims, {row.name: row for row in rows}),
        _READING,
    ]
    if page.gains:
        parts += ["## From its own start to the end of training", _gains(page.gains, rows)]
    if page.by_block:
        parts += ["## Turns by block, without the mean token", _by_block(page.by_block, rows)]
    parts += [
        "## Against the layer",
        f"![Accuracy and equivariance against the layer]({picture.name})",
    ]
    write_text(page.path, "\n\n".join(parts) + "\n")


_READING = """\
How to read it: a difference has a 95 % interval. For linear and 20-NN accuracy (points) it covers
the choice of test images, of which both rows see the same, and of seeds; for the other measures
of seeds alone (Student's t with Welch's degrees of freedom). Of one seed it covers images alone.
"Holds" and "the opposite" mean that the interval excludes 0, "cannot be told from noise" that it
does not; of many such lines one in twenty is wrong by chance. A row with one seed cannot decide
anything."""


def _values(row: StudyRow, measure: Measure) -> list[float]:
    """What the row's runs say, one number per seed."""
    found = (s.record.metrics.get(measure.metric) for s in row.runs.newest(measure.stage))
    return [value for value in found if value is not None]


def _difference(better: StudyRow, worse: StudyRow, measure: Measure) -> Interval | None:
    """Paired by test image where those are known, else from the seeds; None if neither can be."""
    if measure.is_paired:
        rows = better, worse
        ours, theirs = (_hits(row, measure) for row in rows)
        is_whole = all(
            len(hits) == len(_values(row, measure)) > 0
            for row, hits in zip(rows, (ours, theirs), strict=True)
        )
        return paired_difference(ours, theirs) if is_whole else None
    return seed_difference(_values(better, measure), _values(worse, measure))


def _hits(row: StudyRow, measure: Measure) -> list[np.ndarray]:
    """Which test images each run of a row classified right."""
    found = [load_hits(s.path, measure.metric) for s in row.runs.newest(measure.stage)]
    return [hits.values for hits in found if hits is not None]


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


def _claims(claims: Sequence[Claim], rows: Mapping[str, StudyRow]) -> str:
    lines = ["| statement (the paper's numbers) | here | |", "|---|---:|---|"]
    for claim in claims:
        if claim.better in rows and claim.worse in rows:
            seen, verdict = _judge(rows[claim.better], rows[claim.worse], claim.measure)
            lines.append(f"| {claim.text} | {seen} | {verdict} |")
    return "\n".join(lines)


def _judge(better: StudyRow, worse: StudyRow, measure: Measure) -> tuple[str, str]:
    """The difference in words, and whether the claim holds."""
    ours, theirs = (_values(row, measure) for row in (better, worse))
    if not (ours and theirs):
        return "-", "not measured"
    digits = describe(measure.metric).digits
    seen = f"{np.mean(ours) - np.mean(theirs):+.{digits}f}"
    found = _difference(better, worse, measure)
    if found is None and measure.is_paired:
        return seen, "hits of a run are missing"
    if found is None or min(len(ours), len(theirs)) < 2:
        return seen, "cannot be told (one seed)"
    seen = f"{found.difference:+.{digits}f} [{found.low:+.{digits}f}, {found.high:+.{digits}f}]"
    if found.low > 0:
        return seen, "**holds**"
    return seen, "**the opposite**" if found.high < 0 else "cannot be told from noise"
