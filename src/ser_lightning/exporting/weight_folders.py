"""Exports of weights and a configuration: this package's own, and timm's."""

import json
import math
from pathlib import Path
from typing import Any

import timm
from safetensors.torch import save_file
from torch import Tensor

from ser_lightning.backbones import SplitViT
from ser_lightning.data.clean import Clean
from ser_lightning.exporting.opened import Opened, assumptions, told
from ser_lightning.foreign.architecture import CONFIG

WEIGHTS = "model.safetensors"


def write_own(opened: Opened, folder: Path) -> None:
    """Writes the file that `SplitViT.from_safetensors` reads."""
    opened.backbone.export_safetensors(folder / WEIGHTS, json.dumps(told(opened)))


def embed_own(folder: Path, images: Tensor) -> Tensor:
    """The embeddings (B, C) that an export gives of images (B, 3, S, S)."""
    embedding: Tensor = SplitViT.from_safetensors(folder / WEIGHTS).eval()(images)
    return embedding


def write_timm(opened: Opened, folder: Path) -> None:
    """Writes a folder in the layout of the Hugging Face hub, which timm also loads from a disk.

    Source: timm (huggingface/pytorch-image-models), `timm/models/_hub.py`: the keys that it reads.
    """
    write_state(opened.backbone.timm_state_dict(), folder)
    write_config(timm_config(opened.backbone, opened.clean), opened, folder)


def embed_timm(folder: Path, images: Tensor) -> Tensor:
    """As `embed_own`."""
    embedding: Tensor = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(images)
    return embedding


def timm_config(backbone: SplitViT, clean: Clean) -> dict[str, Any]:
    """What timm builds the model from, and how it prepares images."""
    arguments = backbone.arguments
    patch = {} if arguments["patch_size"] is None else {"patch_size": arguments["patch_size"]}
    options = {name: v for name, v in arguments["vit_options"].items() if name != "norm_eps"}
    built = {
        "img_size": backbone.image_size,
        **patch,
        "dynamic_img_size": True,
        "no_embed_class": False,
        "class_token": True,
        "global_pool": "token",
        **options,  # norm_eps is no argument of timm's; `require_expressible` allows its own alone
    }
    return {
        "architecture": arguments["name"].partition(".")[0],
        "num_classes": 0,
        "num_features": backbone.width,
        "global_pool": "token",
        "model_args": built,
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [3, backbone.image_size, backbone.image_size],
            "fixed_input_size": False,
            "interpolation": "bicubic",
            "crop_pct": crop_share(clean),
            "crop_mode": "center",
            "mean": list(clean.mean),
            "std": list(clean.std),
            "num_classes": 0,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }


def crop_share(clean: Clean) -> float:
    """The share of the resized side by which timm, which rounds down, resizes to the same side."""
    share = clean.size / clean.resized
    return share if math.floor(clean.size / share) == clean.resized else math.nextafter(share, 0)


def write_state(state: dict[str, Tensor], folder: Path) -> None:
    """Writes weights as others read them."""
    save_file({k: v.contiguous() for k, v in state.items()}, folder / WEIGHTS, {"format": "pt"})


def write_config(config: dict[str, Any], opened: Opened, folder: Path) -> None:
    """Writes what a library builds the model from, and what of it is assumed."""
    assumed = {name: value for name, value in assumptions(opened).items() if value}
    write_json(config | assumed, folder / CONFIG)


def write_json(content: Any, path: Path) -> None:
    """Writes plain values."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
