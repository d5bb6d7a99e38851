"""What a checkpoint holds besides its tensors, read in a moment and without torch."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

from ser_lightning.checkpoints import load_checkpoint
from ser_lightning.damage import damage, is_archive


class _Left(dict[Any, Any]):
    """Stands in the place of whatever is no plain value; it does nothing."""

    def __init__(self, *_: Any) -> None:
        super().__init__()

    def __setstate__(self, _: Any) -> None:
        """Forgets the state."""


class _PlainUnpickler(pickle.Unpickler):
    """Builds plain values alone: no name in the file is looked up, so nothing can be called."""

    def find_class(self, module: str, name: str) -> type[_Left]:
        return _Left

    def persistent_load(self, pid: Any) -> None:
        """A tensor's numbers, which are left in the file."""


def plain_contents(path: Path) -> dict[str, Any]:
    """The plain values of a checkpoint; in the place of a tensor there is an empty dict.

    Raises:
        FileNotFoundError: as `load_checkpoint`.
        UnsafeCheckpointError: as `load_checkpoint`.
    """
    if path.is_file() and is_archive(path) and not damage(path, with_tensors=False):
        try:
            with zipfile.ZipFile(path) as archive:
                (name,) = (n for n in archive.namelist() if n.endswith("/data.pkl"))
                with archive.open(name) as stream:
                    content = _PlainUnpickler(stream).load()
        except Exception:  # a foreign file may make the reader raise anything; torch says what
            content = None
        if isinstance(content, dict) and not isinstance(content, _Left):
            return content
    return load_checkpoint(path, map_location="cpu", mmap=True)
