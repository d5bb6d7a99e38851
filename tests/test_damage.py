"""Damaged files of torch are told from whole ones, whatever the damage makes the reader raise."""

import pytest
import torch

from ser_lightning.damage import damage


@pytest.mark.parametrize("method", [0, 8, 12, 14, 99])
def test_entry_that_is_said_to_be_compressed_otherwise_is_damage(method, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"weight": torch.arange(100)}, path)
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\x01\x02")  # of the list of entries
    data[entry + 10] = method
    path.write_bytes(data)
    assert ("damaged" in damage(path)) == (method != 0)
