"""Which test images a stage classified right: what two runs are compared by, image by image.

Stored here; what is right is said by `evaluation/metrics/accuracy.py`, `top_hits`.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ser_lightning.sealed import read_arrays, write_tensors

if TYPE_CHECKING:
    from torch import Tensor


class Hits(NamedTuple):
    """What the accuracy of a record is made of."""

    values: np.ndarray
    """(N,) uint8, 1 where a test image was right, in the order of the data set."""
    test_set: str
    """Hash that is equal where the images have the same labels in the same order."""


def hits_path(record: Path) -> Path:
    """Where the hits of a record belong: <stage>-<dataset>.hits.safetensors beside it."""
    return record.with_suffix(".hits.safetensors")


def load_hits(record: Path, metric: str) -> Hits | None:
    """Reads the hits of one metric of the record at a path; None where there are none.

    Raises:
        ValueError: if the file cannot be read.
    """
    path = hits_path(record)
    if not path.is_file():
        return None
    hits, notes = read_arrays(path, "run the evaluation again")
    if metric not in hits:
        return None
    return Hits(hits[metric], notes.get("test_set", ""))


def write_hits(
    record: Path,
    hits: "Mapping[str, Tensor]",
    label: "Tensor",
    data_sha256: str | None = None,
    slots: "Tensor | None" = None,
) -> Path:
    """Writes the hits of a record beside it, whole or not at all; call it on one rank.

    The file names its test set by a hash of the images' identity and of the labels in their order.

    Args:
        record: path of the record.
        hits: by metric, (N,) whether each test image was right, in the order of the test split.
        label: (N,) int64 classes of these images.
        data_sha256: as in the record.
        slots: (N,) int64 their places in the test split; None where they are all of it.
    """
    assert all(len(right) == len(label) for right in hits.values())
    tensors = {name: right.cpu().byte() for name, right in hits.items()}
    identity = (data_sha256 or "").encode() + label.cpu().numpy().tobytes()
    if slots is not None and slots.tolist() != list(range(len(label))):
        identity += slots.cpu().numpy().tobytes()
    notes = {"test_set": hashlib.sha256(identity).hexdigest()}
    path = hits_path(record)
    write_tensors(path, tensors, notes)
    return path
