"""Kills runs at random moments, goes on with them, and compares what they end with.

Run by `python -m studies.faults.kills [options]`. Every run is a real command line in a session of
its own; it is hit again and again, gone on with by the same command, and has to end with the same
bits as one that nobody touched, with no process left behind.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import torch

from ser_lightning.checkpoints import CHECKPOINT_FOLDER, last_checkpoint, load_checkpoint
from ser_lightning.reporting.tables import markdown_table
from studies.faults.moments import LOG

INTERVAL = 1  # steps between two checkpoints
TIME_TO_LEAVE = 60.0  # seconds from a signal to the end of the last process
HITS_PER_RUN = 4
MOMENTS = ("any", "workers", "step", "writing", "validation", "again")
"""Any time from its start on; while workers start; in a step; while a checkpoint is written; in a
validation; and before the resumed run has done a step."""
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
_STARTING = 4.0  # seconds in which a command imports, about


class Case(NamedTuple):
    """A kind of run.

    Attributes:
        name: in the table.
        options: of `ser-fit fit`, after `tests/tiny.yaml`.
    """

    name: str
    options: tuple[str, ...]


class Hit(NamedTuple):
    """What was done to a run, and what came of it.

    Attributes:
        moment: one of `MOMENTS`.
        number: the signal.
        to_all: whether all processes got it, or the first one alone.
        lost: steps that were done and had to be done again.
        seconds: from the signal to the end of the last process.
        left: processes that did not end.
        status: of the command.
    """

    moment: str
    number: int
    to_all: bool
    lost: int
    seconds: float
    left: int
    status: int


def _add_on(name: str, *options: str) -> tuple[str, ...]:
    return ("--model.regularizer", name, "--model.backbone.cls_layer", "0", *options)


_KINDS = {
    "MoCo-v3 + SER": (),
    "MoCo-v3": ("--model.regularizer", "null"),
    "MoCo-v3 + AugSelf": _add_on("AugSelf"),
    "MoCo-v3 + STL": _add_on("STL"),
    "MoCo-v3 + EquiMod": _add_on("EquiMod"),
    "MoCo-v3 + E-SSL": _add_on("ESSL", "--data.rotated.size", "8"),
    "MoCo-v3 + SER, 2+2 views": ("--data.crop.local.num", "2", "--data.crop.local.size", "8"),
    **{
        f"{name} + SER": ("--model", name)
        for name in ("DINO", "BarlowTwins", "BYOL", "SimCLR", "SimSiam", "VICReg")
    },
}
_TWO = ("--trainer.devices", "2", "--trainer.strategy", "ddp")
_WORKERS = ("--data.num_workers", "2")
_ACCUMULATE = ("--trainer.accumulate_grad_batches", "2")


def cases() -> list[Case]:
    """Every objective and add-on with and without workers, some with two processes."""
    found = []
    for number, (name, options) in enumerate(_KINDS.items()):
        found.append(Case(f"{name}, 2 workers", (*options, *_WORKERS)))
        other = (("2 processes", _TWO), ("accumulation", _ACCUMULATE), ("no workers", ()))
        word, more = other[number % len(other)]
        found.append(Case(f"{name}, {word}", (*options, *more)))
    return found


class Run:
    """A run in a folder, started as often as it takes.

    Args:
        case: what to run.
        folder: new; for the run, what it prints, and the moments that it tells.
    """

    def __init__(self, case: Case, folder: Path) -> None:
        self.case, self.folder, self.hits = case, folder, list[Hit]()
        folder.mkdir(parents=True)
        self.log = folder / "moments.txt"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> subprocess.Popen[bytes]:
        """Starts it, or goes on with it: always the same command."""
        self.log.write_text("")
        command = [sys.executable, "-m", "ser_lightning", "fit", "--config", "tests/tiny.yaml"]
        command += ["--run_dir", str(self.folder / "run"), "--ckpt_path", "last"]
        command += ["--checkpoint.every_n_train_steps", str(INTERVAL)]
        command += ["--trainer.callbacks+", "studies.faults.moments.Moments", *self.case.options]
        with (self.folder / "output.txt").open("ab") as output:
            return subprocess.Popen(
                command,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env=os.environ | {"OMP_NUM_THREADS": "1", LOG: str(self.log)},
            )

    def lines(self) -> list[str]:
        """The moments since the last start."""
        return self.log.read_text().splitlines()

    def finish(self) -> dict[str, Any]:
        """Runs to the end, and returns the last checkpoint.

        Raises:
            RuntimeError: it failed.
        """
        status = self.start().wait()
        if status:
            tail = "\n".join((self.folder / "output.txt").read_text().splitlines()[-8:])
            raise RuntimeError(f"{self.case.name} ended with {status}\n{tail}")
        return load_checkpoint(last_checkpoint(self.folder / "run" / CHECKPOINT_FOLDER))

    def hit(self, moment: str, number: int, to_all: bool, chance: random.Random) -> Hit | None:
        """Starts it, kills it at a moment, and waits for the end of all its processes.

        Returns:
            What came of it, without the steps lost; None where the run had ended before.
        """
        process = self.start()
        if not self._wait_for(moment, process, chance):
            process.wait()
            return None
        (os.killpg if to_all else os.kill)(process.pid, number)
        sent = time.monotonic()
        while _session(process.pid) and time.monotonic() < sent + TIME_TO_LEAVE:
            process.poll()  # collects the first one
            time.sleep(0.01)
        seconds, left = time.monotonic() - sent, _session(process.pid)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        return Hit(moment, number, to_all, 0, seconds, len(left), process.wait())

    def _wait_for(
        self, moment: str, process: subprocess.Popen[bytes], chance: random.Random
    ) -> bool:
        """Waits for a moment, and a random while longer; whether it came before the end."""
        if moment == "any":
            return _is_alive(process, chance.uniform(0, 3 * _STARTING))
        if moment == "again":
            return _is_alive(process, chance.uniform(0, _STARTING))
        steps = chance.randrange(1, 4)
        while process.poll() is None:
            told = Counter(line.split()[0] for line in self.lines())
            if moment == "writing" and told["step"] >= steps - 1 and self._is_writing():
                return True
            word = {"workers": "start", "step": "batch"}.get(moment, moment)
            if told[word] >= (1 if moment == "workers" else steps):
                return _is_alive(process, chance.uniform(0, 0.1))
            time.sleep(0 if moment == "writing" else 0.002)
        return False

    def _is_writing(self) -> bool:
        folder = self.folder / "run" / CHECKPOINT_FOLDER
        return folder.is_dir() and any(name.endswith(".partial") for name in os.listdir(folder))


def _is_alive(process: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return True
    return False


def _session(leader: int) -> list[int]:
    """Processes of a session that have not ended."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has just ended
                continue
            if fields[0] != "Z" and int(fields[3]) == leader:
                found.append(int(entry.name))
    return found


