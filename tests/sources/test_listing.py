"""Tests of listing a tree of images: each once, nothing lost without a count, and the index."""

import os
import shutil
import socket
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ser_lightning.sources import listing
from ser_lightning.sources.base import Part, UnreadableImage
from ser_lightning.sources.decode import read_image
from ser_lightning.sources.folder import ImageFolder
from ser_lightning.sources.listing import list_images


def write(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def paths(root):
    return [os.fsdecode(path) for path in list_images(root).paths]


def test_images_are_sorted_as_texts_whatever_their_folder(tmp_path):
    names = [
        "b/2.png",
        "b.png",
        "b-c/1.JPG",
        "a/deep/er/\u5716.webp",
        "a/stra\u00dfe.jfif",
        "B.pgm",
    ]
    write(tmp_path, *names)
    assert paths(tmp_path) == sorted(names)


def test_what_is_no_image_is_counted_by_kind(tmp_path):
    write(tmp_path, "a.png", "b.heic", "c.HEIC", "d.txt", "e", "._a.png", ".hidden.png")
    write(tmp_path, ".git/a.png", "x/.ipynb_checkpoints/a.png", "__MACOSX/a.png", "@eaDir/a.png")
    (tmp_path / "broken.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert paths(tmp_path) == ["a.png"]
    assert dict(list_images(tmp_path).left_out) == {
        "files .heic": 2,
        "files .txt": 1,
        "files without an extension": 1,
        "hidden files": 2,
        "hidden or system folders .git": 1,
        "hidden or system folders .ipynb_checkpoints": 1,
        "hidden or system folders __MACOSX": 1,
        "hidden or system folders @eaDir": 1,
        "broken links": 1,
        "devices and pipes": 1,
    }


def test_links_to_parents_list_nothing_twice(tmp_path):
    root = tmp_path / "root"
    write(root, *(f"{name}/{number}.png" for name in "ab" for number in range(10)))
    write(tmp_path, "outside.png")
    (root / "a" / "up").symlink_to(root)
    (root / "b" / "up").symlink_to("..")
    (root / "b" / "further").symlink_to(tmp_path)
    (root / "0").symlink_to(root / "b")
    found = list_images(root)
    assert len(found.paths) == 20
    assert all(path.startswith((b"a/", b"b/")) for path in found.paths)  # not "0/", the link
    assert dict(found.left_out) == {"links to folders that are read already": 4}


def test_links_to_folders_and_files_elsewhere_are_followed(tmp_path):
    write(tmp_path, "store/a/1.png", "store/2.png", "root/b/3.png")
    (tmp_path / "root" / "a").symlink_to(tmp_path / "store" / "a")
    (tmp_path / "root" / "b" / "2.png").symlink_to("../../store/2.png")
    assert paths(tmp_path / "root") == ["a/1.png", "b/2.png", "b/3.png"]


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_two_names_of_a_file_are_one_image(tmp_path, link):
    write(tmp_path, "root/b/1.png", "2.png")
    link(tmp_path / "root" / "b" / "1.png", tmp_path / "root" / "z.png")
    link(tmp_path / "2.png", tmp_path / "root" / "c.png")
    link(tmp_path / "2.png", tmp_path / "root" / "d.png")
    found = list_images(tmp_path / "root")
    assert found.paths.tolist() == [b"b/1.png", b"c.png"]
    assert dict(found.left_out) == {"further names of the same image": 2}


kinds = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.sampled_from("xyz"),
        st.sampled_from(["file", "hard", "soft", "folder"]),
    ),
    max_size=9,
)


@given(kinds)
@settings(max_examples=60, deadline=None)
def test_any_web_of_links_lists_each_file_once(entries):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "root"
        for name in "abc":
            (root / name).mkdir(parents=True)
        write(Path(folder), "store.png", "root/a/first.png")
        for number, (parent, target, kind) in enumerate(entries):
            path = root / parent / f"{target}{number}.png"
            goal = root / "a" / "first.png" if target == "x" else Path(folder) / "store.png"
            if kind == "file":
                path.write_bytes(b"x")
            elif kind == "hard":
                os.link(goal, path)
            elif kind == "soft":
                path.symlink_to(goal)
            else:
                path.with_suffix("").symlink_to(
                    {"x": root, "y": root / "b", "z": Path(folder)}[target]
                )
        reached = {os.path.realpath(path) for path in root.rglob("*.png")}
        found = [os.stat(root / os.fsdecode(path)).st_ino for path in list_images(root).paths]
        assert len(set(found)) == len(found)
        assert set(found) == {os.stat(path).st_ino for path in reached}


