"""Records survive the disk, and broken ones are named."""

import hashlib
import json
import math

import pytest
import torch

from results.result_records import record
from ser_lightning.files import PARTIAL, file_sha256
from ser_lightning.results.record import (
    class_map_sha256,
    find_records,
    read_record,
    result_path,
    write_record,
)


def test_record_is_read_back_as_written(tmp_path):
    written = record(selected={"base_learning_rate": 3.0, "epoch": 47}, run={"views": "2+4"})
    path = write_record(written, tmp_path)
    assert path == tmp_path / "results" / "linear-imagenet1k.json"
    assert read_record(path) == written


def test_versions_and_date_are_filled_in():
    made = record()
    wanted = {"python", "torch", "torchvision", "timm", "lightning", "ser-lightning"}
    assert set(made.versions) == wanted
    assert made.versions["torch"].startswith(torch.__version__.split("+")[0])
    assert made.date.endswith("+00:00")


def test_path_tells_data_sets_and_variants_apart(tmp_path):
    names = {
        result_path(tmp_path, record(dataset=dataset), variant).name
        for dataset in ("", "imagenet_v2", "3diebench")
        for variant in ("", "seed1")
    }
    assert names == {
        "linear.json",
        "linear-seed1.json",
        "linear-imagenet_v2.json",
        "linear-imagenet_v2-seed1.json",
        "linear-3diebench.json",
        "linear-3diebench-seed1.json",
    }


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_writes_no_record(value, tmp_path):
    path = write_record(record(), tmp_path)
    with pytest.raises(ValueError, match=f"rankme {value}: 1 of 2 metrics of linear on 50,000"):
        write_record(record(metrics={"rankme": value, "top1": 1.0}), tmp_path)
    assert read_record(path) == record(date=read_record(path).date)
    none = write_record(record(metrics={"rankme": None}), tmp_path)
    assert read_record(none).metrics == {"rankme": None}  # as older versions wrote it


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage": "Linear eval"}, 'stage "Linear eval"'),
        ({"dataset": "../x"}, 'dataset "../x"'),
        ({"seed": True}, "seed is True .bool.; it must be int"),
        ({"metrics": {"top1": torch.tensor(1.0)}}, r"metrics\['top1'\] is tensor"),
        ({"counts": {"hits": 1.5}}, r"counts\['hits'\] is 1.5"),
        ({"layer": "3"}, "layer is '3' .str.; it must be int or null"),
        ({"protocol": None}, "protocol is None .NoneType.; it must be dict"),
        ({"protocol": {1: 2}}, "a key of protocol is 1"),
        ({"checkpoint": None}, "neither for random weights"),
        ({"unofficial_reasons": ["a tenth"]}, "unofficial_reasons is .*list.*; it must be tuple"),
        ({"unofficial_reasons": (1,)}, "a part of unofficial_reasons is 1"),
        ({"network": "alexnet"}, "network alexnet with the checkpoint runs/a"),
        ({"network": "../x"}, 'network "../x"'),
    ],
)
def test_wrong_fields_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        record(**changes)


def test_whole_numbers_pass_for_floats():
    assert record(wall_seconds=12, metrics={"top1": 69}).wall_seconds == 12


def test_what_json_does_not_know_leaves_the_old_file(tmp_path):
    path = write_record(record(), tmp_path)
    with pytest.raises(ValueError, match="cannot be written as JSON"):
        write_record(record(protocol={"device": torch.device("cpu")}), tmp_path)
    with pytest.raises(ValueError, match="cannot be written as JSON"):
        write_record(record(protocol={"temperature": math.inf}), tmp_path)
    assert read_record(path).protocol == {"epochs": 50}
    assert not list(path.parent.glob(f".*{PARTIAL}"))


def test_record_of_another_network_has_a_file_of_its_own(tmp_path):
    none = {"checkpoint": None, "checkpoint_sha256": None}
    other = record("imagenet-p", "imagenet_p", network="alexnet", **none)
    assert write_record(other, tmp_path).name == "imagenet-p-imagenet_p-alexnet.json"
    assert result_path(tmp_path, record("imagenet-p", "imagenet_p")).name == (
        "imagenet-p-imagenet_p.json"
    )


