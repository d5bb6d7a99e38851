"""Results of ours, averaged over seeds and put side by side."""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

from ser_lightning.reporting.paper import Subject
from ser_lightning.reporting.records import LoadedRecord, ResultRecord
from ser_lightning.reporting.runs import Run, describe_run

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
        "class map": record.class_map_sha256, "reason": record.unofficial_reason,
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
        if sample.record.unofficial_reason:
            parts.append(f"{stage} is not official: {sample.record.unofficial_reason}")
    return "; ".join(dict.fromkeys(parts))
