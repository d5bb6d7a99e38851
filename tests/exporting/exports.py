"""Backbones in files, for tests of exports."""

import json
from pathlib import Path

import torch

from ser_lightning.data.clean import Clean
from ser_lightning.exporting.opened import open_backbone_file, preparation
from support import TINY_VIT, tiny_backbone

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def opened(folder, **options):
    """A backbone with weights that all matter, opened from a file of this package."""
    torch.manual_seed(0)
    backbone = tiny_backbone(**options)
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    path = Path(folder, "backbone.safetensors")
    backbone.export_safetensors(path, json.dumps(preparation(Clean(16, 16 / 18, MEAN, STD))))
    return open_backbone_file(path, Path(folder))


def pixels(num=5):
    """Normalised images of the tiny backbone's size."""
    return torch.randn(num, 3, 16, 16, generator=torch.Generator().manual_seed(1))


SCALED = {"vit_options": {**TINY_VIT, "init_values": 0.5}}
GATED = {"name": "vit_giant_patch14_dinov2", "vit_options": {**TINY_VIT, "mlp_ratio": 5.5}}
REGISTERS = {"vit_options": {**TINY_VIT, "init_values": 0.5, "reg_tokens": 3}}