def test_official_follows_from_the_reasons(tmp_path):
    assert record().official
    part = record(unofficial_reasons=("a tenth", "of noise"))
    assert not part.official
    path = write_record(part, tmp_path)
    assert json.loads(path.read_text())["official"] is False
    assert read_record(path) == part


@pytest.mark.parametrize(
    ("stage", "dataset", "today"),
    [
        ("linear", "imagenet1k", "linear"),
        ("linear", "3diebench", "3diebench"),
        ("corruption", "imagenet_c", "imagenet-c"),
        ("perturbation", "imagenet_p", "imagenet-p"),
    ],
)
@pytest.mark.parametrize(
    ("reason", "reasons"), [(None, ()), ("a tenth; head: of noise", ("a tenth", "head: of noise"))]
)
def test_record_of_format_1_is_read(tmp_path, stage, dataset, today, reason, reasons):
    path = write_record(record(stage, dataset), tmp_path)
    content = {**json.loads(path.read_text()), "format": 1, "unofficial_reason": reason}
    content["official"] = reason is None
    for name in ("unofficial_reasons", "network", "data_sha256"):
        del content[name]
    path.write_text(json.dumps(content))
    read = read_record(path)
    assert (read.stage, read.unofficial_reasons) == (today, reasons)
    assert (read.network, read.data_sha256, read.official) == (None, None, reason is None)


def edited(path, **changes):
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in content.items() if v != "REMOVE"}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": "REMOVE"}, r"missing fields \['seed'\]"),
        ({"lr": 1}, r"unknown fields \['lr'\]"),
        ({"seed": "one"}, "seed is 'one'"),
        ({"format": 3}, '"format": 2'),
    ],
)
def test_broken_files_are_named(tmp_path, changes, message):
    path = write_record(record(), tmp_path)
    edited(path, **changes)
    with pytest.raises(ValueError, match=message) as error:
        read_record(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("content", [b'{"stage": "lin', b"[1]", b"\xff\xfe\x00"])
def test_files_that_are_no_records_are_named(tmp_path, content):
    path = tmp_path / "linear.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"linear\.json is no"):
        read_record(path)


def test_records_are_found_once_in_runs_and_above_them(tmp_path):
    first = write_record(record(), tmp_path / "runs" / "a")
    second = write_record(record("knn"), tmp_path / "runs" / "b")
    (tmp_path / "runs" / "a" / "other.json").write_text("{}")
    (first.parent / f"._{first.name}").write_bytes(b"\0\5\26\7")  # as macOS leaves on other disks
    found = find_records([tmp_path / "runs", first, second.parent, tmp_path / "runs" / "b"])
    assert [item.path.resolve() for item in found] == [first, second]
    assert [item.run_dir.name for item in found] == ["a", "b"]
    assert found[1].record.stage == "knn"


def test_records_are_found_behind_links_once_and_without_end(tmp_path):
    path = write_record(record(), tmp_path / "disk" / "a")
    linked = tmp_path / "linked"
    linked.mkdir()
    for name in ("first", "second"):
        (linked / name).symlink_to(tmp_path / "disk" / "a")
    (linked / "above").symlink_to(linked)
    (tmp_path / "disk" / "a" / "archive").symlink_to(path.parent)  # seen before `results`
    (found,) = find_records([linked])
    assert found.path.resolve() == path
    assert found.run_dir.name == "a"


def test_paths_without_records_are_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere does not exist"):
        find_records([tmp_path / "nowhere"])
    with pytest.raises(ValueError, match="has no results"):
        find_records([tmp_path])


def test_file_hash(tmp_path):
    content = bytes(range(256)) * 5000  # more than one block
    (tmp_path / "x").write_bytes(content)
    assert file_sha256(tmp_path / "x") == hashlib.sha256(content).hexdigest()


def test_class_map_hash_depends_on_labels_and_not_on_order():
    assert class_map_sha256({"cat": 0, "dog": 1}) == class_map_sha256({"dog": 1, "cat": 0})
    assert class_map_sha256(["cat", "dog"]) == class_map_sha256({"cat": 0, "dog": 1})
    assert class_map_sha256(["cat", "dog"]) != class_map_sha256(["dog", "cat"])
