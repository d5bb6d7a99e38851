"""The odd files and folders that the table of mistakes names, made in the current folder."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import foreign_layouts as files

ROOT = Path(__file__).parents[2]
LONG = "x" * 300  # no file system takes such a name

TEXTS = {
    "empty": "",
    "null": "null\n",
    "scalar": "5\n",
    "list": "- data\n- model\n",
    "tab": "data:\n\tbank_size: 8\n",
    "crlf": "data:\r\n  bank_size: 24\r\n",
    "unknown": "data: {bank_sizes: 8}\n",
    "duplicate": "data: {bank_size: 8}\ndata: {bank_size: 9}\n",
    "deep": "data: " + "[" * 5000,
    "object": "data: !!python/object/apply:os.mkdir [executed]\n",
    "keys": "3: {4: 5}\ntrue: 1\n",
    "unhashable": "? {a: b}\n: 1\n",
    "cycle": "data: &a {bank_size: *a}\n",
    "two": "data: {}\n---\ndata: {}\n",
    "brace": "data: {bank_size: 3\n",
    "section_list": "data: [1, 2]\n",
    "section_text": "data: some text\n",
    "model_list": "model: [1, 2]\n",
    "model_none": "model: null\n",
    "pictures_none": "pictures: null\n",
    "trainer_none": "trainer: null\n",
    "class_path_list": "model: {class_path: [MoCoV3]}\n",
    "trainer_missing": "trainer: missing.yaml\n",
    "date": "data: {bank_size: 2020-01-01}\n",
    "no_data": "model: {class_path: MoCoV3}\n",
    "no_source": "model: {class_path: MoCoV3}\ndata: {bank_size: 8}\n",
}
STRANGE = {  # runs by what their fit.yaml holds
    "yaml_list": b"- 1\n",
    "yaml_empty": b"",
    "yaml_tab": b"data:\n\tx: 1\n",
    "yaml_strange": b"model: 5\ndata: [1]\ntrainer: x\n",
    "yaml_no_model": b"data: {bank_size: 8}\n",
    "yaml_is_binary": bytes(range(256)),
}


def write_files():
    """Writes all of them."""
    Path("configs").symlink_to(ROOT / "configs")
    for name, text in TEXTS.items():
        Path(f"{name}.yaml").write_bytes(text.encode())
    Path("binary.yaml").write_bytes(bytes(range(256)) * 16)
    Path("bom.yaml").write_bytes(b"\xef\xbb\xbfdata: {bank_size: 24}\n")
    Path("latin1.yaml").write_bytes("# gr\u00f6\u00dfe\ndata: {bank_size: 24}\n".encode("latin-1"))
    Path("utf16.yaml").write_bytes("data: {bank_size: 24}\n".encode("utf-16"))
    lists = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    Path("bomb.yaml").write_text("\n".join(["a0: &a0 [x]", *lists]))
    Path("list.json").write_text("[1, 2]")
    Path("file").write_text("a file\n")
    Path("folder").mkdir()
    Path("folder_with_files").mkdir()
    Path("folder_with_files/mine.txt").write_text("mine\n")
    os.mkfifo("pipe.yaml")
    write_photos()
    write_weights()
    write_runs()


def write_photos():
    """Folders of photographs: good ones, damaged ones, one alone, and some without labels."""
    Image.new("RGB", (40, 30)).save("image.png")
    rng = np.random.default_rng(0)
    for kind, per_class in (("photos", 40), ("damaged_photos", 40), ("unlabelled", 80)):
        for label in ("cat", "dog") if kind != "unlabelled" else (".",):
            folder = Path(kind, label)
            folder.mkdir(parents=True)
            for number in range(per_class):
                pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
                if kind == "damaged_photos" and number % 3 == 0:
                    (folder / f"{number}.png").write_bytes(b"no image")
    Path("one_photo").mkdir()
    shutil.copy("image.png", "one_photo")


def write_weights():
    """Files of other projects: one whose heads are assumed, one of odd width, one damaged."""
    torch.save(files.deit(files.vit(depth=1), None), "deit.pth")
    torch.save(files.timm_file(files.vit(depth=1, embed_dim=100), None), "odd.pth")
    torch.save(files.timm_file(files.vit(depth=1, pre_norm=True), None), "clip.pth")
    Path("cut.pth").write_bytes(Path("deit.pth").read_bytes()[:5000])


def write_runs():
    """Run folders in which something is damaged or is not what it should be."""
    for name, content in STRANGE.items():
        Path(name).mkdir()
        Path(name, "fit.yaml").write_bytes(content)
    Path("yaml_is_a_folder", "fit.yaml").mkdir(parents=True)
    Path("damaged", "checkpoints").mkdir(parents=True)
    Path("damaged", "checkpoints", "last.ckpt").write_bytes(b"no checkpoint" * 100)
    Path("logs_are_a_file").mkdir()
    Path("logs_are_a_file", "checkpoints").write_text("")
    Path("blocked").mkdir(mode=0o500)
    Path("blocked_results").mkdir()
    Path("blocked_results", "results").write_text("")
    contents = {
        "results_damaged": b"{",
        "results_binary": bytes(range(256)),
        "results_list": b"[1, 2]",
        "results_numbers": json.dumps({"metrics": 5, "stage": 3}).encode(),
    }
    for name, content in contents.items():
        Path(name, "results").mkdir(parents=True)
        Path(name, "results", "knn-shapes.json").write_bytes(content)


def write_around(trained):
    """Copies of a trained run with one thing damaged."""
    for name in ("events_damaged", "pictures_damaged"):
        shutil.copytree(trained, name)
    for events in Path("events_damaged").glob("events*"):
        events.write_bytes(bytes(range(256)) * 4)
    Path("pictures_damaged/pictures").mkdir(exist_ok=True)
    Path("pictures_damaged/pictures/views.png").write_bytes(b"no picture")
