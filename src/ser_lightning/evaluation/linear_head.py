"""A trained linear classifier on frozen [CLS] tokens: its file, and how its accuracy is counted."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ser_lightning.backbones import SplitViT
from ser_lightning.sealed import read_tensors, write_tensors

ORIGIN_UNKNOWN = "the head does not say what it was trained on"


class HeadOrigin(NamedTuple):
    """How a head came about, in plain values: its file holds what its records say.

    The checkpoint is `Stage.checkpoint_hash` of the weights that it was trained on.
    """

    checkpoint: str
    protocol: dict[str, Any]
    selected: dict[str, Any]
    seed: int
    unofficial_reasons: tuple[str, ...] = ()

    @classmethod
    def read(cls, text: str) -> "HeadOrigin":
        """What a file says; those of version 0.1.0 have the reasons in one text."""
        content = json.loads(text)
        joined = content.pop("unofficial_reason", None)
        reasons = joined.split("; ") if joined else content.pop("unofficial_reasons", ())
        return cls(**content, unofficial_reasons=tuple(reasons))


def head_path(folder: Path, dataset_name: str, variant: str = "") -> Path:
    """Where the linear stage of a run keeps its head for a data set and `Stage.variant`."""
    name = "-".join(part for part in ("linear", dataset_name, variant) if part)
    return folder / "results" / f"{name}.safetensors"


class LinearClassifier(nn.Module):
    """Logits, in the order of `class_names`, from the [CLS] of some blocks side by side."""

    def __init__(self, layers: Sequence[int], width: int, class_names: Sequence[str]) -> None:
        super().__init__()
        self.origin: HeadOrigin | None = None  # where its file does not say how it came about
        self.layers = list(layers)
        self.class_names = list(class_names)
        self.linear = nn.Linear(len(self.layers) * width, len(self.class_names))

    def forward(self, backbone: SplitViT, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) images to (B, classes) float32 logits."""
        tokens = torch.cat(backbone.cls_tokens(pixels, self.layers), dim=1)
        with torch.autocast(pixels.device.type, enabled=False):
            return F.linear(tokens.float(), self.linear.weight.float(), self.linear.bias.float())

    def save(self, path: Path) -> None:
        """Writes weights, layers, class names and origin; the file appears whole or not at all."""
        notes = {"layers": " ".join(map(str, self.layers)), "classes": "\n".join(self.class_names)}
        if self.origin is not None:
            notes["origin"] = json.dumps(self.origin._asdict())
        write_tensors(path, self.linear.state_dict(), notes)

    @classmethod
    def load(cls, path: Path) -> "LinearClassifier":
        """Reads a file that `save` wrote.

        Raises:
            ValueError: if there is none, or it is damaged or none of `save`.
        """
        if not path.is_file():
            raise ValueError(
                f"{path} does not exist; run the linear stage first (make linear-eval), with the "
                "same seed and branch, or give another head of its classes: --model.head FILE"
            )
        state, notes = read_tensors(path, "run the linear stage again")
        try:
            layers = [int(layer) for layer in notes["layers"].split()]
            width = state["weight"].shape[1] // len(layers)
            classifier = cls(layers, width, notes["classes"].split("\n"))
            classifier.linear.load_state_dict(state)
            if "origin" in notes:
                classifier.origin = HeadOrigin.read(notes["origin"])
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise ValueError(
                f"{path} is no head that the linear stage wrote ({reason}); run that stage again"
            ) from error
        return classifier.requires_grad_(False).eval()
