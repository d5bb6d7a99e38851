"""How a command starts: what is set before it, and how an error ends it."""

import gc
import logging
import os
import shlex
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module, metadata
from pathlib import Path

from ser_lightning.files import atomic_path
from ser_lightning.memory import keep_freed_memory
from ser_lightning.processes import follow_launcher
from ser_lightning.runtime.configuration import options, with_home_folder

DEBUG = "--debug"
BUG_STATUS = 70  # EX_SOFTWARE of sysexits.h; a mistake ends with 1, or 2 while options are parsed

_NOISE = ("litlogger", "litmodels", "`weights_only` was not set")
_VERSIONS = ("ser-lightning", "torch", "torchvision", "lightning", "jsonargparse", "timm", "numpy")
_MAX_LINES = 20


def run(module: str, function: str, args: list[str]) -> None:
    """Runs a command's function of its arguments, and ends it in few words if it fails.

    A user's mistake becomes a sentence and status 1. Of a bug, in this package or in a user's own
    code, the traceback goes into a file, which is named, and the status is 70. With `--debug` among
    the arguments the traceback is shown.
    """
    follow_launcher()
    _quieten()
    keep_freed_memory()
    given = [with_home_folder(argument) for argument in args if argument != DEBUG]
    try:
        _check_text(given)
        gc.disable()  # what is imported stays, and to search it again and again takes a sixth
        command = getattr(import_module(module), function)
        gc.freeze()
        gc.enable()
        if torch := sys.modules.get("torch"):  # reports and tables need none
            torch.set_float32_matmul_precision("high")
        command(given)
    except KeyboardInterrupt:
        print("ser-fit: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # whoever reads what is printed has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        if DEBUG in args:
            raise
        _end(error, [function.replace("_", "-"), *given])


def _check_text(arguments: Sequence[str]) -> None:
    """Refuses names of files that no configuration and no record can hold."""
    unfit = [text for text in arguments if text != text.encode(errors="replace").decode()]
    if unfit:
        raise ValueError(
            f"{unfit[0]!r} has bytes that are no UTF-8, which no configuration can hold; "
            "rename it, or give a link to it: ln -s FOLDER NAME"
        )


def _end(error: Exception, command: Sequence[str]) -> None:
    """Says what went wrong, and exits."""
    run_dir = Path((options(list(command), "--run_dir") or ["."])[-1])
    from ser_lightning.runtime.mistakes import (  # noqa: PLC0415 - it knows libraries' errors
        sentence,
        users_line,
    )

    text = sentence(error, run_dir)
    if text is not None:
        lines = text.splitlines()
        lines[_MAX_LINES:] = ["..."] if len(lines) > _MAX_LINES else []
        sys.exit("ser-fit: error: " + "\n".join(lines))
    path = _report(error, command, run_dir)
    what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    own = users_line(error)
    whose = f"error in {own}, of your own code" if own else "internal error, not a mistake of yours"
    print(
        f"ser-fit: {whose}: {what}\n"
        f"  traceback, versions and command are in {path}; {DEBUG} shows the traceback",
        file=sys.stderr,
    )
    sys.exit(BUG_STATUS)


def _report(error: Exception, command: Sequence[str], run_dir: Path) -> Path:
    """Writes what helps to find a bug: into the run's folder, or else the first that takes it."""
    versions = [f"{name} {metadata.version(name)}" for name in _VERSIONS]
    text = "\n".join(
        [
            f"command: {shlex.join(['ser-fit', *command])}",
            f"versions: python {sys.version.split()[0]}, {', '.join(versions)}, {sys.platform}",
            "",
            "".join(traceback.format_exception(error)),
        ]
    )
    name = f"error-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    folders = [folder for folder in (run_dir, Path()) if folder.is_dir()]
    for path in (folder / name for folder in (*folders, Path(tempfile.gettempdir()))):
        with suppress(OSError), atomic_path(path) as partial:
            partial.write_text(text, encoding="utf-8", errors="backslashreplace")
        if path.is_file():
            return path
    print(text, file=sys.stderr)
    return Path("the lines above")


def _quieten() -> None:
    """Drops messages that say nothing about the run."""
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*is not supported by the model summary.*")
    # steps are counted through epochs, so that short ones are logged as well
    warnings.filterwarnings("ignore", message=".*is smaller than the logging interval.*")
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch"):
        logging.getLogger(name).addFilter(
            lambda record: not any(part in record.getMessage() for part in _NOISE)
        )
