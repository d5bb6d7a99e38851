"""Which row of the paper a run is, told from the configuration in its folder."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ser_lightning.files import read_config
from ser_lightning.reporting.paper import ALL_GROUPS, Subject, base_name, make_subject, pretraining
from ser_lightning.results.record import ResultRecord

CONFIG_FILE = "fit.yaml"

_BASES = {"MoCoV3": "moco_v3", "DINO": "dino", "BarlowTwins": "barlow_twins"}
_METHODS = {"ESSL": "E-SSL"}
"""The paper's name of an add-on where it is not the class name without "Regularizer"."""

_PLAIN_VIEWS = {"EquiMod": 1}
_TURNED_VIEWS = {"E-SSL": 4}
"""Views that add-ons bring along, by size: a global view each, and small ones."""

_PER_LAYER = "PerLayer"
_PAPER_DEPTH = 12

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

_TRAINER = ("max_epochs", "max_steps", "precision", "accumulate_grad_batches",
            "limit_train_batches")  # fmt: skip


class Run(NamedTuple):
    """What tables must know about a run.

    Attributes:
        subject: the row that it belongs to.
        configuration: equal for runs that differ in nothing but the seed.
        departures: how its pretraining differs from the paper's, in words.
        seed: what pretraining was seeded with; None where it is not known.
    """

    subject: Subject
    configuration: str
    departures: tuple[str, ...] = ()
    seed: int | None = None


class Told(NamedTuple):
    """What a run's folder says; see `Run`.

    Attributes:
        identity: base, method, views and the settings that the paper varies.
        configuration: as of `Run`.
        departures: as of `Run`.
        seed: as of `Run`.
    """

    identity: Mapping[str, Any]
    configuration: str
    departures: tuple[str, ...]
    seed: int | None

    def run(self, override: Mapping[str, Any] | None = None) -> Run:
        """The run, with some of its identity, or its configuration, replaced."""
        told = {**self.identity, "configuration": self.configuration, **(override or {})}
        base, method, views, configuration = (
            str(told.pop(key)) for key in ("base", "method", "views", "configuration")
        )
        subject = make_subject(base, method, views, told)
        return Run(subject, configuration, self.departures, self.seed)


def read_run(run_dir: Path) -> Told:
    """Reads what fit.yaml says of a run.

    A run without fit.yaml has its folder's name for a method and no counterpart in the paper.

    Raises:
        ValueError: if fit.yaml is not a configuration of this package.
    """
    config = read_configuration(run_dir)
    if config is None:
        place = run_dir.resolve()
        told = {"base": "", "method": place.name, "views": ""}
        return Told(told, str(place), (f"no {CONFIG_FILE}",), None)
    resumed = sorted(run_dir.glob("fit.step*.yaml"))
    departures = tuple(_departures(config, bool(resumed)))
    seed = config.get("seed_everything")
    return Told(_identity(config), _digest(config, resumed), departures, seed)


def describe_run(
    record: ResultRecord, run_dir: Path, read: Callable[[Path], Told] = read_run
) -> Run:
    """Tells from fit.yaml, and what the record says in its place, which row a run is.

    The random initialisation and other networks are no row of the paper, whatever the folder.

    Args:
        record: a result of the run.
        run_dir: folder of the run.
        read: `read_run`, or the same with a memory.

    Raises:
        ValueError: as `read_run`.
    """
    if record.network is not None:
        return Run(Subject("", record.network, ""), record.network)
    if record.checkpoint is None:
        return Run(Subject("", "random initialisation", ""), str(run_dir.resolve()))
    return read(run_dir).run(record.run)


