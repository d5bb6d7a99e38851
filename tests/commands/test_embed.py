"""`ser-fit embed`: what a naive loop computes, in every kind of file, killed or not."""

import json
import shutil
import sys
from collections import namedtuple

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from benchmark_trees import write_images
from exporting.exports import opened
from ser_lightning.cli import main
from ser_lightning.exporting.unfinished import Unfinished
from ser_lightning.sources.folder import FolderImages

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*isinstance.*treespec.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

ROUNDING = 1e-5  # another size of a batch; 2e-6 was measured


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The current folder: a backbone, and 14 photographs of 2 classes."""
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "photos", ("cat", "dog"), per_class=7, size=40)
    return opened(tmp_path, cls_layer=2)


def embed(*options, images="photos", output="a.npz", batch=4):
    size = ("--data.evaluation_batch_size", batch)
    fixed = ("--images", images, "--output", output, "--device", "cpu", "--data.num_workers", 0)
    main(["embed", "backbone.safetensors", *map(str, (*fixed, *size, *options))])


def naive(source, names, root="photos", layer=None):
    """Image after image, by Pillow and the backbone alone."""
    rows = []
    for name in names:
        image = torch.from_numpy(np.array(Image.open(f"{root}/{name}").convert("RGB")))
        pixels = source.clean.normalise(source.clean.cut(image.permute(2, 0, 1))[None])
        backbone = source.backbone
        rows.append(backbone(pixels) if layer is None else backbone.token_maps(pixels, [layer])[0])
    return torch.cat(rows)


def test_embeddings_and_maps_are_those_of_a_naive_loop(place):
    embed("--layers", "[3,1]")
    file = np.load("a.npz")
    assert len(file["names"]) == len({*file["names"]}) == 14
    for array, layer in (("embedding", None), ("tokens_1", 1), ("tokens_3", 3)):
        expected = naive(place, file["names"], layer=layer)
        np.testing.assert_allclose(file[array], expected, rtol=0, atol=ROUNDING)
    of_names = [name.split("/")[0] for name in file["names"]]
    assert [str(file["class_names"][label]) for label in file["label"]] == of_names


def test_every_kind_of_file_has_the_same(place):
    parquet = pytest.importorskip("pyarrow.parquet")
    for suffix in ("npz", "safetensors", "parquet"):
        embed("--layers", "[3]", output=f"a.{suffix}")
    arrays = np.load("a.npz")
    with safe_open("a.safetensors", "np") as file:
        notes = file.metadata()
        for name in ("embedding", "tokens_3", "label"):
            assert np.array_equal(file.get_tensor(name), arrays[name])
    assert json.loads(notes["names"]) == arrays["names"].tolist()
    assert json.loads(notes["class_names"]) == arrays["class_names"].tolist()
    assert notes["about"] == str(arrays["about"])
    table = parquet.read_table("a.parquet")
    assert table["name"].to_pylist() == arrays["names"].tolist()
    assert table["class"].to_pylist() == [n.split("/")[0] for n in arrays["names"]]
    shapes = json.loads(table.schema.metadata[b"shapes"])
    for name in ("embedding", "tokens_3"):
        rows = np.array(table[name].to_pylist(), np.float32).reshape(-1, *shapes[name])
        assert np.array_equal(rows, arrays[name])


def interrupted(monkeypatch, after):
    """Ends a start when it has so many batches."""
    put = Unfinished.put

    def stop(self, *args):
        if self.done >= 4 * after:
            raise KeyboardInterrupt
        put(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(Unfinished, "put", stop)
        with pytest.raises(SystemExit):
            embed("--layers", "[3]")


def counted(monkeypatch):
    """The positions that are read from now on."""
    seen, read = [], FolderImages.read_reduced

    def note(self, index, min_side):
        seen.append(index)
        return read(self, index, min_side)

    monkeypatch.setattr(FolderImages, "read_reduced", note)
    return seen


def test_goes_on_where_it_was_with_the_same_bits(place, monkeypatch, capsys):
    embed("--layers", "[3]", output="unbroken.npz")
    interrupted(monkeypatch, after=2)
    seen = counted(monkeypatch)
    embed("--layers", "[3]")
    assert seen == list(range(8, 14))
    unbroken, resumed = np.load("unbroken.npz"), np.load("a.npz")
    assert unbroken.files == resumed.files
    for name in unbroken.files:
        assert np.array_equal(unbroken[name], resumed[name]), name
    assert not list(place.path.parent.glob(".a.npz*"))


@pytest.mark.parametrize("change", ["options", "image"])
def test_what_belongs_to_something_else_is_begun_afresh(place, change, monkeypatch):
    interrupted(monkeypatch, after=2)
    seen = counted(monkeypatch)
    if change == "image":
        Image.new("RGB", (41, 40)).save(next(iter(place.path.parent.glob("photos/cat/*"))))
    embed("--layers", "[3]" if change == "image" else "[2]")
    assert seen == list(range(14))


def test_unreadable_images_have_no_row_even_by_whole_batches(place, capsys):
    names = sorted(path for path in place.path.parent.glob("photos/*/*"))
    for number in (2, 4, 5, 6, 7, 13):  # the second batch is one of them
        names[number].write_bytes(b"no image")
    with pytest.warns(UserWarning, match="it is skipped"):
        embed("--data.on_bad_image", "skip", "--data.max_bad_share", "1")
    file = np.load("a.npz")
    kept = [names[n].relative_to(place.path.parent / "photos").as_posix()
            for n in range(14) if n not in (2, 4, 5, 6, 7, 13)]  # fmt: skip
    assert file["names"].tolist() == kept
    np.testing.assert_allclose(file["embedding"], naive(place, kept), rtol=0, atol=ROUNDING)
    assert file["label"].tolist() == [0 if name.startswith("cat") else 1 for name in kept]


def test_all_splits_are_embedded(place):
    shutil.copytree("photos", "tree/val")
    shutil.move("photos", "tree/train")
    embed(images="tree")
    names = np.load("a.npz")["names"].tolist()
    assert len(names) == 28
    assert {name.split("/")[0] for name in names} == {"train", "val"}


def test_images_without_files_are_called_by_split_and_position(place):
    source = ("Shapes", "--data.source.num_train", "5", "--data.source.num_evaluation", "3",
              "--data.source.image_size", "16")  # fmt: skip
    main(["embed", "backbone.safetensors", "--output", "a.npz", "--device", "cpu",
          "--data.num_workers", "0", "--data.source", *source])  # fmt: skip
    names = [*(f"train/{n}" for n in range(5)), *(f"evaluation/{n}" for n in range(3))]
    assert np.load("a.npz")["names"].tolist() == names


def test_half_precision_is_close(place):
    embed()
    embed("--precision", "bf16", output="b.npz")
    whole, half = np.load("a.npz")["embedding"], np.load("b.npz")["embedding"]
    assert half.dtype == np.float32
    assert 0 < np.abs(whole - half).max() < 0.1


def refusal(*args, **options):
    with pytest.raises(SystemExit) as stop:
        embed(*args, **options)
    return str(stop.value.code)


def test_missing_package_and_full_disk_are_said_before_anything_is_computed(place, monkeypatch):
    seen = counted(monkeypatch)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert "pip install 'ser-lightning[parquet]'" in refusal(output="a.parquet")
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1000))
    assert "free some space" in refusal()
    assert seen == []
