"""The last two checkpoints of a run: what happens when one of them is damaged, and is said."""

import errno
import shutil
from pathlib import Path

import pytest

from parsed import Parsed, refusal
from ser_lightning.checkpoints import last_checkpoint, load_checkpoint, previous_checkpoint
from ser_lightning.cli import main
from ser_lightning.damage import damage
from ser_lightning.runtime.resumable import resolved_checkpoint

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*isinstance.*treespec.*"),
]


def flip(path, at=0.5):
    """Flips 200 bytes of a file: in a tensor, since the space between two of them is shorter."""
    data = bytearray(path.read_bytes())
    start = int(at * len(data))
    data[start : start + 200] = bytes(byte ^ 1 for byte in data[start : start + 200])
    path.write_bytes(data)


@pytest.fixture
def folder(trained_run, tmp_path, monkeypatch):
    """The checkpoints of a copy of a finished run, in a folder of which it is `run`."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained_run, "run")
    return Path("run/checkpoints")


def test_a_run_leaves_its_last_two_checkpoints(folder):
    names = {path.name for path in folder.iterdir()}
    assert names == {"last.ckpt", "previous.ckpt"}
    assert load_checkpoint(previous_checkpoint(folder))["global_step"] <= 12


def test_training_goes_on_with_the_one_before_a_damaged_one_and_says_so(folder):
    flip(last_checkpoint(folder))
    with pytest.warns(UserWarning, match=r"last\.ckpt was not loaded.*Going on with .*previous"):
        main(["fit", "--run_dir", "run", "--ckpt_path", "last", "--trainer.max_epochs", "3"])
    assert load_checkpoint(last_checkpoint(folder))["global_step"] == 18
    assert load_checkpoint(previous_checkpoint(folder))["global_step"] in (12, 18)


def test_training_goes_on_where_the_last_one_is_gone(folder):
    """A run is never started afresh over what is left of it."""
    last_checkpoint(folder).unlink()
    with pytest.warns(UserWarning, match=r"last\.ckpt does not exist\. Going on with .*previous"):
        Parsed(["fit", "--run_dir", "run", "--ckpt_path", "last"])


def test_the_one_before_is_taken_by_its_name_too(folder, capsys):
    option = ["--ckpt_path", "run/checkpoints/previous.ckpt"]
    assert "already holds a run" in refusal(["fit", *option], capsys)  # with later steps
    flip(last_checkpoint(folder))
    assert Parsed(["fit", *option]).run_dir == Path("run")


@pytest.mark.parametrize("state", ["damaged", "gone"])
def test_measuring_takes_no_other_checkpoint_than_asked_for(state, folder, capsys):
    last = last_checkpoint(folder)
    flip(last) if state == "damaged" else last.unlink()
    text = refusal(["validate", "--run_dir", "run"], capsys)
    assert "--ckpt_path run/checkpoints/previous.ckpt measures it as of step" in text


@pytest.mark.parametrize("verb", ["fit", "validate", "evaluate"])
def test_damaged_file_names_the_whole_one_beside_it(verb, folder, capsys):
    flip(last_checkpoint(folder))
    option = "--checkpoint" if verb == "evaluate" else "--ckpt_path"
    knn = str(Path(__file__).parents[2] / "configs" / "eval" / "knn.yaml")
    config = ["--config", knn] if verb == "evaluate" else []
    text = refusal([verb, *config, option, "run/checkpoints/last.ckpt"], capsys)
    assert "last.ckpt was not loaded: it is damaged" in text
    assert "run/checkpoints/previous.ckpt is whole: give that" in text


def test_run_without_a_whole_checkpoint_is_not_started_afresh(folder, capsys):
    flip(last_checkpoint(folder))
    flip(previous_checkpoint(folder))
    text = refusal(["fit", "--run_dir", "run", "--ckpt_path", "last"], capsys)
    assert "no other in run/checkpoints is whole" in text
    assert "give another --run_dir" in text


def test_file_of_its_own_is_measured_whatever_became_of_the_run(folder, capsys):
    shutil.copyfile(last_checkpoint(folder), folder / "backup.ckpt")
    flip(last_checkpoint(folder))
    flip(previous_checkpoint(folder))
    checkpoint = str(folder / "backup.ckpt")
    assert resolved_checkpoint(checkpoint, Path("run"), "validate") == checkpoint


def test_disk_that_reports_an_error_is_damage(folder, monkeypatch):
    def fails(self, entry):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("zipfile.ZipFile.open", fails)
    assert "its disk reports an error" in damage(last_checkpoint(folder))


def test_trial_in_the_folder_of_a_run_leaves_what_the_run_is_writing(tmp_path):
    half = tmp_path / "checkpoints" / ".last.ckpt.0.partial"
    half.parent.mkdir()
    half.write_bytes(b"")
    tiny = str(Path(__file__).parents[1] / "tiny.yaml")
    options = ["--trainer.fast_dev_run", "true", "--pictures.every", "1"]
    main(["fit", "--config", tiny, "--run_dir", str(tmp_path), *options])
    assert half.exists()
    assert not (tmp_path / "pictures").exists()


def test_empty_path_of_a_checkpoint_is_no_fresh_start(tmp_path):
    with pytest.raises(ValueError, match='is a folder; give a file, or "last"'):
        resolved_checkpoint("", tmp_path, "fit")
