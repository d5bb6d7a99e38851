"""What the numbers of records, and of the evaluation during training, are called in tables.

What training logs beside them is named in `objectives/base.py`, `_log_step`.
"""

import re
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple


class Measure(NamedTuple):
    """How a metric is shown.

    Attributes:
        title: in words.
        heading: where configurations stand side by side; "" where that leaves it out.
        online: heading where what runs measured while training stands side by side, or "".
        digits: decimals to print.
        unit: after the number.
        reading: how to read the number, from the chance level in percent and the channels C.
    """

    title: str
    heading: str = ""
    online: str = ""
    digits: int = 2
    unit: str = ""
    reading: str = ""

    def text(self, value: float | None) -> str:
        """The number, or "-"."""
        return "-" if value is None else f"{value:.{self.digits}f}{self.unit}"


_EXACT = "1 is exact"
_MEASURES: dict[str, Measure] = {
    r"top1": Measure("top-1", "{stage} top-1"),
    r"top(\d)": Measure("top-{0}"),
    r"top(\d)_(\d+)way": Measure("top-{0} among {1} classes"),
    r"top(\d)_ema": Measure("top-{0} of averaged weights"),
    r"top(\d)_last_epoch": Measure("top-{0} of the last epoch"),
    r"top1_k20": Measure("20-NN top-1", "20-NN top-1"),
    r"top(\d)_k(\d+)": Measure("{1}-NN top-{0}"),
    r"top(\d)_k(\d+)_T(\S+)": Measure("{1}-NN top-{0} at temperature {2}"),
    r"knn_top1": Measure("k-NN top-1", "", "k-NN top-1", 1, " %", "chance {chance}"),
    r"knn_top5": Measure("k-NN top-5", "", "", 1, " %", "chance {chance}"),
    r"top1/avg": Measure("top-1, average", "{stage} top-1"),
    r"top1/avg_without_frost": Measure(
        "top-1, average without frost", "{stage} top-1 without frost"
    ),
    r"top(\d)/avg": Measure("top-{0}, average"),
    r"top(\d)/(\w+)": Measure("top-{0}, {1}"),
    r"(all_frames_right|flip_probability)/avg": Measure("{0}, average"),
    r"(all_frames_right|flip_probability)/(\w+)": Measure("{0}, {1}"),
    r"top5_distance/avg": Measure("top-5 distance, average"),
    r"top5_distance/(\w+)": Measure("top-5 distance, {0}"),
    r"mce": Measure("mCE"),
    r"relative_mce": Measure("relative mCE"),
    r"mfr": Measure("mean flip rate"),
    r"mt5d": Measure("mean top-5 distance"),
    r"equivariance/mean_centred/([a-z]+)_(final)": Measure(
        "equivariance, {0} {1}", "eq. {0}", digits=3, reading=_EXACT
    ),
    r"equivariance/mean_centred/([a-z]+|turn[\d.]+)_(block\d+|final)": Measure(
        "equivariance, {0} {1}", online="eq. {0}", digits=3, reading=_EXACT
    ),
    r"equivariance/([a-z]+)_final": Measure(
        "raw equivariance, {0} final", "raw eq. {0}", digits=3, reading=_EXACT
    ),
    r"equivariance/([a-z]+|turn[\d.]+)_(block\d+|final)": Measure(
        "raw equivariance, {0} {1}", digits=3, reading=_EXACT
    ),
    r"equivariance/random_init_mean_centred/([a-z]+|turn[\d.]+)_(block\d+|final)": Measure(
        "equivariance, {0} {1}, random init", digits=3
    ),
    r"equivariance/(\w+)/([a-z]+|turn[\d.]+)_(block\d+|final)": Measure(
        "raw equivariance, {1} {2}, {0}", digits=3
    ),
    r"lee/relative/(\w+?)_(block\d+|final|cls)": Measure(
        "relative LEE, {0} {1}", digits=3, reading="0 is exact"
    ),
    r"lee/no_action/(\w+?)_(block\d+|final)": Measure("relative LEE, {0} {1}, no action", digits=3),
    r"lee/random_init_relative/(\w+?)_(block\d+|final|cls)": Measure(
        "relative LEE, {0} {1}, random init", digits=3
    ),
    r"lee/random_init/(\w+?)_(block\d+|final|cls)": Measure("LEE, {0} {1}, random init", digits=4),
    r"lee/(\w+?)_(block\d+|final|cls)": Measure("LEE, {0} {1}", digits=4, reading="0 is exact"),
    r"purity": Measure("k-NN purity", "k-NN purity", digits=1, unit=" %"),
    r"purity/(.+)": Measure("k-NN purity, {0}", digits=1, unit=" %"),
    r"purity_chance": Measure("k-NN purity by chance", digits=1, unit=" %"),
    r"miou": Measure("mIoU, last block", "mIoU", digits=1),
    r"miou_layer(\d+)": Measure("mIoU, block {0}", digits=1),
    r"([a-z]+)_layer(\d+)": Measure("{0} told after block {1}"),
    r"([a-z]+)_layer(\d+)_single": Measure("{0} told after block {1} from one view"),
    r"rankme": Measure("RankMe", "", "RankMe", 1, "", "dimensions in use, at most {width}"),
    r"feature_std": Measure(
        "feature std", "", "feature std", 4, "",
        "0 is collapsed, {spread} is spread out",
    ),
    r"token_spatial_variance": Measure(
        "token spatial variance", digits=3, reading="0 is a map without structure"
    ),
    r"uniformity": Measure("uniformity", digits=3),
    r"lidar_(\w+)": Measure("LiDAR of {0} views"),
    r"alignment_(\w+)": Measure("alignment of {0} views"),
    r"map": Measure("mAP", "{stage} mAP", digits=3),
    r"map_(\d+)": Measure("mAP at IoU 0.{0}", digits=3),
    r"map_(\w+)": Measure("mAP of {0} objects", digits=3),
    r"iou/(\w+)": Measure("IoU of {0}, last block", digits=1),
    r"iou_layer(\d+)/(\w+)": Measure("IoU of {1}, block {0}", digits=1),
    r"constant/miou": Measure("mIoU of the commonest class alone", digits=1),
    r"r2/(\w+)": Measure("R2 of {0}", "{stage} R2 {0}", digits=3),
    r"params_m": Measure("parameters (M)"),
    r"flops_g": Measure("GMAC per image"),
    r"relative": Measure("relative cost"),
}  # fmt: skip
"""By what matches a metric's whole name: the first one counts, and {0} is its first group."""

