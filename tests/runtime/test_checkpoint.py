"""Checkpoints are whole or absent, and never execute what is in them."""

import os
import pickle

import lightning as L
import pytest
import torch

from ser_lightning.files import UnsafeCheckpointError, load_checkpoint
from ser_lightning.runtime import AtomicCheckpointIO, RunCheckpoint
from ser_lightning.runtime import checkpoint as module


class Malicious:
    """Creates a file when unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


def test_saved_checkpoint_loads_again(tmp_path):
    path = tmp_path / "run" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"weights": torch.arange(3)}, path)
    assert torch.equal(AtomicCheckpointIO().load_checkpoint(path)["weights"], torch.arange(3))
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_failed_save_keeps_the_old_file_and_leaves_nothing(tmp_path, monkeypatch, error):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)

    def half_written(checkpoint, partial):
        partial.write_bytes(b"half")
        raise error

    monkeypatch.setattr(module.torch, "save", half_written)
    with pytest.raises(type(error)):
        AtomicCheckpointIO().save_checkpoint({"step": 2}, path)
    assert load_checkpoint(path) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_leftovers_of_a_killed_process_are_swept(tmp_path):
    leftover = tmp_path / ".last.ckpt.abc.partial"
    leftover.write_bytes(b"half")
    callback = RunCheckpoint()
    callback.dirpath = str(tmp_path)
    trainer = L.Trainer(logger=False, accelerator="cpu")
    callback.setup(trainer, None, "fit")
    assert not leftover.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("save", [torch.save, lambda x, f: f.write_bytes(pickle.dumps(x))])
def test_malicious_pickle_is_refused_and_not_executed(tmp_path, save):
    path, target = tmp_path / "evil.ckpt", tmp_path / "executed"
    save({"state_dict": Malicious(str(target))}, path)
    with pytest.raises(UnsafeCheckpointError, match=r"evil\.ckpt was not loaded"):
        AtomicCheckpointIO().load_checkpoint(path)
    assert not target.exists()


def test_damaged_file_is_refused(tmp_path):
    path = tmp_path / "last.ckpt"
    path.write_bytes(b"PK\x03\x04 not a checkpoint")
    with pytest.raises(UnsafeCheckpointError, match="damaged"):
        load_checkpoint(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.ckpt does not exist"):
        load_checkpoint(tmp_path / "nothing.ckpt")
