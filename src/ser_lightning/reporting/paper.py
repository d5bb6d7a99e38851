"""The numbers that the paper prints, each with what it was measured on."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ser_lightning.results.ratios import ALEXNET_CORRUPTION_ERRORS

Source = tuple[str, str, str]
"""Where a number of ours is from: stage, data set, metric."""


class PaperColumn(NamedTuple):
    """One column of one table of the paper, by their keys there, and where ours is found.

    The task is the row's, in the one table with a row per task.
    """

    table: str
    column: str
    source: Source
    digits: int = 2
    task: str = ""


_CORRUPTIONS = (*ALEXNET_CORRUPTION_ERRORS, "avg")
_PERTURBATIONS = (
    "gaussian_noise", "shot_noise", "speckle_noise", "motion_blur", "zoom_blur", "gaussian_blur",
    "snow", "spatter", "brightness", "translate", "rotate", "tilt", "scale", "shear", "avg",
)  # fmt: skip


def _columns(
    tables: str,
    stage: str,
    dataset: str,
    metrics: Mapping[str, str],
    digits: int = 2,
    task: str = "",
) -> list[PaperColumn]:
    """Columns, by key with the metric of ours, that each of some tables has from one stage."""
    return [
        PaperColumn(f"table{table}", column, (stage, dataset, metric), digits, task)
        for table in tables.split()
        for column, metric in metrics.items()
    ]


def _both(prefix: str, suffix: str = "") -> dict[str, str]:
    """Top-1 and top-5."""
    return {f"{prefix}_top{k}": f"top{k}{suffix}" for k in (1, 5)}


def _each(names: Sequence[str], metric: str) -> dict[str, str]:
    return {name: f"{metric}/{name}" for name in names}


def _layers(family: str) -> dict[str, str]:
    return {f"layer{i}": f"{family}_layer{i}" for i in (1, 3, 6, 9, 12)}


_EQUIVARIANCE = {
    "eq_rotation": "equivariance/rotation_final",
    "eq_hflip": "equivariance/flip_final",
    "eq_scale": "equivariance/scale_final",
}
_IMAGENET, _C, _P = "imagenet1k", ("imagenet-c", "imagenet_c"), ("imagenet-p", "imagenet_p")

COLUMNS = [
    *_columns("1", "cost", "", {"params_m": "params_m"}, 1),
    *_columns("1 2", "linear", _IMAGENET, _both(_IMAGENET)),
    *_columns("1 2", "shift", "imagenet_sketch", _both("imagenet_sketch")),
    *_columns("1 2", "shift", "imagenet_v2", _both("imagenet_v2")),
    # It has 200 of the 1000 classes; the paper does not say that it restricts the logits to them,
    # and its numbers look like all 1000.
    *_columns("1 2", "shift", "imagenet_r", _both("imagenet_r", "_1000way")),
    *_columns("1", "3diebench", "3diebench", _both("3diebench")),
    *_columns("3", "mlp", _IMAGENET, _both("mlp")),
    *_columns("3", "knn", _IMAGENET, {"knn20_top1": "top1_k20"}),
    *_columns("3", "finetune", _IMAGENET, _both("finetune")),
    *_columns("4 5 6", "linear", _IMAGENET, {"imagenet1k_top1": "top1"}),
    *_columns("4", "equivariance", _IMAGENET, _EQUIVARIANCE, 3),
    *_columns("7", "transformation", _IMAGENET, _layers("rotation"), task="rotation"),
    *_columns("7", "transformation", _IMAGENET, _layers("flip"), task="hflip"),
    *_columns("8a 8b 9", "linear", _IMAGENET, {"imagenet1k_top1": "top1"}),
    *_columns("10", "linear", _IMAGENET, _both(_IMAGENET)),
    *_columns("11", "detection", "coco2017", {m: m for m in ("map", "map_50", "map_75")}, 3),
    *_columns("12", *_C, {**_each(_CORRUPTIONS, "top1"), "mce": "mce"}),
    *_columns("13 14", *_P, _each(_PERTURBATIONS, "top1")),
    *_columns("15", *_C, _each(_CORRUPTIONS, "top5")),
    *_columns("16", *_P, _each(_PERTURBATIONS, "top5")),
    *_columns("17", "cost", "", {"flops_g": "flops_g"}),
    *_columns("17", "cost", "", {"relative": "relative"}, 3),
]
RESULTS_FILE = Path(__file__).with_name("paper_results.yaml")
ALL_GROUPS = "rotation flip scale"

_DEFAULTS: dict[str, dict[str, Any]] = {
    "SER": {"equiv_layer": 3, "rho": 0.01, "lambda": 1.0, "groups": ALL_GROUPS},
    "EquiMod": {"equiv_layer": 12},
    "AugSelf": {"equiv_layer": 12},
}
"""The settings that the paper varies, by method, with its usual values; others do not count."""

_DEFAULT_WEIGHT = {"dino": 0.3}
"""The usual lambda where it is not 1, by base."""

_SPELLINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "SER (full)": ("SER", {}),
    "SER (layer 3)": ("SER", {}),
    "SER (all layers)": ("SER", {"equiv_layer": "all"}),
    "SER lambda=0 (control)": ("SER", {"lambda": 0}),
    "SER - Rot": ("SER", {"groups": "flip scale"}),
    "SER - Rot - HFlip": ("SER", {"groups": "scale"}),
    "SER - Rot - Scale": ("SER", {"groups": "flip"}),
}
"""What the row names of some tables mean."""

_BASE_NAMES = {"moco_v3": "MoCo-v3", "dino": "DINO", "barlow_twins": "Barlow Twins"}


class Subject(NamedTuple):
    """What a row of a table is about; equal where two rows may be compared.

    Attributes:
        base: invariant objective, such as "moco_v3".
        method: the add-on, or the name of the base where there is none.
        views: "2", "3" or "2+4".
        settings: (name, value) of those that differ from the paper's usual ones, sorted.
        task: in the one table that has a row per task; else "".
    """

    base: str
    method: str
    views: str
    settings: tuple[tuple[str, Any], ...] = ()
    task: str = ""

    def label(self) -> str:
        """The row's name, such as "SER on DINO, 2 views, rho 0.02"."""
        base = base_name(self.base)
        name = self.method if self.method == base or not base else f"{self.method} on {base}"
        views = [f"{self.views} views"] if self.views else []
        settings = [f"{key} {_short(value)}" for key, value in self.settings]
        return ", ".join([name, *views, *settings, *([self.task] if self.task else [])])


