"""The images that a checkpoint was trained on, as far as a file may say which."""

from pathlib import Path
from typing import Any

import yaml

from ser_lightning.data import Source
from ser_lightning.data.labelled import LabelledDataModule
from ser_lightning.files import checkpoint_config
from ser_lightning.runtime import (
    Origin,
    find_class,
    given_options,
    parameters,
    plain_sections,
    run_folder_of,
)

_FROM_CHECKPOINT = ("source", "num_workers", "mean", "std", "evaluation_crop_fraction")
_OF_A_FOLDER = ("train", "evaluation", "labels")
"""Options of a source that say what is where below its root; they do not fit another root."""


def stored_source(checkpoint: Path, has_other_root: bool, args: list[str]) -> dict[str, Any] | None:
    """The source of the images that a checkpoint was trained on, as class_path and init_args.

    None where the checkpoint names a class of elsewhere, and the options name the source too.

    Args:
        checkpoint: file of a pretraining run.
        args: options of the command line.
        has_other_root: whether it is to read another folder, whose splits are looked for anew; a
            folder of images where its own have none, such as generated ones.

    Raises:
        ValueError: if there is no such file, or it holds no configuration, or it names what a
            file may not decide.
    """
    return _for_root(_stored_data(checkpoint, args).get("source"), has_other_root)


def _for_root(source: dict[str, Any] | None, has_other_root: bool) -> dict[str, Any] | None:
    """A stored source, as it reads its own folder or another one."""
    if source is None:
        return None
    arguments = source.get("init_args") or {}
    cls = find_class(Source, source["class_path"])
    if has_other_root and cls is not None and "root" not in parameters(cls):
        return {"class_path": "ser_lightning.data.ImageFolder", "init_args": {}}
    if has_other_root:
        arguments = {name: v for name, v in arguments.items() if name not in _OF_A_FOLDER}
    return {**source, "init_args": arguments}


def require_checkpoint(path: Path) -> None:
    """Refuses what is no file.

    Raises:
        ValueError: names it and the remedy.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ValueError(
            f"checkpoint {path} {what}; give --checkpoint FILE, such as "
            "runs/moco_ser/checkpoints/last.ckpt"
        )


def _stored_data(path: Path, args: list[str]) -> dict[str, Any]:
    """What a stage takes from the data of a checkpoint."""
    require_checkpoint(path)
    data = (checkpoint_config(path) or {}).get("data") or {}
    source = data.get("source")
    if not (isinstance(source, dict) and "class_path" in source):
        raise ValueError(
            f"{path} holds no configuration of a run; evaluate a checkpoint that ser-fit wrote"
        )
    taken = {"data": {key: data[key] for key in _FROM_CHECKPOINT if key in data}}
    origin = Origin(path, run_folder_of(path), given_options(args))
    plain: dict[str, Any] = plain_sections(taken, {"data": LabelledDataModule}, origin)["data"]
    return plain


def data_of_checkpoint(path: Path, root: str | None, args: list[str]) -> str:
    """A configuration text with the images that a checkpoint was trained on."""
    arguments = _stored_data(path, args)
    source = _for_root(arguments.get("source"), root is not None)
    if source is not None:
        # a source that lacks what it requires would be dropped by the parser
        new_root = {} if root is None else {"root": root}
        arguments["source"] = {**source, "init_args": source["init_args"] | new_root}
    return yaml.safe_dump({"data": {"class_path": "LabelledDataModule", "init_args": arguments}})
