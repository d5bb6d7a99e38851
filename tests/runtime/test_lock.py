"""A folder has one run at a time; locks of processes that are gone hold nobody up."""

import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from ser_lightning.runtime import lock
from ser_lightning.runtime.lock import LOCK, FolderInUseError, locked


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(lock, "_PATIENCE", 0.3)
    monkeypatch.setattr(lock, "_BEAT", 0.05)


def written(folder, **changes):
    """A lock as this process would write it, but for some changes."""
    with locked(folder):
        owner = json.loads((folder / LOCK).read_text())
    (folder / LOCK).write_text(json.dumps(owner | changes))
    return folder / LOCK


def test_folder_in_use_is_refused_with_process_host_and_age(tmp_path):
    with locked(tmp_path):
        before = (tmp_path / LOCK).read_text()
        expected = rf"process {os.getpid()} on {socket.gethostname()}.* started 0 min \d s ago"
        with pytest.raises(FolderInUseError, match=expected), locked(tmp_path):
            pass
        assert (tmp_path / LOCK).read_text() == before
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path):
        pass


def test_new_folder_that_stays_empty_is_removed(tmp_path):
    with locked(tmp_path / "new" / "run"):
        assert (tmp_path / "new" / "run").is_dir()
    assert list(tmp_path.iterdir()) == []


def test_lock_of_a_process_that_is_gone_is_taken_over(tmp_path):
    gone = subprocess.Popen([sys.executable, "-S", "-c", ""])
    gone.wait()
    path = written(tmp_path, process=gone.pid)
    with locked(tmp_path):
        assert json.loads(path.read_text())["process"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks /proc for starts")
def test_lock_of_an_earlier_process_of_the_same_number_is_taken_over(tmp_path):
    written(tmp_path, start="1")
    with locked(tmp_path):
        pass


@pytest.mark.parametrize("content", ["", "[1]", '{"host": "here", "process": "x", "started": 0}'])
def test_unfinished_lock_is_taken_over(tmp_path, impatient, content):
    (tmp_path / LOCK).write_text(content)
    with locked(tmp_path):
        pass


def test_owner_whose_start_is_not_known_is_watched(tmp_path, impatient, monkeypatch):
    written(tmp_path)
    monkeypatch.setattr(lock, "start_of", lambda pid: "")  # as elsewhere than on Linux
    with locked(tmp_path):
        pass


def test_silent_lock_of_another_machine_is_taken_over(tmp_path, impatient):
    written(tmp_path, host="elsewhere")
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["host"] == socket.gethostname()


def test_lock_of_another_machine_that_is_renewed_holds(tmp_path, impatient):
    path = written(tmp_path, host="elsewhere")
    stop = threading.Event()
    beat = threading.Thread(target=lock._beat, args=(path, stop))
    beat.start()
    try:
        with pytest.raises(FolderInUseError, match="on elsewhere"), locked(tmp_path):
            pass
    finally:
        stop.set()
        beat.join()
    assert json.loads(path.read_text())["host"] == "elsewhere"


def test_lock_is_renewed_while_it_is_held(tmp_path, impatient):
    with locked(tmp_path):
        first = (tmp_path / LOCK).stat().st_mtime_ns
        deadline = time.monotonic() + 5
        while (tmp_path / LOCK).stat().st_mtime_ns == first:
            assert time.monotonic() < deadline
            time.sleep(0.02)
