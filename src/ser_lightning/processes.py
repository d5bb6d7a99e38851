"""Processes: those that a run starts leave signals to it, and end with it, however it ends."""

import atexit
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.util import Finalize
from pathlib import Path

STOPPING = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)
)
"""The signals that ask a run to stop; Windows has no SIGUSR1."""

_LAUNCHER = "SER_FIT_LAUNCHER"
_is_launched = False
_POLL = 0.5  # seconds between two looks at the parent


class Leash:
    """Ties worker processes to the one that starts them; it is their first function to call.

    Cluster managers and terminals signal whole groups of processes, but a training process needs
    its workers until it has saved: they ignore signals. Instead they look whether their parent is
    there. One that was killed takes them with it, even where they wait to hand over a batch; one
    that ends by itself says so before it waits for them.
    """

    def __init__(self) -> None:
        self._is_over = multiprocessing.RawValue("b", 0)  # without a lock that a kill could hold
        self._holder = -1

    def __call__(self, worker: int) -> None:
        """Ties this worker process."""
        for number in STOPPING:
            signal.signal(number, signal.SIG_IGN)
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
        end_with_parent(lambda: bool(self._is_over.value))

    def hold(self) -> None:
        """Lets the workers go when this process, which has just started them, ends."""
        if self._holder != os.getpid():
            self._holder = os.getpid()
            let_go = Finalize(self, setattr, (self._is_over, "value", 1), exitpriority=0)
            atexit.register(let_go)  # what is registered last is called first: before torch waits


def follow_launcher() -> None:
    """Ends with the ser-fit that has started this process, as a rank or a part of it.

    Raises:
        SystemExit: it was gone before this rank began.
    """
    global _is_launched  # noqa: PLW0603 - what the process is
    launcher, rank = os.environ.get(_LAUNCHER), os.environ.get("LOCAL_RANK", "0")
    _is_launched = launcher == str(os.getppid())
    if _is_launched:
        end_with_parent()
    elif launcher and rank.isdecimal() and int(rank) > 0:
        raise SystemExit(f"ser-fit: process {launcher}, which started this rank, is gone")
    os.environ[_LAUNCHER] = str(os.getpid())


def is_launched() -> bool:
    """Whether another ser-fit has started this process."""
    return _is_launched


def is_running(pid: int) -> bool:
    """Whether this machine has a process of that number that is not over; unknown on Windows."""
    state = _state(pid)
    if state is not None:
        return state[0] not in "ZX"
    if Path("/proc/self/stat").exists():
        return False
    if sys.platform == "win32":
        return True  # asking by a signal would end it
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def start_of(pid: int) -> str:
    """When a process started, in the system's own count; tells two of one number apart."""
    state = _state(pid)
    return "" if state is None else state[19]


def _state(pid: int) -> list[str] | None:
    """The fields of Linux' /proc/<pid>/stat after the name; None elsewhere or without it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, UnicodeDecodeError):
        return None


def end_with_parent(is_over: Callable[[], bool] = lambda: False) -> None:
    """Lets this process end, whatever it is doing, once its parent has or `is_over` says so."""
    parent, process = os.getppid(), multiprocessing.parent_process()

    def watch() -> None:
        while os.getppid() == parent and not is_over():
            if process is not None and not process.is_alive():
                break  # it was gone before this process looked
            time.sleep(_POLL)
        os._exit(0)

    threading.Thread(target=watch, name="watch-parent", daemon=True).start()


@contextmanager
def signals_held() -> Iterator[None]:
    """Holds back the signals of `STOPPING`; processes that start meanwhile are born deaf."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
