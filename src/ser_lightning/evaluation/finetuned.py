"""What fine-tuning trains and how fast: classifier, layers' learning rates, schedule."""

from typing import Any

import torch
from timm.optim import param_groups_layer_decay  # type: ignore[attr-defined]
from torch import Tensor, nn

from ser_lightning.backbones import SplitViT
from ser_lightning.optim import cosine


def trainable_copy(backbone: SplitViT, drop_path_rate: float) -> SplitViT:
    """The same backbone with stochastic depth, of which everything is trained.

    Args:
        backbone: its arguments and weights are taken over.
        drop_path_rate: probability that the last block's branches are dropped for an image; it
            rises linearly from 0 at the first block.
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

    Args:
        name: a parameter of `FinetunedClassifier`.
        depth: number of blocks.
        cls_layer: number of blocks before [CLS] joins.
    """
    part, _, rest = name.removeprefix("backbone.vit.").partition(".")
    if part == "blocks":
        return int(rest.partition(".")[0]) + 1
    if part == "cls_token":
        return cls_layer + 1 if cls_layer > 0 else 0
    return 0 if part in ("patch_embed", "pos_embed", "norm_pre") else depth + 1


def relative_learning_rate(
    step: float, num_steps: float, warmup_steps: float, start: float, floor: float
) -> float:
    """The learning rate as a share of its peak: a linear rise from `start`, a cosine to `floor`.

    Args:
        step: optimizer steps taken so far.
        num_steps: optimizer steps of the whole run.
        warmup_steps: length of the warm-up.
        start: the value at step 0, with a warm-up.
        floor: the value at the end.
    """
    if step < warmup_steps:
        return start + (1 - start) * step / warmup_steps
    return cosine(step - warmup_steps, num_steps - warmup_steps, 1.0, floor)


class FinetunedClassifier(nn.Module):
    """A backbone with a linear layer on its final [CLS] embedding.

    Args:
        backbone: as `trainable_copy` makes it.
        num_classes: number of logits.
        head_scale: factor on the initial weights of the head, truncated normals of std 0.02.
        seed: seed of the head.
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
        biases, [CLS] and the position embedding are not decayed.
        """
        groups: list[dict[str, Any]] = param_groups_layer_decay(
            self,
            weight_decay,
            no_weight_decay_list=("backbone.vit.cls_token", "backbone.vit.pos_embed"),
            layer_decay=layer_decay,
        )
        return [{**group, "lr": learning_rate * group["lr_scale"]} for group in groups]
