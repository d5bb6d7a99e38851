"""What a stage writes about its test images is what the comparison reads."""

import numpy as np
import pytest
import torch

from results.result_records import record
from ser_lightning.results.hits import hits_path, load_hits, write_hits
from ser_lightning.results.record import result_path

RIGHT = torch.tensor([True, False, True])


def write(folder, stage="linear", dataset="shapes", label=(0, 1, 2), metric="top1"):
    path = result_path(folder, record(stage, dataset))
    return write_hits(path, {metric: RIGHT}, torch.tensor(label))


def test_hits_lie_beside_their_record_and_read_back(tmp_path):
    beside = result_path(tmp_path, record("linear", "shapes_1.0"))
    assert write(tmp_path, dataset="shapes_1.0") == hits_path(beside)
    assert load_hits(beside, "top1").values.tolist() == [1, 0, 1]
    assert load_hits(beside, "top1").values.dtype == np.uint8
    assert load_hits(beside, "top5") is None
    assert load_hits(beside.with_name("knn-shapes.json"), "top1") is None


def test_test_set_is_told_by_its_labels(tmp_path):
    sets = [
        load_hits(
            write(tmp_path / name, label=label).parent / "linear-shapes.json", "top1"
        ).test_set
        for name, label in (("a", (0, 1, 2)), ("b", (0, 1, 2)), ("c", (1, 0, 2)))
    ]
    assert sets[0] == sets[1] != sets[2]


def test_test_set_is_told_by_the_images_that_could_be_read(tmp_path):
    sets = []
    for number, slots in enumerate([None, [0, 1, 2], [1, 2, 3], [0, 2, 3]]):
        path = result_path(tmp_path / str(number), record("linear", "shapes"))
        given = None if slots is None else torch.tensor(slots)
        write_hits(path, {"top1": RIGHT}, torch.tensor([0, 0, 0]), slots=given)
        sets.append(load_hits(path, "top1").test_set)
    assert sets[0] == sets[1]
    assert len(set(sets)) == 3


def test_damaged_file_is_named(tmp_path):
    path = write(tmp_path)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"linear-shapes\.hits\.safetensors cannot be read"):
        load_hits(path.parent / "linear-shapes.json", "top1")
