"""What is exported or embeds images: a backbone, and how the images that it saw were prepared."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ser_lightning.backbones import Branch, SplitViT
from ser_lightning.backbones.opening import is_own, open_backbone
from ser_lightning.backbones.preparation import stored_preparation
from ser_lightning.checkpoints import checkpoint_config
from ser_lightning.data.clean import Clean
from ser_lightning.evaluation.stage import check_finite, result_branch
from ser_lightning.foreign.layouts import SAFE

_IN_DATA = {"evaluation_crop_fraction": "crop_fraction", "mean": "mean", "std": "std"}


class Opened(NamedTuple):
    """A backbone, and what its file says of it.

    Attributes:
        backbone: frozen, in evaluation mode.
        branch: whose weights.
        is_default: whether that branch stands for the run.
        clean: how images are prepared for it.
        assumed: what of that the file does not say, so that ImageNet's custom is assumed.
        guessed: what of the architecture neither file nor user said, in words.
        config: of the run; empty where the file has none.
        path: of the file.
        run_dir: folder of the run.
        sha256: of the file's bytes, or of the weights of a name.
        layout: of the file, or which weights of timm's name.
    """

    backbone: SplitViT
    branch: Branch
    is_default: bool
    clean: Clean
    assumed: tuple[str, ...]
    guessed: tuple[str, ...]
    config: Mapping[str, Any]
    path: Path
    run_dir: Path
    sha256: str
    layout: str


def open_backbone_file(
    checkpoint: str,
    run_dir: Path,
    branch: Branch | None = None,
    *,
    name: str | None = None,
    num_heads: int | None = None,
    pretrained: bool = False,
) -> Opened:
    """A backbone from whatever `open_backbone` reads, with what is known of its images.

    Args:
        checkpoint: a run's, an export of this package, another project's file, or timm's name.
        run_dir: folder of the run that it belongs to.
        branch: whose weights; None takes those that stand for the run.
        name: timm's name of a file's architecture, which its shapes tell otherwise.
        num_heads: of a file's architecture, which no shape tells.
        pretrained: whether timm fetches the weights of its name; they are random without.

    Raises:
        ValueError: there is no such file, it has no such branch, does not say how to rebuild its
            backbone, or its weights are not finite.
    """
    own = result_branch(checkpoint) if is_own(checkpoint) else None
    try:
        opened = open_backbone(
            checkpoint, branch or own, name, num_heads=num_heads, pretrained=pretrained
        )
    except ValueError as error:  # which names options as the stages have them
        said = str(error).replace("--checkpoint FILE ", "FILE ").replace("--model.", "--")
        raise ValueError(said) from error
    backbone = opened.backbone.requires_grad_(False).eval()
    check_finite(backbone, f"weights of {checkpoint}", "give another checkpoint")
    path, config, prepared = Path(checkpoint), dict[str, Any](), opened.preparation
    if opened.is_own and path.suffix != SAFE:  # a run's checkpoint
        config = checkpoint_config(checkpoint) or {}
        data = config.get("data") or {}
        stored = {name: data.get(option) for option, name in _IN_DATA.items()}
        prepared = stored_preparation(stored, path)
    return Opened(
        backbone,
        opened.branch,
        opened.branch == (own or opened.default_branch),
        Clean(backbone.image_size, prepared.crop_fraction, prepared.mean, prepared.std),
        prepared.assumed,
        opened.assumed,
        config,
        path,
        run_dir,
        opened.sha256,
        opened.layout,
    )


def preparation(clean: Clean) -> dict[str, Any]:
    """How images are prepared, in plain values; what `stored_preparation` reads."""
    return {
        "image_size": clean.size,
        "resize_shorter_side": clean.resized,
        "crop": "center",
        "crop_fraction": clean.crop_fraction,
        "interpolation": "bicubic",
        "mean": list(clean.mean),
        "std": list(clean.std),
    }


def told(opened: Opened) -> dict[str, Any]:
    """The same, and what of it and of the architecture is assumed."""
    return {**preparation(opened.clean), **assumptions(opened)}


def assumptions(opened: Opened) -> dict[str, list[str]]:
    """What of the images and of the architecture is assumed, as exports say it."""
    return {"assumed": list(opened.assumed), "architecture_assumed": list(opened.guessed)}
