"""A card says what weights are, and not where anything lay."""

from exporting.exports import opened
from ser_lightning.exporting.card import model_card


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
