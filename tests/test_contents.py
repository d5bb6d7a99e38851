"""The plain values of a checkpoint without torch, and nothing else of it."""

import os
import pickle
import zipfile

import pytest
import torch

from ser_lightning.checkpoints import UnsafeCheckpointError, load_checkpoint
from ser_lightning.contents import plain_contents


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_plain_values_are_torchs_and_tensors_are_left_out(tmp_path):
    model = torch.nn.Linear(2, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    measured = {"history": [{"step": 3, "metrics": {"knn_top1": 31.5}}], "name": "random init"}
    states = {"state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}
    path = tmp_path / "last.ckpt"
    torch.save({"callbacks": {"OnlineEvaluation": measured}, "epoch": 2, **states}, path)
    read, whole = plain_contents(path), load_checkpoint(path)
    assert read["callbacks"] == whole["callbacks"]
    assert read["epoch"] == 2
    assert read.keys() == whole.keys()
    groups = [content["optimizer"]["param_groups"] for content in (read, whole)]
    assert groups[0] == groups[1]
    assert read["optimizer"]["state"][0]["exp_avg"] == {}


def test_nothing_in_a_file_is_called(tmp_path):
    path, made = tmp_path / "harmful.ckpt", tmp_path / "made"
    torch.save({"callbacks": {"a": Harmful(made)}, "epoch": 1}, path)
    assert plain_contents(path) == {"callbacks": {"a": {}}, "epoch": 1}
    assert not made.exists()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("harmful/data.pkl", pickle.dumps(Harmful(made)))
    with pytest.raises(UnsafeCheckpointError):
        plain_contents(path)
    assert not made.exists()


def test_what_is_no_checkpoint_is_refused_in_torchs_reader(tmp_path):
    path = tmp_path / "cut.ckpt"
    torch.save({"epoch": 1}, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UnsafeCheckpointError, match="cut short"):
        plain_contents(path)
    torch.save({"epoch": 1}, path, _use_new_zipfile_serialization=False)  # of before torch 1.6
    assert plain_contents(path) == {"epoch": 1}
    with pytest.raises(FileNotFoundError):
        plain_contents(tmp_path / "none.ckpt")
