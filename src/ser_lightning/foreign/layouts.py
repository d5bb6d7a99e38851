"""How public projects lay out a file of ViT weights: a table, and what reads a file by it.

A file is flattened to names such as "student.module.backbone.blocks.0.norm1.weight". Where a ViT
stands in it is told by its patch embedding; what stands before that name, and which other names
are there, tell the layout.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor

from ser_lightning.checkpoints import CHECKPOINT_KEY, load_checkpoint
from ser_lightning.damage import AS_ONE
from ser_lightning.files import with_home
from ser_lightning.foreign.names import (
    CLIP,
    HUGGING_FACE,
    HUGGING_FACE_CLIP,
    MMPRETRAIN,
    TORCHVISION,
    renamed,
)
from ser_lightning.sealed import read_tensors

Branch = Literal["online", "momentum"]
SAFE = ".safetensors"
AGAIN = "export or fetch it again"
_NAMED = "give its architecture by timm's name: {option} vit_small_patch16_224, for example"
_CLIP_NAMED = _NAMED.replace("vit_small_patch16_224", "vit_base_patch32_clip_quickgelu_224")


@dataclass(frozen=True, eq=False)
class Layout:
    """One row of the table.

    Attributes:
        name: as the log calls it.
        online: pattern of what stands before the names of the trained ViT.
        momentum: the same for its momentum copy, or teacher; "" where there is none.
        mark: pattern of a name that must be in the file too; "" for none.
        dropped: pattern of further names, renamed, that are no part of its encoder.
        rename: from the project's names to timm's.
        default: the branch that the project itself evaluates.
        heads: attention heads by width, where they are not one per 64 channels.
        eps: of its layer norms.
        activation: of its blocks, by Hugging Face's name, where the layout tells it.
        remedy: what to do where a file of this layout does not fit; "{option}" is timm's name's.
    """

    name: str
    online: str
    momentum: str = ""
    mark: str = ""
    dropped: str = r"^$"
    rename: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = dict
    default: Branch = "online"
    heads: Mapping[int, int] = field(default_factory=dict)
    eps: float = 1e-6
    activation: str | None = None
    remedy: str = _NAMED


def _of_dinov2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """DINOv2's names in timm's; blocks may be in chunks, "blocks.0.3." being the fourth block."""
    found = {}
    for name, value in state.items():
        flat = re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name)
        flat = flat.replace(".mlp.w12.", ".mlp.fc1.").replace(".mlp.w3.", ".mlp.fc2.")
        found[flat.replace("register_tokens", "reg_token")] = value
    return found


def _of_deit3(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """DeiT III's names in timm's."""
    return {re.sub(r"\.gamma_([12])$", r".ls\1.gamma", name): v for name, v in state.items()}


_BELOW = r"(?:model\.|state_dict\.)?"
_WRAPPED = r"(?:module\.)?(?:backbone\.)?"
_HF = r"(?:vit\.|deit\.|dinov2\.|dinov2_with_registers\.)?"
_HF_HEADS = r"^(classifier|cls_classifier|distillation_classifier|pooler|decoder)\b"
UNRECORDED = "lightly, or ser-lightning without its record"

# The first row that fits is taken. Sources, by repository: facebookresearch/moco-v3,
# facebookresearch/dino, facebookresearch/dinov2, facebookresearch/mae, facebookresearch/deit,
# facebookresearch/msn, bytedance/ibot, vturrisi/solo-learn, lightly-ai/lightly,
# huggingface/transformers, pytorch/vision, open-mmlab/mmpretrain, openai/CLIP,
# mlfoundations/open_clip, aitrics-chris/SER.
LAYOUTS = (
    Layout(
        "ser-lightning", r"(?:state_dict\.)?(?:backbone\.)?vit\.",
        r"state_dict\.momentum_backbone\.vit\.", mark=rf"^{CHECKPOINT_KEY}$",
        remedy="build the backbone with the file's name, patch_size and vit_options",
    ),
    Layout(
        "lightly, DINO", r"(?:state_dict\.)?student_backbone\.(?:vit\.)?",
        r"(?:state_dict\.)?teacher_backbone\.(?:vit\.)?", mark=r"(^|\.)teacher_backbone\.",
        default="momentum",
    ),
    Layout(
        "lightly", r"(?:state_dict\.)?backbone\.(?:vit\.)?",
        r"(?:state_dict\.)?backbone_momentum\.(?:vit\.)?", mark=r"(^|\.)backbone_momentum\.",
    ),
    Layout(
        UNRECORDED, r"(?:state_dict\.)?(?:backbone\.)?vit\.",
        r"(?:state_dict\.)?momentum_backbone\.vit\.",
    ),
    Layout(
        "MoCo-v3", _BELOW + r"(?:module\.)?base_encoder\.",
        _BELOW + r"(?:module\.)?momentum_encoder\.",
        heads={384: 12},
        remedy="MoCo-v3's encoders are vit_{{small,base,large,huge}}_patch16_224 with 12, 12, 16 "
        "and 16 heads and all weights of one encoder; " + _NAMED,
    ),
    Layout(
        "SER's public code", r"(?:student\.|model\.|state_dict\.)?" + _WRAPPED,
        r"teacher\." + _WRAPPED, mark=r"(^|\.)(norm_equiv|projector_equiv)(\.|$)",
        dropped=r"^(norm_equiv|projector\w*|predictor\w*|bn)\.",
        remedy="SER's encoder is vit_small_patch16_224 with one position entry per patch; "
        + _NAMED,
    ),
    Layout(
        "MAE", _BELOW + r"(?:module\.)?", mark=r"\b(decoder_embed\.weight|decoder_pos_embed)$",
        dropped=r"^decoder_",
        remedy="MAE's encoders are vit_{{base,large}}_patch16_224 and vit_huge_patch14_224; "
        + _NAMED,
    ),
    Layout(
        "DINOv2", _BELOW + r"(?:student\.)?" + _WRAPPED, _BELOW + r"teacher\." + _WRAPPED,
        mark=r"(^|\.)(?<!decoder\.)(mask_token|register_tokens)$", rename=_of_dinov2,
        dropped=r"^(dino_head|ibot_head)\.", default="momentum",
        remedy=_NAMED.replace("vit_small_patch16_224", "vit_small_patch14_dinov2"),
    ),
    Layout(
        "solo-learn, MAE or MoCo-v3", r"state_dict\.backbone\.",
        r"state_dict\.momentum_backbone\.",
        mark=r"^state_dict\.(decoder\.decoder_embed\.bias|predictor\.4\.running_mean)$",
        heads={192: 12, 384: 12},
    ),
    Layout("solo-learn", r"state_dict\.backbone\.", r"state_dict\.momentum_backbone\."),
    Layout(
        "MSN, I-JEPA", r"encoder\." + _WRAPPED, r"target_encoder\." + _WRAPPED,
        mark=r"^target_encoder\.", dropped=r"^pred\.", default="momentum",
    ),
    Layout(
        "DINO", _BELOW + r"student\." + _WRAPPED, _BELOW + r"teacher\." + _WRAPPED,
        default="momentum", dropped=r"^projector\.",
    ),
    Layout(
        "DeiT, MAE's encoder", r"model\.", r"(?:model_ema|ema)\.(?:module\.)?", rename=_of_deit3,
    ),
    Layout(
        "timm", r"(?:state_dict\.)?(?:module\.)?", r"state_dict_ema\.(?:module\.)?",
        rename=_of_deit3, default="momentum",
    ),
)  # fmt: skip
_HUGGING_FACE = (
    Layout(
        "Hugging Face DINOv2", r"(?:state_dict\.)?" + _HF, mark=r"\blayer_scale1\.lambda1$",
        rename=partial(renamed, HUGGING_FACE), dropped=_HF_HEADS,
        remedy=_NAMED.replace("vit_small_patch16_224", "vit_small_patch14_dinov2"),
    ),
    Layout(
        "Hugging Face ViT", r"(?:state_dict\.)?" + _HF, rename=partial(renamed, HUGGING_FACE),
        dropped=_HF_HEADS, eps=1e-12,
    ),
)  # fmt: skip
_HUGGING_FACE_CLIP = Layout(
    "Hugging Face CLIP", _BELOW + r"(?:clip\.)?(?:vision_model\.)?",
    rename=partial(renamed, HUGGING_FACE_CLIP, has_bare_tokens=True),
    dropped=r"^embeddings\.position_ids$", eps=1e-5, remedy=_CLIP_NAMED,
)  # fmt: skip
_OPENCLIP = Layout(
    "OpenCLIP", _BELOW + r"(?:module\.)?(?:visual\.)?",
    rename=partial(renamed, CLIP, has_bare_tokens=True),
    dropped=r"^proj$", eps=1e-5, remedy=_CLIP_NAMED,
)  # fmt: skip
_CLIP = replace(_OPENCLIP, name="CLIP", mark=r"(^|\.)input_resolution$", activation="quick_gelu")
_TORCHVISION = Layout(
    "torchvision", _BELOW + _WRAPPED, r"model_ema\.module\.",
    rename=partial(renamed, TORCHVISION), dropped=r"^heads\.",
)  # fmt: skip
_MMPRETRAIN = (
    Layout(
        "mmpretrain, MoCo-v3", _BELOW + r"backbone\.", _BELOW + r"momentum_encoder\.module\.0\.",
        mark=r"(^|\.)momentum_encoder\.", rename=partial(renamed, MMPRETRAIN), heads={384: 12},
    ),
    Layout("mmpretrain", _BELOW + _WRAPPED, rename=partial(renamed, MMPRETRAIN)),
)  # fmt: skip
OWN = LAYOUTS[0]
_STEMS = {  # by the patch embedding, or what else a project's ViTs have: its rows, and its [CLS]
    "patch_embed.proj.weight": (LAYOUTS, ""),
    "embeddings.patch_embeddings.projection.weight": (_HUGGING_FACE, ""),
    "embeddings.patch_embedding.weight": ((_HUGGING_FACE_CLIP,), "embeddings.class_embedding"),
    "ln_pre.weight": ((_CLIP, _OPENCLIP), "class_embedding"),
    "conv_proj.weight": ((_TORCHVISION,), "class_token"),
    "patch_embed.projection.weight": (_MMPRETRAIN, "cls_token"),
}
# of any project: its heads, and what stands in for patches that are not shown
_HEAD = r"^((head|head_dist|fc|classifier)\.|(mask_token|masked_embed)$)"
# What torch puts around a module, at any place, that it compiles, shards or computes again.
_AROUND = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


class Weights(NamedTuple):
    """What a file holds of a ViT.

    Attributes:
        path: of the file.
        layout: that it has.
        branch: that was taken.
        default: the branch that is taken where none is asked for.
        state: tensors in timm's names, without heads.
        content: the rest of the file, such as its arguments.
    """

    path: Path
    layout: Layout
    branch: Branch
    default: Branch
    state: dict[str, Tensor]
    content: Mapping[str, Any]

    def remedy(self, option: str) -> str:
        """What to do where the weights do not fit; `option` is that of timm's name."""
        return self.layout.remedy.format(option=option)


