"""Results of ours: runs of one configuration are a group, and their seeds its samples.

The report sets groups beside the paper's rows, the comparison beside each other.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

from ser_lightning.reporting.runs import Run, describe_run, read_run
from ser_lightning.results.record import (
    LoadedRecord,
    ResultRecord,
    find_records,
    record_files,
    result_path,
)

_SEED = re.compile(r"[_-]?seed\d+")


class Cell(NamedTuple):
    """A number of ours: mean, standard deviation (None for one value), and number of values."""

    mean: float
    std: float | None
    num_values: int

    def text(self, kind: str, counted: bool) -> str:
        """Mean +- standard deviation (n=number), in a format such as ".2f"."""
        spread = "" if self.std is None else f" +- {self.std:{kind}}"
        return f"{self.mean:{kind}}{spread}" + (f" (n={self.num_values})" if counted else "")


class Sample(NamedTuple):
    """A measurement of one run."""

    path: Path
    run_dir: Path
    record: ResultRecord
    data: str
    """Name of the data set; where data of one name differ, with a number: "photos #2"."""

    @property
    def stage(self) -> tuple[str, str]:
        """Stage and data set."""
        return self.record.stage, self.record.dataset

    @property
    def is_default(self) -> bool:
        """Whether it is by the stage's default settings, as far as its file's name tells."""
        return self.path.name == result_path(self.run_dir, self.record).name


class RunGroup(NamedTuple):
    """Runs of one configuration, each with another seed; the name is the folders', without it."""

    name: str
    run: Run
    folders: tuple[Path, ...]
    samples: tuple[Sample, ...]
    """What was measured; of repeated measurements the newest."""

    def newest(self, stage: str, data: str | None = None, metric: str = "") -> list[Sample]:
        """The newest measurement of each run, by one stage on one data set (or on any).

        Of those that have the metric; one by the default settings goes before one of another
        branch, size of images or seed, which lies in a file of its own.
        """
        found = sorted(self.samples, key=lambda s: (s.is_default, s.record.date))
        by_run = {
            sample.run_dir.resolve(): sample
            for sample in found
            if sample.record.stage == stage
            and data in (None, sample.data)
            and (not metric or metric in sample.record.metrics)
        }
        found_in_order = (by_run.get(folder.resolve()) for folder in self.folders)
        return [sample for sample in found_in_order if sample]


def group_runs(records: Sequence[LoadedRecord], folders: Sequence[Path] = ()) -> list[RunGroup]:
    """Groups runs by configuration; the order is that of their first runs.

    Runs that repeat a seed are no further sample: they form a group of their own. So do random
    weights and other networks, whatever the folder. The folders are runs that make a group even
    where they have no record.
    """
    read = cache(read_run)
    names = _data_names(records)
    runs = {folder.resolve(): folder for folder in folders}
    found: dict[Path, dict[Run, list[Sample]]] = {place: {} for place in runs}
    for path, run_dir, record in records:
        place = run_dir.resolve()
        runs.setdefault(place, run_dir)
        run = describe_run(record, run_dir, read)
        sample = Sample(path, run_dir, record, names[path])
        found.setdefault(place, {}).setdefault(run, []).append(sample)
    groups: dict[tuple[object, ...], list[tuple[Path, Run, list[Sample]]]] = {}
    seen = Counter[tuple[object, ...]]()
    for place, parts in found.items():
        for run, samples in (parts or {read(runs[place]).run(): []}).items():
            key = run.subject, run.configuration, run.seed
            repetition = 0 if run.seed is None else seen[key]
            seen[key] += 1
            groups.setdefault((*key[:2], repetition), []).append((runs[place], run, samples))
    titles = _titles([members[0][0] for members in groups.values()])
    return [
        RunGroup(
            title,
            members[0][1],
            tuple(folder for folder, _, _ in members),
            _newest(sample for _, _, samples in members for sample in samples),
        )
        for title, members in zip(titles, groups.values(), strict=True)
    ]


def group_folders(folders: Sequence[Path]) -> list[RunGroup]:
    """Groups runs, with what is in their result folders; random weights and others left out."""
    folders = unique_folders(folders)
    files = [file for folder in folders for file in record_files(folder)]
    records = find_records(files)
    return group_runs([loaded for loaded in records if loaded.record.checkpoint], folders)


