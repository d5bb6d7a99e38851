"""One way to open a backbone: this project's files, timm's names, files of any known layout."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import timm
import torch
from lightning.pytorch.utilities import rank_zero_info

from ser_lightning.backbones.preparation import Preparation, name_beside, preparation_of
from ser_lightning.backbones.split_vit import SplitViT
from ser_lightning.backbones.vit import RESERVED_OPTIONS, heads_of, why_not_plain
from ser_lightning.backbones.weights import (
    load_weights,
    own_arguments,
    read_preparation,
    require_activation,
)
from ser_lightning.files import file_sha256, with_home
from ser_lightning.foreign import Branch, Weights, read_weights
from ser_lightning.foreign.architecture import (
    CONFIG,
    HEADS_OPTION,
    NAME_OPTION,
    architecture_of,
    read_config_beside,
    read_model_args,
    told_epsilon,
    told_heads,
)
from ser_lightning.foreign.layouts import LAYOUTS, OWN, SAFE

_FILES = (".bin", ".ckpt", ".npz", ".pt", ".pth", ".safetensors", ".tar")  # no tags of timm's
_GENERIC = re.compile(r"(pytorch_)?model|checkpoint|weights|last|backbone", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, eq=False)
class OpenedBackbone:
    """A backbone, and what is known of it.

    Attributes:
        backbone: with its weights.
        name: what records and folders call it: of timm, or after the file.
        layout: of the file, "timm, random weights" or "timm, pretrained".
        branch: whose weights of the file.
        default_branch: whose they are where nothing else is asked for.
        path: of the file; None for a name of timm.
        preparation: of its images, by timm's data configuration where its name is known, else
            ImageNet's usual one. A run's checkpoint has its own in its configuration.
        given: what the user said of its architecture, as names of records tell it: timm's name,
            "336px", "12heads".
        assumed: what neither file nor user said, in words.
        is_own: whether this project wrote it, with the arguments that it has.
    """

    backbone: SplitViT
    name: str
    layout: str
    preparation: Preparation
    branch: Branch = "online"
    default_branch: Branch = "online"
    path: Path | None = None
    given: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    is_own: bool = False

    @cached_property
    def sha256(self) -> str:
        """Hash of the file's bytes, or of the weights that a name of timm stands for."""
        if self.path is not None:
            return file_sha256(self.path)
        digest = hashlib.sha256()
        for name, value in self.backbone.vit.state_dict().items():
            digest.update(name.encode() + value.cpu().numpy().tobytes())
        return digest.hexdigest()


def open_backbone(
    checkpoint: str | Path,
    branch: Branch | None = None,
    name: str | None = None,
    *,
    num_heads: int | None = None,
    image_size: int | None = None,
    pretrained: bool = False,
    seed: int = 0,
) -> OpenedBackbone:
    """Builds the backbone that a file or a name of timm describes, and says in the log what it is.

    Args:
        checkpoint: this project's checkpoint or export; a name of timm; or a file of weights in any
            of the layouts of `foreign/layouts.py`.
        branch: of a file with a momentum encoder or teacher; null takes what its project evaluates.
        name: timm's name of a file's architecture, which its shapes tell otherwise.
        num_heads: of a file's architecture, which no shape tells.
        image_size: side in pixels that positions are resampled for; null keeps the model's.
        pretrained: whether timm fetches the weights of its name; they are random without.
        seed: of random weights.

    Raises:
        ValueError: nothing of that kind is there, or it does not fit, or is no plain ViT.
    """
    if is_timm_name(checkpoint):
        opened = _of_timm(str(checkpoint), image_size, pretrained, seed)
        given = {NAME_OPTION: name, HEADS_OPTION: num_heads, "--model.branch": branch}
        _refuse(given, f"{checkpoint} of timm")
    else:
        _refuse({"--model.pretrained": pretrained or None}, f"the file {checkpoint}")
        path = Path(with_home(str(checkpoint)))
        opened = _of_file(path, branch, name, num_heads, image_size)
    numbers = {"px": image_size, "heads": num_heads}
    named = [f"{value}{unit}" for unit, value in numbers.items() if value is not None]
    opened = replace(opened, given=(*([name] if name else []), *named))
    if not opened.is_own:
        for line in (_what(opened), *(f"  assumed: {what}" for what in opened.assumed)):
            rank_zero_info(line)
    return opened


def is_own(checkpoint: str | Path) -> bool:
    """Whether a checkpoint is a file of this project, which says how its backbone is built."""
    return not is_timm_name(checkpoint) and own_arguments(checkpoint) is not None


def is_timm_name(checkpoint: str | Path) -> bool:
    """Whether a checkpoint is no file, but a name of timm."""
    text = str(checkpoint)
    is_name = timm.is_model(text.partition(".")[0]) and not text.endswith(_FILES)
    return is_name and not Path(text).exists()


def name_of(path: Path) -> str:
    """What a file's backbone is called: after the file, or its folder where that says more."""
    path = path.absolute()
    stem = path.name.removesuffix(path.suffix).removesuffix(".pth").removesuffix(".pt")
    return path.parent.name if _GENERIC.fullmatch(stem) and path.parent.name else stem


def known_name(checkpoint: str | Path, pretrained: bool = False) -> str:
    """What folders and records call a backbone, before it is opened."""
    if not is_timm_name(checkpoint):
        return name_of(Path(with_home(str(checkpoint))))
    return str(checkpoint) if pretrained else f"{checkpoint}-random"