def read_weights(path: str | Path, branch: Branch | None = None) -> Weights:
    """The weights of a ViT in a file, whatever public layout it has, in timm's names.

    Args:
        path: of safetensors, or of a torch file that needs no foreign class.
        branch: the trained ViT or its momentum copy; None takes what the project evaluates.

    Raises:
        ValueError: no ViT is in the file, or several of which none is known to be the one, or the
            branch is not there; or the file cannot be read.
    """
    path = Path(with_home(str(path)))
    if re.search(r"-\d{5}-of-(?!00001)\d{5}$", path.stem):
        raise ValueError(f"{path} is one of several files of a model; {AS_ONE}")
    content: Mapping[str, Any]
    if path.suffix == SAFE and path.is_file():
        content, _ = read_tensors(path, AGAIN, ours=CHECKPOINT_KEY)
    else:
        content = load_checkpoint(path, of_elsewhere=True, map_location="cpu")
    flat = {_AROUND.sub("", name): value for name, value in _flat("", content)}
    names = [*flat, *(str(key) for key in content)]
    found = [
        (name.removesuffix(stem), rows)
        for stem, (rows, token) in _STEMS.items()
        for name in flat
        if (name == stem or name.endswith(f".{stem}"))
        and (not token or name.removesuffix(stem) + token in flat)
    ]
    layout, places = _recognised(path, found, names)
    default = layout.default if layout.default in places else next(iter(places))
    taken = branch or default
    if taken not in places:
        raise ValueError(f"{path} ({layout.name}) has no {taken} branch; take its {default} one")
    prefix = places[taken]
    state = {n.removeprefix(prefix): v for n, v in flat.items() if n.startswith(prefix)}
    dropped = re.compile(f"{_HEAD}|{layout.dropped}")
    state = {n: v for n, v in layout.rename(state).items() if not dropped.search(n)}
    return Weights(path, layout, taken, default, state, content)