def unique_folders(folders: Sequence[Path]) -> list[Path]:
    """The folders as they are named first, each once."""
    unique: dict[Path, Path] = {}
    for folder in folders:
        unique.setdefault(folder.resolve(), folder)
    return list(unique.values())


def told_apart(paths: Sequence[Path], *names: Sequence[str]) -> dict[Path, str]:
    """What paths are called: by the first of some lists of names without a repetition, or fully."""
    lists = (*names, [str(path) for path in paths])
    chosen = next((each for each in lists if len(set(each)) == len(each)), lists[-1])
    return dict(zip(paths, chosen, strict=True))


def conditions(record: ResultRecord, within: bool = True) -> str:
    """Text that is equal where numbers compare: within a configuration, or across them."""
    parts: list[object] = [record.protocol, record.transform, record.num_samples]
    parts += [record.class_map_sha256, record.unofficial_reasons]
    if within:
        checkpoint = Path(record.checkpoint or "").name
        parts += [record.feature, record.layer, record.cls_layer, record.weights_key, checkpoint]
    return json.dumps(parts, sort_keys=True)


def average(samples: Sequence[Sample], metric: str) -> Cell:
    """Averages a metric that all samples have over checkpoints, or of one over evaluation seeds."""
    values: dict[str, list[float]] = {}
    for sample in samples:
        value = sample.record.metrics[metric]
        checkpoint = values.setdefault(sample.record.checkpoint_sha256 or "", [])
        checkpoint.append(math.nan if value is None else value)
    means = [fmean(of_one) for of_one in values.values()]
    numbers = means if len(means) > 1 else next(iter(values.values()))
    spread = stdev(numbers) if len(numbers) > 1 and all(map(math.isfinite, numbers)) else None
    return Cell(fmean(numbers), spread, len(numbers))


def data_notes(samples: Iterable[Sample]) -> dict[tuple[str, str], str]:
    """What data are of which others have the name, by stage and numbered name."""
    return {
        (sample.record.stage, sample.data): (
            f"{sample.record.stage} on {sample.data}: {sample.record.num_samples} samples from "
            f"{sample.record.data_root or 'no folder'}; data of one name that differ, or cannot be "
            "told to be the same, have different numbers"
        )
        for sample in samples
        if sample.data != sample.record.dataset
    }


def _data_names(records: Sequence[LoadedRecord]) -> dict[Path, str]:
    """The data set's name of each record, numbered where a stage had several of one name."""
    kinds: dict[tuple[str, str], list[ResultRecord]] = {}  # the first record of each kind of data
    numbers: dict[Path, int] = {}
    for path, _, record in records:
        known = kinds.setdefault((record.stage, record.dataset), [])
        numbers[path] = next(
            (i for i, one in enumerate(known) if _same_data(one, record)), len(known)
        )
        if numbers[path] == len(known):
            known.append(record)
    return {
        path: f"{record.dataset} #{numbers[path] + 1}"
        if len(kinds[record.stage, record.dataset]) > 1
        else record.dataset
        for path, _, record in records
    }


def _same_data(first: ResultRecord, second: ResultRecord) -> bool:
    """Whether two records of one data set's name are of the same data, as far as they tell."""
    sizes = {(r.num_samples, r.class_map_sha256) for r in (first, second)}
    if len(sizes) > 1:
        return False
    if first.data_sha256 and second.data_sha256:
        return first.data_sha256 == second.data_sha256
    return first.data_root == second.data_root or (first.official and second.official)


def _titles(folders: Sequence[Path]) -> list[str]:
    """The folders' names without the seed; where two are alike, their paths."""
    paths = [folder.resolve() for folder in folders]
    names = [_SEED.sub("", path.name) or path.parent.name for path in paths]
    return [
        name if names.count(name) == 1 else str(folder)
        for name, folder in zip(names, folders, strict=True)
    ]


def _newest(samples: Iterable[Sample]) -> tuple[Sample, ...]:
    """Drops older repetitions of a measurement, which are not further seeds."""
    newest: dict[tuple[object, ...], Sample] = {}
    for sample in sorted(samples, key=lambda sample: sample.record.date):
        record = sample.record
        weights = record.checkpoint_sha256, record.weights_key
        newest[weights, record.seed, record.stage, sample.data, conditions(record)] = sample
    return tuple(newest.values())
