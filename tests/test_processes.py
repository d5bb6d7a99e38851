"""Workers leave signals to the process that started them, and end with it."""

import multiprocessing
import os
import signal
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import Dataset

from ser_lightning.data.loaders import step_loader
from ser_lightning.data.plan import BatchKey
from ser_lightning.processes import is_running, signals_held

SECONDS = 10  # in which a process must be gone
KEPT = []  # what a script's names hold until Python ends


class Large(Dataset):
    """Batches larger than a pipe holds, so that a worker waits until they are taken."""

    def __len__(self):
        return 50

    def __getitem__(self, key):
        return np.zeros(1_000_000)


def batches():
    return iter(step_loader(Large(), 50, lambda: BatchKey(0, 0), num_workers=2))


def take_one(connection, seconds):
    """What a script does that takes one batch and ends."""
    KEPT.append(batches())
    next(KEPT[0])
    connection.send([child.pid for child in multiprocessing.active_children()])
    time.sleep(seconds)


@contextmanager
def started(seconds):
    """A process that has taken a batch and goes on for a while, and its workers' ids."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=take_one, args=(theirs, seconds))
    process.start()
    assert ours.poll(60)
    workers = ours.recv()
    assert len(workers) == 2
    try:
        yield process, workers
    finally:
        for pid in filter(is_running, (process.pid, *workers)):
            os.kill(pid, signal.SIGKILL)
        process.join()


def assert_end(*pids):
    deadline = time.monotonic() + SECONDS
    while any(map(is_running, pids)):
        assert time.monotonic() < deadline, "a process was left behind"
        time.sleep(0.05)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
class TestOnLinux:
    def test_workers_end_with_a_killed_parent(self):
        with started(seconds=600) as (process, workers):
            process.kill()
            assert_end(*workers)

    def test_process_with_an_unfinished_iterator_ends(self):
        with started(seconds=0) as (process, workers):
            assert_end(process.pid, *workers)
            process.join()
            assert process.exitcode == 0


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="nothing can be held back")
def test_signals_wait_until_workers_have_started():
    seen = []
    before = signal.signal(signal.SIGUSR1, lambda *_: seen.append("handled"))
    try:
        with signals_held():
            signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
            seen.append("started")
        assert seen == ["started", "handled"]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_workers_leave_signals_to_their_parent():
    before = {child.pid for child in multiprocessing.active_children()}
    iterator = batches()
    next(iterator)
    for child in multiprocessing.active_children():
        if child.pid not in before:
            os.kill(child.pid, signal.SIGTERM)
            os.kill(child.pid, signal.SIGINT)
    assert sum(1 for _ in iterator) == 49
