"""One page of a run, or of two side by side: settings, curves, pictures and results."""

import io
import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ser_lightning.reporting.panels import plain_text
from ser_lightning.reporting.runs import PICTURE_FOLDER, read_configuration, resumptions
from ser_lightning.reporting.tables import (
    PNG,
    ReportRow,
    ReportTable,
    html_page,
    html_picture,
    html_table,
)
from ser_lightning.results.measures import describe
from ser_lightning.results.record import RESULT_FOLDER, find_records, record_files

_LINES = (("#0b6fb8", "-", "o"), ("#d1570a", "--", "s"))
"""Colour, dash, marker of each run: told apart in grey, and by people who see few colours."""
_WIDE = 3.0  # times as wide as high: a picture of which two side by side would be too small
_FIRST = ("loss", "val/knn_top1", "val/equivariance/mean_centred/", "val/rankme", "gradient_norm")
_LEFT_OUT = ("epoch", "hp_metric", "random_init/")  # the last one of version 0.1.0


class Curve(NamedTuple):
    """A number while training, at rising optimizer steps."""

    steps: tuple[int, ...]
    values: tuple[float, ...]


class RunView(NamedTuple):
    """What a page shows of a run.

    Settings are flat, by dotted key, those that it went on with last, and empty where it has no
    configuration; curves are by the name that they were logged by; the status is how far it has
    come, in words.
    """

    name: str
    folder: Path
    settings: Mapping[str, str]
    curves: Mapping[str, Curve]
    status: str


def read_view(folder: Path, name: str) -> RunView:
    """Reads a running or finished run, or what was measured of a backbone of elsewhere.

    Raises:
        ValueError: the folder is no run's.
    """
    config = read_configuration(folder)
    if config is None and record_files(folder):
        run = find_records([folder])[-1].record.run
        told = {key: run.get(key, {}) for key in ("layout", "backbone")}
        return RunView(name, folder, dict(_flat(told)), {}, "trained elsewhere")
    if config is None:
        raise ValueError(f"{folder} has no fit.yaml; give the folder of a run, as runs/moco_ser")
    changes = resumptions(folder)  # what holds now is the last one
    config = (changes and read_configuration(folder, changes[-1].name)) or config
    curves = read_curves(folder)
    epochs = curves.get("epoch", Curve((), ()))  # logged with every number of a step, from 0 on
    step = epochs.steps[-1] + 1 if epochs.steps else 0
    wanted = (config.get("trainer") or {}).get("max_epochs")
    whole = f" of {wanted}" if isinstance(wanted, int) and wanted > 0 else ""
    epoch = f", epoch {int(epochs.values[-1]) + 1}{whole}" if epochs.values else ""
    status = f"step {step:,}{epoch}" if curves else "nothing logged yet"
    if changes:
        steps = ", ".join(change.stem.removeprefix("fit.step") for change in changes)
        status += f"; settings changed at step {steps}, the last ones are shown"
    return RunView(name, folder, dict(_flat(config)), curves, status)


def read_curves(folder: Path) -> dict[str, Curve]:
    """The scalars of a run's event files, which several starts may have written.

    A start that goes on from an earlier step takes the place of what came after that step.
    """
    found: dict[str, dict[int, float]] = {}
    for file in sorted(folder.glob("events.out.tfevents.*")):  # by the time of the start
        events = EventAccumulator(str(file), size_guidance={"scalars": 2000})
        events.Reload()
        own = {
            tag: {event.step: event.value for event in events.Scalars(tag)}
            for tag in events.Tags()["scalars"]
        }
        first = min(own.get("epoch", ()), default=math.inf)  # logged with every number of a step
        for tag in {*found, *own}:
            kept = {step: v for step, v in found.get(tag, {}).items() if step < first}
            found[tag] = kept | own.get(tag, {})
    return {
        tag: Curve(tuple(sorted(points)), tuple(points[step] for step in sorted(points)))
        for tag, points in found.items()
        if points
    }


def look_page(runs: Sequence[RunView], tables: Sequence[ReportTable]) -> str:
    """The page of one run or two: nothing to load, no script."""
    title = " beside ".join(run.name for run in runs)
    parts = [_cards(runs), "<h2>While training</h2>", _curves(runs)]
    parts += ["<h2>What it saw and learned</h2>", _pictures(runs, PICTURE_FOLDER, "None yet.")]
    parts += ["<h2>Results</h2>", *(html_table(table) for table in tables)]
    parts.append(_pictures(runs, RESULT_FOLDER))
    parts += ["<h2>Settings</h2>", _settings(runs)]
    return html_page(title, "", "\n".join(parts))


