"""The odd files of Pillow's tests: each is read or called unreadable, in time and memory."""

import json
import os
import subprocess
import sys
import tarfile
import threading
from collections import Counter
from pathlib import Path

import PIL
import pytest

from ser_lightning.sources.base import UnreadableImage
from ser_lightning.sources.decode import read_image
from ser_lightning.sources.listing import list_images

READ_EACH = Path(__file__).with_name("read_each.py")
SOURCE = Path(__file__).parents[2] / "src"


def outcomes(folder):
    """How reading ended, by the name of the file."""
    command = [sys.executable, str(READ_EACH), str(folder)]
    environment = os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return dict(json.loads(line) for line in done.stdout.splitlines())


def test_pipes_and_folders_are_no_images_and_nobody_waits_for_them(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    found = []

    def read():
        with pytest.raises(UnreadableImage, match=r"pipe\.png: is no file but") as error:
            read_image(tmp_path / "pipe.png")
        found.append(error)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(10)
    assert len(found) == 1
    with pytest.raises(UnreadableImage, match="is no file but a folder"):
        read_image(tmp_path)


@pytest.mark.slow
def test_limits_and_faults_of_a_file_are_noticed(tmp_path):
    """What the campaign below relies on: it does not call everything unreadable."""
    (tmp_path / "a.png").write_bytes(b"no image")
    header = b"P6 60000 60000 255\n"
    (tmp_path / "large.ppm").write_bytes(header + bytes(100))
    assert outcomes(tmp_path) == {"a.png": "unreadable", "large.ppm": "unreadable"}


@pytest.fixture(scope="module")
def pillows_images(tmp_path_factory):
    """The folder of images in Pillow's source distribution, as pip finds it."""
    folder = tmp_path_factory.mktemp("pillow")
    what = ["--no-deps", "--no-binary", "pillow", f"pillow=={PIL.__version__}"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", *what, "-d", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no index gives Pillow's source: {done.stderr.strip()[-200:]}")
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as content:
        wanted = [entry for entry in content if "/Tests/images/" in entry.name]
        content.extractall(folder, wanted, filter="data")
    (images,) = folder.glob("*/Tests/images")
    return images


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_image_of_pillows_tests_is_read_or_unreadable(pillows_images, capsys):
    found = outcomes(pillows_images)
    counts = Counter(found.values())
    with capsys.disabled():
        print(f"\n{len(found)} files of Pillow's tests: {dict(counts)}")
    assert len(found) > 500
    assert {name: end for name, end in found.items() if end not in ("read", "unreadable")} == {}
    assert counts["read"] > counts["unreadable"] > 0


@pytest.mark.slow
def test_listing_of_pillows_tests_counts_every_file(pillows_images):
    files = [path for path in pillows_images.rglob("*") if path.is_file()]
    found = list_images(pillows_images)
    assert len(found.paths) + sum(found.left_out.values()) == len(files)