def read_configuration(run_dir: Path) -> dict[str, Any] | None:
    """The content of a run's fit.yaml; None where there is none.

    Raises:
        ValueError: if it is not a configuration of this package.
    """
    path = run_dir / CONFIG_FILE
    if not path.is_file():
        return None
    try:
        config = read_config(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML ({error}); restore it from the checkpoint") from error
    if not {"model", "data"} <= config.keys():
        raise ValueError(
            f"{path} has no sections model and data; it must be the configuration that ser-fit "
            "wrote: remove it and say in the records' `run` what the run is"
        )
    return config


def _identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """Base, method, views and the settings that the paper varies."""
    model, data = _arguments(config["model"]), config["data"]
    base_class = _class_name(config["model"])
    base = _BASES.get(base_class, base_class)
    num_local = _arguments(_arguments(data.get("crop")).get("local")).get("num", 0)
    if model.get("regularizer") is None:
        return {"base": base, "method": base_name(base), "views": _views([], num_local)}
    addons = _addons(model["regularizer"])
    methods = list(dict.fromkeys(_method(addon) for addon in addons))
    invertible = _arguments(data.get("invertible"))
    switches = _arguments(invertible.get("group"))
    return {
        "base": base,
        "method": " + ".join(methods),
        "views": _views(methods, num_local),
        "equiv_layer": _layer(_arguments(model.get("backbone"))),
        "rho": invertible.get("ratio"),
        "lambda": _weight(model["regularizer"]),
        "groups": " ".join(name for name in ALL_GROUPS.split() if switches.get(name, True)),
    }


def _addons(node: Any) -> list[Any]:
    """The add-ons of a regularizer: those in a PerLayer, or itself."""
    if _class_name(node) != _PER_LAYER:
        return [] if node is None else [node]
    return [addon for part in _arguments(node)["regularizers"] for addon in _addons(part)]


def _method(addon: Any) -> str:
    name = _class_name(addon).removesuffix("Regularizer")
    return _METHODS.get(name, name)


def _views(methods: Sequence[str], num_local: int) -> str:
    """How many views an image has, as the paper counts: "2", "3", or "2+4" with small ones."""
    num_large = 2 + max((_PLAIN_VIEWS.get(m, 0) for m in methods), default=0)
    num_small = num_local + max((_TURNED_VIEWS.get(m, 0) for m in methods), default=0)
    return f"{num_large}+{num_small}" if num_small else str(num_large)


def _layer(backbone: Mapping[str, Any]) -> Any:
    """Where add-ons read: as configured, or for several layers a text, "all" for every block."""
    layers = backbone.get("layer")
    if not isinstance(layers, list):
        return layers
    depth = (backbone.get("vit_options") or {}).get("depth", _PAPER_DEPTH)
    if layers == list(range(1, depth + 1)):
        return "all"
    return layers[0] if len(layers) == 1 else " ".join(f"{layer:g}" for layer in layers)


def _weight(regularizer: Any) -> float | None:
    """Lambda; of add-ons in a PerLayer the sum."""
    weight: float | None = _arguments(regularizer).get("weight")
    if _class_name(regularizer) != _PER_LAYER:
        return weight
    parts = [_weight(addon) for addon in _arguments(regularizer)["regularizers"]]
    if weight is None or None in parts:
        return None
    return round(weight * sum(part for part in parts if part is not None), 3)


def _departures(config: Mapping[str, Any], resumed: bool) -> list[str]:
    """Differences from the paper's pretraining that a reader of the delta must know."""
    paper = pretraining()
    model, data = _arguments(config["model"]), config["data"]
    backbone = _arguments(model.get("backbone"))
    trainer = config.get("trainer") or {}
    source = _class_name(data.get("source"))
    pairs = [
        ("backbone", backbone.get("name"), paper["backbone"]),
        ("epochs", trainer.get("max_epochs"), paper["epochs"]),
        ("global batch size", data.get("global_batch_size"), paper["batch_size"]),
    ]
    notes = [f"{name} {ours} (paper {theirs})" for name, ours, theirs in pairs if ours != theirs]
    if source != "ImageFolder":
        notes.append(f"pretrained on {source} (paper {paper['dataset']})")
    if backbone.get("vit_options"):
        notes.append(f"backbone options {json.dumps(backbone['vit_options'])}")
    if trainer.get("max_steps") not in {None, -1}:
        notes.append(f"stopped after {trainer['max_steps']} steps")
    if model.get("regularizer") is None and data.get("invertible") is not None:
        notes.append("an invertible sub-batch without a regularizer")
    if resumed:
        notes.append("configuration changed while training")
    return notes


def _digest(config: Mapping[str, Any], resumed: list[Path]) -> str:
    """Hashes what determines the weights, without the seed, the same for every version's words."""
    trainer = config.get("trainer") or {}
    model, data = _written_alike(config["model"], config["data"])
    content = [
        model,
        {key: value for key, value in data.items() if key not in _SAME_WEIGHTS},
        {key: trainer.get(key) for key in _TRAINER},
        [(path.name, path.read_text(encoding="utf-8")) for path in resumed],
    ]
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _written_alike(model: Any, data: Any) -> tuple[Any, Any]:
    """Model and data without what versions write differently for the same weights.

    Since version 0.1.0 an add-on takes its width, and small heads their hidden one, from the
    backbone, invertible views their colours from the crops, and `cls_layer` may be "auto".
    """
    model, data = _without_defaults(model), _without_defaults(data)
    arguments = _arguments(model)
    backbone, regularizer = _arguments(arguments.get("backbone")), arguments.get("regularizer")
    if backbone.get("cls_layer") == "auto" and regularizer is None:
        backbone["cls_layer"] = 0
    elif backbone.get("cls_layer") == "auto":
        del backbone["cls_layer"]
    width = _arguments(backbone.get("vit_options")).get("embed_dim")
    for addon in _addons(regularizer):
        options = _arguments(addon)
        given = options.pop("width", None) or width
        small = 2 * given if given else 384 if "_tiny_" in str(backbone.get("name")) else 512
        if _class_name(addon) in _DEFAULT_HIDDEN and options.get("hidden") == min(512, small):
            del options["hidden"]
    crop, invertible = _arguments(data.get("crop")), _arguments(data.get("invertible"))
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
        kept["class_path"] = _class_name(kept)
    return kept


def _class_name(node: Any) -> str:
    """The last part of a class path; "" where there is none."""
    path = node.get("class_path", "") if isinstance(node, Mapping) else node or ""
    return str(path).rpartition(".")[2]


def _arguments(node: Any) -> dict[str, Any]:
    """What a class is built with, with or without class_path around it; empty for null."""
    if not isinstance(node, dict):
        return {}
    arguments = node.get("init_args") or {} if "class_path" in node else node
    return arguments if isinstance(arguments, dict) else {}
