"""Hundreds of mistakes and odd values, each of which works or is refused in a few lines.

`table.txt` has one command line per line, and the exit status that it ends with: 0 where it works,
1 for a mistake, 2 where the parser refuses it. `python -m pytest -m slow tests/mistakes` runs all,
and prints how many were tried and how they ended.
"""

import re
import shutil
from collections import Counter
from pathlib import Path

import pytest

from mistakes.command_line import arguments, outcome_of
from mistakes.files import write_around, write_files

TABLE = Path(__file__).with_name("table.txt")
LINES = 25  # of a refusal, at most
EVERY = 29  # so many lines apart are those of the fast suite
REFUSAL = re.compile(r"^ser-fit(?: [a-z-]+)?: error: \S", re.MULTILINE)

pytestmark = pytest.mark.filterwarnings("ignore")


def rows():
    """The lines of the table: number, command line, allowed statuses."""
    lines = [line for line in TABLE.read_text().splitlines() if line and line[0] != "#"]
    found = []
    for number, line in enumerate(lines):
        command, _, statuses = line.rpartition(" => ")
        found.append((number, command, [int(status) for status in statuses.split(" or ")]))
    return found


def complaints(line, number, statuses, trained, capsys):
    """What is wrong with how a command line ended."""
    outcome = outcome_of(arguments(line, number, trained), capsys)
    said = outcome.text
    refusal = REFUSAL.search(said)
    lines = said[refusal.start() :].splitlines() if refusal else []
    wrong = {
        f"ended in a {outcome.kind}": outcome.kind not in ("works", "refused"),
        f"status {outcome.status}, not {statuses}": outcome.status not in statuses,
        "refused without a sentence": outcome.kind == "refused" and not refusal and line != "''",
        f"refused in {len(lines)} lines": len(lines) > LINES,
        "names a number of the system's": "[Errno" in said,
    }
    found = [what for what, is_so in wrong.items() if is_so]
    return outcome.kind, [f"{line}: {what}\n{said[-800:]}" for what in found]


@pytest.fixture
def odd_files(trained_run, tmp_path, monkeypatch):
    """The current folder, with the files that the table names; gives a copy of a finished run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SER_LIGHTNING_CACHE", str(tmp_path / "cache"))
    write_files()
    write_around(trained_run)
    return Path(shutil.copytree(trained_run, tmp_path / "trained"))


def test_sample_of_the_table_ends_as_it_says(odd_files, capsys):
    sample = [row for row in rows() if 2 in row[2] or row[1].startswith(("look", "compare"))]
    found = [complaints(line, n, s, odd_files, capsys) for n, line, s in sample[::EVERY]]
    assert [wrong for _, wrongs in found for wrong in wrongs] == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_whole_table_ends_as_it_says(odd_files, capsys):
    found = [complaints(line, n, s, odd_files, capsys) for n, line, s in rows()]
    kinds = Counter(kind for kind, _ in found)
    with capsys.disabled():
        print(f"\n{len(found)} command lines tried: {dict(kinds)}")
    assert [wrong for _, wrongs in found for wrong in wrongs] == []
