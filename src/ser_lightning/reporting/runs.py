"""Which row of the paper a run is, told from the configuration in its folder."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ser_lightning.checkpoints import CONFIGURATION, read_config
from ser_lightning.files import read_text
from ser_lightning.reporting.paper import ALL_GROUPS, Subject, base_name, make_subject, pretraining
from ser_lightning.reporting.same_weights import (
    PER_LAYER,
    addons,
    arguments,
    class_name,
    depth_of,
    layers_of,
    weights_hash,
)
from ser_lightning.results.record import ResultRecord

PICTURE_FOLDER = "pictures"
"""Where a run keeps what it drew while training, below its folder."""

_BASES = {"MoCoV3": "moco_v3", "DINO": "dino", "BarlowTwins": "barlow_twins"}
_METHODS = {"ESSL": "E-SSL"}
"""The paper's name of an add-on where it is not the class name without "Regularizer"."""

_PLAIN_VIEWS = {"EquiMod": 1}
_TURNED_VIEWS = {"E-SSL": 4}
"""Views that add-ons bring along, by size: a global view each, and small ones."""

_PAPER_SIDE, _PAPER_WARMUP = 224, 10


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
    """What a run's folder says, before a record may replace some of it; see `Run`.

    Attributes:
        identity: base, method, views and the settings that the paper varies.
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
    """What fit.yaml says of a run; without one, its folder's name, which the paper does not have.

    Raises:
        ValueError: as `read_configuration`.
    """
    config = read_configuration(run_dir)
    if config is None:
        place = run_dir.resolve()
        told = {"base": "", "method": place.name, "views": ""}
        return Told(told, str(place), (f"no {CONFIGURATION}",), None)
    resumed = resumptions(run_dir)
    departures = tuple(_departures(config, bool(resumed)))
    seed = config.get("seed_everything")
    return Told(_identity(config), weights_hash(config, resumed), departures, seed)


def describe_run(
    record: ResultRecord, run_dir: Path, read: Callable[[Path], Told] = read_run
) -> Run:
    """Tells from fit.yaml, and what the record says in its place, which row a run is.

    The random initialisation and other networks are no row of the paper, whatever the folder.
    `read` is `read_run`, or the same with a memory.
    """
    if record.network is not None:
        return Run(Subject("", record.network, ""), record.network)
    if record.checkpoint is None:
        return Run(Subject("", "random initialisation", ""), str(run_dir.resolve()))
    return read(run_dir).run(record.run)


def resumptions(run_dir: Path) -> list[Path]:
    """The configurations with which a run went on differently, `fit.step<N>.yaml`, by step."""
    found = [(path.stem.removeprefix("fit.step"), path) for path in run_dir.glob("fit.step*.yaml")]
    return [path for _, path in sorted((int(step), path) for step, path in found if step.isdigit())]


def read_configuration(run_dir: Path, name: str = CONFIGURATION) -> dict[str, Any] | None:
    """The content of a run's fit.yaml, or of another of its files; None where there is none.

    Raises:
        ValueError: if it is not a configuration of this package.
    """
    path = run_dir / name
    if not path.is_file():
        return None
    config = read_config(read_text(path), path)
    if not {"model", "data"} <= config.keys():
        raise ValueError(
            f"{path} has no sections model and data; it must be the configuration that ser-fit "
            "wrote: remove it and say in the records' `run` what the run is"
        )
    return config


def _identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """Base, method, views and the settings that the paper varies."""
    model, data = arguments(config["model"]), config["data"]
    base = _BASES.get(class_name(config["model"]), class_name(config["model"]))
    num_local = arguments(arguments(data.get("crop")).get("local")).get("num", 0)
    if model.get("regularizer") is None:
        return {"base": base, "method": base_name(base), "views": _views([], num_local)}
    methods = list(dict.fromkeys(_method(addon) for addon in addons(model["regularizer"])))
    invertible = arguments(data.get("invertible"))
    switches = arguments(invertible.get("group"))
    return {
        "base": base,
        "method": " + ".join(methods),
        "views": _views(methods, num_local),
        "equiv_layer": _layer(arguments(model.get("backbone"))),
        "rho": invertible.get("ratio"),
        "lambda": _weight(model["regularizer"]),
        "groups": " ".join(name for name in ALL_GROUPS.split() if switches.get(name, True)),
    }


def _method(addon: Any) -> str:
    name = class_name(addon).removesuffix("Regularizer")
    return _METHODS.get(name, name)


def _views(methods: Sequence[str], num_local: int) -> str:
    """How many views an image has, as the paper counts: "2", "3", or "2+4" with small ones."""
    num_large = 2 + max((_PLAIN_VIEWS.get(m, 0) for m in methods), default=0)
    num_small = num_local + max((_TURNED_VIEWS.get(m, 0) for m in methods), default=0)
    return f"{num_large}+{num_small}" if num_small else str(num_large)


def _layer(backbone: Mapping[str, Any]) -> Any:
    """Where add-ons read: a block's number, or for several a text, "all" for every block."""
    layers = layers_of(backbone)
    if not isinstance(layers, list):
        return layers
    if len(layers) > 1 and layers == list(range(1, depth_of(backbone) + 1)):
        return "all"
    return layers[0] if len(layers) == 1 else " ".join(map(str, layers))


