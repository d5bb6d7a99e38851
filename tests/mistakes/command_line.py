"""Runs a command line in this process, within limits, and says how it ended."""

import logging
import os
import re
import resource
import shlex
import signal
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from mistakes.files import LONG
from ser_lightning.cli import main

LIMIT = 300  # seconds that a command may take, on a machine that does other things too
MEMORY = 8 * 2**30  # bytes that it may add to what the process holds

TINY = Path(__file__).parents[1] / "tiny.yaml"


class TookTooLongError(BaseException):
    """A command ran out of time; no `except Exception` stops it."""


class Outcome(NamedTuple):
    """How a command ended.

    Attributes:
        kind: "works", "refused", "traceback" or "hang".
        status: its exit status.
        text: all that it printed, and for a traceback its lines.
    """

    kind: str
    status: int
    text: str


@contextmanager
def limits(seconds=LIMIT, memory=MEMORY):
    """Stops what takes too long or too much memory."""

    def stop(number, frame):
        raise TookTooLongError(f"took more than {seconds} s")

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    resource.setrlimit(resource.RLIMIT_AS, (held + memory, hard))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def outcome_of(args, capsys, seconds=LIMIT):
    """Runs `ser-fit` with these arguments; see `Outcome`."""
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    environment = dict(os.environ)
    kind, status, end = "works", 0, ""
    logging.raiseExceptions = False  # about streams of tests before, which handlers keep
    try:
        with limits(seconds):
            main(args)
    except TookTooLongError as error:
        kind, status, end = "hang", 124, str(error)
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        end = "" if isinstance(stop.code, int | None) else stop.code
        kind = "refused" if status else "works"
    except BaseException:
        kind, status, end = "traceback", 70, traceback.format_exc()
    finally:
        logging.raiseExceptions = True
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for name in set(os.environ) - set(environment):  # Lightning's, of a process group
            del os.environ[name]
        os.environ.update(environment)
    printed = capsys.readouterr()
    text = printed.out + printed.err + end
    if kind == "refused" and ("Traceback" in text or "internal error" in text):
        kind = "traceback"
    return Outcome(kind, status, text)


TINY_RUN = (
    f"--config {TINY} --run_dir runs/NUMBER --trainer.max_epochs 1 --model.warmup_epochs 0 "
    "--trainer.limit_train_batches 2"
)
_EVALUATE = "--checkpoint CKPT --trainer.accelerator cpu --data.num_workers 0"
WORDS = {
    "TINY_YAML": str(TINY),
    "TINY": TINY_RUN,
    "KNN": f"evaluate --config configs/eval/knn.yaml {_EVALUATE} --run_dir runs/NUMBER",
    "LINEAR": (
        f"evaluate --config configs/eval/linear.yaml --config configs/eval/small/linear.yaml "
        f"{_EVALUATE} --run_dir runs/NUMBER --trainer.max_epochs 1 --data.global_batch_size 16"
    ),
    "EMBED": "--device cpu --data.num_workers 0",
    "LONG": LONG,
}


def arguments(line, number, trained):
    """The arguments of a line of the table; a run has a folder of its own."""
    for word, meaning in WORDS.items():
        line = re.sub(rf"\b{word}\b", meaning.replace("NUMBER", str(number)), line)
    checkpoint = trained / "checkpoints" / "last.ckpt"
    line = line.replace("CKPT", str(checkpoint)).replace("TRAINED", str(trained))
    return shlex.split(line)
