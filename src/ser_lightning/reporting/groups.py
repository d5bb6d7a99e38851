"""Results of ours, averaged over seeds and put side by side."""

import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

from ser_lightning.reporting.paper import Subject
from ser_lightning.reporting.runs import Run, describe_folder, describe_run, read_configuration
from ser_lightning.results.record import RESULT_FOLDER, LoadedRecord, ResultRecord, find_records

_SEED = re.compile(r"[_-]?seed\d+")


class RunGroup(NamedTuple):
    """Runs of one configuration, each with another seed.

    Attributes:
        name: of their folders, without the seed.
        folders: one per run.
        views: how many views an image has, such as "2+4"; "" where that is not known.
        records: the newest by stage and data set, of each run.
    """

    name: str
    folders: tuple[Path, ...]
    views: str
    records: tuple[dict[tuple[str, str], LoadedRecord], ...]


def group_runs(folders: Sequence[Path]) -> list[RunGroup]:
    """Groups runs by configuration; the order is that of their first runs.

    Runs that repeat a seed are no further sample: they form a group of their own.

    Args:
        folders: of runs; one that is named twice counts once.

    Raises:
        ValueError: if a configuration or a record cannot be read.
    """
    groups: dict[tuple[str, int], list[Path]] = {}
    seen: dict[tuple[str, str], int] = {}
    for folder in unique_folders(folders):
        seed = (read_configuration(folder) or {}).get("seed_everything")
        configuration = describe_folder(folder).configuration
        repetition = seen.get((configuration, str(seed)), 0)
        seen[configuration, str(seed)] = repetition + 1
        groups.setdefault((configuration, repetition), []).append(folder)
    names = _names([group[0] for group in groups.values()])
    return [
        RunGroup(
            name,
            tuple(group),
            describe_folder(group[0]).subject.views,
            tuple(_newest_of_run(folder) for folder in group),
        )
        for name, group in zip(names, groups.values(), strict=True)
    ]


def unique_folders(folders: Sequence[Path]) -> list[Path]:
    """The folders as they are named first, each once."""
    unique: dict[Path, Path] = {}
    for folder in folders:
        unique.setdefault(folder.resolve(), folder)
    return list(unique.values())


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' names without the seed; where two are alike, their paths."""
    paths = [folder.resolve() for folder in folders]
    names = [_SEED.sub("", path.name) or path.parent.name for path in paths]
    return [
        name if names.count(name) == 1 else str(folder)
        for name, folder in zip(names, folders, strict=True)
    ]


def _newest_of_run(folder: Path) -> dict[tuple[str, str], LoadedRecord]:
    """The newest record of the run's weights by stage and data set."""
    files = sorted((folder / RESULT_FOLDER).glob("*.json"))
    loaded = sorted(find_records(files), key=lambda item: item.record.date)
    return {
        (item.record.stage, item.record.dataset): item
        for item in loaded
        if item.record.checkpoint is not None
    }


Source = tuple[str, str, str]
"""Where a number is from: stage, data set, metric."""


class Cell(NamedTuple):
    """A number of ours: mean, standard deviation (None for one value), and number of values."""

    mean: float
    std: float | None
    num_values: int


class OurRow(NamedTuple):
    """Results that belong together: one configuration, one checkpoint name, one protocol.

    Attributes:
        subject: which row of the paper they are compared with.
        official: whether they may be.
        cells: by source.
        note: provenance in words.
    """

    subject: Subject
    official: bool
    cells: dict[Source, Cell]
    note: str


class _Sample(NamedTuple):
    loaded: LoadedRecord
    run: Run

    @property
    def record(self) -> ResultRecord:
        return self.loaded.record


def our_rows(records: Sequence[LoadedRecord]) -> list[OurRow]:
    """Averages over seeds and puts the stages of the same runs side by side.

    Runs of the same configuration with checkpoints of the same name share a row; official and
    unofficial results never do, nor do results of one stage by two protocols.

    Args:
        records: of any runs and stages. Of those that repeat a measurement (same checkpoint, seed
            and protocol) the newest counts.

    Returns:
        The rows in order of subject.
    """
    groups: dict[tuple[object, ...], list[_Sample]] = {}
    for sample in _newest(_Sample(loaded, describe_run(loaded)) for loaded in records):
        record, run = sample.record, sample.run
        checkpoint = Path(record.checkpoint).name if record.checkpoint else ""
        key = (run.subject, run.configuration, checkpoint, record.weights_key, record.official)
        groups.setdefault(key, []).append(sample)
    rows = [_our_row(block) for group in groups.values() for block in _blocks(group)]
    return sorted(rows, key=lambda row: (row.subject.label(), not row.official))


