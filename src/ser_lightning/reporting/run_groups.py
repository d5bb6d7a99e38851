"""Runs that differ in nothing but the seed, with what was measured of them."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ser_lightning.reporting.records import RESULT_FOLDER, LoadedRecord, find_records
from ser_lightning.reporting.runs import describe_folder, read_configuration

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
            tuple(_newest(folder) for folder in group),
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


def _newest(folder: Path) -> dict[tuple[str, str], LoadedRecord]:
    """The newest record of the run's weights by stage and data set."""
    files = sorted((folder / RESULT_FOLDER).glob("*.json"))
    loaded = sorted(find_records(files), key=lambda item: item.record.date)
    return {
        (item.record.stage, item.record.dataset): item
        for item in loaded
        if item.record.checkpoint is not None
    }
