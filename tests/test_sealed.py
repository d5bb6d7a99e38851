"""Damaged files of tensors and arrays are refused with a sentence, whatever the damage."""

import json

import numpy as np
import pytest
import torch

from results.result_records import record
from ser_lightning.backbones import SplitViT
from ser_lightning.evaluation.linear_head import LinearClassifier
from ser_lightning.results.hits import load_hits, write_hits
from ser_lightning.results.record import read_record, write_record
from ser_lightning.sealed import CHECKSUM, read_array, read_tensors, write_tensors
from support import tiny_backbone

PLACES = (0.0, 0.03, 0.2, 0.5, 0.8, 0.99)


def written_head(folder):
    head = LinearClassifier([1, 2], 4, ["cat", "dog"])
    head.save(folder / "head.safetensors")
    return folder / "head.safetensors"


def written_hits(folder):
    label = torch.arange(40) % 4
    return write_hits(folder / "linear-shapes.json", {"top1": label < 2}, label)


def written_export(folder):
    tiny_backbone().export_safetensors(folder / "backbone.safetensors")
    return folder / "backbone.safetensors"


def written_record(folder):
    return write_record(record(metrics={"top1": 71.25}), folder)


FILES = {
    "head": (written_head, LinearClassifier.load),
    "hits": (written_hits, lambda path: load_hits(path.with_name("linear-shapes.json"), "top1")),
    "export": (written_export, SplitViT.from_safetensors),
    "record": (written_record, read_record),
}


@pytest.mark.parametrize("kind", FILES)
def test_flipped_byte_is_refused(kind, tmp_path):
    write, read = FILES[kind]
    path = write(tmp_path)
    read(path)
    whole = path.read_bytes()
    for place in PLACES:
        data = bytearray(whole)
        data[int(place * len(data))] ^= 1
        if CHECKSUM.encode() not in data:
            continue  # the name of the checksum itself, with everything else as it was
        path.write_bytes(data)
        with pytest.raises(ValueError, match=path.name.replace(".", r"\.")):
            read(path)


@pytest.mark.parametrize("kind", FILES)
def test_cut_file_is_refused(kind, tmp_path):
    write, read = FILES[kind]
    path = write(tmp_path)
    whole = path.read_bytes()
    for share in (0, 0.1, 0.5, 0.99):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ValueError, match=path.name.replace(".", r"\.")):
            read(path)


def test_changed_note_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"x": torch.ones(2)}, {"classes": "cat"})
    assert read_tensors(path, "make it again")[1] == {"classes": "cat"}
    path.write_bytes(path.read_bytes().replace(b"cat", b"dog"))
    with pytest.raises(ValueError, match=r"a\.safetensors is damaged.*; make it again"):
        read_tensors(path, "make it again")


def test_number_of_a_record_cannot_change_unnoticed(tmp_path):
    path = written_record(tmp_path)
    path.write_text(path.read_text().replace("71.25", "91.25"))
    with pytest.raises(ValueError, match=r"not what its checksum says.*run the evaluation again"):
        read_record(path)


def test_record_may_be_told_what_its_run_is(tmp_path):
    """As people may, where a run's folder does not say it."""
    path = written_record(tmp_path)
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "run": {"method": "SER"}}))
    assert read_record(path).run == {"method": "SER"}


def test_record_without_a_checksum_is_read(tmp_path):
    path = written_record(tmp_path)
    content = json.loads(path.read_text())
    del content["sha256"]
    path.write_text(json.dumps(content))
    assert read_record(path).metrics == {"top1": 71.25}


@pytest.mark.parametrize(
    "content", [b"", b"no array", b"\x93NUMPY\x01\x00\x05\x00{'a':", b"\x93NUMPY"]
)
def test_file_that_is_no_array_is_refused(content, tmp_path):
    path = tmp_path / "a.npy"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.npy is no whole \.npy file.*; fetch it again"):
        read_array(path, "fetch it again")


def test_array_of_objects_is_not_unpickled(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"a\.npy is no whole .*allow_pickle=False"):
        read_array(tmp_path / "a.npy", "fetch it again")


def test_file_of_torch_that_is_called_safetensors_is_told(tmp_path):
    torch.save({}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"it is a file of torch; name it a\.pth"):
        read_tensors(tmp_path / "a.safetensors", "fetch it")
