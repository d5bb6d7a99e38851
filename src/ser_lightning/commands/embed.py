"""`ser-fit embed`: embeddings of images, and token maps, in a file."""

from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import yaml
from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]
from lightning.pytorch.utilities import rank_zero_info

from ser_lightning.backbones import Branch
from ser_lightning.commands.export import opened_by
from ser_lightning.commands.stored_images import data_of_checkpoint, refuse_two_folders
from ser_lightning.data.labelled import LabelledDataModule
from ser_lightning.exporting.embedding import embed_images
from ser_lightning.exporting.images import AllImages
from ser_lightning.exporting.opened import Opened
from ser_lightning.exporting.tables import Embedded, require_room_for_names, writer_of
from ser_lightning.numbers import NonNegativeInt, PositiveInt
from ser_lightning.runtime.configuration import options
from ser_lightning.runtime.cores import refuse_too_many_workers
from ser_lightning.runtime.lock import locked
from ser_lightning.runtime.parser import ShortErrorParser
from ser_lightning.runtime.preemption import EndsAtOnce
from ser_lightning.runtime.progress_bar import default_progress

_NOT_HERE = {
    "global_batch_size", "crop", "image_size", "seed", "holdout_fraction", "num_train", "num_test",
}  # fmt: skip
_PRECISION = {"32": "32-true", "bf16": "bf16-mixed"}


def embed(args: list[str]) -> None:
    """Writes embeddings of images; started again after a kill, it goes on where it was."""
    opened, given = _parsed(args)
    data: LabelledDataModule = given.data
    data.image_size = opened.backbone.image_size
    refuse_too_many_workers(data.num_workers)
    data.prepare_data()
    images = AllImages(data.source)
    rank_zero_info(images.summary(data.source))
    output = Path(given.output)
    require_room_for_names(output, images.names)
    trainer = _trainer(given)
    folder = output.parent / f".{output.name}.unfinished"
    with locked(folder):
        unfinished = embed_images(opened, data, images, given.layers, trainer, folder)
        kept = np.array(unfinished.positions())
        labels = images.labels.numpy()[kept]
        table = Embedded(
            [images.names[row] for row in kept],
            labels if (labels >= 0).any() else None,
            images.class_names,
            unfinished.arrays(),
            _about(opened, given),
        )
        writer_of(output)(output, table)
        unfinished.remove()
    left_out = len(images) - len(kept)
    more = f"; {left_out} could not be read and were left out" if left_out else ""
    shown = ", ".join(f"{name} {array.shape}" for name, array in table.arrays.items())
    rank_zero_info(f"{output}: {shown}{more}")


_OPTIONS: dict[str, tuple[Any, Any, str]] = {
    "images": (
        str | None, None, "Folder of images; default: those that the checkpoint was trained on.",
    ),
    "layers": (
        list[NonNegativeInt], [], "Blocks after which the token map is kept too, such as [3].",
    ),
    "branch": (
        Branch | None, None,
        "Whose weights; default: the teacher's of DINO, the student's of all others.",
    ),
    "precision": (Literal["32", "bf16"], "32", "32, or bf16: faster on a GPU, with 3 digits."),
    "device": (
        Literal["auto", "cpu", "cuda", "mps"], "auto", "Where to compute: auto, cpu, cuda, mps.",
    ),
    "overwrite": (bool, False, "Replace the file if there is one."),
    "timm_name": (
        str | None, None,
        "Architecture of another project's file, where its shapes do not tell it.",
    ),
    "num_heads": (PositiveInt | None, None, "Its attention heads, which no shape tells."),
    "pretrained": (
        bool, False, "Let timm fetch the weights of its name; they are random without.",
    ),
}  # fmt: skip
"""Kind, default and help of each option."""


def _parser() -> ShortErrorParser:
    parser = ShortErrorParser(prog="ser-fit embed", description=embed.__doc__)
    parser.roots["data"] = LabelledDataModule
    checkpoint = "A run's, an export, another project's file of weights, or timm's name."
    output = "File to write: .safetensors, .npz or .parquet."
    parser.add_argument("checkpoint", type=str, help=checkpoint)
    parser.add_argument("--config", action=ActionConfigFile, help="Options, in a file.")
    parser.add_argument("--output", type=str, required=True, help=output)
    for name, (kind, default, text) in _OPTIONS.items():
        parser.add_argument(f"--{name}", type=kind, default=default, help=text)
    parser.add_class_arguments(LabelledDataModule, "data", skip=_NOT_HERE)
    groups: Any = parser.groups
    groups["data"].title = "How images are read and prepared"
    return parser


def _parsed(args: list[str]) -> tuple[Opened, Any]:
    """The backbone, and the options; images and their preparation are first the checkpoint's.

    Raises:
        ValueError: the output is taken, or of no known format, or there are no images.
    """
    parser = _parser()
    first = parser.parse_args(["--config", _data({"source": _placeholder()}), *args])
    output = Path(first.output)
    writer_of(output)
    if output.exists() and not (first.overwrite and output.is_file()):
        remedy = "" if output.is_dir() else "replace it with --overwrite true, or "
        raise ValueError(f"{output} exists; {remedy}give another --output FILE")
    opened, _ = opened_by(first)
    root, has_source = first.images, bool(options(args, "--data.source"))
    if root is not None:
        refuse_two_folders(root, args, "--data.source.root")
    config: dict[str, Any] = {}
    if opened.config:
        config = data_of_checkpoint(Path(first.checkpoint), root, args)
    elif root is not None:
        config = {"source": {**_placeholder(), "init_args": {"root": root}}}
    elif not has_source:
        raise ValueError(
            f"{first.checkpoint} does not say which images it was trained on; give --images FOLDER"
        )
    clean = opened.clean
    config |= {"mean": list(clean.mean), "std": list(clean.std)}
    config["evaluation_crop_fraction"] = clean.crop_fraction
    given = parser.parse_args(["--config", _data(config), *args])
    return opened, parser.instantiate_classes(given)


def _placeholder() -> dict[str, Any]:
    """A source in the place of one that is not known yet."""
    return {"class_path": "ser_lightning.data.ImageFolder", "init_args": {"root": "."}}


def _data(config: dict[str, Any]) -> str:
    return yaml.safe_dump({"data": config})


def _trainer(given: Any) -> L.Trainer:
    return L.Trainer(
        accelerator=given.device,
        devices=1,
        precision=_PRECISION[given.precision],  # type: ignore[arg-type]
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[default_progress(), EndsAtOnce()],
    )


def _about(opened: Opened, given: Any) -> dict[str, Any]:
    """How the embeddings were made, for who finds the file."""
    return {
        "checkpoint_sha256": opened.sha256,
        "branch": opened.branch,
        "precision": given.precision,
        "prepared": given.data.describe(),
        "assumed": list(opened.assumed),
    }
