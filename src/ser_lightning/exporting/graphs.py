"""Exports of what a backbone computes, for any number of images: ONNX and torch.export."""

import logging
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor

from ser_lightning.backbones import SplitViT
from ser_lightning.exporting.opened import Opened

ONNX = "model.onnx"
PROGRAM = "model.pt2"
_IN_ONE_FILE = 2**30  # bytes of weights; protobuf takes no file of 2 GiB


def _example(backbone: SplitViT) -> Tensor:
    """Images to follow through the model; of one alone, the number would be taken for fixed."""
    return torch.zeros(2, 3, backbone.image_size, backbone.image_size)


@torch.no_grad()
def write_program(opened: Opened, folder: Path) -> None:
    """Writes the graph and weights as `torch.export.load` reads them."""
    batch = torch.export.Dim("batch")
    example, shapes = (_example(opened.backbone),), {"images": {0: batch}}
    program = torch.export.export(opened.backbone, example, dynamic_shapes=shapes)
    torch.export.save(program, folder / PROGRAM)


def embed_program(folder: Path, images: Tensor) -> Tensor:
    """The embeddings (B, C) that an export gives of images (B, 3, S, S)."""
    embedding: Tensor = torch.export.load(folder / PROGRAM).module()(images)
    return embedding


@torch.no_grad()
def write_onnx(opened: Opened, folder: Path) -> None:
    """Writes an ONNX model from "images" (batch, 3, S, S) to "embedding" (batch, C).

    Raises:
        ModuleNotFoundError: a package of the extra `export` is missing.
    """
    for package in ("onnx", "onnxscript"):
        import_module(package)
    logging.getLogger("onnxscript").setLevel(logging.ERROR)  # it tells what it did not fold
    backbone = opened.backbone
    model = torch.onnx.export(
        backbone,
        (_example(backbone),),
        dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
        input_names=["images"],
        output_names=["embedding"],
        dynamo=True,
        verbose=False,
    )
    assert model is not None
    size = sum(weight.nbytes for weight in backbone.parameters())
    model.save(folder / ONNX, external_data=size > _IN_ONE_FILE)


def embed_onnx(folder: Path, images: Tensor) -> Tensor:
    """As `embed_program`, on the CPU."""
    runtime = import_module("onnxruntime")
    session = runtime.InferenceSession(folder / ONNX, providers=["CPUExecutionProvider"])
    (embedding,) = session.run(None, {"images": images.numpy()})
    return torch.from_numpy(embedding)
