"""`ser-fit export`: a folder with preparation and model card, complete or not at all."""

import errno
import json
import shutil
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

import foreign_layouts as files
from exporting.exports import opened, pixels
from results.result_records import record
from ser_lightning.backbones import SplitViT
from ser_lightning.checkpoints import CHECKPOINT_KEY
from ser_lightning.cli import main
from ser_lightning.exporting import folder as export_folder
from ser_lightning.exporting.formats import FORMATS, require_expressible
from ser_lightning.exporting.opened import open_backbone_file
from ser_lightning.files import file_sha256
from ser_lightning.results.record import write_record
from support import TINY_VIT

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def refusal(*args):
    with pytest.raises(SystemExit) as stop:
        main(["export", *map(str, args)])
    return str(stop.value.code)


@pytest.fixture
def run(trained_run, tmp_path):
    """A copy of a finished run, with two records: of its last checkpoint, and of another file."""
    copy = shutil.copytree(trained_run, tmp_path / "moco_ser")
    digest = file_sha256(copy / "checkpoints" / "last.ckpt")
    measured = replace(record(), checkpoint_sha256=digest, weights_key="online")
    write_record(replace(measured, stage="knn", metrics={"top1_k20": 61.5}), copy)
    write_record(replace(measured, stage="mlp", checkpoint_sha256="0" * 64), copy)
    return copy


