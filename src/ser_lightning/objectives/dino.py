"""DINO: a student matches the sharpened, centred outputs of a teacher that follows it.

Source: Caron et al. 2021, "Emerging Properties in Self-Supervised Vision Transformers", and its
public code; SER, pretraining settings.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.drop import DropPath
from timm.layers.weight_init import trunc_normal_
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from typing_extensions import override

from ser_lightning.backbones import SplitViT
from ser_lightning.batch import LossOutput, PartitionedBatch
from ser_lightning.distributed import all_reduce_mean
from ser_lightning.losses import at_least_float
from ser_lightning.numbers import NonNegative, Positive, PositiveInt, Probability, checked
from ser_lightning.objectives.base import Embeddings
from ser_lightning.objectives.momentum import MomentumObjective
from ser_lightning.optim import cosine
from ser_lightning.step_logs import log_setting


def teacher_probabilities(logits: Tensor, centre: Tensor, temperature: float) -> Tensor:
    """Centres and sharpens a teacher's outputs: softmax((logits - centre) / temperature).

    Of logits (b, K) and a centre (1, K), in float32. No gradient flows. Source: DINO, Eq. 1 and
    section 3.1.
    """
    with torch.no_grad(), torch.autocast(logits.device.type, enabled=False):
        return torch.softmax((at_least_float(logits) - centre) / temperature, dim=1)


def cross_view_loss(
    student: Sequence[Tensor], targets: Sequence[Tensor], temperature: float
) -> Tensor:
    """Cross-entropy of every student view with the teacher's view of every other global crop.

    For target probabilities p_u (b, K) of the global views u, and student logits s_v (b, K) of all
    views v, global ones first:

        loss_uv = -mean_i sum_k p_u[i, k] * log softmax(s_v[i] / temperature)[k]
        result = mean of loss_uv over all pairs with u != v

    2 pairs for two global views, 2 + 2n with n local ones. Computed in float32. No gradient flows
    to the targets. Source: DINO, Eq. 3 and Algorithm 1.
    """
    with torch.autocast(student[0].device.type, enabled=False):
        terms, num_pairs = [], 0
        for v, logits in enumerate(student):
            others = [target.detach() for u, target in enumerate(targets) if u != v]
            # linear in the target: one logarithm serves all pairs of a view
            scaled = at_least_float(logits) / temperature
            terms.append(F.cross_entropy(scaled, torch.stack(others).sum(dim=0)))
            num_pairs += len(others)
        return torch.stack(terms).sum() / num_pairs


def teacher_temperature_at(step: float, warmup_steps: float, start: float, end: float) -> float:
    """Moves linearly from `start` at step 0 to `end` at `warmup_steps`, then stays."""
    return end if step >= warmup_steps else start + (end - start) * step / warmup_steps


@checked
class DINOHead(nn.Module):
    """Three linear layers with GELU, unit length, then K prototypes of learnt or unit length.

    Embeddings (B, width) to logits (B, projection). Linear layers start as truncated normals of
    standard deviation 0.02; the prototypes have PyTorch's initial direction and length 1, which
    `norm_last_layer` keeps. Source: DINO, section 3.2 and appendix C.
    """

    def __init__(
        self,
        width: PositiveInt,
        hidden: PositiveInt = 2048,
        bottleneck: PositiveInt = 256,
        projection: PositiveInt = 65536,
        norm_last_layer: bool = False,
    ) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.last_layer: Any = weight_norm(nn.Linear(bottleneck, projection, bias=False))
        length = self.last_layer.parametrizations.weight.original0
        nn.init.ones_(length)
        length.requires_grad_(not norm_last_layer)

    @override
    def forward(self, embeddings: Tensor) -> Tensor:
        x = self.mlp(embeddings)
        unit = F.normalize(at_least_float(x), dim=1).to(x.dtype)
        logits: Tensor = self.last_layer(unit)
        return logits


@checked
class DINO(MomentumObjective):
    """DINO with its teacher; `regularizer: null` gives the plain method.

    The teacher sees the global views, the student also the local ones. The centre follows the
    mean of the teacher's raw outputs over both global views, all ranks and all passes of an
    optimizer step, and moves once per step, after the loss. With `partition: separate` both losses
    share one centre, which all images move alike.

    Stochastic depth (`vit_options: {drop_path_rate: 0.1}`) and dropout are the student's only.
    Weight decay follows `weight_decay` and `final_weight_decay`, whatever the optimizer's own is.
    Logs `diagnostics/teacher_entropy`, which a collapse moves to 0 or to log(projection).

    Args:
        backbone: the ViT, split where the regularizer reads the token map.
        temperature: the student's temperature.
        teacher_temperature: the teacher's temperature after its warm-up.
        initial_teacher_temperature: the same at the start; equal values are no warm-up.
        teacher_temperature_warmup_epochs: epochs of the linear rise between them.
        momentum: the teacher's at the start; it rises to 1 along half a cosine. DINO: 0.996.
        centre_momentum: share of the centre that stays when it moves.
        weight_decay: at the start.
        final_weight_decay: at the end, half a cosine later.
        decay_biases: whether weight decay acts on biases, norms and other vectors too. DINO's
            does not.
        base_learning_rate: peak learning rate for a global batch of 256 images.
        final_learning_rate: where its cosine ends, as a share of the peak.
        minimum_learning_rate: where it ends, whatever the peak, in place of that share. DINO: 1e-6,
            SER: 1e-5.
        clip_parameter_norm: longest gradient of each single parameter; null for none.
        freeze_last_layer: epochs at the start in which the prototypes stay as they are.
        norm_last_layer: keeps the prototypes at unit length.
        hidden: width of the head's hidden layers.
        bottleneck: width of the unit vectors that are compared with the prototypes.
        projection: number of prototypes, the head's output.
    """

    moves_after_step = True
    accepts_local_views = True
    result_branch = "momentum"

    centre: Tensor
    projector: DINOHead

    # Differs: the public codes' final learning rate is absolute. The default's share is the same
    # number at the paper's batch of 2048, and scales with the batch as the peak does;
    # `minimum_learning_rate` is the absolute one.
    def __init__(
        self,
        backbone: SplitViT,
        *,
        temperature: Positive = 0.1,
        teacher_temperature: Positive = 0.07,
        initial_teacher_temperature: Positive = 0.04,
        teacher_temperature_warmup_epochs: NonNegative = 10,
        momentum: Probability = 0.982,
        centre_momentum: Probability = 0.9,
        weight_decay: NonNegative = 0.04,
        final_weight_decay: NonNegative = 0.4,
        decay_biases: bool = False,
        base_learning_rate: Positive = 1e-4,
        final_learning_rate: Probability = 0.0125,
        minimum_learning_rate: NonNegative | None = None,
        clip_parameter_norm: Positive | None = 0.3,
        freeze_last_layer: NonNegative = 1,
        norm_last_layer: bool = False,
        hidden: PositiveInt = 2048,
        bottleneck: PositiveInt = 256,
        projection: PositiveInt = 65536,
        **training: Any,
    ) -> None:
        super().__init__(
            backbone,
            projector=lambda: DINOHead(
                backbone.width, hidden, bottleneck, projection, norm_last_layer
            ),
            momentum=momentum,
            decay_biases=decay_biases,
            base_learning_rate=base_learning_rate,
            final_learning_rate=final_learning_rate,
            clip_parameter_norm=clip_parameter_norm,
            **training,
        )
        if minimum_learning_rate is not None:
            if minimum_learning_rate > self.learning_rate:
                raise ValueError(
                    f"minimum_learning_rate {minimum_learning_rate} is above the peak of "
                    f"{self.learning_rate:g}; lower it, or raise base_learning_rate"
                )
            self.final_learning_rate = minimum_learning_rate / self.learning_rate
        for layer in self.momentum_backbone.modules():  # in training mode too
            if isinstance(layer, DropPath | nn.Dropout):
                setattr(layer, "drop_prob" if isinstance(layer, DropPath) else "p", 0.0)
        self.temperature = temperature
        self.teacher_temperature = teacher_temperature
        self.initial_teacher_temperature = initial_teacher_temperature
        self.teacher_temperature_warmup_epochs = teacher_temperature_warmup_epochs
        self.centre_momentum = centre_momentum
        self.weight_decay = weight_decay
        self.final_weight_decay = final_weight_decay
        self.freeze_last_layer = freeze_last_layer
        self.register_buffer("centre", torch.zeros(1, projection))
        self._teacher_sum: Tensor | float = 0.0  # of raw outputs, since the optimizer step began
        self._num_summed = 0

    @override
    def training_step(self, batch: PartitionedBatch, batch_idx: int) -> Tensor:
        accumulate = 1 if self._trainer is None else self.trainer.accumulate_grad_batches
        if batch_idx % accumulate == 0:
            self._teacher_sum, self._num_summed = 0.0, 0
        loss = super().training_step(batch, batch_idx)
        if (batch_idx + 1) % accumulate == 0:
            assert isinstance(self._teacher_sum, Tensor), "no loss was computed"
            mean = all_reduce_mean(self._teacher_sum / self._num_summed).to(self.centre.dtype)
            self.centre.lerp_(mean, 1 - self.centre_momentum)
        return loss

    @override
    def invariance_loss(self, online: Embeddings, target: Embeddings | None) -> LossOutput:
        """Matches each student view with the teacher's other global views; the centre stays."""
        assert target is not None, "DINO has a teacher"
        student = self.projector(torch.cat(online)).chunk(len(online))
        with torch.no_grad():
            raw = self.momentum_projector(torch.cat(target))
        wide = torch.promote_types(raw.dtype, torch.float32)
        self._teacher_sum = self._teacher_sum + raw.sum(dim=0, keepdim=True, dtype=wide)
        self._num_summed += len(raw)
        probabilities = teacher_probabilities(raw, self.centre, self._current_temperature())
        loss = cross_view_loss(student, probabilities.chunk(len(target)), self.temperature)
        entropy = torch.special.entr(probabilities).sum(dim=1).mean()
        return LossOutput(loss, {"diagnostics/teacher_entropy": entropy})

    @override
    def parameter_groups(self) -> list[dict[str, Any]]:
        """Marks the group that follows the schedule of weight decay: the first.

        Without `decay_biases` these are the tensors of two and more dimensions, among them the
        position embedding, [CLS] and the prototypes' lengths (K, 1), as in the public code.
        """
        groups = super().parameter_groups()
        groups[0] |= {"weight_decay": self.weight_decay, "scheduled_weight_decay": True}
        return groups

    @override
    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        super().on_before_optimizer_step(optimizer)
        weight_decay = cosine(
            self.global_step, self.run_length.num_steps, self.weight_decay, self.final_weight_decay
        )
        for group in optimizer.param_groups:
            if group.get("scheduled_weight_decay"):
                group["weight_decay"] = weight_decay
        log_setting(self, "schedule/weight_decay", weight_decay)
        log_setting(self, "schedule/teacher_temperature", self._current_temperature())

    @override
    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips, then drops the gradients of frozen prototypes: no step, decay or moments."""
        super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
        if self.global_step < self.freeze_last_layer * self.run_length.steps_per_epoch:
            for parameter in self.projector.last_layer.parameters():
                parameter.grad = None

    # Differs: the public code moves the teacher's temperature once per epoch, from the first to
    # the last epoch of its warm-up; here it moves per step and arrives at the warm-up's end.
    def _current_temperature(self) -> float:
        step, length = self.place
        warmup_steps = self.teacher_temperature_warmup_epochs * length.steps_per_epoch
        temperatures = self.initial_teacher_temperature, self.teacher_temperature
        return teacher_temperature_at(step, warmup_steps, *temperatures)
