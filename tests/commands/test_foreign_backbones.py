"""`ser-fit evaluate`, `evaluate-all`, `compare`, `report` and `look` on backbones of elsewhere."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch

import foreign_layouts as files
from foreign_layouts import vit
from parsed import refusal
from ser_lightning.backbones import SplitViT
from ser_lightning.backbones.opening import open_backbone
from ser_lightning.cli import main
from ser_lightning.commands import evaluate_all as module
from ser_lightning.files import file_sha256
from ser_lightning.reporting.runs import describe_run
from ser_lightning.results.record import find_records
from support import tiny_backbone

ROOT = Path(__file__).parents[2]
KNN = ["evaluate", "--config", str(ROOT / "configs" / "eval" / "knn.yaml")]
SHAPES = ["--data.source", "Shapes", "--data.source.num_train", "24"]
SHAPES += ["--data.source.num_evaluation", "12", "--data.source.image_size", "32"]
CPU = ["--data.num_workers", "0", "--trainer.accelerator", "cpu", "--trainer.devices", "1"]

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*isinstance.*treespec.*"),
]


@pytest.fixture(autouse=True)
def _stay_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(files.dino(vit(), vit(seed=1)), "dino_vits.pth")


def test_file_of_elsewhere_is_measured_and_stands_beside_runs(trained_run, capsys, caplog):
    caplog.set_level("INFO")
    main([*KNN, "--checkpoint", "dino_vits.pth", *SHAPES, *CPU])
    assert "backbone dino_vits.pth: DINO, momentum branch, 3 blocks of width 128" in caplog.text
    assert "assumed: 2 attention heads, as usual for a width of 128" in caplog.text
    main([*KNN, "--checkpoint", "dino_vits.pth", "--model.branch", "online", *SHAPES, *CPU])
    found = {each.path.stem: each for each in find_records([Path("runs/dino_vits")])}
    (teacher,) = [each for name, each in found.items() if "online" not in name]
    assert len(found) == 2
    record = teacher.record
    assert record.checkpoint == "dino_vits.pth"
    assert record.checkpoint_sha256 == file_sha256(Path("dino_vits.pth"))
    assert (record.weights_key, record.cls_layer) == ("momentum", 0)
    assert record.run["layout"] == "DINO"
    assert SplitViT(**record.run["backbone"]).width == 128
    assert record.transform["mean"] == [0.485, 0.456, 0.406]
    assert not {"timm_name", "num_heads", "pretrained"} & record.protocol.keys()
    assert describe_run(record, teacher.run_dir).subject.method == "dino_vits"
    main(["compare", "runs/dino_vits", str(trained_run)])
    assert "dino_vits" in capsys.readouterr().out
    main(["report", "runs/dino_vits", "--output_dir", "report"])
    assert "dino_vits" in Path("report/report.md").read_text()
    main(["look", "runs/dino_vits", str(trained_run), "--output", "look.html"])
    page = Path("look.html").read_text()
    assert "trained elsewhere" in page
    assert "DINO" in page


def test_name_of_timm_is_measured_with_random_weights_and_its_own_preparation(caplog):
    caplog.set_level("INFO")
    name = "vit_xsmall_patch16_clip_224.tinyclip_yfcc15m"
    main([*KNN, "--checkpoint", name, "--model.image_size", "32", *SHAPES, *CPU])
    assert f"backbone {name}-random: timm, random weights" in caplog.text
    (found,) = find_records([Path("runs", f"{name}-random")])
    assert found.record.checkpoint == name
    assert len(found.record.checkpoint_sha256) == 64
    assert found.record.transform["mean"] == pytest.approx([0.4815, 0.4578, 0.4082], abs=1e-4)
    assert found.record.transform["image_size"] == 32


def test_given_preparation_takes_the_place_of_timms():
    means = ["--data.mean", "[0.1,0.2,0.3]", "--data.evaluation_crop_fraction", "0.5"]
    main([*KNN, "--checkpoint", "dino_vits.pth", *means, *SHAPES, *CPU])
    (found,) = find_records([Path("runs/dino_vits")])
    assert found.record.transform["mean"] == [0.1, 0.2, 0.3]
    assert found.record.transform["resize"] == 64


def test_export_of_this_project_is_measured_on_given_images():
    tiny_backbone(image_size=32).export_safetensors("mine.safetensors")
    main([*KNN, "--checkpoint", "mine.safetensors", *SHAPES, *CPU])
    (found,) = find_records([Path("runs/mine")])
    assert (found.record.run, found.record.layer) == ({}, 2)


@pytest.mark.parametrize("command", [KNN, ["evaluate-all", "--only", "knn"]], ids=lambda c: c[0])
@pytest.mark.parametrize("given", ["dino_vits.pth", "vit_tiny_patch16_224"])
def test_images_must_be_given_where_the_file_has_none(command, given, capsys):
    said = refusal([*command, "--checkpoint", given], capsys)
    assert f"{given} does not say on which images to measure it; give --data.source.root" in said
    assert not Path("runs").exists()


def test_name_that_nobody_has_is_refused_with_one_that_is_close(capsys):
    said = refusal([*KNN, "--checkpoint", "vit_smal_patch16_224", *SHAPES], capsys)
    assert "vit_smal_patch16_224 does not exist; give a file" in said
    assert "timm's name of a ViT, such as vit_small_patch16_224" in said


def test_evaluate_all_plans_stages_for_a_file_of_elsewhere(monkeypatch, capsys):
    ran = []

    def run(command, check):
        ran.append(command)
        main(command[3:])
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr(module.subprocess, "run", run)
    main(["evaluate-all", "--checkpoint", "dino_vits.pth", "--only", "knn", *SHAPES, *CPU])
    assert len(ran) == 1
    assert Path("runs/dino_vits/report").is_dir()


def test_results_of_another_file_of_that_name_are_not_written_over(capsys):
    Path("other").mkdir()
    torch.save(files.dino(vit(seed=2), vit(seed=3)), "other/dino_vits.pth")
    main([*KNN, "--checkpoint", "dino_vits.pth", *SHAPES, *CPU])
    before = Path("runs/dino_vits/results").glob("*.json")
    before = {path: path.read_bytes() for path in before}
    said = refusal([*KNN, "--checkpoint", "other/dino_vits.pth", *SHAPES, *CPU], capsys)
    assert "is of other weights" in said
    assert "--run_dir" in said
    assert all(path.read_bytes() == content for path, content in before.items())
    main([*KNN, "--checkpoint", "other/dino_vits.pth", "--run_dir", "runs/other", *SHAPES, *CPU])


@pytest.mark.slow
def test_file_and_name_of_elsewhere_are_exported_and_embed_images(caplog):
    caplog.set_level("INFO")
    main(["export", "dino_vits.pth", "--format", "timm"])
    folder = Path("runs/dino_vits/exports/timm")
    assert "differ by" in (folder / "README.md").read_text()
    again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    pixels = torch.randn(2, 3, again.patch_embed.img_size[0], again.patch_embed.img_size[1])
    backbone = open_backbone("dino_vits.pth").backbone.eval()
    with torch.no_grad():
        torch.testing.assert_close(again(pixels), backbone(pixels), rtol=0, atol=1e-5)
    main(["embed", "vit_tiny_patch16_224", *SHAPES, "--output", "a.npz", "--device", "cpu",
          "--data.num_workers", "0"])  # fmt: skip
    arrays = np.load("a.npz")
    assert arrays["embedding"].shape == (36, 192)


def test_an_epsilon_that_timm_cannot_express_is_refused(capsys):
    torch.save(files.hugging_face(vit(), vit(seed=1)), "hf_vit.pth")
    said = refusal(["export", "hf_vit.pth", "--format", "timm"], capsys)
    assert "an epsilon of 1e-12, and a model that timm builds" in said
    assert not Path("runs/hf_vit/exports/timm").exists()
