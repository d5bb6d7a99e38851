"""A named architecture keeps what its layout, its user and the file beside it say of it."""

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from ser_lightning.backbones.opening import open_backbone, preparation_of


@pytest.mark.parametrize(("given", "expected"), [(None, 12), (3, 3)])
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
