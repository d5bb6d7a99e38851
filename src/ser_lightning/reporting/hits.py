"""Which test images a run classified right, from the file beside a record."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open


class Hits(NamedTuple):
    """What the accuracy of a record is made of.

    Attributes:
        values: (N,) uint8, 1 where a test image was right, in the order of the data set.
        test_set: hash that is equal where the images have the same labels in the same order.
    """

    values: np.ndarray
    test_set: str


def hits_path(record: Path) -> Path:
    """Where the hits of a record belong: <stage>-<dataset>.hits.safetensors beside it."""
    return record.with_suffix(".hits.safetensors")


def load_hits(record: Path, metric: str) -> Hits | None:
    """Reads the hits of one metric of a record; None where there are none.

    Args:
        record: path of the record.
        metric: its name there, such as "top1".

    Raises:
        ValueError: if the file cannot be read.
    """
    path = hits_path(record)
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="np") as file:
            notes = file.metadata() or {}
            values = file.get_tensor(metric) if metric in file.keys() else None  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read ({error}); run the evaluation again") from error
    return None if values is None else Hits(values, notes.get("test_set", ""))