def _curves(runs: Sequence[RunView]) -> str:
    """A panel for each logged number, as many side by side as the window is wide."""
    logged = {tag for run in runs for tag in run.curves if not tag.startswith(_LEFT_OUT)}
    names = sorted(logged, key=_place)
    panels = "".join(_figure(curve_figure(runs, name)) for name in names)
    return f'<div class="panels">{panels}</div>' if names else "<p>None yet.</p>"


def curve_figure(runs: Sequence[RunView], name: str) -> Figure:
    """One number against the steps, a line for each run that logged it."""
    figure = Figure(figsize=(3.5, 2.3), facecolor="white", layout="constrained")
    axes = figure.subplots()
    for run, (colour, dash, marker) in zip(runs, _LINES, strict=False):
        if name in run.curves:
            steps, values = run.curves[name]
            few = marker if len(steps) < 20 else ""
            axes.plot(steps, values, dash, color=colour, marker=few, ms=3, label=run.name)
    axes.set_title(_words(name), fontsize=9, loc="left")
    axes.tick_params(labelsize=8)
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    if len(runs) > 1:
        axes.legend(fontsize=8, frameon=False)
    return figure


def _place(tag: str) -> tuple[int, str]:
    return next((i for i, start in enumerate(_FIRST) if tag.startswith(start)), len(_FIRST)), tag


def _words(tag: str) -> str:
    stage, _, metric = tag.partition("/")
    return f"{describe(metric).title}" if stage == "val" else tag.replace("_", " ")


def _cards(runs: Sequence[RunView]) -> str:
    cards = [
        f"<div><b>{escape(run.name)}</b><br>{escape(run.status)}<br>{escape(str(run.folder))}</div>"
        for run in runs
    ]
    return '<div class="runs">' + "".join(cards) + "</div>"


def _figure(figure: Figure) -> str:
    plain_text(figure)
    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    svg = buffer.getvalue()
    return f"<figure>{svg[svg.index('<svg') :]}</figure>"


def _pictures(runs: Sequence[RunView], below: str, without: str = "") -> str:
    """Pictures of one name from all runs side by side; wide ones one below the other."""
    found: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        for path in sorted((run.folder / below).glob("*.png")):
            caption = f"{run.name}: {path.stem.replace('_', ' ')}"
            kind = "long" if _aspect(path) > _WIDE else "runs"
            found.setdefault((path.stem, kind), []).append(html_picture(path, caption))
    rows = [f'<div class="{kind}">{"".join(drawn)}</div>' for (_, kind), drawn in found.items()]
    return "\n".join(rows) or f"<p>{without}</p>"


def _aspect(path: Path) -> float:
    """Width over height of a PNG, and 0 of what is none: its first chunk begins with both."""
    with path.open("rb") as file:
        head = file.read(24)
    if len(head) < 24 or not head.startswith(PNG):
        return 0.0
    return int.from_bytes(head[16:20]) / max(int.from_bytes(head[20:24]), 1)


def _settings(runs: Sequence[RunView]) -> str:
    """What differs in sight, everything else to be unfolded."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    rows = {key: tuple(run.settings.get(key, "-") for run in runs) for key in keys}
    differing = {key: values for key, values in rows.items() if len(set(values)) > 1}
    header = ("setting", *(run.name for run in runs))

    def table(chosen: Mapping[str, tuple[str, ...]]) -> str:
        lines = tuple(ReportRow((key, *values)) for key, values in chosen.items())
        return html_table(ReportTable("", "", header, lines, num_labels=len(header)))

    shown = table(differing) if differing else ""
    note = "<p>The same settings.</p>" if len(runs) > 1 and not differing else ""
    rest = table({key: values for key, values in rows.items() if key not in differing})
    return f"{shown}{note}<details><summary>all other settings</summary>{rest}</details>"


def _flat(node: Any, prefix: str = "") -> Sequence[tuple[str, str]]:
    """The leaves of a configuration, by dotted key; class_path stands for its class."""
    if isinstance(node, Mapping) and node:
        if "class_path" in node:
            name = str(node["class_path"]).rpartition(".")[2]
            return [(prefix, name), *_flat(node.get("init_args") or {}, prefix)]
        inner = [(f"{prefix}.{key}" if prefix else str(key), value) for key, value in node.items()]
        return [leaf for key, value in inner for leaf in _flat(value, key)]
    if isinstance(node, Mapping):
        return []
    text = node if isinstance(node, str) else json.dumps(node, default=str, ensure_ascii=False)
    return [(prefix, text)]
