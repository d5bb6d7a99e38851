"""The MLP stage: a deep head on frozen [CLS] tokens.

Source: SIE eval_classification.py, its deep head; the data path is that of the linear stage.
"""

from copy import deepcopy
from typing import Any

from torch import Tensor, nn
from typing_extensions import override

from ser_lightning.evaluation.probe import Heads, deep_heads
from ser_lightning.evaluation.probe_stage import ProbeStage
from ser_lightning.numbers import Positive, PositiveInt, checked


class DeepHead(Heads):
    """One of the `deep_heads`, trained with Adam at a constant rate."""

    num_heads = 1

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        hidden: int = 1024,
        learning_rate: float = 1e-3,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        (self.layers,) = deep_heads([(in_features, num_classes)], hidden, seed)

    @override
    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.layers(features)
        return logits.unsqueeze(1)

    @override
    def single(self, index: int) -> nn.Sequential:
        return deepcopy(self.layers)


@checked
class MLPStage(ProbeStage):
    """Trains a deep classifier on [CLS]; what is chosen on the held-out images is the epoch.

    Differs: the paper does not state its nonlinear probe; this is the deep head of SIE, whose
    authors the paper cites, for as many epochs as the linear stage instead of 300.

    Args:
        checkpoint: file of a pretraining run.
        hidden: width of the two hidden layers.
        learning_rate: learning rate of Adam, for any batch.
        probe: further arguments of every stage that trains a probe.
    """

    name = "mlp"

    def __init__(
        self,
        checkpoint: str,
        hidden: PositiveInt = 1024,
        learning_rate: Positive = 1e-3,
        **probe: Any,
    ) -> None:
        super().__init__(checkpoint, **probe)
        self.hidden = hidden
        self.learning_rate = learning_rate

    @override
    def heads(self, in_features: int, num_classes: int, global_batch_size: int) -> DeepHead:
        return DeepHead(in_features, num_classes, self.hidden, self.learning_rate, self.seed)
