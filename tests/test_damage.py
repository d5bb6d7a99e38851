"""Damaged files of torch are told from whole ones, whatever the damage makes the reader raise."""

import zipfile

import numpy as np
import pytest
import torch

from ser_lightning.damage import damage, why_no_tensors, why_unreadable
from ser_lightning.sealed import write_tensors


@pytest.mark.parametrize("method", [0, 8, 12, 14, 99])
def test_entry_that_is_said_to_be_compressed_otherwise_is_damage(method, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"weight": torch.arange(100)}, path)
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\x01\x02")  # of the list of entries
    data[entry + 10] = method
    path.write_bytes(data)
    assert ("damaged" in damage(path)) == (method != 0)


def saved_arrays(path):
    with path.open("wb") as stream:
        np.savez(stream, a=np.ones(3))


def saved_script(path):
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("a/data.pkl", "a/constants.pkl", "a/code/a.py"):
            archive.writestr(name, "x")


@pytest.mark.parametrize("save", [saved_arrays, saved_script])
def test_archive_of_others_is_told_from_one_of_a_newer_torch(save, tmp_path):
    save(tmp_path / "a.pth")
    reason = why_unreadable(tmp_path / "a.pth", RuntimeError("failed"))
    assert reason.startswith("it is a zip archive that torch.save did not write")
    assert ("torch.jit.load(" in reason) == (save is saved_script)
    torch.save({}, tmp_path / "b.pth")
    assert "use a newer torch" in why_unreadable(tmp_path / "b.pth", RuntimeError("failed"))


def test_pointer_of_git_lfs_is_told(tmp_path):
    path = tmp_path / "a.pth"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert "git lfs pull" in why_unreadable(path, RuntimeError("failed"))
    assert "git lfs pull" in why_no_tensors(path)


def test_safetensors_of_another_name_are_told_theirs(tmp_path):
    write_tensors(tmp_path / "a.pth", {"weight": torch.ones(3)}, {})
    reason = why_unreadable(tmp_path / "a.pth", RuntimeError("failed"))
    assert reason.startswith("it is a safetensors file")
    assert reason.endswith("; name it a.safetensors")
