"""A card says what weights are, and not where anything lay."""

from exporting.exports import opened
from ser_lightning.exporting.card import model_card
from ser_lightning.exporting.opened import open_backbone_file


def test_relative_folders_are_left_out_too(tmp_path):
    source = {"class_path": "ImageFolder", "init_args": {"root": "../secret/birds", "min_side": 32}}
    backbone = {"class_path": "SplitViT", "init_args": {"weights": "secret/start.pth"}}
    model = {"class_path": "SimCLR", "init_args": {"backbone": backbone}}
    config = {"model": model, "data": {"source": source}}
    found = opened(tmp_path)._replace(config=config)
    card = model_card(found, "safetensors", "export", "unknown", "")
    assert "ImageFolder (root birds, min_side 32)" in card
    assert "weights: start.pth" in card
    assert "secret" not in card


def test_random_weights_of_a_name_are_called_so(tmp_path):
    found = open_backbone_file("vit_tiny_patch16_224", tmp_path)
    card = model_card(found, "safetensors", "export", "unknown", "")
    assert f"Weights: timm, random weights, with SHA-256 `{found.sha256}`" in card
    assert "Weights: the online branch of a file with SHA-256" in model_card(
        opened(tmp_path), "safetensors", "export", "unknown", ""
    )
