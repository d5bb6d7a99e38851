"""What every stage of evaluation is: a module that measures the backbone of one checkpoint."""

from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import lightning as L
import torch

from ser_lightning.backbones import Branch, SplitViT
from ser_lightning.data.labelled import LabelledDataModule
from ser_lightning.files import checkpoint_config, file_sha256


def random_init(backbone: SplitViT, seed: int = 0) -> SplitViT:
    """Builds a backbone with the same arguments and new weights, frozen, in evaluation mode.

    Args:
        backbone: whose arguments to take.
        seed: of the weights, the same on every process; the global generator stays as it is.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = SplitViT(**backbone.arguments)
    return fresh.requires_grad_(False).eval()


_TEACHERS = ("DINO",)  # objectives whose momentum branch is the result


class StageResult(NamedTuple):
    """What a stage measured; plain values that a record can hold.

    Attributes:
        dataset: on what, such as "imagenet1k"; "" for the source of the checkpoint.
        metrics: by name; accuracies in percent.
        num_samples: images (or videos) that entered the metrics.
        counts: raw counts by name, such as hits.
        feature: what was measured: layers, norm, pooling.
        protocol: settings of the stage.
        selected: what was chosen on held-out data.
        unofficial_reason: why the numbers may not be compared with published ones; None if they
            may.
    """

    dataset: str
    metrics: dict[str, float]
    num_samples: int
    counts: dict[str, int]
    feature: dict[str, Any]
    protocol: dict[str, Any]
    selected: dict[str, Any]
    unofficial_reason: str | None


def evaluated_branch(checkpoint: str) -> Branch:
    """Whose weights stand for a run: DINO's teacher, as its authors report, otherwise the student.

    Args:
        checkpoint: file of a pretraining run; its configuration names the objective.
    """
    config = checkpoint_config(checkpoint) or {}
    objective = config.get("model", {}).get("class_path", "").rpartition(".")[2]
    return "momentum" if objective in _TEACHERS else "online"


class Stage(L.LightningModule, ABC):
    """A stage of evaluation.

    It rebuilds the backbone from the checkpoint alone and keeps it frozen; a subclass says what
    `run` does with the trainer and the data, and returns its results.

    Args:
        checkpoint: file of a pretraining run.
        branch: whose weights: "online" (student) or "momentum" (teacher); null takes the teacher
            of DINO and the student of all other objectives.
        seed: of heads and draws; taken from `seed_everything`.

    Attributes:
        name: of the stage, as in `configs/eval/<name>.yaml` and in its record.
        default_branch: whose weights stand for the checkpoint's objective.
        branch: whose weights are measured.
    """

    name: ClassVar[str]

    def __init__(self, checkpoint: str, branch: Branch | None = None, seed: int = 0) -> None:
        super().__init__()
        self.checkpoint = checkpoint
        self.default_branch = evaluated_branch(checkpoint)
        self.branch: Branch = branch or self.default_branch
        self.seed = seed
        self.backbone = SplitViT.from_checkpoint(checkpoint, self.branch)
        self.backbone.requires_grad_(False)
        self.backbone.eval()

    @cached_property
    def checkpoint_sha256(self) -> str:
        """Hash of the checkpoint's bytes."""
        return file_sha256(Path(self.checkpoint))

    @property
    def checkpoint_hash(self) -> str:
        """Names the evaluated weights: hash of the file, and branch."""
        return f"{self.checkpoint_sha256}-{self.branch}"

    @abstractmethod
    def run(self, trainer: L.Trainer, data: LabelledDataModule, folder: Path) -> list[StageResult]:
        """Measures; every rank calls it and gets the same results.

        Args:
            trainer: for `fit` and `test`, with devices, precision and progress bar.
            data: the images.
            folder: of the run: `features/` is the cache that stages share, `results/` holds
                records and trained heads.
        """

    def result(
        self,
        data: LabelledDataModule,
        metrics: dict[str, float],
        num_samples: int,
        *,
        counts: dict[str, int] | None = None,
        feature: dict[str, Any],
        protocol: dict[str, Any],
        selected: dict[str, Any] | None = None,
        dataset: str | None = None,
        unofficial_reason: str | None = None,
    ) -> StageResult:
        """Puts a result together; the data's own reasons mark it unofficial too."""
        reasons = dict.fromkeys([*filter(None, [unofficial_reason]), *data.reasons()])
        return StageResult(
            dataset or data.dataset_name,
            metrics,
            num_samples,
            counts or {},
            feature,
            protocol,
            selected or {},
            "; ".join(reasons) or None,
        )

    def train(self, mode: bool = True) -> "Stage":
        """Sets the mode of everything but the frozen backbone."""
        super().train(mode)
        self.backbone.eval()
        return self

    def configure_optimizers(self) -> Any:
        """Trains nothing."""
        return None


def stage_variant(stage: Stage, detector: str = "") -> str:
    """Names the files of an evaluation that is not the default one; "" for the default.

    Args:
        stage: whose seed and branch count: 0, and the branch that its checkpoint is measured by.
        detector: if not the default one.

    Returns:
        A plain name such as "momentum_seed1".
    """
    branch = "" if stage.branch == stage.default_branch else stage.branch
    parts = [branch, detector, f"seed{stage.seed}" if stage.seed else ""]
    return "_".join(part for part in parts if part)
