"""What runs measured while training: one run's numbers in words, and those of several."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ser_lightning.reporting.tables import ReportRow, ReportTable, text_lines
from ser_lightning.results.measures import describe


def summary_table(
    baseline: Mapping[str, float],
    latest: Mapping[str, float],
    num_classes: int = 0,
    width: int | None = None,
    columns: tuple[str, str] = ("random init", "trained"),
) -> str:
    """Sets the metrics of an online evaluation side by side, in lines of at most 80 signs.

    Args:
        baseline: metrics by name before the first step; where it is empty, there is no such column.
        latest: metrics by name after training; may be empty.
        num_classes: number of labels, for the chance level; 0 where there are none.
        width: channels of the embedding, for the greatest RankMe and the healthy feature std.
        columns: headings of the two columns of numbers.
    """
    shown = (
        dict(zip(columns, (baseline, latest), strict=True)) if baseline else {columns[1]: latest}
    )
    rows = [["", *shown]]
    for name in dict.fromkeys([*latest, *baseline]):
        numbers = (describe(name).text(values.get(name)) for values in shown.values())
        rows.append([_title(name, num_classes, width), *numbers])
    return "\n".join(text_lines(rows, num_labels=1))


def _title(name: str, num_classes: int, width: int | None) -> str:
    """A metric in words, and how to read it as far as that is known."""
    measure = describe(name)
    best = min(5 if name.endswith("5") else 1, num_classes)
    known = {"chance": f"{100 * best / num_classes:.1f} %"} if num_classes else {}
    known |= {"width": f"{width}", "spread": f"{width**-0.5:.4f}"} if width else {}
    parts = measure.reading.split(", ")
    parts = [part for part in parts if known.keys() >= set(re.findall(r"{(\w+)}", part))]
    reading = ", ".join(parts).format(**known)
    return f"{measure.title} ({reading})" if reading else measure.title


class RunCurve(NamedTuple):
    """The metrics by name that a run measured after some optimizer steps; 0 is before training."""

    name: str
    steps: Sequence[int]
    metrics: Sequence[Mapping[str, float]]

    def points(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of one metric, where it was measured."""
        found = [
            (step, values[name])
            for step, values in zip(self.steps, self.metrics, strict=True)
            if name in values
        ]
        return [step for step, _ in found], [value for _, value in found]


def online_table(runs: Sequence[RunCurve]) -> ReportTable:
    """The main metrics that runs measured while training, a row per run."""
    found = (describe(name).online for run in runs for name in run.metrics[-1])
    titles = list(dict.fromkeys(filter(None, found)))
    rows = []
    for run in runs:
        cells = dict.fromkeys(titles, "-")
        for name in run.metrics[-1]:
            measure = describe(name)
            before, after = (measure.text(run.metrics[i].get(name)) for i in (0, -1))
            cells[measure.online] = f"{after} ({before})"
        rows.append(ReportRow((run.name, str(run.steps[-1]), *(cells[title] for title in titles))))
    return ReportTable(
        "Online evaluation at the end of training",
        "In brackets: the same before training.",
        ("run", "steps", *titles),
        tuple(rows),
        num_labels=1,
    )
