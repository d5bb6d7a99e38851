"""Runs are grouped by configuration and named after their folders."""

from pathlib import Path

import pytest

from results.result_records import config, record, run_folder
from ser_lightning.reporting.groups import group_folders
from ser_lightning.results.record import write_record


def run(folder, seed=0, records=(), **changes):
    return run_folder(folder, records, {**config(**changes), "seed_everything": seed})


def test_runs_that_differ_in_the_seed_are_one_group(tmp_path):
    folders = [run(tmp_path / f"ser_seed{seed}", seed) for seed in (1, 2)]
    other = run(tmp_path / "moco", regularizer=None)
    ser, moco = group_folders([folders[0], other, folders[1]])
    assert (ser.name, ser.folders, ser.run.subject.views) == ("ser", tuple(folders), "2")
    assert (moco.name, moco.folders) == ("moco", (other,))


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("runs/moco_ser_seed1", "moco_ser"),
        ("runs/moco-seed12", "moco"),
        ("runs/moco/seed1", "moco"),
        ("runs/moco", "moco"),
        ("runs/seedling", "seedling"),
    ],
)
def test_name_is_the_folders_without_the_seed(tmp_path, folder, name):
    (group,) = group_folders([run(tmp_path / folder)])
    assert group.name == name


def test_equal_names_become_paths(tmp_path):
    first, second = run(tmp_path / "a" / "x"), run(tmp_path / "b" / "x", layer=4)
    assert [group.name for group in group_folders([first, second])] == [str(first), str(second)]


def test_repeated_seed_is_no_further_sample(tmp_path):
    folders = [run(tmp_path / name, seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    groups = group_folders(folders)
    assert [group.folders for group in groups] == [(folders[0], folders[2]), (folders[1],)]


def test_folder_that_is_named_twice_counts_once(tmp_path, monkeypatch):
    folder = run(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    (group,) = group_folders([folder, Path("a")])
    assert group.folders == (folder,)


def test_newest_record_of_the_runs_weights_counts(tmp_path):
    records = [
        record(date="2026-01-02T00:00:00+00:00", metrics={"top1": 2.0}),
        record(date="2026-01-01T00:00:00+00:00", metrics={"top1": 1.0}),
        record(checkpoint=None, checkpoint_sha256=None, date="2026-01-03T00:00:00+00:00"),
        record("knn"),
    ]
    (group,) = group_folders([run(tmp_path / "a", records=records)])
    assert {sample.stage for sample in group.samples} == {
        ("linear", "imagenet1k"),
        ("knn", "imagenet1k"),
    }
    (found,) = group.newest("linear", "imagenet1k")
    assert found.record.metrics == {"top1": 2.0}


def test_newest_of_two_protocols_counts_once_per_run(tmp_path):
    records = [
        record(date="2026-01-02T00:00:00+00:00", metrics={"top1": 2.0}, protocol={"epochs": 5}),
        record(date="2026-01-01T00:00:00+00:00", metrics={"top1": 1.0}),
    ]
    (group,) = group_folders([run(tmp_path / "a", records=records)])
    assert len(group.samples) == 2
    assert [s.record.metrics["top1"] for s in group.newest("linear")] == [2.0]


def test_run_without_configuration_stands_alone(tmp_path):
    groups = group_folders([run_folder(tmp_path / name, []) for name in ("a", "b")])
    assert [(group.name, group.run.subject.views) for group in groups] == [("a", ""), ("b", "")]


def test_default_settings_go_before_a_newer_variant_and_the_metric_decides(tmp_path):
    folder = run(tmp_path / "a")
    dates = ("2026-01-02T00:00:00+00:00", "2026-01-01T00:00:00+00:00")
    write_record(record(metrics={"top1": 2.0}, date=dates[0], weights_key="m"), folder, "momentum")
    (group,) = group_folders([folder])
    assert [s.record.metrics["top1"] for s in group.newest("linear")] == [2.0]
    write_record(record(metrics={"top5": 1.0}, date=dates[1]), folder)
    (group,) = group_folders([folder])
    assert [s.record.metrics for s in group.newest("linear")] == [{"top5": 1.0}]
    assert [s.record.metrics for s in group.newest("linear", metric="top1")] == [{"top1": 2.0}]
