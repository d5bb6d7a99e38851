"""The images that a checkpoint was trained on, as far as a file may say which.

A backbone of elsewhere says nothing of them, but perhaps how they are prepared.
"""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import yaml

from ser_lightning.backbones.opening import is_timm_name, known_name
from ser_lightning.backbones.preparation import preparation_of
from ser_lightning.checkpoints import CONFIGURATION, checkpoint_config
from ser_lightning.data import Source
from ser_lightning.data.labelled import LabelledDataModule
from ser_lightning.foreign.architecture import NAME_OPTION
from ser_lightning.foreign.layouts import SAFE
from ser_lightning.runtime.class_help import find_class, parameters
from ser_lightning.runtime.configuration import given_options, options
from ser_lightning.runtime.run_folder import run_folder_of
from ser_lightning.runtime.stored import Origin, plain_sections

_FROM_CHECKPOINT = ("source", "num_workers", "mean", "std", "evaluation_crop_fraction")
_OF_A_FOLDER = ("train", "evaluation", "labels")
"""Options of a source that say what is where below its root; they do not fit another root."""


def data_of_checkpoint(path: Path, root: str | None, args: list[str]) -> dict[str, Any]:
    """Options of the data, with the images that a checkpoint was trained on, or those of a folder.

    They have no source where the checkpoint names a class of elsewhere, and the options name the
    source too. Where it is to read another folder, that one's splits are looked for anew; a folder
    of images where its own have none, such as generated ones.

    Raises:
        ValueError: if there is no such file, or it holds no configuration, or it names what a
            file may not decide.
    """
    found = _stored_data(path, args)
    if not (source := found.get("source")):
        return found
    arguments = source.get("init_args") or {}
    if root is not None:
        cls = find_class(Source, source["class_path"])
        if cls is not None and "root" not in parameters(cls):
            source, arguments = {"class_path": "ser_lightning.data.ImageFolder"}, {}
        kept = {name: value for name, value in arguments.items() if name not in _OF_A_FOLDER}
        # a source that lacks what it requires would be dropped by the parser
        arguments = {**kept, "root": root}
    return {**found, "source": {**source, "init_args": arguments}}


def require_checkpoint(path: Path) -> None:
    """Refuses what is neither a file nor timm's name of a model.

    Raises:
        ValueError: names it and the remedy.
    """
    if not path.is_file() and not is_timm_name(path):
        what = "is a folder" if path.is_dir() else "does not exist"
        close = difflib.get_close_matches(path.name, timm.list_models("*vit*"), n=1)
        hint = f", or timm's name of a ViT, such as {close[0]}" if close else ""
        raise ValueError(
            f"checkpoint {path} {what}; give a file, such as "
            f"runs/moco_ser/checkpoints/last.ckpt{hint}"
        )


def results_folder(path: Path, pretrained: bool) -> Path:
    """Where results go: the run that a checkpoint belongs to, or runs/<name> of a backbone."""
    run = run_folder_of(path)
    if path.is_file() and ((run / CONFIGURATION).is_file() or _has_configuration(path)):
        return run
    return Path("runs") / known_name(path, pretrained)


def refuse_two_folders(images: str, args: list[str], *names: str) -> None:
    """Refuses options that say where images are beside `--images`: one would go unheard.

    Raises:
        ValueError: names both.
    """
    for name in names:
        for other in options(args, name):
            raise ValueError(
                f"--images {images} and {name} {other} both say where the images are; give one"
            )


def is_pretrained(args: list[str]) -> bool:
    """Whether a command line asks for the weights that timm fetches."""
    given = given_options(args).get("model.pretrained", False)
    return yaml.safe_load(str(given)) is True  # "yes" and "on" too, as the parser reads them


def _has_configuration(path: Path) -> bool:
    return path.suffix != SAFE and checkpoint_config(path) is not None


def _stored_data(path: Path, args: list[str]) -> dict[str, Any]:
    """What a stage takes from the data of a checkpoint."""
    require_checkpoint(path)
    given = given_options(args)
    if is_timm_name(path) or not _has_configuration(path):
        return _data_of_elsewhere(path, given)
    data = (checkpoint_config(path) or {}).get("data") or {}
    source = data.get("source")
    if not (isinstance(source, dict) and "class_path" in source):
        raise ValueError(
            f"{path} holds no configuration of a run; evaluate a checkpoint that ser-fit wrote"
        )
    taken = {"data": {key: data[key] for key in _FROM_CHECKPOINT if key in data}}
    origin = Origin(path, run_folder_of(path), given)
    plain: dict[str, Any] = plain_sections(taken, {"data": LabelledDataModule}, origin)["data"]
    return plain


def _data_of_elsewhere(path: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """The same for a backbone without a configuration, as its images are prepared elsewhere."""
    if not {"data.source", "data.source.root"} & given.keys():
        raise ValueError(
            f"{path} does not say on which images to measure it; give --data.source.root FOLDER "
            "(--images FOLDER, where a stage has no others), or another --data.source"
        )
    name = given.get(NAME_OPTION.removeprefix("--"))
    told = str(path) if is_timm_name(path) else None
    prepared = preparation_of(path, told if name in (None, "null") else name)
    root = given.get("data.source.root")
    folder = {"class_path": "ser_lightning.data.ImageFolder", "init_args": {"root": root}}
    return {
        **({} if "data.source" in given else {"source": folder}),
        "mean": list(prepared.mean),
        "std": list(prepared.std),
        "evaluation_crop_fraction": prepared.crop_fraction,
    }