def test_export_of_a_run_computes_the_same_and_says_what_it_is(run):
    checkpoint = run / "checkpoints" / "last.ckpt"
    main(["export", str(checkpoint), "--format", "safetensors", "--license", "cc-by-4.0"])
    folder = run / "exports" / "safetensors"
    backbone = SplitViT.from_safetensors(folder / "model.safetensors").eval()
    expected = SplitViT.from_checkpoint(checkpoint).eval()(pixels())
    torch.testing.assert_close(backbone(pixels()), expected, rtol=0, atol=0)
    _, head, card = (folder / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(head)["license"] == "cc-by-4.0"
    for fact in (
        file_sha256(checkpoint), "Shapes (num_train 96", "objectives.moco_v3.MoCoV3",
        "[CLS] joins after block 1", "61.50", "| mean | [0.485, 0.456, 0.406] |",
        "embeddings differ by 0.0e+00",
        "Images that they were trained on: unknown",
    ):  # fmt: skip
        assert fact in card
    assert "| mlp |" not in card  # of another file
    marked = json.loads((folder / "export.json").read_text())["images"]
    assert (marked["crop_fraction"], marked["assumed"]) == (1.0, [])


def test_momentum_branch_has_a_folder_and_weights_of_its_own(run):
    checkpoint = run / "checkpoints" / "last.ckpt"
    main(["export", str(checkpoint), "--format", "safetensors", "--branch", "momentum"])
    exported = run / "exports" / "safetensors-momentum" / "model.safetensors"
    backbone = SplitViT.from_safetensors(exported).eval()
    expected = SplitViT.from_checkpoint(checkpoint, "momentum").eval()(pixels())
    torch.testing.assert_close(backbone(pixels()), expected, rtol=0, atol=0)


def test_card_leaves_out_where_images_lie(run, tmp_path):
    checkpoint = run / "checkpoints" / "last.ckpt"
    content = torch.load(checkpoint)
    config = yaml.safe_load(content[CHECKPOINT_KEY]["config"])
    config["data"]["source"] = {
        "class_path": "ser_lightning.data.ImageFolder",
        "init_args": {"root": "/home/somebody/birds"},
    }
    content[CHECKPOINT_KEY]["config"] = yaml.safe_dump(config)
    torch.save(content, checkpoint)
    main(["export", str(checkpoint), "--format", "safetensors", "--output", str(tmp_path / "out")])
    card = (tmp_path / "out" / "README.md").read_text()
    assert "ImageFolder (root birds" in card
    assert "somebody" not in card


def test_file_without_a_run_says_that_it_does_not_know(tmp_path):
    source = opened(tmp_path, cls_layer=0)
    source.backbone.export_safetensors(tmp_path / "bare.safetensors")
    out = tmp_path / "out"
    main(["export", str(tmp_path / "bare.safetensors"), "--format", "timm", "--output", str(out)])
    card = (out / "README.md").read_text()
    assert "Data set and configuration: unknown" in card
    assert "(assumed: the file does not say)" in card
    assert "license: unknown" in card
    assert json.loads((out / "export.json").read_text())["images"]["assumed"] == [
        "mean", "std", "crop_fraction",
    ]  # fmt: skip


@pytest.mark.parametrize("form", ["safetensors", "timm", "huggingface"])
def test_what_is_assumed_of_another_projects_file_stays_so(form, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(files.moco_v3(files.vit(), files.vit(seed=1)), "vit.pth")
    main(["export", "vit.pth", "--format", form])
    folder = Path("runs", "vit", "exports", form)
    guess = "2 attention heads, as usual for a width of 128"
    assert f"Assumed, since the file does not say: {guess}." in (folder / "README.md").read_text()
    marked = json.loads((folder / "export.json").read_text())["images"]
    assert marked["assumed"] == ["mean", "std", "crop_fraction"]
    again = open_backbone_file(str(folder / "model.safetensors"), tmp_path)
    assert again.assumed == ("mean", "std", "crop_fraction")
    assert again.guessed == (guess,)


def test_export_of_another_backbone_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, place in enumerate(("here", "there")):
        Path(place).mkdir()
        torch.save(files.deit(files.vit(seed=number), None), f"{place}/vit.pth")
    main(["export", "here/vit.pth", "--format", "safetensors"])
    main(["export", "here/vit.pth", "--format", "safetensors", "--overwrite"])
    said = refusal("there/vit.pth", "--format", "safetensors", "--overwrite")
    assert "has the export of another backbone" in said
    main(["export", "there/vit.pth", "--format", "safetensors", "--output", "other"])
    for text in ("{", "[]"):
        Path("runs/vit/exports/safetensors/export.json").write_text(text)
        assert said[:60] in refusal("here/vit.pth", "--format", "safetensors", "--overwrite")


def test_refusals_name_the_options_of_this_command(tmp_path):
    torch.save(files.timm_file(files.vit(embed_dim=100), None), tmp_path / "vit.pth")
    said = refusal(tmp_path / "vit.pth", "--format", "safetensors")
    assert "give --num_heads N" in said
    said = refusal("vit_tiny_patch16_224", "--format", "timm", "--timm_name", "x")
    assert "--timm_name x has no effect on" in said
    assert "--model" not in said


def test_epsilon_of_another_value_is_refused_for_timm_alone(tmp_path):
    for eps, says in ((1e-6, ""), (1e-5, "an epsilon of 1e-05")):
        source = opened(tmp_path, cls_layer=0, vit_options={**TINY_VIT, "norm_eps": eps})
        require_expressible(source, "huggingface")
        with pytest.raises(ValueError, match=says) if says else nullcontext():
            require_expressible(source, "timm")


def test_failed_export_leaves_an_earlier_one_and_nothing_else(tmp_path, monkeypatch):
    source, out = opened(tmp_path, cls_layer=0), tmp_path / "exports" / "out"
    options = (source.path, "--output", out, "--format")
    main(["export", *map(str, options), "timm"])
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def half(opened, folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "no room", "model.safetensors")

    monkeypatch.setitem(FORMATS, "timm", FORMATS["timm"]._replace(write=half))
    assert "the disk is full" in refusal(*options, "timm", "--overwrite")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    main(["export", *map(str, options), "safetensors", "--overwrite"])
    assert json.loads((out / "export.json").read_text())["format"] == "safetensors"
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_export_to_a_link_replaces_what_it_leads_to(tmp_path):
    source, link = opened(tmp_path, cls_layer=0), tmp_path / "link"
    first = (source.path, "--output", tmp_path / "disk" / "out", "--format", "timm")
    main(["export", *map(str, first)])
    link.symlink_to(tmp_path / "disk" / "out")
    for kind in ("timm", "safetensors", "timm"):
        options = (source.path, "--output", link, "--format", kind, "--overwrite")
        main(["export", *map(str, options)])
        assert json.loads((tmp_path / "disk/out/export.json").read_text())["format"] == kind
        assert link.is_symlink()
    assert not [path for path in tmp_path.rglob("*.old")]


def test_export_that_computes_something_else_is_not_kept(tmp_path, monkeypatch):
    source = opened(tmp_path, cls_layer=0)
    monkeypatch.setattr(export_folder, "difference", lambda *_: float("nan"))
    said = refusal(source.path, "--format", "timm", "--output", tmp_path / "exports" / "out")
    assert "differs by nan" in said
    assert list((tmp_path / "exports").iterdir()) == []


def test_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    source = opened(tmp_path, cls_layer=0)
    assert "pip install 'ser-lightning[export]'" in refusal(source.path, "--format", "onnx")


def test_missing_reader_is_said_in_the_card(tmp_path, monkeypatch):
    monkeypatch.setitem(FORMATS, "timm", FORMATS["timm"]._replace(package="no_such_package"))
    source, out = opened(tmp_path, cls_layer=0), tmp_path / "out"
    main(["export", str(source.path), "--format", "timm", "--output", str(out)])
    assert (
        "Not compared with the backbone: no_such_package is not" in (out / "README.md").read_text()
    )
