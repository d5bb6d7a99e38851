"""What every stage of evaluation is: a module that measures the backbone of one checkpoint."""

import hashlib
import importlib.util
import inspect
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.utils.data import DataLoader
from typing_extensions import override

from ser_lightning.backbones import Branch, SplitViT, open_backbone
from ser_lightning.backbones.opening import is_own
from ser_lightning.backbones.weights import not_finite
from ser_lightning.checkpoints import checkpoint_config
from ser_lightning.data.labelled import LabelledDataModule, Split
from ser_lightning.evaluation.features import Features, cached_features
from ser_lightning.foreign.layouts import SAFE
from ser_lightning.numbers import NonNegativeInt, PositiveInt, checked
from ser_lightning.results.points import Points
from ser_lightning.run_length import before_resuming, run_length
from ser_lightning.sources.base import ImageSet
from ser_lightning.trainer_rules import check_trainer
from ser_lightning.trusted import trusted_class


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """What a stage measured: the fields of `ResultRecord` that it knows, and what lies beside it.

    Attributes:
        hits: by the name of a metric, (N,) whether each test image was right, in their order.
        label: (N,) int64 classes of these images.
        slots: (N,) int64 their places among all test images; None where they are all of them.
        points: images in a plane, for a figure; on the first process alone.
        shown: what the stage's figure draws in place of the metrics, on one rank.
    """

    dataset: str
    metrics: dict[str, float]
    num_samples: int
    feature: dict[str, Any]
    protocol: dict[str, Any]
    counts: dict[str, int] = field(default_factory=dict)
    selected: dict[str, Any] = field(default_factory=dict)
    unofficial_reasons: tuple[str, ...] = ()
    network: str | None = None
    data_sha256: str | None = None
    hits: Mapping[str, Tensor] = field(default_factory=dict, compare=False)
    label: Tensor | None = field(default=None, compare=False)
    slots: Tensor | None = field(default=None, compare=False)
    points: Points | None = field(default=None, compare=False)
    shown: Any = field(default=None, compare=False)


def result_branch(checkpoint: str) -> Branch:
    """Whose weights stand for a run: what its objective says, "online" if it is of elsewhere."""
    is_run = Path(checkpoint).suffix != SAFE
    model = ((checkpoint_config(checkpoint) if is_run else None) or {}).get("model") or {}
    objective = trusted_class(str(model.get("class_path")))
    if objective is None and "class_path" in model:
        rank_zero_info(
            f"{checkpoint}: {model['class_path']!r} is not imported from a file; --model.branch "
            "momentum measures its teacher, where it has one"
        )
    branch: Branch = getattr(objective, "result_branch", "online")
    return branch


Folders = tuple[tuple[str, str], ...]


