"""Which metric of which stage stands in which column of the paper: one table."""

from typing import NamedTuple


class Measure(NamedTuple):
    """One column of one table of the paper, and where ours is found.

    Attributes:
        table: key in paper_results.yaml.
        column: key of the column there.
        stage: of the record.
        dataset: of the record.
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
    Measure("table1", "3diebench_top1", "linear", "3diebench", "top1"),
    Measure("table1", "3diebench_top5", "linear", "3diebench", "top5"),
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
    *(Measure("table12", c, "corruption", "imagenet_c", f"top1/{c}") for c in _CORRUPTIONS),
    Measure("table12", "mce", "corruption", "imagenet_c", "mce"),
    *(Measure("table13", p, "perturbation", "imagenet_p", f"top1/{p}") for p in _PERTURBATIONS),
    *(Measure("table14", p, "perturbation", "imagenet_p", f"top1/{p}") for p in _PERTURBATIONS),
    *(Measure("table15", c, "corruption", "imagenet_c", f"top5/{c}") for c in _CORRUPTIONS),
    *(Measure("table16", p, "perturbation", "imagenet_p", f"top5/{p}") for p in _PERTURBATIONS),
    Measure("table17", "flops_g", "cost", "", "flops_g"),
    Measure("table17", "relative", "cost", "", "relative", 3),
)
