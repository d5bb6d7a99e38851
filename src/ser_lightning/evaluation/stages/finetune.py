"""The fine-tuning stage: the whole backbone is trained further with labels.

Source: iBOT and BEiT, whose layer decay and recipe are the default; DeiT, for the augmentation of
both and for the plain recipe, which MoCo-v3 uses. The paper's own recipe is not stated.
"""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from timm.data.mixup import Mixup, mixup_target
from timm.loss.cross_entropy import SoftTargetCrossEntropy
from timm.optim import param_groups_layer_decay  # type: ignore[attr-defined]
from torch import Tensor, nn
from typing_extensions import override

from ser_lightning.backbones import SplitViT, momentum_copy, update_momentum
from ser_lightning.batch import EvaluationBatch
from ser_lightning.data.finetune import FinetuneDataModule, seeded_globals
from ser_lightning.data.labelled import LabelledDataModule
from ser_lightning.evaluation.metrics.accuracy import percent, top_hits
from ser_lightning.evaluation.per_image import Rows, test_on_all
from ser_lightning.evaluation.stage import Stage, StageResult, check_finite
from ser_lightning.numbers import BelowOne, NonNegative, Positive, Ratio, checked
from ser_lightning.optim import scaled_learning_rate, scheduled, warmup_cosine
from ser_lightning.randomness import Stream, generator
from ser_lightning.run_length import run_length
from ser_lightning.step_logs import log_loss

_NOT_DECAYED = ("cls_token", "reg_token", "pos_embed")


def trainable_copy(backbone: SplitViT, drop_path_rate: float) -> SplitViT:
    """The same backbone with stochastic depth, of which everything is trained.

    The rate is the probability that the last block's branches are dropped for an image; it rises
    linearly from 0 at the first block.
    """
    options = {**backbone.arguments["vit_options"], "drop_path_rate": drop_path_rate}
    copy = SplitViT(**{**backbone.arguments, "vit_options": options, "freeze_patch_embed": False})
    copy.vit.load_state_dict(backbone.vit.state_dict())
    copy.vit.requires_grad_(True)
    return copy


def layer_number(name: str, depth: int, cls_layer: int) -> int:
    """Which layer a parameter belongs to: 0 (the input) to depth + 1 (final norm and head).

    Block i, counted from 1, is layer i; [CLS] belongs to the first block that sees it, or to the
    input where it stands there. Source: BEiT; MAE lr_decay.py.
    """
    part, _, rest = name.removeprefix("backbone.vit.").partition(".")
    if part == "blocks":
        return int(rest.partition(".")[0]) + 1
    if part == "cls_token":
        return cls_layer + 1 if cls_layer > 0 else 0
    at_input = ("patch_embed", "pos_embed", "norm_pre", "reg_token")
    return 0 if part in at_input else depth + 1


