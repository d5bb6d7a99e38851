"""Files and folders that appear whole or not at all, and what names their content."""

import glob
import hashlib
import json
import os
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ser_lightning.processes import is_running

PARTIAL = ".partial"


def with_home(value: Any) -> Any:
    """Writes the home folder out in every path, "~/x", of a structure of plain values."""
    if isinstance(value, list):
        return [with_home(entry) for entry in value]
    if isinstance(value, dict):
        return {key: with_home(entry) for key, entry in value.items()}
    is_path = isinstance(value, str) and value.startswith("~")
    return os.path.expanduser(value) if is_path else value


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        ValueError: it is no text in UTF-8; names the file.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is no text in UTF-8 (byte {error.start}); save it as UTF-8, or give another "
            "file"
        ) from error


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file; empty where there is none, or none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def folders_below(folder: Path) -> Iterator[Path]:
    """A folder and those in it, also behind links, each once, by name."""
    seen = set()
    for base, inner, _ in os.walk(folder, followlinks=True):
        if (place := os.path.realpath(base)) in seen:  # by another name, or a link to one above
            inner.clear()
            continue
        seen.add(place)
        inner.sort()
        yield Path(base)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path in the same folder, and renames it to `path` on success.

    File and folder are flushed to disk. On any error the temporary file is removed, and an old
    file at `path` stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / f".{path.name}.{uuid.uuid4().hex}{PARTIAL}"
    try:
        yield partial
        _flush(partial)
        partial.replace(path)
        _flush(path.parent)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename == str(partial):
            error.filename = str(path)  # the name that was asked for
        raise


def write_text(path: Path, text: str) -> None:
    """Writes a text in UTF-8, whole or not at all."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def keep_as(path: Path, other: Path) -> None:
    """Gives a file a further name, in place of what had it; `path` is there at every moment.

    Without effect where there is no such file. Where links cannot be made, it is copied.
    """
    if not path.is_file() or (other.exists() and other.samefile(path)):
        return
    with atomic_path(other) as partial:
        try:
            os.link(path, partial)
        except OSError:
            shutil.copyfile(path, partial)


def sweep(folder: Path) -> None:
    """Removes what killed processes left half-written in a folder."""
    for partial in folder.glob(f".*{PARTIAL}"):
        partial.unlink(missing_ok=True)


def new_folder(parent: Path, name: str = "") -> Path:
    """A new folder to fill, named after this process; those that killed ones left are removed.

    Where `parent` is a folder of others too, `name` says how ours begin.
    """
    host, pid = socket.gethostname(), os.getpid()
    for old in parent.glob(f"{glob.escape(name)}*{PARTIAL}"):
        *_, of_host, of_pid, _ = ("", "", *old.name.rsplit(".", 3))
        if not of_pid.isdecimal() or (of_host == _label(host) and not is_running(int(of_pid))):
            shutil.rmtree(old, ignore_errors=True)
    folder = parent / f"{name}{uuid.uuid4().hex}.{_label(host)}.{pid}{PARTIAL}"
    folder.mkdir(parents=True)
    return folder


def put_in_place(folder: Path, final: Path) -> None:
    """Renames a filled folder; where another process has put its own there, that one stays."""
    try:
        folder.rename(final)
    except OSError:
        if not final.is_dir():
            raise
        shutil.rmtree(folder, ignore_errors=True)


def _label(host: str) -> str:
    return host.replace(".", "-")


def file_sha256(path: Path) -> str:
    """SHA-256 of the file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