@checked
class Stage(L.LightningModule, ABC):
    """A stage of evaluation: one file, `configs/eval/<name>.yaml`, and its records.

    It rebuilds the backbone from the checkpoint alone and keeps it frozen; a subclass says what
    `run` does with the trainer and the data, and returns its results.

    Args:
        checkpoint: file of a pretraining run, or of weights in the layout of another project, or
            timm's name of a ViT.
        branch: whose weights: "online" (student) or "momentum" (teacher); null takes the teacher
            of DINO and the student of all other objectives.
        seed: seed of heads and draws; taken from `seed_everything`.
        timm_name: timm's name of the architecture of another project's file, where its shapes do
            not tell it.
        num_heads: attention heads of another project's ViT, which no shape tells.
        image_size: side of the images in pixels, to which positions are resampled; null keeps the
            backbone's own.
        pretrained: whether timm fetches the weights of its name; they are random without.

    Attributes:
        settings: how stage, data and trainer were set, in plain values, for the protocol of every
            result; whoever runs the stage gives it.
    """

    name: ClassVar[str]
    """What configuration, record and table call it."""
    trains: ClassVar[bool] = False
    """Whether the length of a training belongs to its protocol."""
    needs_labels: ClassVar[bool] = True
    """Whether it refuses images without classes."""
    needs_head: ClassVar[bool] = False
    """Whether it tests the head of the linear stage."""
    folders: ClassVar[Folders] = (("imagenet", "data.source.root"),)
    """Where its images lie below a folder of data sets, and their option; any one will do."""
    further_folders: ClassVar[Folders] = ()
    """The same for images that it can do without."""
    can_generate: ClassVar[bool] = False
    """Whether it can make its images from those that the checkpoint was trained on."""
    package: ClassVar[tuple[str, str] | None] = None
    """A module that it needs, and the extra of this package that installs it."""
    is_alternative: ClassVar[bool] = False
    """Whether it measures what another stage does, by another recipe; `evaluate-all` omits it."""
    title: ClassVar[str] = ""
    """What its figure calls it; its name by default."""
    data_class: ClassVar[type[LabelledDataModule]] = LabelledDataModule
    """Which data modules it can measure."""
    figure: ClassVar[str | None] = None
    """The function that draws a result's metrics, or what it shows, as module:function."""

    def __init__(
        self,
        checkpoint: str,
        branch: Branch | None = None,
        seed: NonNegativeInt = 0,
        timm_name: str | None = None,
        num_heads: PositiveInt | None = None,
        image_size: PositiveInt | None = None,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        self.checkpoint = checkpoint
        own = result_branch(checkpoint) if is_own(checkpoint) else None
        self.opened = open_backbone(
            checkpoint, branch or own, timm_name,
            num_heads=num_heads, image_size=image_size, pretrained=pretrained,
        )  # fmt: skip
        self.default_branch: Branch = own or self.opened.default_branch
        self.branch: Branch = self.opened.branch
        self.seed = seed
        self.settings: dict[str, Any] = {}
        self.backbone = self.opened.backbone
        self.backbone.requires_grad_(False)
        self.backbone.eval()
        check_finite(self.backbone, f"weights of {checkpoint}", "evaluate another checkpoint")

    @classmethod
    def lacking(cls) -> str:
        """The command that installs the package that it needs; "" where that is there."""
        if cls.package is None or importlib.util.find_spec(cls.package[0]):
            return ""
        return f"pip install 'ser-lightning[{cls.package[1]}]'"

    def require_package(self) -> None:
        """Refuses to begin without the package that it needs, by a ValueError."""
        if self.package is not None and (remedy := self.lacking()):
            raise ValueError(
                f"the stage {self.name} needs {self.package[0]}, which is not installed; run "
                f"{remedy}"
            )

    @property
    def checkpoint_hash(self) -> str:
        """The name of the evaluated weights: hash of the file, branch, and what it was read as."""
        changed = self.opened.given
        return "-".join([self.opened.sha256, self.branch, *changed])

    @property
    def variant(self) -> str:
        """What tells the files of this evaluation from the default one's: "momentum_seed1"."""
        branch = "" if self.branch == self.default_branch else self.branch
        parts = (branch, *self.opened.given, self.flavour, f"seed{self.seed}" if self.seed else "")
        return "_".join(part for part in parts if part)

    @property
    def flavour(self) -> str:
        """A setting that has records of its own, such as the detector; "" for the usual one."""
        return ""

    def measured_sets(self, data: LabelledDataModule, dataset: str | None) -> Sequence[ImageSet]:
        """The images of a result, by its data set's name."""
        return [data.images("test")]

    def class_names(self, data: LabelledDataModule, dataset: str) -> Mapping[str, int] | tuple:
        """The label, or logit, of each class of a result; names alone in the order of labels."""
        return data.class_names

    @abstractmethod
    def run(self, trainer: L.Trainer, data: LabelledDataModule, folder: Path) -> list[StageResult]:
        """Measures; every rank calls it and gets the same results.

        The folder is the run: `features/` is a cache, `results/` has records and trained heads.
        """

    def own(self, data: LabelledDataModule) -> Any:
        """The data module, which must be one for this stage.

        Raises:
            ValueError: it is another one.
        """
        if not isinstance(data, self.data_class):
            raise ValueError(
                f"{type(data).__name__} has nothing for the stage {self.name} to measure; use "
                f"data.class_path {self.data_class.__name__}, as configs/eval/{self.name}.yaml does"
            )
        return data

    def result(
        self,
        data: LabelledDataModule,
        metrics: dict[str, float],
        num_samples: int,
        *,
        dataset: str | None = None,
        protocol: Mapping[str, Any] | None = None,
        reasons: Sequence[str] = (),
        **others: Any,
    ) -> StageResult:
        """Puts a result together; every rank calls it.

        The protocol is what `settings` does not say; the data's own reasons are added to those why
        the numbers may not be compared with published ones.
        """
        # whatever the disk they lie on: names, labels and classes
        listings = [images.listing() for images in self.measured_sets(data, dataset)]
        return StageResult(
            dataset=dataset or data.dataset_name,
            data_sha256=hashlib.sha256("\n".join(listings).encode()).hexdigest(),
            metrics=metrics,
            num_samples=num_samples,
            protocol={**self.settings, **(protocol or {})},
            unofficial_reasons=tuple(dict.fromkeys([*reasons, *data.reasons()])),
            **others,
        )

    def check_training(self, trainer: L.Trainer) -> None:
        """Refuses a training that is not told how long it is, or whose steps would differ."""
        check_trainer(trainer, self)
        if trainer.max_epochs is None and trainer.max_steps == -1:
            raise ValueError(
                "trainer.max_epochs None says not how long to train; set it or trainer.max_steps, "
                f"as configs/eval/{self.name}.yaml does"
            )

    def shortened(self, trainer: L.Trainer) -> list[str]:
        """Why a training that ended early makes numbers unofficial; to be asked after `fit`."""
        done, asked = trainer.global_step, run_length(trainer).num_steps
        return [] if done == asked else [f"trained {done} of {asked} steps"]

    def features(
        self, data: LabelledDataModule, split: Split, trainer: L.Trainer, folder: Path
    ) -> Features:
        """The [CLS] features of a split, computed or found; see `cached_features`."""
        return cached_features(self.backbone, self.checkpoint_hash, data, split, trainer, folder)

    def random_backbone(self) -> SplitViT:
        """The same backbone with new weights, frozen; the global generator stays as it is."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            fresh = SplitViT(**self.backbone.arguments)
        return fresh.requires_grad_(False).eval()

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        before_resuming(self, checkpoint)

    @override
    def configure_optimizers(self) -> Any:
        return None  # trains nothing


def check_finite(module: nn.Module, what: str, remedy: str) -> None:
    """Refuses weights that are no numbers, of which nothing may be recorded.

    Raises:
        ValueError: with a name, what it is and the remedy.
    """
    if broken := not_finite(module):
        raise ValueError(
            f"{what}: {len(broken)} are not finite, such as {broken[0]}, the training diverged and "
            f"no record is written; {remedy}"
        )


def fit_on_frozen(trainer: L.Trainer, module: L.LightningModule, train: DataLoader) -> None:
    """Trains without a warning that a part of the module is in evaluation mode, as it is meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*in eval mode at the start of training.*")
        trainer.fit(module, train)


def stage_classes(parent: type[Stage] = Stage) -> list[type[Stage]]:
    """Every stage that was imported, each once; those here are with `evaluation.stages`."""
    found: dict[type[Stage], None] = {} if inspect.isabstract(parent) else {parent: None}
    for child in parent.__subclasses__():
        found |= dict.fromkeys(stage_classes(child))
    return list(found)
