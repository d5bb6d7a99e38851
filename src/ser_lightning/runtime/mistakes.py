"""Whose fault an error is: a user's mistake becomes a sentence, a bug keeps its traceback.

A mistake is told by type and by where it was raised: settings and files, whoever complains about
them; and a complaint that this package, or a library that checks settings, states by a `raise`. An
error that happens to a statement, such as an index out of range, is a bug, whatever its type.

`launch.py` prints and exits; options that do not parse are put into words by `parser.py`.
"""

import errno
import os
import re
import shutil
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import lightning as L
import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException

from ser_lightning.runtime.parser import innermost

_OURS = Path(__file__).parents[1]
_SITE = Path(L.__file__).parents[1]
_PARSER = _SITE / "jsonargparse"
_LIGHTNING = _SITE / "lightning"
_LIBRARIES = (
    _SITE,
    *(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
)
_CHECK_SETTINGS = (  # where what is stated is about the user's settings, whatever its type
    _PARSER,
    *(_SITE / name for name in ("timm", "torchvision", "torch/optim")),
    *(
        _LIGHTNING / "pytorch" / name
        for name in ("callbacks", "loggers", "plugins", "profilers", "strategies")
    ),
    *(_LIGHTNING / "pytorch" / "trainer" / name for name in ("connectors", "setup.py")),
    *(_LIGHTNING / "fabric" / name for name in ("accelerators", "plugins", "strategies")),
)
_CHECK_VALUES = (_LIGHTNING, _SITE / "torch" / "utils" / "data")  # where a ValueError is
_EXTRAS = {
    "av": "'ser-lightning[imagenet-p]'",
    "faster_coco_eval": "'ser-lightning[coco]'",
    "sklearn": "'ser-lightning[latent]'",
    "onnx": "'ser-lightning[export]'",
    "onnxscript": "'ser-lightning[export]'",
    "pyarrow": "'ser-lightning[parquet]'",
    "rich": "'ser-lightning[rich]'",
    "wandb": "'ser-lightning[wandb]'",
}
_NO_MEMORY = re.compile(
    r"can't allocate memory|out of memory|Storage size calculation overflowed|"
    r"Invalid buffer size|not enough memory|Unable to allocate|STATUS_ALLOC_FAILED"
)
_DEVICE = {  # what torch says of a device, other processes, or an optimizer: what to do
    r"does not have a deterministic implementation": "trainer.deterministic true: a step has such "
    "an operation; use --trainer.deterministic warn",
    r"no kernel image is available": "this torch is not made for this GPU; install one that is, or "
    "give --config configs/trainer/cpu.yaml",
    r"unhandled system error|remote process exited|Connection (closed|reset) by peer": "a process "
    "of the run does not answer; what ended it is among the lines of the others, or the network "
    "between them is down (NCCL_DEBUG=INFO tells more)",
    r"EADDRINUSE|address already in use": "another process, perhaps another run, has this port; "
    "give MASTER_PORT another number, or unset it",
    r"Expected to have finished reduction in the prior iteration": "a parameter had no part in the "
    "loss; use it, freeze it (requires_grad False), or give --trainer.strategy "
    "ddp_find_unused_parameters_true",
    r"Muon only supports 2D parameters": "use --model.optimizer timm.optim.Muon, which trains the "
    "others by AdamW, or torch.optim.AdamW for all",
}
_HALF_WRITTEN = re.compile(r"unexpected pos|PytorchStreamWriter failed|basic_ios::clear")
_PLACE = re.compile(r'^\s*File "(.+)", line (\d+), in .*\n\s*(.*)$', re.MULTILINE)
_IN_WORKER = "Original Traceback (most recent call last)"
_LAST_WORDS = re.compile(r"^(?:[\w.]+)(?:: |$)", re.MULTILINE)

_PROGRAM = {errno.EBADF, errno.EFAULT, errno.EINVAL, errno.ENOTTY}  # no path of a user's does that
_FILES = {
    errno.ENOENT: "does not exist; give another path",
    errno.EISDIR: "is a folder; give a file",
    errno.ENOTDIR: "cannot be there: a part of the path is a file; give another path",
    errno.EEXIST: "exists and is no folder; give another path",
    errno.ENAMETOOLONG: "is too long a name; give a shorter one",
    errno.EACCES: "may not be read or written by you; change its permissions, or give another path",
    errno.EPERM: "may not be changed by you; change its permissions, or give another path",
    errno.EROFS: "lies on a disk that cannot be written; give another path",
    errno.ENOSPC: "cannot be written: the disk is full; free some space, or give another path",
    errno.EDQUOT: "cannot be written: your quota is used up; free some space",
    errno.EFBIG: "cannot be written: files may not be that large there; raise the limit",
    errno.EMFILE: "cannot be opened: too many files are open; raise the limit (ulimit -n)",
    errno.ELOOP: "is a link to itself; give another path",
}


class _Origin(NamedTuple):
    """The file, if known, that raised an error, and whether by a `raise`: nothing broke."""

    file: Path
    is_stated: bool


def sentence(error: BaseException, run_dir: Path | None = None) -> str | None:
    """What the user, or whoever looks after the machine, can mend, in words; None for a bug.

    Of an error perhaps wrapped by a library. The run's folder is for what is said about full disks.
    """
    chain = list(_chain(error))
    # The parser wraps whatever the constructor of a class raises, which decides.
    for each in [each for each in chain if not _is_parsers(each)] or chain[:1]:
        text = _of_machine(each, run_dir) or _of_file(each) or _of_setting(each)
        if text is not None:
            return text
    return None


def users_line(error: BaseException) -> str | None:
    """The line of a user's own code in which an error arose; None if it arose in this package.

    What libraries do is done for the code that calls them.
    """
    for each in reversed(list(_chain(error))):
        for name, number, _ in reversed(_frames(each)):
            file = Path(name)
            if file.is_relative_to(_OURS):
                return None
            if file.is_file() and not any(map(file.is_relative_to, _LIBRARIES)):
                return f"{_short(name)}, line {number}"
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it was raised from.

    What it was raised during counts for torch only, which says that a file is broken after the
    write has failed: otherwise a bug in a handler of mistakes would look like the mistake.
    """
    while error is not None:
        yield error
        is_torchs = _HALF_WRITTEN.search(str(error)) is not None
        error = error.__cause__ or (error.__context__ if is_torchs else None)


def _is_parsers(error: BaseException) -> bool:
    """Whether the parser of options and configurations raised it."""
    return _origin(error).file.is_relative_to(_PARSER)


def _of_machine(error: BaseException, run_dir: Path | None) -> str | None:
    """Memory, processes and disks that are at an end."""
    text = str(error)
    is_memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
    if is_memory or (isinstance(error, RuntimeError | OverflowError) and _NO_MEMORY.search(text)):
        reason = next(iter(text.strip().splitlines()), "")[-200:]
        return (
            f"the memory does not suffice{f' ({reason})' if reason else ''}; lower "
            "data.global_batch_size, the sizes of model and views, or data.num_workers"
        )
    for pattern, remedy in _DEVICE.items() if isinstance(error, RuntimeError | ValueError) else ():
        if re.search(pattern, text):
            return f"{' '.join(text.split())[:400]}: {remedy}"
    if isinstance(error, RuntimeError) and _HALF_WRITTEN.search(text):
        if isinstance(error.__context__, OSError):
            return None  # which is next
        place = run_dir if run_dir is not None and run_dir.is_dir() else Path()
        left = shutil.disk_usage(place).free / 2**20
        return (
            f"a file in {place} could not be written whole, where {left:,.1f} MiB are free: the "
            "disk is full, or a limit on files is reached; free some space, and go on with "
            "--ckpt_path last"
        )
    return None


def _of_file(error: BaseException) -> str | None:
    """Files, folders, connections: what the operating system refused."""
    if not isinstance(error, OSError) or error.errno in _PROGRAM:
        return None
    if error.errno is None:  # stated by a library, or by us
        return _words(error)
    names = [name for name in (error.filename, error.filename2) if name is not None]
    files = [os.fsdecode(name) if isinstance(name, bytes) else str(name) for name in names]
    place = _short(files[0]) if files else "a file"
    if error.errno in _FILES:
        return f"{place} {_FILES[error.errno]}"
    return f"{error.strerror or 'error'}{f': {place}' if files else ''}"


def _of_setting(error: BaseException) -> str | None:
    """Values that were given, and packages that are asked for but not there."""
    if isinstance(error, ModuleNotFoundError) and (text := _missing_package(error)):
        return text
    if "argument after ** must be a mapping" in str(error):
        return "a section is a single value in place of options; write these, or leave it out"
    if isinstance(error, UnicodeDecodeError):
        return f"a file is no text in UTF-8 ({error.reason} at byte {error.start})"
    if isinstance(error, MisconfigurationException | yaml.YAMLError):
        return _words(error)
    kind, (file, is_stated) = type(error), _origin(error)
    if kind.__module__.startswith("ser_lightning.") and not kind.__name__.startswith("_"):
        return _words(error)
    places = _CHECK_SETTINGS
    if isinstance(error, ValueError | ImportError):
        places += (_OURS, *_CHECK_VALUES)
    return _words(error) if is_stated and any(map(file.is_relative_to, places)) else None


def _origin(error: BaseException) -> _Origin:
    """Where it was raised; of an error in a loader's worker, in that process."""
    file, _, line = (_frames(error) or [("", "", "")])[-1]
    return _Origin(Path(file), re.match(r"raise\b", line.strip()) is not None)


def _frames(error: BaseException) -> list[tuple[str, str, str]]:
    """File, number and text of the lines that led to an error, the last of which raised it."""
    if _IN_WORKER in str(error):
        return _PLACE.findall(str(error).partition(_IN_WORKER)[2])
    frames = traceback.extract_tb(error.__traceback__)
    return [(frame.filename, str(frame.lineno), frame.line or "") for frame in frames]


def _words(error: BaseException) -> str:
    """The error's own words; an error in a loader's worker puts a traceback before them."""
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error).strip()
    text = text or type(error).__name__
    if _IN_WORKER in text:
        starts = [found.end() for found in _LAST_WORDS.finditer(text)]
        text = text[starts[-1] :] if starts else text.splitlines()[-1]
    return "\n  ".join(innermost(text)) if _is_parsers(error) else text


def _missing_package(error: ModuleNotFoundError) -> str | None:
    """Which package is to be installed; None for a module of this package's own."""
    name = (error.name or "").partition(".")[0]
    if name == "ser_lightning":
        return None
    if name:
        package = _EXTRAS.get(name, name)
        return f"the package {name} is asked for but not installed; pip install {package}"
    return _words(error) if _origin(error).is_stated else None


def _short(path: str) -> str:
    """A path that fits on a screen."""
    return path if len(path) <= 120 else f"{path[:60]}...{path[-40:]}"