def _newest(samples: Iterable[_Sample]) -> list[_Sample]:
    """Drops older repetitions of a measurement, which are not further seeds."""
    newest: dict[tuple[object, ...], _Sample] = {}
    for sample in sorted(samples, key=lambda sample: sample.record.date):
        record, run = sample.record, sample.run
        weights = (run.subject, run.configuration, record.checkpoint_sha256, record.weights_key)
        newest[weights, record.seed, _stage(record), _protocol(record)] = sample
    return list(newest.values())


def _stage(record: ResultRecord) -> tuple[str, str]:
    return record.stage, record.dataset


def _protocol(record: ResultRecord) -> str:
    """Text that is equal where results may be averaged."""
    parts = {
        "protocol": record.protocol, "feature": record.feature, "transform": record.transform,
        "layer": record.layer, "cls_layer": record.cls_layer, "samples": record.num_samples,
        "class map": record.class_map_sha256, "reasons": record.unofficial_reasons,
    }  # fmt: skip
    return json.dumps(parts, sort_keys=True)


def _blocks(samples: Sequence[_Sample]) -> list[list[_Sample]]:
    """Splits samples so that no stage has two protocols in one block."""
    stages: dict[tuple[str, str], dict[str, list[_Sample]]] = {}
    for sample in samples:
        protocols = stages.setdefault(_stage(sample.record), {})
        protocols.setdefault(_protocol(sample.record), []).append(sample)
    lists = [list(protocols.values()) for protocols in stages.values()]
    return [
        [sample for parts in lists if i < len(parts) for sample in parts[i]]
        for i in range(max(map(len, lists)))
    ]


def _our_row(samples: Sequence[_Sample]) -> OurRow:
    values: dict[Source, dict[str, list[float]]] = {}
    for sample in samples:
        record = sample.record
        for metric, value in record.metrics.items():
            by_checkpoint = values.setdefault((*_stage(record), metric), {})
            checkpoint = by_checkpoint.setdefault(record.checkpoint_sha256 or "", [])
            checkpoint.append(math.nan if value is None else value)
    cells = {source: _cell(list(parts.values())) for source, parts in values.items()}
    return OurRow(samples[0].run.subject, samples[0].record.official, cells, _note(samples))


def _cell(checkpoints: list[list[float]]) -> Cell:
    """Averages over checkpoints, or over evaluation seeds where there is one checkpoint."""
    means = [fmean(values) for values in checkpoints]
    numbers = means if len(means) > 1 else checkpoints[0]
    spread = stdev(numbers) if len(numbers) > 1 and all(map(math.isfinite, numbers)) else None
    return Cell(fmean(numbers), spread, len(numbers))


def _note(samples: Sequence[_Sample]) -> str:
    """Says what was measured, and why it may not compare."""
    record, run = samples[0].record, samples[0].run
    folders = sorted({str(sample.loaded.run_dir) for sample in samples})
    what = (
        f"{Path(record.checkpoint).name}, {record.weights_key} weights" if record.checkpoint else ""
    )
    parts = [what or "random weights", "from " + ", ".join(folders), *run.departures]
    hashes = {sample.record.checkpoint_sha256 for sample in samples}
    seeds = {(*_stage(sample.record), sample.record.seed) for sample in samples}
    stages = {_stage(sample.record) for sample in samples}
    if len(hashes) == 1 and len(seeds) > len(stages):
        parts.append("the spread is over seeds of the evaluation, not of pretraining")
    for sample in samples:
        stage = " on ".join(part for part in _stage(sample.record) if part)
        parts.append(f"{stage}: {json.dumps(sample.record.protocol, sort_keys=True)}")
        if sample.record.unofficial_reasons:
            reasons = "; ".join(sample.record.unofficial_reasons)
            parts.append(f"{stage} is not official: {reasons}")
    return "; ".join(dict.fromkeys(parts))
