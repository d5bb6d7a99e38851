"""Files that somebody might give as a checkpoint: by what they are, each written to a folder."""

import argparse
import io
import pickle
import zipfile

import safetensors.torch
import timm
import torch
from PIL import Image

CUTS = (0, 10, 50, 99)
OPTIONS = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}


def write_all(good, folder):
    """All files, by what they are, made from a good checkpoint of `tiny.yaml`."""
    content = torch.load(good, weights_only=True)
    state = content["state_dict"]
    tensors = {name: value.contiguous() for name, value in state.items()}
    vit = timm.create_model("vit_tiny_patch16_224", **OPTIONS, num_classes=5).state_dict()
    teacher = {f"module.backbone.{name}": value for name, value in vit.items()}
    other_project = {"pytorch-lightning_version": "2.1.0", "loops": {}, "optimizer_states": [],
                     "state_dict": {"net.weight": vit["cls_token"]}, "lr_schedulers": [],
                     "epoch": 1, "global_step": 7, "hyper_parameters": {"lr": 1.0}}  # fmt: skip
    image = io.BytesIO()
    Image.new("RGB", (8, 8)).save(image, "jpeg")
    whole = good.read_bytes()
    saved = {
        "timm state dict": vit,
        "dino": {"student": teacher, "teacher": teacher, "args": argparse.Namespace(lr=1.0)},
        "deit": {"model": vit, "args": argparse.Namespace(lr=1.0)},
        "other project": other_project,
        "newer lightning": {**content, "pytorch-lightning_version": "9.1.0"},
        "stripped": {**content, "loops": {}},
        "loops null": {**content, "loops": None},
        "list": [vit["cls_token"]],
        "numbers": {"state_dict": {"a": 1}, 3: "b"},
    }
    found = {name: folder / f"{name.replace(' ', '_')}.ckpt" for name in saved}
    for name, value in saved.items():
        torch.save(value, found[name])
    written = {
        "safetensors": safetensors.torch.save(tensors),
        "jpeg": image.getvalue(),
        "text": b"model: {class_path: MoCoV3}\n" * 9,
        "html": b"<!DOCTYPE html><html>404</html>",
        "pickle": pickle.dumps({"a": 1}),
        "noise": bytes(range(256)) * 9,
        "flipped": whole[: len(whole) // 2] + bytes(b ^ 255 for b in whole[len(whole) // 2 :][:200])
        + whole[len(whole) // 2 + 200 :],
        "newer torch": newer_torch(good),
    }  # fmt: skip
    written |= {f"cut at {cut} %": whole[: len(whole) * cut // 100] for cut in CUTS}
    for name, data in written.items():
        found[name] = folder / f"{name.replace(' ', '_').replace('%', 'percent')}.ckpt"
        found[name].write_bytes(data)
    found["folder"] = folder / "folder.ckpt"
    found["folder"].mkdir()
    found["missing"] = folder / "nowhere.ckpt"
    return found


def newer_torch(good):
    """The archive with a version that no torch has yet, whose checksums are right."""
    target = io.BytesIO()
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            data = b"9999\n" if entry.filename.endswith("/version") else old.read(entry)
            new.writestr(entry.filename, data)
    return target.getvalue()