class FinetunedClassifier(nn.Module):
    """A backbone of `trainable_copy` with a linear layer on its final [CLS] embedding.

    The head's initial weights are truncated normals of std 0.02, times `head_scale`.
    """

    def __init__(self, backbone: SplitViT, num_classes: int, head_scale: float, seed: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.width, num_classes)
        draws = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            nn.init.trunc_normal_(self.head.weight, std=0.02, generator=draws).mul_(head_scale)
            self.head.bias.zero_()

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) images to (B, classes) float32 logits."""
        logits: Tensor = self.head(self.backbone(pixels))
        return logits.float()

    def group_matcher(self, coarse: bool = False) -> Any:
        """Tells timm the layer of each parameter, by name; `coarse` has no effect."""
        return lambda name: layer_number(name, self.backbone.depth, self.backbone.cls_layer)

    def parameter_groups(
        self, learning_rate: float, weight_decay: float, layer_decay: float
    ) -> list[dict[str, Any]]:
        """One group per layer and weight decay, for an optimizer.

        The learning rate of layer l is `learning_rate * layer_decay ** (depth + 1 - l)`. Vectors,
        biases, [CLS], registers and the position embedding are not decayed.
        """
        groups: list[dict[str, Any]] = param_groups_layer_decay(
            self,
            weight_decay,
            no_weight_decay_list=[f"backbone.vit.{name}" for name in _NOT_DECAYED],
            layer_decay=layer_decay,
        )
        return [{**group, "lr": learning_rate * group["lr_scale"]} for group in groups]


@checked
class FinetuneStage(Stage):
    """Trains backbone and classifier together and measures them after the last epoch.

    Nothing is selected, neither an epoch nor a setting; a hold-out part, if there is one, is
    watched only. The training lasts as long as the trainer says and writes no checkpoint.

    Args:
        checkpoint: file of a pretraining run.
        base_learning_rate: peak learning rate for a global batch of 256 images; it grows linearly
            with the batch.
        layer_decay: factor on the learning rate from each layer to the one below; 1 for none.
        weight_decay: weight decay of AdamW, not for vectors, biases, [CLS] and positions.
        warmup_epochs: epochs of linear warm-up.
        warmup_learning_rate: where the warm-up begins.
        final_learning_rate: where the cosine ends.
        mixup: alpha of mixup; 0 for none.
        cutmix: alpha of CutMix; 0 for none. With both, a coin toss gives each batch one of them.
        label_smoothing: share of a label that is spread over all classes.
        drop_path_rate: stochastic depth of the last block, rising linearly from the first.
        head_scale: factor on the initial weights of the head.
        ema_decay: momentum of an average of the weights over the steps, which is measured as well
            (top1_ema, top5_ema); null for none.
        stage: further arguments of every stage.
    """

    name = "finetune"
    trains = True
    data_class = FinetuneDataModule
    classifier: FinetunedClassifier

    def __init__(
        self,
        checkpoint: str,
        base_learning_rate: Positive = 1e-3,
        layer_decay: Ratio = 0.75,
        weight_decay: NonNegative = 0.05,
        warmup_epochs: NonNegative = 20,
        warmup_learning_rate: NonNegative = 1e-6,
        final_learning_rate: NonNegative = 1e-6,
        mixup: NonNegative = 0.8,
        cutmix: NonNegative = 1.0,
        label_smoothing: BelowOne = 0.1,
        drop_path_rate: BelowOne = 0.1,
        head_scale: NonNegative = 0.001,
        ema_decay: BelowOne | None = None,
        **stage: Any,
    ) -> None:
        super().__init__(checkpoint, **stage)
        self.base_learning_rate = base_learning_rate
        self.layer_decay = layer_decay
        self.weight_decay = weight_decay
        self.warmup_epochs = warmup_epochs
        self.warmup_learning_rate = warmup_learning_rate
        self.final_learning_rate = final_learning_rate
        self.mixup = mixup
        self.cutmix = cutmix
        self.label_smoothing = label_smoothing
        self.drop_path_rate = drop_path_rate
        self.head_scale = head_scale
        self.ema_decay = ema_decay
        self.averaged: FinetunedClassifier | None = None
        self.backbone = trainable_copy(self.backbone, drop_path_rate)
        self.loss = SoftTargetCrossEntropy()

    @override
    def run(self, trainer: L.Trainer, data: LabelledDataModule, folder: Path) -> list[StageResult]:
        data = self.own(data)
        self.check_training(trainer)
        trainer.fit(self, datamodule=data)
        reasons = [*self.shortened(trainer), *data.training_reasons()]
        peak = self.peak_learning_rate(data)
        what = f"weights after {trainer.global_step} steps at a peak learning rate of {peak:g}"
        check_finite(self.classifier, what, "lower `model.base_learning_rate`")
        self.rows = Rows(2 * len(self.measured))
        test_on_all(trainer, self, data.test_dataloader())
        label, hits, slots = self.rows.gather()
        names = [f"{top}{note}" for note in self.measured for top in ("top1", "top5")]
        return [
            self.result(
                data,
                dict(zip(names, percent(hits), strict=True)),
                len(hits),
                counts={"hits": int(hits[:, 0].sum())},
                feature={"cls_of_blocks": [self.backbone.depth], "trained": True},
                reasons=reasons,
                hits={"top1": hits[:, 0]},
                label=label,
                slots=slots,
            )
        ]

    @override
    def train(self, mode: bool = True) -> "FinetuneStage":
        super().train(mode)  # the backbone included; the average never trains
        if self.averaged is not None:
            self.averaged.eval()
        return self

    @override
    def setup(self, stage: str) -> None:
        if hasattr(self, "classifier"):
            return
        data: FinetuneDataModule = self.trainer.datamodule  # type: ignore[attr-defined]
        if not len(data.images("holdout")):
            self.trainer.limit_val_batches = 0  # Lightning would warn of an empty loader
        self.mixer = None
        if self.mixup > 0 or self.cutmix > 0:
            size = data.plan().batch_size // self.trainer.world_size
            if size % 2:
                raise ValueError(
                    f"mixup takes images in pairs, and a pass of a device has {size}; use a "
                    "`data.global_batch_size` that gives an even number, or set `model.mixup` and "
                    "`model.cutmix` to 0"
                )
            smoothed = {"label_smoothing": self.label_smoothing, "num_classes": data.num_classes}
            self.mixer = Mixup(self.mixup, self.cutmix, **smoothed)
        # holds self.backbone too, whose parameters count once
        self.classifier = FinetunedClassifier(
            self.backbone, data.num_classes, self.head_scale, self.seed
        )
        self.measured = {"": self.classifier}
        if self.ema_decay is not None:
            self.averaged = self.measured["_ema"] = momentum_copy(self.classifier)

    @override
    def training_step(self, batch: EvaluationBatch, batch_idx: int) -> Tensor:
        # Mixing and stochastic depth are drawn as a function of (seed, epoch, step, rank).
        epoch, rank = self.trainer.current_epoch, self.global_rank
        draws = generator(self.seed, Stream.STEP, epoch, batch_idx, rank)
        torch.manual_seed(int(draws.integers(2**63)))
        pixels, target = self.mixed(batch, draws)
        loss: Tensor = self.loss(self.classifier(pixels), target)
        log_loss(self, "loss", loss, batch_size=len(target))
        return loss

    def mixed(self, batch: EvaluationBatch, draws: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Mixes each image with its counterpart at the other end of the batch, in place.

        The targets (B, classes) are float32, and each sums to 1.
        """
        if self.mixer is None:
            num_classes, smoothing = self.classifier.head.out_features, self.label_smoothing
            return batch.pixels, mixup_target(batch.label, num_classes, smoothing=smoothing)
        with seeded_globals(draws):  # timm's draws
            pixels, target = self.mixer(batch.pixels, batch.label)
        return pixels, target

    @override
    def on_validation_epoch_start(self) -> None:
        self.rows = Rows(2)

    @override
    def validation_step(self, batch: EvaluationBatch, batch_idx: int) -> None:
        hits = top_hits(self.classifier(batch.pixels), batch.label)
        self.rows.add(batch.indices, batch.label, hits)

    @override
    def on_validation_epoch_end(self) -> None:  # nothing depends on it
        top1 = percent(self.rows.gather().values)[0]
        self.log("holdout/top1", top1, prog_bar=True, batch_size=1)

    @override
    def test_step(self, batch: EvaluationBatch, batch_idx: int) -> None:
        hits = [top_hits(model(batch.pixels), batch.label) for model in self.measured.values()]
        self.rows.add(batch.indices, batch.label, torch.cat(hits, 1))

    @override
    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        # Differs: DeiT sets the learning rate per epoch, here it moves with every step.
        peak = self.peak_learning_rate(self.trainer.datamodule)  # type: ignore[attr-defined]
        groups = self.classifier.parameter_groups(peak, self.weight_decay, self.layer_decay)
        # Lightning clips no gradients of a fused optimizer in mixed precision
        optimizer = torch.optim.AdamW(groups, peak, fused=not self.trainer.gradient_clip_val)
        length = run_length(self.trainer)
        warmup_steps = length.warmup_steps(self.warmup_epochs, "model.warmup_epochs")
        start, floor = self.warmup_learning_rate / peak, self.final_learning_rate / peak
        shape = length.num_steps, warmup_steps, floor, start
        return scheduled(optimizer, lambda step: warmup_cosine(step, *shape))

    def peak_learning_rate(self, data: LabelledDataModule) -> float:
        """The learning rate of the head at the end of the warm-up."""
        return scaled_learning_rate(self.base_learning_rate, data.global_batch_size)

    @override
    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.averaged is not None and self.ema_decay is not None:
            update_momentum(self.classifier, self.averaged, self.ema_decay)


class DeiTFinetuneStage(FinetuneStage):
    """The same for DeiT's plain recipe, with a record of its own."""

    name = "finetune_deit"
    is_alternative = True
