"""Files that appear whole or not at all, and what names their content."""

import hashlib
import os
import pickle
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint


class UnsafeCheckpointError(ValueError):
    """A checkpoint holds more than tensors and plain values; it was not loaded."""


def load_checkpoint(path: str | Path, **options: Any) -> dict[str, Any]:
    """Loads a checkpoint of tensors and plain values; nothing in it is executed.

    Raises:
        FileNotFoundError: there is no such file.
        UnsafeCheckpointError: the file would need arbitrary objects to be built, or is damaged.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    try:
        return torch.load(path, weights_only=True, **options)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise UnsafeCheckpointError(
            f"checkpoint {path} was not loaded: it is damaged, or holds objects other than "
            f"tensors and plain values, which could run foreign code ({_first_line(error)})"
        ) from error


def last_checkpoint(folder: Path) -> Path:
    """The path of the latest checkpoint in a folder of checkpoints."""
    return folder / f"{ModelCheckpoint.CHECKPOINT_NAME_LAST}{ModelCheckpoint.FILE_EXTENSION}"


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]


CHECKPOINT_KEY = "ser_lightning"


def checkpoint_config(path: Path) -> str | None:
    """The configuration text stored in a checkpoint; None if there is none."""
    record = load_checkpoint(path, map_location="cpu", mmap=True).get(CHECKPOINT_KEY, {})
    text: str | None = record.get("config")
    return text


PARTIAL = ".partial"


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path in the same folder, and renames it to `path` on success.

    File and folder are flushed to disk. On any error the temporary file is removed, and an old
    file at `path` stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(PARTIAL, f".{path.name}.", path.parent)
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        partial.chmod(0o666 & ~_umask())  # mkstemp's are private
        _flush(partial)
        partial.replace(path)
        _flush(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def sweep(folder: Path) -> None:
    """Removes what killed processes left half-written in a folder."""
    for partial in folder.glob(f".*{PARTIAL}"):
        partial.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    """Hashes a file's bytes, a megabyte at a time."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