def differing(first: Any, second: Any, place: str = "") -> Iterator[str]:
    """Names of weights, optimizer states and schedules that differ in any bit."""
    if isinstance(first, torch.Tensor):
        if first.dtype != second.dtype or not torch.equal(first, second):
            yield place
    elif isinstance(first, dict):
        for key in first.keys() | second.keys():
            yield from differing(first.get(key), second.get(key), f"{place}.{key}")
    elif isinstance(first, list):
        for number, pair in enumerate(zip(first, second, strict=True)):
            yield from differing(*pair, f"{place}.{number}")
    elif first != second:
        yield place


_COMPARED = ("state_dict", "optimizer", "lr_schedulers", "global_step")


def _of_interest(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """What has to be the same: not the decay of the last step, which the next one sets."""
    states = [optimizer["state"] for optimizer in checkpoint["optimizer_states"]]
    return {name: {**checkpoint, "optimizer": states}[name] for name in _COMPARED}


def campaign_of(case: Case, folder: Path, seed: int) -> tuple[list[Hit], list[str]]:
    """Kills one run again and again, and lets another one be.

    Returns:
        What was done to it, and what differs in the end.
    """
    chance = random.Random(f"{case.name}, {seed}")
    unbroken = Run(case, folder / "unbroken").finish()
    run = Run(case, folder / "broken")
    for place in range(HITS_PER_RUN):
        moment = "again" if place == 2 else chance.choice(MOMENTS[:-1])
        number, to_all = chance.choice(SIGNALS), chance.random() < 0.5
        hit = run.hit(moment, number, to_all, chance)
        done = _last_step(run.lines())
        if hit is None:  # it has come to its end: nothing is left to break
            break
        saved = last_checkpoint(run.folder / "run" / CHECKPOINT_FOLDER)
        kept = load_checkpoint(saved)["global_step"] if saved.is_file() else 0
        run.hits.append(hit._replace(lost=max(0, done - kept)))
    broken = run.finish()
    return run.hits, list(differing(_of_interest(unbroken), _of_interest(broken)))


def _last_step(moments: Sequence[str]) -> int:
    steps = [int(line.split()[1]) for line in moments if line.startswith(("step", "start"))]
    return max(steps, default=0)


def table(hits: Sequence[Hit]) -> str:
    """What was done and what came of it, a row per moment, as Markdown."""
    names = [number.name for number in SIGNALS]
    lines = [["killed", *names, "steps lost", "processes left", "slowest end"]]
    for moment in (*MOMENTS, "all"):
        those = [hit for hit in hits if moment in ("all", hit.moment)]
        counts = Counter(hit.number for hit in those)
        numbers = [str(counts[number]) for number in SIGNALS]
        lost = sum(max(0, hit.lost - INTERVAL) for hit in those)
        slowest = max((hit.seconds for hit in those), default=0.0)
        left = str(sum(hit.left for hit in those))
        lines.append([moment, *numbers, str(lost), left, f"{slowest:.1f} s"])
    return markdown_table(lines, num_labels=1)


def main(args: Sequence[str] | None = None) -> None:
    """Runs the campaign, prints its table, and fails if anything was lost."""
    parser = argparse.ArgumentParser("faults", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="at least so many")
    parser.add_argument("--seed", type=int, default=0, help="of moments and signals")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs side by side")
    known = parser.parse_args(args)
    folder = Path(tempfile.mkdtemp(prefix="faults_"))
    hits, wrong, lock = list[Hit](), list[str](), Lock()

    def work(number: int, case: Case) -> None:
        if len(hits) >= known.kills:
            return
        try:
            found, names = campaign_of(case, folder / str(number), known.seed + number)
        except Exception as error:
            found, names = [], [str(error)]
        with lock:
            hits.extend(found)
            wrong.extend(f"{case.name}: {name}" for name in names)
            if not names:
                shutil.rmtree(folder / str(number))
            words = ", ".join(f"{signal.Signals(h.number).name} {h.moment}" for h in found)
            state = "the same bits" if not names else f"{len(names)} DIFFER"
            print(f"[{len(hits)}/{known.kills}] {case.name}: {words}: {state}", flush=True)

    kinds = cases()
    random.Random(known.seed).shuffle(kinds)
    with ThreadPoolExecutor(known.jobs) as pool:
        rounds = [kinds[number % len(kinds)] for number in range(known.kills)]
        list(pool.map(work, range(len(rounds)), rounds))
    print(table(hits))
    lost = sum(max(0, hit.lost - INTERVAL) for hit in hits)
    left = sum(hit.left for hit in hits)
    if wrong or lost or left:
        sys.exit("\n".join([f"{lost} steps lost, {left} processes left; see {folder}", *wrong]))
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
