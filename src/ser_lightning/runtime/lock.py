"""One run per folder: two that trained into one would overwrite each other's files."""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from ser_lightning.processes import is_running, start_of

LOCK = "run.lock"

_BEAT = 10.0  # seconds between two signs of life
_PATIENCE = 45.0  # seconds without one, after which a process of another machine is gone


class FolderInUseError(ValueError):
    """Another process trains into the folder."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other runs out of a folder, for as long as this one trains into it.

    The lock is a small file with machine, process and start. A process of this machine that is
    gone holds no lock. For one of another machine the file's time stands, which its owner renews:
    a file that does not change for 45 seconds is one of a process that was killed. It is watched,
    rather than compared with a clock, since two machines may have two times. A new folder that is
    empty at the end is removed.

    Raises:
        FolderInUseError: another run trains into the folder.
    """
    path = folder / LOCK
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    own = _owner()
    while not _taken(path, own):
        _refuse_if_held(path)
    stop = threading.Event()
    beat = threading.Thread(target=_beat, args=(path, stop), name="run-lock", daemon=True)
    beat.start()
    try:
        yield
    finally:
        stop.set()
        if _read(path) == own:
            path.unlink(missing_ok=True)
        for place in new:
            with suppress(OSError):  # it is in use
                place.rmdir()


def _owner() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "started": time.time(),
        "space": _process_space(),
        "start": start_of(os.getpid()),
    }


def _process_space() -> str:
    """Which processes the numbers are of: containers of one name count their own."""
    with suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""


def _taken(path: Path, own: dict[str, Any]) -> bool:
    """Writes the lock, unless there is one."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w") as file:
        json.dump(own, file)
    return True


def _read(path: Path) -> dict[str, Any] | None:
    """Whose lock it is; None where it is gone or not written out."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    kinds = {"host": str, "process": int, "started": int | float}
    is_whole = isinstance(found, dict) and all(
        isinstance(found.get(name), kind) for name, kind in kinds.items()
    )
    return found if is_whole else None


def _refuse_if_held(path: Path) -> None:
    """Removes the lock of a process that is gone; raises if it is there."""
    owner = _read(path)
    is_held = _may_be_there(owner)
    if is_held is None:
        is_held = _is_renewed(path, owner)
    if is_held:
        raise FolderInUseError(_refusal(path, owner))
    aside = path.with_name(f".{LOCK}.{uuid.uuid4().hex}.partial")
    with suppress(FileNotFoundError):
        path.rename(aside)  # not removed: another start may have put its own there meanwhile
        if _read(aside) != owner:
            with suppress(OSError):
                os.link(aside, path)
        elif owner is not None:
            rank_zero_info(f"{path.parent}: the lock of {_name(owner)}, which is gone, is removed")
        aside.unlink()


def _may_be_there(owner: dict[str, Any] | None) -> bool | None:
    """Whether a process of this machine is there; None where that cannot be known."""
    here = socket.gethostname(), _process_space()
    if owner is None or (owner["host"], owner.get("space")) != here:
        return None
    if not is_running(owner["process"]):
        return False
    start = start_of(owner["process"])
    return owner.get("start") == start if start else None


def _is_renewed(path: Path, owner: dict[str, Any] | None) -> bool:
    """Watches whether the owner gives a sign of life."""
    wait = _PATIENCE
    if owner is None:  # it takes no time to write one
        wait = min(wait, 1)
    else:
        head = f"{path.parent} is locked by {_name(owner)}"
        rank_zero_info(f"{head}: waiting {wait:.0f} s for a sign of life")
    first, deadline = _time(path), time.monotonic() + wait
    while time.monotonic() < deadline:
        if _time(path) != first:
            return first is not None and _time(path) is not None
        time.sleep(wait / 50)
    return False


def _time(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def _beat(path: Path, stop: threading.Event) -> None:
    while not stop.wait(_BEAT):
        with suppress(OSError):
            os.utime(path)


def _name(owner: dict[str, Any]) -> str:
    return f"process {owner['process']} on {owner['host']}"


def _refusal(path: Path, owner: dict[str, Any] | None) -> str:
    if owner is None:
        return f"{path.parent} is just being taken by another run; give another --run_dir"
    age = max(0, round(time.time() - owner["started"]))
    hours, minutes = divmod(age // 60, 60)
    since = f"{hours} h {minutes} min" if age >= 3600 else f"{minutes} min {age % 60} s"
    return (
        f"{path.parent} is being written by {_name(owner)}, which started {since} ago; wait for it "
        f"or stop it, or give another --run_dir"
    )
