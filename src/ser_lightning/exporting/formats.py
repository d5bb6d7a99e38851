"""The formats of an export, and what each is good for."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ser_lightning.exporting.graphs import embed_onnx, embed_program, write_onnx, write_program
from ser_lightning.exporting.hugging_face import embed_hugging_face, write_hugging_face
from ser_lightning.exporting.opened import Opened
from ser_lightning.exporting.weight_folders import embed_own, embed_timm, write_own, write_timm


class Format(NamedTuple):
    """A format.

    Attributes:
        write: writes it into a folder.
        embed: loads it from there as its readers do, and computes embeddings.
        package: that reads it, by the name under which it is imported.
        library: that reads it, as the Hugging Face hub calls it; "" for none that it knows.
        takes_late_cls: whether it can express that [CLS] joins after a block.
        load: three lines that load it from FOLDER and embed `images`.
    """

    write: Callable[[Opened, Path], None]
    embed: Callable[[Path, Tensor], Tensor]
    package: str
    library: str
    takes_late_cls: bool
    load: str


FORMATS = {
    "timm": Format(
        write_timm,
        embed_timm,
        "timm",
        "timm",
        False,
        'import timm\nmodel = timm.create_model("local-dir:FOLDER", pretrained=True).eval()\n'
        "embedding = model(images)  # (B, C)",
    ),
    "safetensors": Format(
        write_own,
        embed_own,
        "ser_lightning",
        "",
        True,
        "from ser_lightning.backbones import SplitViT\n"
        'model = SplitViT.from_safetensors("FOLDER/model.safetensors").eval()\n'
        "embedding = model(images)  # (B, C); model.token_maps(images, layers=[3])",
    ),
    "huggingface": Format(
        write_hugging_face,
        embed_hugging_face,
        "transformers",
        "transformers",
        False,
        'from transformers import AutoModel\nmodel = AutoModel.from_pretrained("FOLDER").eval()\n'
        "embedding = model(pixel_values=images).last_hidden_state[:, 0]  # (B, C)",
    ),
    "onnx": Format(
        write_onnx,
        embed_onnx,
        "onnxruntime",
        "onnx",
        True,
        "import onnxruntime\n"
        'session = onnxruntime.InferenceSession("FOLDER/model.onnx")\n'
        '(embedding,) = session.run(None, {"images": images})  # float32 (B, C)',
    ),
    "torch-export": Format(
        write_program,
        embed_program,
        "torch",
        "pytorch",
        True,
        'import torch\nmodel = torch.export.load("FOLDER/model.pt2").module()\n'
        "embedding = model(images)  # (B, C)",
    ),
}


def require_expressible(opened: Opened, name: str) -> None:
    """Refuses a format that would compute another embedding.

    Raises:
        ValueError: with the reason and the formats to take instead.
    """
    layer = opened.backbone.cls_layer
    if layer and not FORMATS[name].takes_late_cls:
        others = ", ".join(key for key, other in FORMATS.items() if other.takes_late_cls)
        raise ValueError(
            f"{opened.path}: [CLS] joins after block {layer}, and a model of {name} has it at the "
            f"input, so that it would compute another embedding from the same weights; export as "
            f"one of {others}, or pretrain with --model.backbone.cls_layer 0"
        )
    eps = opened.backbone.arguments["vit_options"].get("norm_eps")
    if name == "timm" and eps not in (None, 1e-6):
        raise ValueError(
            f"{opened.path}: its norms have an epsilon of {eps:g}, and a model that timm builds "
            "from a configuration has 1e-06; export as huggingface, or as one of the others"
        )


@torch.no_grad()
def difference(opened: Opened, name: str, folder: Path) -> float | None:
    """Loads an export, and compares it on 3 random images; None where its reader is missing.

    Returns:
        The largest absolute difference of the embeddings.
    """
    form, size = FORMATS[name], opened.backbone.image_size
    if find_spec(form.package) is None:
        return None
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    ours = opened.backbone(images)
    return float((form.embed(folder, images) - ours).abs().max())