def _of_timm(name: str, image_size: int | None, pretrained: bool, seed: int) -> OpenedBackbone:
    backbone = _by_name(name, image_size, seed)
    if pretrained:
        state = _fetched(name).state_dict()
        weights = Weights(Path(name), LAYOUTS[-1], "online", "online", state, {})
        load_weights(backbone.vit, weights, NAME_OPTION)
    return OpenedBackbone(
        backbone=backbone,
        name=known_name(name, pretrained),
        layout="timm, pretrained" if pretrained else "timm, random weights",
        preparation=preparation_of(name, name),
    )


def _of_file(
    path: Path,
    branch: Branch | None,
    name: str | None,
    num_heads: int | None,
    image_size: int | None,
) -> OpenedBackbone:
    resized = {} if image_size is None else {"image_size": image_size}
    if own_arguments(path) is not None:
        given = {NAME_OPTION: name, HEADS_OPTION: num_heads}
        _refuse(given, f"{path}, which says itself how it is built")
        backbone = SplitViT.from_checkpoint(path, branch or "online", **resized)
        return OpenedBackbone(
            backbone=backbone, name=name_of(path), layout=OWN.name, branch=branch or "online",
            path=path, preparation=preparation_of(path), assumed=_assumed_before(path), is_own=True,
        )  # fmt: skip
    weights = read_weights(path, branch)
    told = name or name_beside(path)
    assumed: tuple[str, ...] = () if name or num_heads else _assumed_before(path)
    if told is None:
        arguments, guessed = architecture_of(weights, num_heads)
        assumed += guessed
        backbone = _built({**arguments, **resized})
        load_weights(backbone.vit, weights, NAME_OPTION)
    else:
        changed = read_model_args(path) if name is None else {}
        if heads := num_heads or told_heads(weights):
            changed["num_heads"] = heads  # shapes are the same for any number
        changed |= told_epsilon(weights)
        try:
            backbone = _by_name(told, image_size, 0, changed)
            require_activation(backbone.vit, weights)
            load_weights(backbone.vit, weights, NAME_OPTION)
        except ValueError as error:
            if name is not None:
                raise
            beside = f"{told} is what {CONFIG} beside it says: without that file, its shapes tell"
            raise ValueError(f"{error}; {beside}") from error
    return OpenedBackbone(
        backbone=backbone,
        name=name_of(path),
        layout=weights.layout.name,
        branch=weights.branch,
        default_branch=weights.default,
        path=path,
        preparation=preparation_of(path, name),
        assumed=assumed,
    )


def _assumed_before(path: Path) -> tuple[str, ...]:
    """What was assumed of an architecture when a file of elsewhere was exported."""
    notes = read_preparation(path) if path.suffix == SAFE else {}
    found = (read_config_beside(path) | notes).get("architecture_assumed")
    return tuple(map(str, found)) if isinstance(found, list) else ()


def _by_name(
    name: str, image_size: int | None, seed: int, changed: Mapping[str, Any] = MappingProxyType({})
) -> SplitViT:
    """A backbone of timm's name, with its own image size unless another is given.

    `changed` are arguments of timm in which it differs from that name.
    """
    if not timm.is_model(name.partition(".")[0]):
        SplitViT(name)  # refuses it, with names that are close
    try:
        with torch.device("meta"):
            vit: Any = timm.create_model(name, num_classes=0)
    except RuntimeError as error:
        raise ValueError(
            f"timm has no {name!r}: {error}; leave out what follows the dot"
        ) from error
    if reason := why_not_plain(vit):
        raise ValueError(
            f"{name} has {reason}; stages measure plain ViTs with one class token, such as "
            "vit_small_patch16_224 or vit_small_patch14_dinov2"
        )
    side, other = vit.patch_embed.img_size
    if side != other:
        raise ValueError(f"{name} takes images of {side} x {other}; use a model of square ones")
    if (pooling := changed.get("global_pool")) not in (None, "token", ""):
        raise ValueError(
            f"it has the pooling {pooling!r} in place of [CLS], which is what stages measure; give "
            "weights that were trained with [CLS]"
        )
    options = {option: v for option, v in changed.items() if option not in RESERVED_OPTIONS}
    arguments = {
        "name": name, "image_size": image_size or changed.get("img_size") or side,
        "patch_size": changed.get("patch_size"), "vit_options": options,
    }  # fmt: skip
    return _built(arguments, seed)


def _built(arguments: dict[str, Any], seed: int = 0) -> SplitViT:
    fixed: dict[str, Any] = {
        "layer": 0.25,
        "cls_layer": 0,
        "weight_init": "",
        "freeze_patch_embed": False,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SplitViT(**{**fixed, **arguments})


def _fetched(name: str) -> Any:
    """Timm's model with the weights that timm fetches, or has fetched before."""
    try:
        return timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # whatever a network, a hub or a disk raises
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"timm cannot fetch weights of {name} ({reason}); fetch the file on another machine, "
            f"and give it as --checkpoint FILE {NAME_OPTION} {name}"
        ) from error


def _refuse(given: Mapping[str, Any], what: str) -> None:
    for option, value in given.items():
        if value is not None:
            raise ValueError(f"{option} {value} has no effect on {what}; leave it out")


def _what(opened: OpenedBackbone) -> str:
    """A line for the log."""
    vit, options = opened.backbone, opened.backbone.arguments["vit_options"]
    parts = [
        f"backbone {opened.path or opened.name}: {opened.layout}",
        f"{opened.branch} branch" if opened.path else "",
        f"{vit.depth} blocks of width {vit.width} with {heads_of(vit)} heads",
        f"patches of {vit.patch_size} and images of {vit.image_size} pixels",
        f"{vit.num_registers} registers" if vit.num_registers else "",
        f"[CLS] joins after block {vit.cls_layer}" if vit.cls_layer else "",
        "LayerScale" if "init_values" in options else "",
    ]
    return ", ".join(part for part in parts if part)
