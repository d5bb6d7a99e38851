"""The numbers that the paper prints, each with what it was measured on."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

Source = tuple[str, str, str]
"""Where a number of ours is from: stage, data set, metric."""


class Measure(NamedTuple):
    """One column of one table of the paper, and where ours is found.

    Attributes:
        table: key in paper_results.yaml.
        column: key of the column there.
        stage: that measured ours.
        dataset: that it was measured on.
        metric: name in the record's metrics.
        digits: decimals to print.
        task: the row's task, in the one table with a row per task.
    """

    table: str
    column: str
    stage: str
    dataset: str
    metric: str
    digits: int = 2
    task: str = ""

    @property
    def source(self) -> Source:
        """Where ours is found."""
        return self.stage, self.dataset, self.metric


_CORRUPTIONS = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur",
    "zoom_blur", "snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate",
    "jpeg_compression", "avg",
)  # fmt: skip

_PERTURBATIONS = (
    "gaussian_noise", "shot_noise", "speckle_noise", "motion_blur", "zoom_blur", "gaussian_blur",
    "snow", "spatter", "brightness", "translate", "rotate", "tilt", "scale", "shear", "avg",
)  # fmt: skip


def _transfer(table: str) -> tuple[Measure, ...]:
    """Linear evaluation and shifted sets.

    ImageNet-R has 200 of the 1000 classes; the paper does not say that it restricts the logits to
    them, and its numbers look like all 1000.
    """
    return tuple(
        Measure(table, f"{dataset}_top{k}", stage, dataset, f"top{k}{suffix}")
        for stage, dataset, suffix in (
            ("linear", "imagenet1k", ""),
            ("shift", "imagenet_sketch", ""),
            ("shift", "imagenet_v2", ""),
            ("shift", "imagenet_r", "_1000way"),
        )
        for k in (1, 5)
    )


MEASURES: tuple[Measure, ...] = (
    Measure("table1", "params_m", "cost", "", "params_m", 1),
    *_transfer("table1"),
    Measure("table1", "3diebench_top1", "3diebench", "3diebench", "top1"),
    Measure("table1", "3diebench_top5", "3diebench", "3diebench", "top5"),
    *_transfer("table2"),
    Measure("table3", "mlp_top1", "mlp", "imagenet1k", "top1"),
    Measure("table3", "mlp_top5", "mlp", "imagenet1k", "top5"),
    Measure("table3", "knn20_top1", "knn", "imagenet1k", "top1_k20"),
    Measure("table3", "finetune_top1", "finetune", "imagenet1k", "top1"),
    Measure("table3", "finetune_top5", "finetune", "imagenet1k", "top5"),
    Measure("table4", "imagenet1k_top1", "linear", "imagenet1k", "top1"),
    *(
        Measure("table4", column, "equivariance", "imagenet1k", f"equivariance/{family}_final", 3)
        for column, family in (
            ("eq_rotation", "rotation"),
            ("eq_hflip", "flip"),
            ("eq_scale", "scale"),
        )
    ),
    *(
        Measure(table, "imagenet1k_top1", "linear", "imagenet1k", "top1")
        for table in ("table5", "table6")
    ),
    *(
        Measure(
            "table7", f"layer{i}", "transformation", "imagenet1k", f"{family}_layer{i}", 2, task
        )
        for task, family in (("rotation", "rotation"), ("hflip", "flip"))
        for i in (1, 3, 6, 9, 12)
    ),
    *(
        Measure(table, "imagenet1k_top1", "linear", "imagenet1k", "top1")
        for table in ("table8a", "table8b", "table9", "table10")
    ),
    Measure("table10", "imagenet1k_top5", "linear", "imagenet1k", "top5"),
    *(
        Measure("table11", metric, "detection", "coco2017", metric, 3)
        for metric in ("map", "map_50", "map_75")
    ),
    *(Measure("table12", c, "imagenet-c", "imagenet_c", f"top1/{c}") for c in _CORRUPTIONS),
    Measure("table12", "mce", "imagenet-c", "imagenet_c", "mce"),
    *(Measure("table13", p, "imagenet-p", "imagenet_p", f"top1/{p}") for p in _PERTURBATIONS),
    *(Measure("table14", p, "imagenet-p", "imagenet_p", f"top1/{p}") for p in _PERTURBATIONS),
    *(Measure("table15", c, "imagenet-c", "imagenet_c", f"top5/{c}") for c in _CORRUPTIONS),
    *(Measure("table16", p, "imagenet-p", "imagenet_p", f"top5/{p}") for p in _PERTURBATIONS),
    Measure("table17", "flops_g", "cost", "", "flops_g"),
    Measure("table17", "relative", "cost", "", "relative", 3),
)
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
    """A row of the paper.

    Attributes:
        subject: what was measured.
        values: by column; columns that the paper leaves empty are not there.
        std: standard deviation by column, where the paper prints one.
    """

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

    Args:
        base: key of the base objective.
        method: as the paper spells it in any table.
        views: "2", "3" or "2+4".
        settings: equiv_layer, rho, lambda, groups; None where unknown.
        task: what the row is about in the table with a row per task, or "".
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