@pytest.fixture
def indexed(tmp_path, monkeypatch):
    """A tree that did not change for a while, of 4 images in 2 folders and the root."""
    monkeypatch.setenv("SER_LIGHTNING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(listing, "MIN_INDEXED", 2)
    root = tmp_path / "root"
    write(root, "a/1.png", "a/2.png", "b/3.png", "4.png", "notes.txt")
    (root / "c").symlink_to(root / "a")
    settle(root)
    return root


def settle(root, seconds=10**9):
    for folder in (root, root / "a", root / "b"):
        os.utime(folder, (seconds, seconds))


@pytest.fixture
def scanned(monkeypatch):
    """Folders that are read."""
    found = []

    def scandir(path):
        found.append(Path(str(path)).name)
        return original(path)

    original = os.scandir
    monkeypatch.setattr(listing.os, "scandir", scandir)
    return found


def test_second_listing_reads_no_folder_and_finds_the_same(indexed, scanned):
    first = list_images(indexed)
    assert sorted(scanned) == ["a", "b", "root"]
    scanned.clear()
    second = list_images(indexed)
    assert scanned == []
    assert second.paths.tolist() == first.paths.tolist()
    assert second.left_out == first.left_out


def test_only_changed_folders_are_read_again(indexed, scanned):
    list_images(indexed)
    scanned.clear()
    write(indexed, "a/5.png")
    (indexed / "a" / "1.png").unlink()
    os.utime(indexed / "a", (10**9 + 1, 10**9 + 1))
    assert paths(indexed) == ["4.png", "a/2.png", "a/5.png", "b/3.png"]
    assert scanned == ["a"]
    shutil.rmtree(indexed / "b")
    assert paths(indexed) == ["4.png", "a/2.png", "a/5.png"]


def test_image_is_listed_once_its_link_leads_somewhere(indexed):
    (indexed / "a" / "9.png").symlink_to(indexed.parent / "elsewhere.png")
    os.utime(indexed / "a", (10**9 + 1, 10**9 + 1))
    assert list_images(indexed).left_out["broken links"] == 1
    (indexed.parent / "elsewhere.png").touch()
    assert "a/9.png" in paths(indexed)


def test_names_with_folders_from_windows_are_refused(indexed):
    write(indexed, "photos\\train\\cat\\0.jpg")
    with pytest.raises(ValueError, match=r"cat.0\.jpg in .* has backslashes .*unzip or 7z, or"):
        list_images(indexed)


def test_folder_that_may_still_change_is_read_again(indexed, scanned):
    os.utime(indexed / "a")
    list_images(indexed)
    scanned.clear()
    list_images(indexed)
    assert scanned == ["a"]


@pytest.mark.parametrize("content", [b"", b"no index", None])
def test_damaged_index_is_made_anew(indexed, content):
    expected = paths(indexed)
    (index,) = (indexed.parent / "cache" / "listings").iterdir()
    index.write_bytes(index.read_bytes()[:-50] if content is None else content)
    assert paths(indexed) == expected
    assert paths(indexed) == expected


def test_cache_that_cannot_be_written_is_said(indexed, monkeypatch):
    monkeypatch.setenv("SER_LIGHTNING_CACHE", str(indexed / "4.png"))
    with pytest.warns(UserWarning, match="index of images is not kept .* SER_LIGHTNING_CACHE"):
        assert len(list_images(indexed).paths) == 4


def test_two_roots_have_two_indexes(indexed, tmp_path):
    list_images(indexed)
    shutil.copytree(indexed, tmp_path / "other")
    list_images(tmp_path / "other")
    assert len(list((tmp_path / "cache" / "listings").iterdir())) == 2


def test_cache_lies_where_the_user_wants_it(monkeypatch):
    monkeypatch.delenv("SER_LIGHTNING_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert listing.cache_folder() == Path("/xdg/ser-lightning")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert listing.cache_folder() == Path.home() / ".cache" / "ser-lightning"
    monkeypatch.setenv("SER_LIGHTNING_CACHE", "/own")
    assert listing.cache_folder() == Path("/own")


def test_links_to_themselves_and_to_each_other_are_counted(tmp_path):
    write(tmp_path, "a/1.png")
    (tmp_path / "a" / "loop.png").symlink_to("loop.png")
    (tmp_path / "a" / "one.png").symlink_to("two.png")
    (tmp_path / "a" / "two.png").symlink_to("one.png")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    (tmp_path / "val").symlink_to("/unmounted/val")
    assert paths(tmp_path) == ["a/1.png"]
    assert dict(list_images(tmp_path).left_out) == {"broken links": 5}


def test_sockets_and_devices_are_counted(tmp_path, monkeypatch):
    write(tmp_path, "a.png")
    monkeypatch.chdir(tmp_path)  # the name of a socket is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
        (tmp_path / "null.png").symlink_to("/dev/null")
        found = list_images(tmp_path)
    assert found.paths.tolist() == [b"a.png"]
    assert sum(found.left_out.values()) == 2


NAMES = [
    b"caf\xe9.png",  # Latin-1: no UTF-8
    b"\xff\xfe.png",
    "\u00e9.png".encode(),  # one letter,
    "e\u0301.png".encode(),  # and the same in two characters
    b"two\nlines.png",
    b"  spaces  .png",
    b"tab\t'quotes\".png",
    b"-option.png",
    b"x" * 251 + b".png",
    b"CON.png",
]


def test_names_of_any_bytes_are_listed_and_read(tmp_path):
    folder = os.fsencode(tmp_path) + b"/class \xe9"
    os.mkdir(folder)
    for name in NAMES:
        with open(os.path.join(folder, name), "wb") as stream:
            Image.new("RGB", (4, 4)).save(stream, "PNG")
    images = ImageFolder(str(tmp_path)).train()
    while isinstance(images, Part):
        images = images.images
    found = [os.path.basename(os.fsencode(images.path(i))) for i in range(len(images))]
    assert sorted(found) == sorted(NAMES)
    assert all(images.read(i).shape == (3, 4, 4) for i in range(len(images)))


@pytest.mark.skipif(not hasattr(os, "seteuid") or os.geteuid() != 0, reason="needs another user")
def test_folders_without_permission_are_counted_and_files_unreadable():
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        root = Path(name)
        write(root, "a/1.png", "closed/2.png")
        (root / "into.png").symlink_to(root / "closed" / "2.png")
        (root / "a" / "1.png").chmod(0)
        (root / "closed").chmod(0)
        root.chmod(0o755)
        os.seteuid(65534)  # nobody
        try:
            found = list_images(root)
            with pytest.raises(UnreadableImage, match=r"1\.png: .*Permission denied"):
                read_image(root / "a" / "1.png")
        finally:
            os.seteuid(0)
    assert found.paths.tolist() == [b"a/1.png"]
    assert dict(found.left_out) == {"folders without permission to read": 1, "broken links": 1}
