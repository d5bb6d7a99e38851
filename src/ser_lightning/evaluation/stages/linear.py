"""The linear stage: one linear layer on frozen [CLS] tokens, for a grid of learning rates at once.

Source: SER lincls_parallel.py (DINO eval_linear.py); the grid in one pass as iBOT and DINOv2 do.

Which [CLS] tokens are read is decided in `probe_stage.py` (`feature`).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from typing_extensions import override

from ser_lightning.data.labelled import LabelledDataModule
from ser_lightning.evaluation.linear_head import HeadOrigin, LinearClassifier, head_path
from ser_lightning.evaluation.probe import Heads, Probe
from ser_lightning.evaluation.probe_stage import ProbeStage
from ser_lightning.evaluation.stage import StageResult
from ser_lightning.numbers import Positive, checked
from ser_lightning.optim import cosine, scaled_learning_rate, scheduled
from ser_lightning.run_length import RunLength

MOMENTUM = 0.9
INITIAL_STD = 0.01


class LinearHeads(Heads):
    """K linear layers, each trained with SGD and a learning rate of its own.

    The rows of one weight matrix (K * classes, D) are those of all heads, so one matrix product
    serves them. With plain SGD a gradient of lr * loss is a step of the loss at learning rate lr:
    the objective

        sum over k of learning_rates[k] * loss[k]

    with learning rate 1 trains every head as if alone. All start from the same draw, so that a
    head does not depend on which others there are. Rates grow linearly with the global batch.
    """

    learning_rates: Tensor

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        base_learning_rates: Sequence[float],
        global_batch_size: int,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.base_learning_rates = list(base_learning_rates)
        self.num_heads = len(self.base_learning_rates)
        scaled = [scaled_learning_rate(rate, global_batch_size) for rate in base_learning_rates]
        self.register_buffer("learning_rates", torch.tensor(scaled), persistent=False)
        draws = torch.Generator().manual_seed(seed)
        weight = INITIAL_STD * torch.randn(num_classes, in_features, generator=draws)
        self.weight = nn.Parameter(weight.repeat(self.num_heads, 1))
        self.bias = nn.Parameter(torch.zeros(self.num_heads * num_classes))

    @override
    def forward(self, features: Tensor) -> Tensor:
        return F.linear(features, self.weight, self.bias).unflatten(1, (self.num_heads, -1))

    @override
    def objective(self, losses: Tensor) -> Tensor:
        return (self.learning_rates * losses).sum()

    @override
    def configure(self, length: RunLength) -> OptimizerLRScheduler:
        per_epoch = length.steps_per_epoch

        def schedule(step: int) -> float:  # moves with the epoch
            return cosine(step // per_epoch, length.num_steps / per_epoch, 1.0, 0.0)

        optimizer = torch.optim.SGD(self.parameters(), lr=1.0, momentum=MOMENTUM)
        return scheduled(optimizer, schedule)

    @override
    def single(self, index: int) -> nn.Linear:
        weight = self.weight.detach().unflatten(0, (self.num_heads, -1))[index]
        bias = self.bias.detach().unflatten(0, (self.num_heads, -1))[index]
        linear = nn.Linear(
            weight.shape[1], weight.shape[0], device=weight.device, dtype=weight.dtype
        )
        linear.load_state_dict({"weight": weight, "bias": bias})
        return linear

    @override
    def describe(self, index: int) -> dict[str, Any]:
        return {"base_learning_rate": self.base_learning_rates[index]}


@checked
class LinearStage(ProbeStage):
    """Trains linear classifiers on [CLS], and keeps the best for the stages that need a head.

    Trained with SGD (momentum 0.9, no weight decay), a cosine by epochs, cross-entropy.

    Args:
        checkpoint: file of a pretraining run.
        base_learning_rates: the grid, for a batch of 256; they grow linearly with the batch. The
            paper takes 1, 3 and 10.
        probe: further arguments of every stage that trains a probe.

    Raises:
        ValueError: if there is no learning rate, or one is there twice.
    """

    name = "linear"

    def __init__(
        self,
        checkpoint: str,
        base_learning_rates: tuple[Positive, ...] = (0.3, 1.0, 3.0, 10.0, 30.0),
        **probe: Any,
    ) -> None:
        super().__init__(checkpoint, **probe)
        rates = [float(rate) for rate in base_learning_rates]
        if not rates or len(set(rates)) < len(rates):
            raise ValueError(
                f"base_learning_rates {rates} must be different, and at least one; 0.3, 1, 3, 10 "
                "and 30 are the usual ones"
            )
        self.base_learning_rates = rates

    @override
    def heads(self, in_features: int, num_classes: int, global_batch_size: int) -> LinearHeads:
        return LinearHeads(
            in_features, num_classes, self.base_learning_rates, global_batch_size, self.seed
        )

    @override
    def keep(
        self, probe: Probe, result: StageResult, data: LabelledDataModule, folder: Path
    ) -> None:
        assert probe.selected is not None
        names = data.images("train").class_names
        classifier = LinearClassifier(self.layers, self.backbone.width, names)
        classifier.linear.load_state_dict(probe.selected.classifier.state_dict())
        classifier.origin = HeadOrigin(
            self.checkpoint_hash,
            result.protocol,
            result.selected,
            self.seed,
            result.unofficial_reasons,
        )
        classifier.save(head_path(folder, data.dataset_name, self.variant))