def _recognised(
    path: Path, found: list[tuple[str, tuple[Layout, ...]]], names: list[str]
) -> tuple[Layout, dict[Branch, str]]:
    """The layout of a file and where its branches are, from the places where ViTs stand."""

    def is_marked(layout: Layout) -> bool:
        return any(re.search(layout.mark, name) for name in names)

    for layout in dict.fromkeys(layout for _, rows in found for layout in rows):
        patterns: tuple[tuple[Branch, str], ...] = (
            ("online", layout.online), ("momentum", layout.momentum),
        )  # fmt: skip
        places: dict[Branch, str] = {}
        for prefix, rows in found:
            if layout in rows:
                places |= {b: prefix for b, p in patterns if p and re.fullmatch(p, prefix)}
        if places and is_marked(layout):
            return layout, places
    if len(found) == 1:  # below a name that nobody is known to use
        prefix, rows = found[0]
        marked = (row for row in rows if row.mark and is_marked(row))
        layout = next(marked, rows[-1])
        name = f"{layout.name} below {prefix.rstrip('.')}"
        return replace(layout, name=name), {"online": prefix}
    some = ", ".join(names[:4]) or "nothing"
    several = " and ".join(prefix.rstrip(".") for prefix, _ in found)
    raise ValueError(
        f"{path} has ViTs below {several}, of which none is known to be the one; save that one's "
        "state dict alone"
        if found
        else f"{path} has no patch embedding of a plain ViT (patch_embed.proj.weight, or its name "
        f"in Hugging Face, torchvision, mmpretrain or CLIP, beside [CLS]), but {some}; give the "
        "file of a plain ViT"
    )


def _flat(place: str, node: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors of nested mappings, by dotted name."""
    if isinstance(node, Tensor):
        yield place, node
    elif isinstance(node, Mapping):
        for key, child in node.items():
            if isinstance(key, str):
                yield from _flat(f"{place}.{key}" if place else key, child)
