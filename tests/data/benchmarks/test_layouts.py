"""Class folders are found by name, and a wrong layout is shown the right one."""

import os
from pathlib import Path

import pytest

from benchmark_trees import write_images
from ser_lightning.data.benchmarks.layouts import class_files, find_folders
from ser_lightning.sources.folder import FolderImages
from ser_lightning.sources.released import imagenet_r_synsets, imagenet_synsets

LAYOUT = "  right/<class>/*"


def test_synsets_are_imagenets():
    synsets = imagenet_synsets()
    assert len(synsets) == 1000
    assert synsets[0] == "n01440764"
    assert synsets[999] == "n15075141"
    assert len(imagenet_r_synsets()) == 200
    assert set(imagenet_r_synsets()) < set(synsets)


def test_folders_are_found_with_and_without_groups(tmp_path):
    for folder in ("fog/1", "weather/snow/1", "deep/down/frost/1"):
        (tmp_path / folder).mkdir(parents=True)
    found = find_folders(tmp_path, ("fog", "snow", "frost", "contrast"), LAYOUT)
    assert found == {
        "fog": tmp_path / "fog",
        "snow": tmp_path / "weather" / "snow",
        "frost": tmp_path / "deep" / "down" / "frost",
    }


def test_folder_that_is_there_twice_is_refused(tmp_path):
    for folder in ("a/fog", "b/fog"):
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(ValueError, match="fog is there twice"):
        find_folders(tmp_path, ("fog", "snow"), LAYOUT)


def test_labels_follow_the_names_where_folders_are_missing(tmp_path):
    write_images(tmp_path, ("n03", "n01"), per_class=2)
    names = ("n01", "n02", "n03")
    images = FolderImages(tmp_path, class_files(tmp_path, names, LAYOUT).paths, names)
    assert images.labels.tolist() == [0, 0, 2, 2]
    assert images.num_classes == 3


def test_hidden_and_other_files_are_left_out_and_counted(tmp_path):
    write_images(tmp_path, ("n01",))
    (tmp_path / "n01" / ".DS_Store.jpeg").touch()
    (tmp_path / "n01" / "list.txt").touch()
    (tmp_path / "README").touch()
    found = class_files(tmp_path, ("n01",), LAYOUT)
    assert found.paths.tolist() == [b"n01/ILSVRC2012_val_00000000.JPEG"]
    left_out = {"hidden files": 1, "files .txt": 1, "files without an extension": 1}
    assert found.left_out == left_out


def test_wrong_folders_show_the_layout(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is no folder; expected\n  right"):
        class_files(tmp_path / "none", ("n01",), LAYOUT)
    with pytest.raises(FileNotFoundError, match=r"no class folder with a file .*\n  right"):
        class_files(tmp_path, ("n01",), LAYOUT)
    write_images(tmp_path, ("val",))
    with pytest.raises(ValueError, match=r"has the folders val, which .*\n  right"):
        class_files(tmp_path, ("n01",), LAYOUT)


def test_system_folders_and_those_without_permission_are_passed_over(tmp_path, monkeypatch):
    for folder in ("lost+found/fog", "a/fog", "closed"):
        (tmp_path / folder).mkdir(parents=True)
    scandir = os.scandir

    def refused(path):
        if Path(path).name in ("lost+found", "closed"):
            raise PermissionError(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    found = find_folders(tmp_path, ("fog", "snow"), LAYOUT)
    assert found == {"fog": tmp_path / "a" / "fog"}