_RATIOS = ("mce", "relative_mce", "mfr", "mt5d")


@cache
def describe(metric: str) -> Measure:
    """How a metric is shown; an unknown one by its name."""
    if metric.startswith("random_init/"):
        trained = describe(metric.removeprefix("random_init/"))
        return Measure(f"{trained.title}, random init", digits=trained.digits, unit=trained.unit)
    name, _, network = metric.partition("_vs_")
    if network and name in _RATIOS:
        return Measure(f"{describe(name).title} against {network}")
    for pattern, measure in _MEASURES.items():
        if match := re.fullmatch(pattern, metric):
            words = [re.sub(r"_|(?<=^block)(?=\d)", " ", group) for group in match.groups()]
            words = [re.sub(r"^turn([\d.]+)$", r"\1 degrees", word) for word in words]
            title, heading, online = (text.format(*words, stage="{stage}") for text in measure[:3])
            return measure._replace(title=title, heading=heading, online=online)
    return Measure(metric, digits=3)


def place(metric: str) -> int:
    """Where a metric stands among others: as in the table of words."""
    matching = (i for i, p in enumerate(_MEASURES) if re.fullmatch(p, metric))
    return next(matching, len(_MEASURES))


def distinct(names: Sequence[str]) -> list[str]:
    """Names of classes that metrics can be called after: with its number where one is not alone."""
    found: list[str] = []
    for number, name in enumerate(names):
        word = name if name and names.count(name) == 1 else f"{name}_{number}".strip("_")
        while word != name and (word in names or word in found):
            word += "_"
        found.append(word)
    return found
