"""Embeddings on their way into a file: what is there survives a kill, and is gone on with."""

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ser_lightning.files import read_mapping, write_text
from ser_lightning.sealed import read_array

_SAVED_EVERY = 5.0  # seconds of work that a kill may cost
_ASKED = "asked.json"
_DONE = "done.json"
_ROWS = "positions"


class Unfinished:
    """Arrays in a folder beside the file to come, filled in order.

    Args:
        folder: theirs alone, locked by whoever uses it.
        asked: all that they depend on, in plain values; others than those of an earlier start
            begin afresh.
        num_images: to come.
        shapes: of one image's part of each array, by name.

    Attributes:
        done: images, from the first one on, that need not be read again.
        count: those of them that could be read, and have a row.

    Raises:
        ValueError: the disk has too little room.
    """

    def __init__(
        self, folder: Path, asked: Mapping[str, Any], num_images: int,
        shapes: Mapping[str, tuple[int, ...]],
    ) -> None:  # fmt: skip
        self.folder = folder
        self.done = self.count = 0
        self._saved = time.monotonic()
        if read_mapping(folder / _ASKED) == json.loads(json.dumps(asked)):
            state = read_mapping(folder / _DONE)
            self.done, self.count = state.get("done", 0), state.get("count", 0)
        if self.done == 0:
            self._begin(asked, num_images, shapes)
        remedy = f"remove {folder}, and it is computed again"
        self._arrays = {
            name: read_array(self._file(name), remedy, mmap_mode="r+") for name in (*shapes, _ROWS)
        }

    def put(self, done: int, positions: np.ndarray, parts: Mapping[str, np.ndarray]) -> None:
        """Keeps what was computed of the images after those that are done.

        Args:
            done: how many are done then.
            positions: (n,) of those among the new ones that could be read.
            parts: (n, ...) what was computed of them, by name of the array.
        """
        new = slice(self.count, self.count + len(positions))
        for name, rows in {**parts, _ROWS: positions}.items():
            self._arrays[name][new] = rows
        self.done, self.count = done, self.count + len(positions)
        if time.monotonic() - self._saved > _SAVED_EVERY:
            self.save()

    def save(self) -> None:
        """Writes what a later start goes on with: first the rows, then how many there are."""
        for array in self._arrays.values():
            array.flush()  # type: ignore[attr-defined]
        write_text(self.folder / _DONE, json.dumps({"done": self.done, "count": self.count}))
        self._saved = time.monotonic()

    def positions(self) -> np.ndarray:
        """(n,) int64 positions of the images that could be read, so far."""
        return self._arrays[_ROWS][: self.count]

    def arrays(self) -> dict[str, np.ndarray]:
        """The parts of these images, by name of the array."""
        return {n: array[: self.count] for n, array in self._arrays.items() if n != _ROWS}

    def remove(self) -> None:
        """Removes what the file has taken the place of."""
        self._arrays = {}
        shutil.rmtree(self.folder, ignore_errors=True)

    def _begin(
        self, asked: Mapping[str, Any], num_images: int, shapes: Mapping[str, tuple[int, ...]]
    ) -> None:
        (self.folder / _DONE).unlink(missing_ok=True)
        for old in self.folder.glob("*.npy"):
            old.unlink()
        needed = 4 * num_images * sum(int(np.prod(shape)) for shape in shapes.values())
        free = shutil.disk_usage(self.folder).free
        if 2 * needed > free:  # the arrays, and the file that is made of them
            raise ValueError(
                f"the embeddings take {2 * needed / 2**30:,.1f} GiB while they are written, and "
                f"{self.folder.parent} has {free / 2**30:,.1f} GiB left; free some space, give "
                "another --output, or fewer --layers"
            )
        for name, shape in {**shapes, _ROWS: ()}.items():
            rows, kind = (num_images, *shape), np.int64 if name == _ROWS else np.float32
            np.lib.format.open_memmap(self._file(name), "w+", kind, rows).flush()
        write_text(self.folder / _ASKED, json.dumps(asked))

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.npy"