class PaperRow(NamedTuple):
    """A row of the paper: values by column, and standard deviations where it prints them."""

    subject: Subject
    values: dict[str, float]
    std: dict[str, float]


class PaperTable(NamedTuple):
    """A table of the paper."""

    caption: str
    note: str
    rows: tuple[PaperRow, ...]

    def row(self, subject: Subject) -> PaperRow | None:
        """The row about a subject; None where the paper has none."""
        return next((row for row in self.rows if row.subject == subject), None)


def base_name(base: str) -> str:
    """The paper's name of a base objective; its key where the paper does not have it."""
    return _BASE_NAMES.get(base, base)


def make_subject(
    base: str, method: str, views: str, settings: Mapping[str, Any], task: str = ""
) -> Subject:
    """Describes a row, with the settings reduced to those that differ from the usual ones.

    The method is as the paper spells it in any table; settings are equiv_layer, rho, lambda and
    groups, None where unknown.
    """
    method, implied = _SPELLINGS.get(method, (method, {}))
    usual = dict(_DEFAULTS.get(method, {}))
    if "lambda" in usual:
        usual["lambda"] = _DEFAULT_WEIGHT.get(base, usual["lambda"])
    given = {key: value for key, value in settings.items() if value is not None} | implied
    differing = {key: given[key] for key in usual if key in given and given[key] != usual[key]}
    return Subject(base, method, views, tuple(sorted(differing.items())), task)


@lru_cache(maxsize=1)
def paper_tables() -> dict[str, PaperTable]:
    """The tables of the paper by key, in its order; do not change them in place.

    Table 12 has a further column "mce", which the paper does not print: it follows from the
    accuracies of the table.
    """
    content = _content()
    tables = {}
    for key, table in content["tables"].items():
        rows = tuple(_row(row, table["columns"]) for row in table["rows"])
        tables[key] = PaperTable(table["caption"], table.get("note", ""), rows)
    derived = {
        (row["method"], row["views"]): row["mce"]
        for row in content["derived"]["imagenet_c_mce_percent"]
    }
    for row in tables["table12"].rows:
        row.values["mce"] = derived[row.subject.method, row.subject.views]
    note = "mCE is not printed in the paper; it follows from the accuracies"
    tables["table12"] = tables["table12"]._replace(note=note)
    return tables


@lru_cache(maxsize=1)
def pretraining() -> dict[str, Any]:
    """How the paper pretrains: backbone, dataset, epochs, batch_size, warmup_epochs."""
    meta = _content()["meta"]
    return {"backbone": meta["backbone"], **meta["pretrain"]}


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


@lru_cache(maxsize=1)
def _content() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(RESULTS_FILE.read_text(encoding="utf-8"))
    return content


def _row(row: Mapping[str, Any], columns: list[str]) -> PaperRow:
    """Reads a row; a cell is a number, {value, std}, or null."""
    cells = {
        name: cell if isinstance(cell, dict) else {"value": cell}
        for name, cell in row.items()
        if name in columns and cell is not None
    }
    subject = make_subject(
        row["base"], row["method"], row["views"],
        {key: row.get(key) for key in ("equiv_layer", "rho", "lambda")}, row.get("task", ""),
    )  # fmt: skip
    values = {name: float(cell["value"]) for name, cell in cells.items()}
    return PaperRow(subject, values, {n: c["std"] for n, c in cells.items() if "std" in c})
