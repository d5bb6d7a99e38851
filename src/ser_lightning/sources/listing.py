"""The image files below a folder, each once, and an index that saves looking for them again."""

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from ser_lightning.files import write_text
from ser_lightning.sources.decode import EXTENSIONS

MIN_INDEXED = 1_000
"""Fewer images are listed faster than an index is kept."""

_FORMAT = 2
_SETTLED = 2 * 10**9  # a folder that changed within so many nanoseconds may change unnoticed
_SYSTEM_FOLDERS = {
    *("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"),
}
_UNTIMED = -1


class Listing(NamedTuple):
    """(N,) bytes: sorted images, relative to a folder; and how much is none, by reason."""

    paths: np.ndarray
    left_out: Counter[str]


class _Folder(NamedTuple):
    """What lies directly in one folder; paths are relative to the root.

    Attributes:
        time: when it was last changed, in nanoseconds; -1 if that may still be going on.
        folders: folders in it.
        links: links to folders in it.
        left_out: as in `Listing`.
        images: sorted.
        inodes: numbers of their files.
        linked: whether their files lie elsewhere.
    """

    time: int
    folders: list[str]
    links: list[str]
    left_out: dict[str, int]
    images: list[str]
    inodes: list[int]
    linked: list[bool]


def cache_folder() -> Path:
    """Where indexes are kept: $SER_LIGHTNING_CACHE, or ser-lightning in the user's cache folder."""
    if own := os.environ.get("SER_LIGHTNING_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ser-lightning"


def absent(paths: Sequence[str]) -> list[str]:
    """The paths that do not exist, by one look into each of their folders."""
    names: dict[str, set[str]] = {}
    for folder in {os.path.dirname(path) for path in paths}:
        with suppress(OSError):
            names[folder] = {*os.listdir(folder)}
    unlisted = [p for p in paths if os.path.basename(p) not in names.get(os.path.dirname(p), ())]
    return [p for p in unlisted if not os.path.exists(p)]  # disks may tell names apart otherwise


def list_images(
    root: Path, extensions: Sequence[str] = EXTENSIONS, distinct: bool = True
) -> Listing:
    """Lists the images below a folder.

    Hidden folders and files and those of operating systems are left out. Links are followed, but
    no folder and no file is listed twice: not through a link to a parent folder, nor under the
    names of two links; the file's own place goes first, then the first name in order. Where files
    need not be `distinct`, they are listed by all of their names.

    An index of 1,000 images and more is kept in `cache_folder()`. Folders that were not changed
    since are not read again.

    Raises:
        ValueError: names have backslashes, which stood for folders where they come from.
    """
    key = hashlib.sha256(repr((_FORMAT, str(root.resolve()), extensions)).encode()).hexdigest()
    index = cache_folder() / "listings" / f"{key[:32]}.json"
    known = _load(index)
    found, left_out = _walk(root, known, extensions)
    folders = found.values()
    names = chain.from_iterable(folder.images for folder in folders)
    paths = np.array(list(map(os.fsencode, names)), dtype=np.bytes_)
    inodes = np.array(list(chain.from_iterable(f.inodes for f in folders)), dtype=np.uint64)
    linked = np.array(list(chain.from_iterable(f.linked for f in folders)), dtype=bool)
    if b"\\" in paths.tobytes():
        _refuse_backslashes(root, paths)
    if len(paths) >= MIN_INDEXED and any(found[path] is not known.get(path) for path in found):
        _save(index, found)
    for folder in folders:
        left_out.update(folder.left_out)
    repeated = _repeated(root, paths, inodes, linked) if distinct else []
    if repeated:
        left_out["further names of the same image"] = len(repeated)
    return Listing(np.sort(np.delete(paths, repeated), kind="stable"), left_out)


def _refuse_backslashes(root: Path, paths: np.ndarray) -> None:
    wrong = [path for path in paths.tolist() if b"\\" in os.path.basename(path)]
    if wrong:
        raise ValueError(
            f"{os.fsdecode(wrong[0])} in {root} has backslashes in its name, as where an archive "
            "made on Windows lost its folders; unpack it by unzip or 7z, or rename the file"
        )


def _walk(
    root: Path, known: dict[str, _Folder], extensions: Sequence[str]
) -> tuple[dict[str, _Folder], Counter[str]]:
    """Visits every folder once: first those in their own place, then those behind links."""
    seen = {_identity(os.stat(parent), str(parent)) for parent in root.resolve().parents}
    found: dict[str, _Folder] = {}
    left_out: Counter[str] = Counter()
    folders, links = [""], list[str]()
    while folders or links:
        relative = folders.pop() if folders else links.pop(0)
        path = os.path.join(root, relative)
        state = os.stat(path)
        identity = _identity(state, path)
        if identity in seen:
            left_out["links to folders that are read already"] += 1
            continue
        seen.add(identity)
        folder = known.get(relative)
        if folder is None or folder.time != state.st_mtime_ns:
            is_settled = state.st_mtime_ns < time.time_ns() - _SETTLED
            changed = state.st_mtime_ns if is_settled else _UNTIMED
            folder = _read_folder(path, relative, changed, extensions)
        found[relative] = folder
        folders += reversed(folder.folders)
        if folder.links:
            links = sorted(links + folder.links)
    return found, left_out


def _read_folder(path: str, relative: str, changed: int, extensions: Sequence[str]) -> _Folder:
    left_out: Counter[str] = Counter()
    folder = _Folder(changed, [], [], left_out, [], [], [])
    try:
        with os.scandir(path) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
    except PermissionError:
        left_out["folders without permission to read"] += 1
        return folder._replace(time=_UNTIMED)
    for entry in entries:
        place, is_link = os.path.join(relative, entry.name), entry.is_symlink()
        extension = os.path.splitext(entry.name)[1].lower()
        is_folder, is_file = _kind(entry)
        if is_folder:
            if is_system(entry.name):
                left_out[f"hidden or system folders {entry.name}"] += 1
            else:
                (folder.links if is_link else folder.folders).append(place)
        elif is_system(entry.name):
            left_out["hidden files"] += 1
        elif is_link and not is_file:
            left_out["broken links"] += 1
        elif extension not in extensions:
            left_out[f"files {extension}" if extension else "files without an extension"] += 1
        elif is_file:
            folder.images.append(place)
            folder.inodes.append(os.stat(entry.path).st_ino if is_link else entry.inode())
            folder.linked.append(is_link)
        else:
            left_out["devices and pipes"] += 1
    if left_out["broken links"]:  # whose targets come without a change of this folder
        return folder._replace(time=_UNTIMED)
    return folder


def is_system(name: str) -> bool:
    """Whether a folder or file is hidden, or an operating system's."""
    return name.startswith(".") or name in _SYSTEM_FOLDERS


def _kind(entry: os.DirEntry[str]) -> tuple[bool, bool]:
    """Whether it is, or leads to, a folder or a file; neither for a link that leads nowhere."""
    try:
        return entry.is_dir(), entry.is_file()
    except OSError:  # a link to itself, or into a folder without permission
        return False, False


def _identity(state: os.stat_result, path: str) -> tuple[int, int] | str:
    """What a file is whatever its name; some network drives number nothing."""
    return (state.st_dev, state.st_ino) if state.st_ino else os.path.realpath(path)


def _repeated(root: Path, paths: np.ndarray, inodes: np.ndarray, linked: np.ndarray) -> list[int]:
    """Positions of images that are listed under another name already."""
    order = np.argsort(inodes, kind="stable")
    same = np.diff(inodes[order]) == 0
    doubtful = np.union1d(order[1:][same], order[:-1][same])
    seen, repeated = set(), []
    for row in sorted(doubtful.tolist(), key=lambda row: (linked[row], paths[row])):
        path = os.path.join(root, os.fsdecode(paths[row]))
        with suppress(OSError):
            state = os.stat(path)
            identity = _identity(state, path)
            # Files of two drives may have the same number.
            if identity in seen and (linked[row] or state.st_nlink > 1):
                repeated.append(row)
            seen.add(identity)
    return repeated


def _save(index: Path, found: dict[str, _Folder]) -> None:
    try:
        write_text(index, json.dumps(found))
    except OSError as error:
        rank_zero_warn(
            f"the index of images is not kept ({error}), every start lists them anew; set "
            "SER_LIGHTNING_CACHE to a folder that can be written"
        )


def _load(index: Path) -> dict[str, _Folder]:
    """The folders of an index; none where it is missing or damaged."""
    try:
        return {path: _Folder(*rest) for path, rest in json.loads(index.read_bytes()).items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def left_out_line(found: Counter[str]) -> tuple[str, ...]:
    """What was left out by reason, as a line of a summary; none where nothing was."""
    kinds = [f"{reason}: {number:,}" for reason, number in found.most_common()]
    if len(kinds) > 12:
        kinds[11:] = [f"{len(kinds) - 11} more kinds"]
    return (f"left out: {', '.join(kinds)}",) if kinds else ()
