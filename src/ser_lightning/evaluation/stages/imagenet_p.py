"""The ImageNet-P stage: a trained linear head on ImageNet-P or on generated sequences.

Source: Hendrycks & Dietterich 2019, arXiv 1903.12261; SER Tables 13, 14 and 16. mFR and mT5D are
divided when a report is made.
Differs: the paper does not say how it counts; here every frame of every video counts once, the
clean first frame of the noises too, and perturbations have equal weight.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torchvision.models import AlexNet_Weights, alexnet
from typing_extensions import override

from ser_lightning.checkpoints import load_checkpoint
from ser_lightning.corruptions import EXTRA_PERTURBATIONS, PERTURBATIONS, REFERENCE
from ser_lightning.data.benchmarks import ConditionBatch, ImageNetPDataModule
from ser_lightning.data.benchmarks.imagenet_p import base_name
from ser_lightning.data.labelled import LabelledDataModule
from ser_lightning.data.render import IMAGENET_MEAN, IMAGENET_STD
from ser_lightning.evaluation.benchmark_stage import BenchmarkStage
from ser_lightning.evaluation.metrics.flips import PerturbationSums, video_sums
from ser_lightning.evaluation.stage import StageResult
from ser_lightning.numbers import PositiveInt, checked
from ser_lightning.results.ratios import ALEXNET, mean_over


def load_alexnet(path: str | None = None) -> nn.Module:
    """Torchvision's AlexNet with its published weights, by default where torch keeps downloads.

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
    try:
        network.load_state_dict(load_checkpoint(file, map_location="cpu"))
    except RuntimeError as error:  # lists names and shapes, after one line that says it all
        raise ValueError(f"{file} has other weights than AlexNet's; fetch {url}") from error
    return network.requires_grad_(False).eval()


_NUM_SUMS = len(PerturbationSums._fields)
_COUNTED = ("videos", "frames", "hits", "hits5", "all_right")


@checked
class ImageNetPStage(BenchmarkStage):
    """Accuracy and steadiness of a trained linear head along videos.

    Args:
        checkpoint: file of a pretraining run.
        head: file of the linear head; by default the one that the linear stage of this run wrote.
        alexnet: whether AlexNet is measured on the same frames, as a result of its own, for mFR
            and mT5D.
        alexnet_weights: file of its weights; by default where torch keeps what it downloads.
        difficulty: how many frames a prediction is compared over, where frames have an order; a
            noise is harder in folders of its own, such as gaussian_noise_2.
        stage: further arguments of every stage.
    """

    name = "imagenet-p"
    folders = (("imagenet-p", "data.root"),)
    can_generate = True
    package = ("av", "imagenet-p")
    data_class = ImageNetPDataModule
    num_sums = 2 * _NUM_SUMS

    def __init__(
        self,
        checkpoint: str,
        head: str | None = None,
        alexnet: bool = False,
        alexnet_weights: str | None = None,
        difficulty: PositiveInt = 1,
        **stage: Any,
    ) -> None:
        super().__init__(checkpoint, head, **stage)
        self.difficulty = difficulty
        if alexnet_weights is not None and not alexnet:
            raise ValueError(
                f"model.alexnet_weights {alexnet_weights} has no effect without AlexNet; add "
                "--model.alexnet true, or leave it out"
            )
        self.alexnet = load_alexnet(alexnet_weights) if alexnet else None

    @override
    def summands(self, logits: Tensor, label: Tensor, batch: ConditionBatch) -> Tensor:
        name = base_name(self._conditions[int(batch.condition[0])].name)
        values = self._video_sums(name, logits, label)
        if self.alexnet is None:
            return torch.cat([values, torch.zeros_like(values)], dim=1)
        others = self.alexnet(batch.pixels.flatten(0, 1)).unflatten(0, batch.pixels.shape[:2])
        return torch.cat([values, self._video_sums(name, others, label)], dim=1)

    def _video_sums(self, name: str, logits: Tensor, label: Tensor) -> Tensor:
        """(V, T, classes) logits to (V, fields of PerturbationSums)."""
        reference = REFERENCE[name]
        difficulty = 1 if reference == "first" else self.difficulty
        top5 = logits.topk(min(5, logits.shape[-1]), dim=-1).indices
        return video_sums(top5.cpu(), label.cpu(), reference, difficulty)

    @override
    def run(self, trainer: L.Trainer, data: LabelledDataModule, folder: Path) -> list[StageResult]:
        videos = self.own(data)
        if self.alexnet is not None and (data.mean, data.std) != (IMAGENET_MEAN, IMAGENET_STD):
            raise ValueError(
                f"AlexNet expects the means {IMAGENET_MEAN}, this run has {data.mean}; measure it "
                "with a run that has ImageNet's means"
            )
        sums = self.measure(trainer, videos, folder)
        ours, theirs = sums.split(_NUM_SUMS, dim=1)
        names, num_videos = videos.perturbations, int(ours[:, 0].sum())
        reasons = [] if self.difficulty == 1 else [f"difficulty {self.difficulty}"]
        dataset = videos.benchmark_name
        results = [
            self.tested(
                videos,
                video_metrics(names, ours),
                num_videos,
                dataset=dataset,
                counts=_counts(names, ours),
                reasons=reasons,
            )
        ]
        if self.alexnet is not None:
            steady = {
                name: value
                for name, value in video_metrics(names, theirs).items()
                if name.startswith(("flip_probability/", "top5_distance/"))  # need no labels
            }
            results.append(
                self.result(
                    videos,
                    steady,
                    num_videos,
                    dataset=dataset,
                    network=ALEXNET,
                    feature={},
                    counts=_counts(names, theirs, _COUNTED[:2]),
                    reasons=[*(r for c in videos.conditions for r in c.reasons), *reasons],
                )
            )
        return results


def video_metrics(names: Sequence[str], sums: Tensor) -> dict[str, float]:
    """Accuracies in percent, flip probability in percent and top-5 distance, by perturbation.

    `top1/avg` and `top5/avg` are over all 14 as in the paper, `flip_probability/avg` and
    `top5_distance/avg` over the official 10. The sums have a row per name, and a column per field
    of `PerturbationSums`.
    """
    by_name = {
        name: PerturbationSums(*map(round, row[:5]), *row[5:]).percentages()
        for name, row in zip(names, sums.tolist(), strict=True)
    }
    metrics: dict[str, float] = {}
    for metric in ("top1", "top5", "all_frames_right", "flip_probability", "top5_distance"):
        values = {name: numbers[metric] for name, numbers in by_name.items()}
        if any(map(math.isnan, values.values())):  # of fewer than five classes
            continue
        metrics |= {f"{metric}/{name}": value for name, value in values.items()}
        is_accuracy = metric in ("top1", "top5", "all_frames_right")
        averaged = PERTURBATIONS + (EXTRA_PERTURBATIONS if is_accuracy else ())
        if set(averaged) <= set(values):
            metrics[f"{metric}/avg"] = mean_over(values, averaged)
    return metrics


def _counts(names: Sequence[str], sums: Tensor, kinds: Sequence[str] = _COUNTED) -> dict[str, int]:
    return {
        f"{what}/{name}": round(value)
        for name, row in zip(names, sums.tolist(), strict=True)
        for what, value in zip(kinds, row, strict=False)
    }
