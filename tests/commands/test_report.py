"""`ser-fit report`: the files are written and printed, and another network can be divided by."""

import re

import pytest

from results.result_records import config, corrupted, record, run_folder
from ser_lightning.commands.report import report
from ser_lightning.results.record import write_record


def test_command_writes_and_prints_the_report(tmp_path, capsys):
    run = run_folder(tmp_path / "run", [record()], config())
    report([str(run), "--output_dir", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert "| SER on MoCo-v3, 2 views | ours [1] | 69.00 |" in (
        (tmp_path / "out" / "report.md").read_text()
    )
    assert re.search(r"^SER on MoCo-v3, 2 views +ours \[1\] +69\.00$", printed, re.M)
    assert str(tmp_path / "out" / "report.html") in printed


def test_baseline_is_a_run_or_a_record(tmp_path, capsys):
    moco = run_folder(tmp_path / "moco", [], config(regularizer=None))
    path = write_record(corrupted(0.5), moco)
    ser = run_folder(tmp_path / "ser", [corrupted(0.4)], config())
    for baseline in (moco, path):
        output = ["--output_dir", str(tmp_path / "out")]
        report([str(ser), "--baseline", str(baseline), *output])
        assert "mCE against moco" in capsys.readouterr().out
        assert "| mCE against moco | 80 |" in (tmp_path / "out" / "report.md").read_text()
    other = run_folder(tmp_path / "other", [record()], config())
    with pytest.raises(ValueError, match="has no record of imagenet-c or imagenet-p"):
        report([str(ser), "--baseline", str(other), *output])
