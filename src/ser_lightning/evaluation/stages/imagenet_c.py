"""The corruption stage: a trained linear head on ImageNet-C, CIFAR-10-C or generated corruptions.

Source: Hendrycks & Dietterich 2019, arXiv 1903.12261; SER Tables 12 and 15.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from ser_lightning.corruptions import CORRUPTIONS
from ser_lightning.data.benchmarks import ConditionBatch, ImageNetCDataModule
from ser_lightning.data.benchmarks.generated import CLEAN
from ser_lightning.data.labelled import LabelledDataModule
from ser_lightning.evaluation.head_stage import BenchmarkStage, top_hits
from ser_lightning.evaluation.stage import StageResult
from ser_lightning.results.ratios import (
    ALEXNET,
    ALEXNET_CORRUPTION_ERRORS,
    ALEXNET_ERROR,
    Measured,
    accuracy_percent,
    baseline_reasons,
    corruption_errors,
    mean_over,
    read_baseline,
    relative_corruption_errors,
    versus,
)

_WITHOUT_FROST = tuple(name for name in CORRUPTIONS if name != "frost")
_MUST_AGREE = ("severities", "generated", "frost", "jpeg_quality")

Errors = dict[str, list[float]]


class Baseline(NamedTuple):
    """Error rates of the network that is compared with.

    Attributes:
        errors: by corruption, at each severity that is measured.
        clean: on clean images; None where it is not known.
        name: of the network.
        described: the same for a protocol.
        unofficial_reason: why its errors may not be compared with published ones.
    """

    errors: Mapping[str, Sequence[float]]
    clean: float | None
    name: str = ALEXNET
    described: str | dict[str, str] = ALEXNET
    unofficial_reason: str | None = None


class CorruptionStage(BenchmarkStage):
    """Accuracy of a trained linear head on corrupted images.

    Args:
        checkpoint: file of a pretraining run.
        head: file of the linear head; by default the one that the linear stage of this run wrote.
        baseline: whose errors mCE is relative to: "alexnet" has those of ImageNet-C, which count
            for ImageNet's classes only; or a record of this stage for another network, of the same
            images, whose run then names the ratio: `mce_vs_<run>`; null leaves mCE out.
        clean_error: error rate in [0, 1] on clean images, for relative mCE; by default it is
            measured, where the source has the clean images.
        stage: further arguments of every stage.
    """

    name = "imagenet-c"
    num_sums = 3

    def __init__(
        self,
        checkpoint: str,
        head: str | None = None,
        baseline: str | None = ALEXNET,
        clean_error: float | None = None,
        **stage: Any,
    ) -> None:
        super().__init__(checkpoint, head, **stage)
        self.baseline = baseline
        self.clean_error = clean_error

    def summands(self, logits: Tensor, label: Tensor, batch: ConditionBatch) -> Tensor:
        """1, right, right among five."""
        return torch.cat([torch.ones_like(label)[:, None], top_hits(logits, label)], dim=1)

    def run(self, trainer: L.Trainer, data: LabelledDataModule, folder: Path) -> list[StageResult]:
        """Averages over severities, then over corruptions, as the paper does."""
        if not isinstance(data, ImageNetCDataModule):
            raise ValueError(
                f"{type(data).__name__} has no corrupted images; use ImageNetCDataModule"
            )
        data.setup("test")
        protocol = _protocol(data)
        baseline = self._baseline(data, protocol)
        sums = self.measure(trainer, data, folder)
        conditions = [(c.name, c.severity) for c in data.conditions]
        top1, top5 = (_error_rates(conditions, sums, column) for column in (1, 2))
        metrics = accuracy_metrics(top1, top5)
        reasons = [data.unofficial_reason(data.conditions)]
        if baseline is not None:
            own = [*reasons, *data.reasons()]
            reasons += baseline_reasons(baseline.unofficial_reason, own)
            metrics |= compared(top1, baseline, self.clean_error)
            relative = versus("relative_mce", baseline.name)
            if set(CORRUPTIONS) <= set(top1) and relative not in metrics:
                rank_zero_info(
                    "relative mCE is left out: the error on clean images is not known; give "
                    "--data.source.root DIR or --model.clean_error NUMBER"
                )
        given = None if self.clean_error is None else {"clean_error": self.clean_error}
        return [
            self.tested(
                data,
                metrics,
                int(sums[:, 0].sum()),
                counts=_counts(conditions, sums),
                protocol={
                    **protocol,
                    "baseline": None if baseline is None else baseline.described,
                    "clean_error": self._origin_of_clean_error(top1),
                },
                dataset=data.benchmark_name,
                reasons=reasons,
                given=given,
            )
        ]

    def _origin_of_clean_error(self, errors: Errors) -> str | None:
        if self.clean_error is not None:
            return "given"
        return "measured" if CLEAN in errors else None

    def _baseline(self, data: ImageNetCDataModule, protocol: dict[str, Any]) -> Baseline | None:
        if self.baseline is None or (self.baseline == ALEXNET and not data.is_imagenet):
            return None
        if self.baseline == ALEXNET:
            errors = {
                name: [rates[severity - 1] for severity in data.severities]
                for name, rates in ALEXNET_CORRUPTION_ERRORS.items()
            }
            return Baseline(errors, ALEXNET_ERROR)
        found = read_baseline(self.baseline, protocol, _MUST_AGREE, data.benchmark_name)
        found.check_counts(
            {
                _key("samples", c.name, c.severity): len(c.images)
                for c in data.conditions
                if c.severity
            }
        )
        rates = {
            name: [_recorded(found, name, severity) for severity in data.severities]
            for name in data.corruptions
        }
        clean = _key("hits", CLEAN, 0) in found.content.get("counts", {})
        return Baseline(
            rates,
            _recorded(found, CLEAN, 0) if clean else None,
            found.name,
            found.describe(),
            found.unofficial_reason,
        )


def _recorded(found: Measured, name: str, severity: int) -> float:
    """An error rate of another network."""
    hits, samples = found.entries("counts", [_key(w, name, severity) for w in ("hits", "samples")])
    return 1 - hits / samples


def accuracy_metrics(top1: Errors, top5: Errors) -> dict[str, float]:
    """Accuracy in percent by corruption, and the plain average over the 15 of the benchmark.

    Where frost is not the official one, the average leaves it out and says so by its name:
    `avg_without_frost` is not comparable with an average over 15.

    Args:
        top1: error rates by corruption, clean images among them if they are known.
        top5: the same of the five best classes.

    Returns:
        `top1/<corruption>` and so on.
    """
    metrics: dict[str, float] = {}
    for name, errors in (("top1", top1), ("top5", top5)):
        accuracy = accuracy_percent(errors)
        metrics |= {f"{name}/{corruption}": value for corruption, value in accuracy.items()}
        if set(CORRUPTIONS) <= set(accuracy):
            metrics[f"{name}/avg"] = mean_over(accuracy, CORRUPTIONS)
        elif set(_WITHOUT_FROST) <= set(accuracy):
            metrics[f"{name}/avg_without_frost"] = mean_over(accuracy, _WITHOUT_FROST)
    return metrics


def compared(errors: Errors, baseline: Baseline, clean_error: float | None) -> dict[str, float]:
    """Computes mCE and relative mCE, as far as all 15 corruptions and the clean errors are there.

    Args:
        errors: error rates by corruption; those of clean images stand in for clean_error.
        baseline: the other network's.
        clean_error: error rate on clean images.

    Returns:
        `mce` and `relative_mce` in percent of AlexNet's, `mce_vs_<run>` of another network's.
    """
    if not set(CORRUPTIONS) <= set(errors):
        return {}
    official = {name: errors[name] for name in CORRUPTIONS}
    ratios = corruption_errors(official, baseline.errors)
    metrics = {versus("mce", baseline.name): mean_over(ratios, CORRUPTIONS)}
    if clean_error is None and CLEAN in errors:
        clean_error = errors[CLEAN][0]
    if clean_error is not None and baseline.clean is not None:
        relative = relative_corruption_errors(
            official, clean_error, baseline.errors, baseline.clean
        )
        metrics[versus("relative_mce", baseline.name)] = mean_over(relative, CORRUPTIONS)
    return metrics


def _protocol(data: ImageNetCDataModule) -> dict[str, Any]:
    return {
        "corruptions": list(data.corruptions),
        "severities": list(data.severities),
        "generated": data.generated,
        "frost": "photographs" if data.frost_dir or not data.generated else "procedural",
        "jpeg_quality": data.jpeg_quality,
        "image_seed": data.seed if data.generated else None,
    }


def _error_rates(conditions: Sequence[tuple[str, int]], sums: Tensor, column: int) -> Errors:
    """Error rates by corruption, in the order of its severities."""
    errors: Errors = {}
    for (name, _), row in zip(conditions, sums.tolist(), strict=True):
        errors.setdefault(name, []).append(1 - row[column] / row[0])
    return errors


def _counts(conditions: Sequence[tuple[str, int]], sums: Tensor) -> dict[str, int]:
    counts = {}
    for condition, row in zip(conditions, sums.tolist(), strict=True):
        for what, value in zip(("samples", "hits", "hits5"), row, strict=True):
            counts[_key(what, *condition)] = round(value)
    return counts


def _key(what: str, name: str, severity: int) -> str:
    return f"{what}/{name}/{severity}" if severity else f"{what}/{name}"
