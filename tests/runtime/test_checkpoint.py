"""Checkpoints are whole or absent, and never execute what is in them."""

import os
import pickle

import lightning as L
import pytest
import torch

from ser_lightning.checkpoints import UnsafeCheckpointError, load_checkpoint
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


@pytest.fixture
def run_checkpoint(tmp_path, monkeypatch):
    """A RunCheckpoint in a folder, and what saves a step with it."""

    def made(**options):
        callback = RunCheckpoint(**options)
        callback.dirpath = str(tmp_path)
        io = AtomicCheckpointIO()

        class Trainer:
            is_global_zero, loggers = True, ()
            global_step, ckpt_path = 0, None

            def save_checkpoint(self, path, weights_only):
                io.save_checkpoint({"global_step": self.global_step}, path)

        def save(step, trainer=Trainer()):  # noqa: B008 - one for all calls
            trainer.global_step = step
            callback._save_checkpoint(trainer, str(callback.path))

        return callback, save

    return made


def steps(folder):
    return {path.stem: load_checkpoint(path)["global_step"] for path in folder.glob("*.ckpt")}


def test_last_two_checkpoints_are_kept(run_checkpoint, tmp_path):
    _, save = run_checkpoint()
    for step in range(4):
        save(step)
    assert steps(tmp_path) == {"last": 3, "previous": 2}


def test_one_checkpoint_is_kept_where_asked_for(run_checkpoint, tmp_path):
    _, save = run_checkpoint(keep_previous=False)
    for step in range(3):
        save(step)
    assert steps(tmp_path) == {"last": 2}


def test_both_are_whole_while_a_new_one_is_written(run_checkpoint, tmp_path, monkeypatch):
    _, save = run_checkpoint()
    save(1)
    save(2)
    seen = []

    def killed(checkpoint, partial):
        partial.write_bytes(b"half")
        seen.append(steps(tmp_path))
        raise KeyboardInterrupt

    monkeypatch.setattr(module.torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        save(3)
    assert seen == [{"last": 2, "previous": 2}]
    assert steps(tmp_path) == {"last": 2, "previous": 2}


def test_file_that_this_run_has_not_read_does_not_replace_a_good_one(run_checkpoint, tmp_path):
    """Resumed from the previous one, since the last is damaged: the previous one stays."""
    _, save = run_checkpoint()
    save(1)
    save(2)
    _, save_of_the_next_run = run_checkpoint()
    (tmp_path / "last.ckpt").write_bytes(b"damaged")
    save_of_the_next_run(3)
    assert steps(tmp_path) == {"last": 3, "previous": 1}


def test_checkpoint_is_copied_where_links_cannot_be_made(run_checkpoint, tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    _, save = run_checkpoint()
    save(1)
    save(2)
    assert steps(tmp_path) == {"last": 2, "previous": 1}


@pytest.mark.parametrize("share", [0.02, 0.2, 0.5, 0.8])
@pytest.mark.parametrize("mmap", [False, True])
def test_flipped_byte_is_refused_where_it_is_read(tmp_path, share, mmap):
    path = tmp_path / "last.ckpt"
    torch.save({"plain": list(range(1000)), "tensor": torch.ones(2000)}, path)
    data = bytearray(path.read_bytes())
    position = int(share * len(data))
    in_tensor = data.index(torch.ones(9).numpy().tobytes()) <= position
    data[position] ^= 1
    path.write_bytes(data)
    if mmap and in_tensor:
        assert load_checkpoint(path, mmap=True)["plain"][-1] == 999
    else:
        with pytest.raises(UnsafeCheckpointError, match="not what its checksum says"):
            load_checkpoint(path, mmap=mmap)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_file_of_an_old_torch_has_no_checksum_and_loads(tmp_path):
    path = tmp_path / "old.pth"
    torch.save({"a": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    assert torch.equal(load_checkpoint(path, mmap=True)["a"], torch.ones(3))
