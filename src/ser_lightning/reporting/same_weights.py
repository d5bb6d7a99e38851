"""Which runs have the same weights but for the seed, told from their configurations."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ser_lightning.checkpoints import OF_THE_WEIGHTS, read_config
from ser_lightning.files import read_text

PER_LAYER = "PerLayer"
_PAPER_NAME, _PAPER_DEPTH = "vit_small_patch16_224", 12

_SAME_WEIGHTS = {
    "num_workers", "evaluation_batch_size", "bank_size", "validate_bank_size", "num_queries",
    "max_bad_share",
}  # fmt: skip
"""Settings of the data that do not change the weights; nor does the seed, to be averaged over."""

_NEW_DEFAULTS = {"background": [255, 255, 255], "labels": True, "max_pixels": 178_956_970}
"""Settings that version 0.1.0 did not write, with the values that stand for their lack."""

_DEFAULT_HIDDEN = ("SERRegularizer", "AugSelf")
"""Add-ons whose `hidden: null` is 512, or twice the width where that is less."""

_COLOURS = {
    "brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1, "p_jitter": 0.8,
    "p_gray": 0.2, "p_blur": 1.0, "blur_sigma": [0.1, 2.0], "p_solarize": 0.0,
}  # fmt: skip
DEFAULT_VIEWS = {"view_1": _COLOURS, "view_2": {**_COLOURS, "p_blur": 0.1, "p_solarize": 0.2}}
"""MoCo-v3's, where a configuration leaves the crops out."""


def weights_hash(config: Mapping[str, Any], resumed: Sequence[Path]) -> str:
    """Hashes what determines the weights, without the seed, the same for every version's words.

    `resumed` are the configurations that the run went on with.
    """
    went_on = [(path.name, _of_weights(read_config(read_text(path), path))) for path in resumed]
    text = json.dumps([*_of_weights(config), went_on], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _of_weights(config: Mapping[str, Any]) -> list[Any]:
    trainer = config.get("trainer") or {}
    model, data = _written_alike(config.get("model") or {}, config.get("data") or {})
    return [
        model,
        {key: value for key, value in data.items() if key not in _SAME_WEIGHTS},
        {key: trainer.get(key) for key in OF_THE_WEIGHTS},
    ]


def layers_of(backbone: Mapping[str, Any]) -> Any:
    """After which blocks add-ons read: the number, or a list, where shares of the depth stood."""
    given = backbone.get("layer")
    several = given if isinstance(given, list) else [given]
    if any(isinstance(layer, float) for layer in several):
        depth = depth_of(backbone)
        several = [round(n * depth) if isinstance(n, float) else n for n in several]
    return several if isinstance(given, list) else several[0]


def depth_of(backbone: Mapping[str, Any]) -> int:
    """How many blocks it has: as its options say, or else timm's model of its name."""
    options, name = backbone.get("vit_options") or {}, str(backbone.get("name", _PAPER_NAME))
    if "depth" in options or name == _PAPER_NAME:
        return int(options.get("depth", _PAPER_DEPTH))
    import timm  # noqa: PLC0415 - a report of other models does without it
    import torch  # noqa: PLC0415

    try:
        with torch.device("meta"):
            model: Any = timm.create_model(name, num_classes=0)
    except RuntimeError:  # an unknown name
        return _PAPER_DEPTH
    return len(model.blocks)


def _written_alike(model: Any, data: Any) -> tuple[Any, Any]:
    """Model and data without what versions write differently for the same weights.

    Since version 0.1.0 an add-on takes its width, and small heads their hidden one, from the
    backbone, invertible views their colours from the crops, and `cls_layer` may be "auto".
    """
    model, data = _without_defaults(model), _without_defaults(data)
    options = arguments(model)
    backbone, regularizer = arguments(options.get("backbone")), options.get("regularizer")
    backbone.pop("grad_checkpointing", None)  # the same weights with less memory
    if "layer" in backbone:
        backbone["layer"] = layers_of(backbone)
    if backbone.get("cls_layer") == "auto" and regularizer is None:
        backbone["cls_layer"] = 0
    elif backbone.get("cls_layer") == "auto":
        del backbone["cls_layer"]
    width = arguments(backbone.get("vit_options")).get("embed_dim")
    for addon in addons(regularizer):
        options = arguments(addon)
        given = options.pop("width", None) or width
        small = 2 * given if given else 384 if "_tiny_" in str(backbone.get("name")) else 512
        if class_name(addon) in _DEFAULT_HIDDEN and options.get("hidden") == min(512, small):
            del options["hidden"]
    crop, invertible = arguments(data.get("crop")), arguments(data.get("invertible"))
    for view, default in DEFAULT_VIEWS.items():
        if invertible.get(view) == crop.get(view, default):
            invertible.pop(view, None)
    return model, data


def _without_defaults(node: Any) -> Any:
    """A copy without nulls, new settings at their defaults, and the modules of our classes."""
    if isinstance(node, list):
        return [_without_defaults(value) for value in node]
    if not isinstance(node, Mapping):
        return node
    kept = {key: _without_defaults(v) for key, v in node.items() if v != _NEW_DEFAULTS.get(key)}
    if str(kept.get("class_path")).startswith("ser_lightning."):
        kept["class_path"] = class_name(kept)
    return kept


def addons(node: Any) -> list[Any]:
    """The add-ons of a regularizer: those in a PerLayer, or itself."""
    if class_name(node) != PER_LAYER:
        return [] if node is None else [node]
    return [addon for part in arguments(node)["regularizers"] for addon in addons(part)]


def class_name(node: Any) -> str:
    """The last part of a class path; "" where there is none."""
    path = node.get("class_path", "") if isinstance(node, Mapping) else node or ""
    return str(path).rpartition(".")[2]


def arguments(node: Any) -> dict[str, Any]:
    """What a class is built with, with or without class_path around it; empty for null."""
    if not isinstance(node, dict):
        return {}
    is_class = "class_path" in node or "init_args" in node
    options = node.get("init_args") or {} if is_class else node
    return options if isinstance(options, dict) else {}
