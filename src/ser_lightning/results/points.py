"""Images as points of a plane: what the figure of a record is drawn from."""

import json
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ser_lightning.sealed import read_tensors, write_tensors


class Points(NamedTuple):
    """Images in a plane.

    Attributes:
        plane: (N, 2) float32.
        label: (N,) int64 places in the class names.
        class_names: of the classes that are there.
    """

    plane: Tensor
    label: Tensor
    class_names: tuple[str, ...]


def points_path(record: Path) -> Path:
    """Where the points of a record belong: <stage>-<dataset>.points.safetensors beside it."""
    return record.with_suffix(".points.safetensors")


def write_points(record: Path, points: Points) -> None:
    """Writes the points of the record at a path beside it, whole or not at all."""
    tensors = {"plane": points.plane, "label": points.label}
    write_tensors(points_path(record), tensors, {"class_names": json.dumps(points.class_names)})


def read_points(record: Path) -> Points:
    """Reads the points of the record at a path.

    Raises:
        ValueError: if the file is not there, or cannot be read.
    """
    path, remedy = points_path(record), "run the evaluation again"
    if not path.is_file():
        raise ValueError(f"{path} does not exist; {remedy}")
    tensors, notes = read_tensors(path, remedy)
    try:
        names = tuple(map(str, json.loads(notes["class_names"])))
        points = Points(tensors["plane"], tensors["label"], names)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} has no points of ser-fit; {remedy}") from error
    return points
