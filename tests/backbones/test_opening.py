"""A named architecture keeps what its layout, its user and the file beside it say of it."""

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from ser_lightning.backbones import SplitViT
from ser_lightning.backbones.opening import known_name, open_backbone
from ser_lightning.backbones.preparation import preparation_of


@pytest.mark.parametrize(
    ("given", "expected"), [(None, 12), pytest.param(3, 3, marks=pytest.mark.slow)]
)
def test_heads_of_a_layout_and_of_the_user_hold_for_a_name(
    tmp_path: Path, given: int | None, expected: int
) -> None:
    vit = timm.create_model("vit_small_patch16_224", num_classes=0, num_heads=expected).eval()
    path = tmp_path / "moco.pth"
    torch.save({f"module.base_encoder.{k}": v for k, v in vit.state_dict().items()}, path)
    opened = open_backbone(path, name="vit_small_patch16_224", num_heads=given)
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(opened.backbone.eval()(pixels), vit(pixels), rtol=0, atol=1e-4)


def test_a_config_of_timm_beside_tells_arguments_and_preparation(tmp_path: Path) -> None:
    built = {"img_size": 32, "patch_size": 8, "depth": 2, "num_heads": 6}
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, **built).eval()
    prepared = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "crop_pct": 0.5}
    path = tmp_path / "model.safetensors"
    save_file(vit.state_dict(), path)
    config = {"architecture": "vit_tiny_patch16_224", "model_args": built}
    (tmp_path / "config.json").write_text(json.dumps({**config, "pretrained_cfg": prepared}))
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = open_backbone(path).backbone.eval()(pixels)
        torch.testing.assert_close(found, vit(pixels), rtol=0, atol=1e-4)
    preparation = preparation_of(path)
    assert preparation.mean == (0.1, 0.2, 0.3)
    assert preparation.std == (0.4, 0.5, 0.6)
    assert preparation.crop_fraction == 0.5


def test_a_folder_that_timm_writes_is_read(tmp_path: Path) -> None:
    built = {"img_size": [32, 32], "patch_size": [8, 8], "depth": 2}
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, **built).eval()
    timm.models.save_for_hf(vit, tmp_path, model_args=built)
    assert json.loads((tmp_path / "config.json").read_text())["model_args"]["img_size"] == [32, 32]
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = open_backbone(tmp_path / "pytorch_model.bin").backbone.eval()(pixels)
        torch.testing.assert_close(found, vit(pixels), rtol=0, atol=1e-4)


@pytest.mark.parametrize("beside", [{"model_args": {"global_pool": "avg"}}, {"global_pool": "avg"}])
def test_a_model_that_pools_averages_is_not_measured_by_its_cls(
    beside: dict[str, object], tmp_path: Path
) -> None:
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, global_pool="avg", fc_norm=False)
    torch.save(vit.state_dict(), tmp_path / "model.pth")
    config = {"architecture": "vit_tiny_patch16_224", **beside}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"it has the pooling 'avg' in place of \[CLS\]"):
        open_backbone(tmp_path / "model.pth")


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_base_patch16_siglip_224"])
def test_a_name_beside_a_file_that_is_not_its_own_is_told(name: str, tmp_path: Path) -> None:
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=2)
    torch.save(vit.state_dict(), tmp_path / "vit.pth")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": name}))
    with pytest.raises(ValueError, match=f"; {name} is what config.json beside it says: without"):
        open_backbone(tmp_path / "vit.pth")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"pretrained_cfg": {"mean": [123, 116, 103]}}, r"mean \[123, 116, 103\] must be"),
        ({"pretrained_cfg": {"std": [58, 57, 57]}}, r"std \[58, 57, 57\] must be"),
        ({"pretrained_cfg": {"mean": "abc"}}, "mean 'abc' must be"),
        ({"pretrained_cfg": {"crop_pct": "x"}}, "crop_fraction 'x' must be"),
        ({"pretrained_cfg": "x"}, "pretrained_cfg 'x' must be a mapping"),
        ({"model_args": "x"}, "model_args 'x' must be a mapping"),
        ({"layer_norm_eps": "x"}, "layer_norm_eps 'x' must be above 0"),
    ],
)
def test_what_cannot_be_beside_a_file_is_refused(
    changed: dict[str, object], says: str, tmp_path: Path
) -> None:
    path = saved(tmp_path / "model.pth")
    built = {"img_size": 32, "embed_dim": 128, "depth": 2, "num_heads": 2}
    config = {"architecture": "vit_tiny_patch16_224", "model_args": built}
    (tmp_path / "config.json").write_text(json.dumps(config | changed))
    with pytest.raises(ValueError, match=rf"config\.json: {says}"):
        open_backbone(path)


def saved(path: Path, name: str = "vit_tiny_patch16_224", **options: object) -> Path:
    """A file in timm's names of a small random ViT."""
    small = {"img_size": 32, "embed_dim": 128, "depth": 2, "num_heads": 2} | options
    vit = timm.create_model(name, num_classes=0, **small)
    torch.save(vit.state_dict(), path)
    return path


def test_a_file_with_clips_norm_asks_for_its_name(tmp_path: Path) -> None:
    path = saved(tmp_path / "clip.pth", "vit_base_patch16_clip_quickgelu_224")
    with pytest.raises(ValueError, match="CLIP's, whose activation no shape tells"):
        open_backbone(path)


def test_another_activation_beside_a_file_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "model.pth")
    config = {"hidden_size": 128, "hidden_act": "quick_gelu"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="the activation quick_gelu"):
        open_backbone(path)


def test_epsilon_of_a_layout_holds_for_a_name(tmp_path: Path) -> None:
    path = saved(tmp_path / "vit.pth", embed_dim=192, num_heads=3, depth=12, img_size=224)
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 192, "layer_norm_eps": 1e-3}))
    opened = open_backbone(path, name="vit_tiny_patch16_224")
    assert opened.backbone.vit.norm.eps == opened.backbone.vit.blocks[0].norm1.eps == 1e-3
    assert opened.given == ("vit_tiny_patch16_224",)


@pytest.mark.parametrize(
    ("file", "name"),
    [("a/vit.pth.tar", "vit"), ("a/checkpoint.pth.tar", "a"), ("b/model.safetensors", "b")],
)
def test_a_file_is_called_by_what_tells_it(file: str, name: str) -> None:
    assert known_name(file) == name


def test_a_branch_of_timms_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--model.branch momentum has no effect"):
        open_backbone("vit_tiny_patch16_224", "momentum")


def test_an_export_of_this_package_says_how_its_images_are_prepared(tmp_path: Path) -> None:
    backbone = SplitViT("vit_tiny_patch16_224", 32, vit_options={"depth": 2}, layer=1)
    note = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "crop_fraction": 1.0}
    backbone.export_safetensors(tmp_path / "mine.safetensors", json.dumps(note))
    found = open_backbone(tmp_path / "mine.safetensors").preparation
    assert (found.mean, found.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (found.crop_fraction, found.assumed) == (1.0, ())


@pytest.mark.slow
def test_parallel_blocks_of_timm_are_opened() -> None:
    assert open_backbone("vit_small_patch16_18x2_224", image_size=32).backbone.depth == 18


def test_a_processor_that_does_not_normalise_tells_so(tmp_path: Path) -> None:
    told = {"do_normalize": False, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": 224}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(told))
    found = preparation_of(tmp_path / "model.safetensors")
    assert (found.mean, found.std, found.assumed) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), ())