def _weight(regularizer: Any) -> float | None:
    """Lambda; of add-ons in a PerLayer the sum."""
    weight: float | None = arguments(regularizer).get("weight")
    if class_name(regularizer) != PER_LAYER:
        return weight
    parts = [_weight(addon) for addon in arguments(regularizer)["regularizers"]]
    if weight is None or None in parts:
        return None
    return round(weight * sum(part for part in parts if part is not None), 3)


def _part(limit: float) -> str:
    if isinstance(limit, float):
        return f"{100 * limit:g} % of the batches"
    return "1 batch" if limit == 1 else f"{limit} batches"


def _departures(config: Mapping[str, Any], resumed: bool) -> list[str]:
    """Differences from the paper's pretraining that a reader of the delta must know."""
    paper = pretraining()
    model, data = arguments(config["model"]), config["data"]
    backbone = arguments(model.get("backbone"))
    trainer = config.get("trainer") or {}
    source, root = class_name(data.get("source")), arguments(data.get("source")).get("root")
    folder = Path(root or "").name
    pairs = [
        ("backbone", backbone.get("name"), paper["backbone"]),
        ("image size", backbone.get("image_size", _PAPER_SIDE), _PAPER_SIDE),
        ("epochs", trainer.get("max_epochs"), paper["epochs"]),
        ("global batch size", data.get("global_batch_size"), paper["batch_size"]),
        ("epochs of warm-up", model.get("warmup_epochs", _PAPER_WARMUP), _PAPER_WARMUP),
    ]
    notes = [f"{name} {ours} (paper {theirs})" for name, ours, theirs in pairs if ours != theirs]
    if source != "ImageFolder":
        notes.append(f"pretrained on {source} (paper {paper['dataset']})")
    elif folder and not re.search("imagenet|ilsvrc", folder, re.IGNORECASE):
        notes.append(f"pretrained on the folder {folder} (paper {paper['dataset']})")
    if backbone.get("weights"):
        notes.append(f"started from the weights {Path(str(backbone['weights'])).name}")
    if backbone.get("vit_options"):
        notes.append(f"backbone options {json.dumps(backbone['vit_options'])}")
    if trainer.get("max_steps") not in {None, -1}:
        notes.append(f"stopped after {trainer['max_steps']} steps")
    limit = trainer.get("limit_train_batches")
    if limit is not None and not (isinstance(limit, float) and limit == 1):  # 1 is one batch
        notes.append(f"of each epoch {_part(limit)}")
    group = arguments(arguments(data.get("invertible")).get("group"))
    if group.get("angle"):
        notes.append(f"turns by up to {group['angle']:g} degrees")
    if model.get("regularizer") is None and data.get("invertible") is not None:
        notes.append("an invertible sub-batch without a regularizer")
    if resumed:
        notes.append("configuration changed while training")
    return notes
