"""The perturbation stage: a trained linear head on ImageNet-P or on generated sequences.

Source: Hendrycks & Dietterich 2019, arXiv 1903.12261; SER Tables 13, 14 and 16.
Differs: the paper does not say how it counts; here every frame of every video counts once, the
clean first frame of the noises too, and perturbations have equal weight.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torchvision.models import AlexNet_Weights, alexnet

from ser_lightning.corruptions import EXTRA_PERTURBATIONS, PERTURBATIONS, REFERENCE
from ser_lightning.data.benchmarks import ConditionBatch, ImageNetPDataModule
from ser_lightning.data.benchmarks.imagenet_p import base_name
from ser_lightning.data.labelled import LabelledDataModule
from ser_lightning.data.render import IMAGENET_MEAN, IMAGENET_STD
from ser_lightning.evaluation.head_stage import BenchmarkStage
from ser_lightning.evaluation.metrics.flips import PerturbationSums, video_results
from ser_lightning.evaluation.metrics.flips import summands as video_summands
from ser_lightning.evaluation.stage import StageResult
from ser_lightning.files import atomic_path
from ser_lightning.results.ratios import (
    ALEXNET,
    Measured,
    baseline_reasons,
    mean_over,
    read_baseline,
    relative_to,
    versus,
)


def load_alexnet(path: str | None = None) -> nn.Module:
    """Builds torchvision's AlexNet with its published weights, without a download.

    Args:
        path: file of the weights; by default where torch keeps what it downloads.

    Raises:
        ValueError: there is no such file.
    """
    url = AlexNet_Weights.IMAGENET1K_V1.url
    default = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    file = default if path is None else Path(path).expanduser()
    if not file.is_file():
        raise ValueError(
            f"{file} does not exist; fetch {url} and put it there, or give its place as "
            "--model.alexnet_weights FILE"
        )
    network: nn.Module = alexnet()
    network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return network.requires_grad_(False).eval()


MEASURE = "measure"
BASELINE_FILE = "imagenet_p_baseline.json"
_NUM_SUMS = len(PerturbationSums._fields)
_RELATIVE = {"mfr": "flip_probability", "mt5d": "top5_distance"}
_COMPARED = [f"{metric}/{name}" for metric in _RELATIVE.values() for name in PERTURBATIONS]
_COUNTED = ("videos", "frames", "hits", "hits5", "all_right")
_MUST_AGREE = ("generated", "frame_stride", "difficulty")
Metrics = dict[str, float]


class PerturbationStage(BenchmarkStage):
    """Accuracy and steadiness of a trained linear head along videos.

    Args:
        checkpoint: file of a pretraining run.
        head: file of the linear head; by default the one that the linear stage of this run wrote.
        baseline: whose flips and distances mFR and mT5D are relative to: a file that "measure"
            wrote, or "measure", which runs AlexNet on the same frames and writes
            `imagenet_p_baseline.json` to the run; or a record of this stage for another network, of
            the same videos, whose run then names the ratios: `mfr_vs_<run>`; null leaves them out.
        alexnet_weights: file for "measure"; by default where torch keeps what it downloads.
        difficulty: how many frames a prediction is compared over, where frames have an order; a
            noise is harder in folders of its own, such as gaussian_noise_2.
        stage: further arguments of every stage.
    """

    name = "imagenet-p"
    num_sums = 2 * _NUM_SUMS

    def __init__(
        self,
        checkpoint: str,
        head: str | None = None,
        baseline: str | None = None,
        alexnet_weights: str | None = None,
        difficulty: int = 1,
        **stage: Any,
    ) -> None:
        super().__init__(checkpoint, head, **stage)
        self.baseline = baseline
        self.difficulty = difficulty
        self.alexnet: nn.Module | None = None
        if baseline == MEASURE:
            self.alexnet = load_alexnet(alexnet_weights)

    def summands(self, logits: Tensor, label: Tensor, batch: ConditionBatch) -> Tensor:
        """The sums of each video for the head, and for AlexNet where it is measured."""
        name = base_name(self._conditions[int(batch.condition[0])].name)
        values = [self._video_sums(name, logits, label)]
        if self.alexnet is not None:
            others = self.alexnet(batch.pixels.flatten(0, 1)).unflatten(0, batch.pixels.shape[:2])
            values.append(self._video_sums(name, others, label))
        else:
            values.append(torch.zeros_like(values[0]))
        return torch.cat(values, dim=1)

    def _video_sums(self, name: str, logits: Tensor, label: Tensor) -> Tensor:
        """(V, T, classes) logits to (V, fields of PerturbationSums)."""
        reference = REFERENCE[name]
        difficulty = 1 if reference == "first" else self.difficulty
        top5 = logits.topk(min(5, logits.shape[-1]), dim=-1).indices
        return video_summands(video_results(top5.cpu(), label.cpu(), reference, difficulty))

    def run(self, trainer: L.Trainer, data: LabelledDataModule, folder: Path) -> list[StageResult]:
        """Averages over frames and videos, then over perturbations."""
        if not isinstance(data, ImageNetPDataModule):
            raise ValueError(f"{type(data).__name__} has no videos; use ImageNetPDataModule")
        data.setup("test")
        protocol = self._protocol(data)
        found = self._given_baseline(data, protocol)
        sums = self.measure(trainer, data, folder)
        ours, theirs = sums.split(_NUM_SUMS, dim=1)
        names = data.perturbations
        metrics = video_metrics(names, ours)
        harder = None if self.difficulty == 1 else f"difficulty {self.difficulty}"
        reasons = [data.unofficial_reason(data.conditions), harder]
        if self.alexnet is not None:
            baseline = steadiness(video_metrics(names, theirs))
            metrics |= compared(metrics, baseline)
            if trainer.is_global_zero:
                write_baseline(
                    folder / BASELINE_FILE,
                    dataset=data.benchmark_name,
                    protocol=protocol,
                    counts=_counts(names, theirs, ("videos", "frames")),
                    metrics=baseline,
                    unofficial_reason="; ".join(filter(None, [*reasons, *data.reasons()])) or None,
                )
        if found is not None:
            values = found.entries("metrics", _COMPARED)
            metrics |= compared(metrics, dict(zip(_COMPARED, values, strict=True)), found.name)
            reasons += baseline_reasons(found.unofficial_reason, [*reasons, *data.reasons()])
        return [
            self.tested(
                data,
                metrics,
                int(ours[:, 0].sum()),
                counts=_counts(names, ours, _COUNTED),
                protocol={**protocol, "baseline": self._baseline_name(found)},
                dataset=data.benchmark_name,
                reasons=reasons,
            )
        ]

    def _protocol(self, data: ImageNetPDataModule) -> dict[str, Any]:
        return {
            "perturbations": list(data.perturbations),
            "generated": data.generated,
            "frame_stride": data.frame_stride,
            "difficulty": self.difficulty,
            "image_seed": data.seed if data.generated else None,
        }

    def _given_baseline(
        self, data: ImageNetPDataModule, protocol: dict[str, Any]
    ) -> Measured | None:
        """What a file says; None where there is none, or where it is to be measured."""
        if self.alexnet is not None and (data.mean, data.std) != (IMAGENET_MEAN, IMAGENET_STD):
            raise ValueError(
                f"AlexNet expects the means {IMAGENET_MEAN}, this run has {data.mean}; measure the "
                "baseline in a run with ImageNet's means, and give its file"
            )
        if self.baseline is None or self.alexnet is not None:
            return None
        found = read_baseline(self.baseline, protocol, _MUST_AGREE, data.benchmark_name)
        found.entries("metrics", _COMPARED)  # now, not after the test
        found.check_counts(
            {f"videos/{c.name}": len(c.images) for c in data.conditions if c.name in PERTURBATIONS}
        )
        return found

    def _baseline_name(self, found: Measured | None) -> str | dict[str, str] | None:
        if found is not None:
            return found.describe()
        return None if self.alexnet is None else ALEXNET


def video_metrics(names: Sequence[str], sums: Tensor) -> Metrics:
    """Accuracies in percent, flip probability in percent and top-5 distance, by perturbation.

    Args:
        names: perturbations.
        sums: (perturbations, fields of PerturbationSums).

    Returns:
        `top1/<perturbation>` and so on; `top1/avg` and `top5/avg` over all 14 as in the paper,
        `flip_probability/avg` and `top5_distance/avg` over the official 10.
    """
    by_name = {
        name: _sums(row).percentages() for name, row in zip(names, sums.tolist(), strict=True)
    }
    metrics: Metrics = {}
    for metric in ("top1", "top5", "all_frames_right", "flip_probability", "top5_distance"):
        values = {name: numbers[metric] for name, numbers in by_name.items()}
        metrics |= {f"{metric}/{name}": value for name, value in values.items()}
        is_accuracy = metric in ("top1", "top5", "all_frames_right")
        averaged = PERTURBATIONS + (EXTRA_PERTURBATIONS if is_accuracy else ())
        if set(averaged) <= set(values):
            metrics[f"{metric}/avg"] = mean_over(values, averaged)
    return metrics


def steadiness(metrics: Mapping[str, float]) -> Metrics:
    """The metrics that need no labels."""
    return {name: v for name, v in metrics.items() if name.split("/")[0] in _RELATIVE.values()}


def compared(
    metrics: Mapping[str, float], baseline: Mapping[str, float], network: str = ALEXNET
) -> Metrics:
    """Computes mFR and mT5D in percent of a baseline's, where all 10 official ones are there.

    Args:
        metrics: of `video_metrics`.
        baseline: the same of another network. Where it never flips there is no ratio: the number
            is left out, with a warning.
        network: name of the other network.

    Returns:
        `mfr` and `mt5d` for AlexNet, `mfr_vs_<network>` and so on for another.
    """
    results = {}
    for name, metric in _RELATIVE.items():
        keys = [f"{metric}/{perturbation}" for perturbation in PERTURBATIONS]
        if not set(keys) <= metrics.keys() & baseline.keys():
            continue
        steady = [key for key in keys if baseline[key] <= 0]
        if steady:
            rank_zero_warn(f"the baseline's {', '.join(steady)} are 0; {name} is left out")
            continue
        ratios = relative_to({key: metrics[key] for key in keys}, baseline)
        results[versus(name, network)] = mean_over(ratios, keys)
    return results


def write_baseline(path: Path, **content: Any) -> None:
    """Writes what AlexNet achieved, in the form that `read_baseline` reads."""
    text = json.dumps({"network": ALEXNET, **content}, indent=2)
    with atomic_path(path) as partial:
        partial.write_text(text + "\n", encoding="utf-8")


def _sums(row: Sequence[float]) -> PerturbationSums:
    return PerturbationSums(*(round(value) for value in row[:5]), *row[5:])


def _counts(names: Sequence[str], sums: Tensor, kinds: Sequence[str]) -> dict[str, int]:
    counts = {}
    for name, row in zip(names, sums.tolist(), strict=True):
        for what, value in zip(kinds, row, strict=False):
            counts[f"{what}/{name}"] = round(value)
    return counts
