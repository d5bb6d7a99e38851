"""Files of embeddings: safetensors, npz and parquet, each whole or not at all."""

import json
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save_file

from ser_lightning.files import atomic_path

_ROWS = 1024  # of a row group of a parquet file, so that few are in memory
_MOST_NOTES = 90_000_000  # bytes of texts; safetensors takes 100 million


class Embedded(NamedTuple):
    """What is written; everything has one entry per image.

    Attributes:
        names: of the images.
        labels: (N,) int64 classes, -1 for none; None where no image has one.
        class_names: by label.
        arrays: float32, by name: "embedding" (N, C), "tokens_3" (N, C, h, w).
        about: how they were made, in plain values.
    """

    names: Sequence[str]
    labels: np.ndarray | None
    class_names: Sequence[str]
    arrays: dict[str, np.ndarray]
    about: dict[str, Any]


def writer_of(path: Path) -> Callable[[Path, Embedded], None]:
    """What writes a file of that name.

    Raises:
        ValueError: nothing does.
        ModuleNotFoundError: it needs a package that is missing.
    """
    writer = _WRITERS.get(path.suffix)
    if writer is None:
        known = ", ".join(_WRITERS)
        raise ValueError(
            f"--output {path}: no format is known by the ending {path.suffix!r}; end it in one of "
            f"{known}"
        )
    if writer is _write_parquet:
        import_module("pyarrow.parquet")
    return writer


def require_room_for_names(path: Path, names: Sequence[str]) -> None:
    """Refuses more names than safetensors takes; they are its notes."""
    size = len(json.dumps(names)) if path.suffix == ".safetensors" else 0
    if size > _MOST_NOTES:
        raise ValueError(
            f"{len(names):,} names take {size:,} bytes, and a .safetensors file has room for "
            f"{_MOST_NOTES:,}; give --output FILE.npz or FILE.parquet"
        )


def _columns(table: Embedded) -> dict[str, np.ndarray]:
    labels = {} if table.labels is None else {"label": table.labels}
    return {**labels, **table.arrays}


def _write_safetensors(path: Path, table: Embedded) -> None:
    texts = {"names": table.names, "class_names": table.class_names, "about": table.about}
    notes = {key: json.dumps(value) for key, value in texts.items()}
    with atomic_path(path) as partial:
        save_file(_columns(table), partial, notes)


def _write_npz(path: Path, table: Embedded) -> None:
    texts = {"names": np.array(table.names), "class_names": np.array(table.class_names, dtype=str)}
    about = {"about": np.array(json.dumps(table.about))}
    arrays: dict[str, Any] = {**about, **texts, **_columns(table)}
    with atomic_path(path) as partial, partial.open("wb") as stream:
        np.savez(stream, **arrays)


def _write_parquet(path: Path, table: Embedded) -> None:
    arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    shapes = {name: array.shape[1:] for name, array in table.arrays.items()}
    about = {"about": json.dumps(table.about), "shapes": json.dumps(shapes)}
    with atomic_path(path) as partial:
        groups = _row_groups(arrow, table)
        first = next(groups).replace_schema_metadata(about)
        with parquet.ParquetWriter(partial, first.schema) as writer:
            writer.write_table(first)
            for group in groups:
                writer.write_table(group.replace_schema_metadata(about))


def _row_groups(arrow: Any, table: Embedded) -> Iterator[Any]:
    """The rows, some at a time; a row's numbers stand in a list, in the order of their shape."""
    for start in range(0, max(len(table.names), 1), _ROWS):
        rows = slice(start, start + _ROWS)
        columns = {"name": arrow.array(table.names[rows], arrow.string())}
        if table.labels is not None:
            columns["label"] = arrow.array(table.labels[rows])
            names = [
                table.class_names[label] if label >= 0 else None for label in table.labels[rows]
            ]
            columns["class"] = arrow.array(names, arrow.string())
        for name, array in table.arrays.items():
            flat = arrow.array(array[rows].reshape(-1))
            size = int(np.prod(array.shape[1:]))
            columns[name] = arrow.FixedSizeListArray.from_arrays(flat, size)
        yield arrow.table(columns)


_WRITERS: dict[str, Callable[[Path, Embedded], None]] = {
    ".safetensors": _write_safetensors,
    ".npz": _write_npz,
    ".parquet": _write_parquet,
}
