"""A run's checkpoints: which is the latest, what one holds, and what its configuration says.

The configuration is read here; `runtime/run_folder.py` writes it.
"""

import os
from pathlib import Path
from typing import Any

import yaml

from ser_lightning.damage import damage, is_archive, why_unreadable
from ser_lightning.files import with_home
from ser_lightning.trusted import plain_yaml, stand_ins

CHECKPOINT_KEY = "ser_lightning"  # of this package's record in a checkpoint
_SECTIONS = ("model", "data", "trainer", "evaluation", "pictures", "checkpoint")
CHECKPOINT_FOLDER = "checkpoints"  # of a run
CONFIGURATION = "fit.yaml"  # in a run's folder
OF_THE_WEIGHTS = (
    "max_epochs", "max_steps", "precision", "accumulate_grad_batches", "limit_train_batches",
    "gradient_clip_val", "gradient_clip_algorithm",
)  # fmt: skip
"""The trainer's settings that change the weights."""

# What the classes of version 0.1.0 are called now, and then where they are, by the beginning of
# their import path.
RENAMED = {
    "CorruptedDataModule": "ImageNetCDataModule",
    "CorruptionStage": "ImageNetCStage",
    "ObjectDataModule": "ThreeDIEBenchDataModule",
    "PerturbationStage": "ImageNetPStage",
    "PerturbedDataModule": "ImageNetPDataModule",
    "ShiftedDataModule": "ShiftDataModule",
}
MOVED = {
    "ser_lightning.data.bench3d.ThreeDIEBenchDataModule": (
        "ser_lightning.data.benchmarks.threediebench.ThreeDIEBenchDataModule"
    ),
    "ser_lightning.data.bench3d.": "ser_lightning.sources.threediebench.",
    "ser_lightning.data.coco.": "ser_lightning.sources.coco.",
    "ser_lightning.data.crops.LocalCrops": "ser_lightning.data.LocalCrops",
    "ser_lightning.data.crops.RotatedCrops": "ser_lightning.data.RotatedCrops",
    "ser_lightning.data.detection.": "ser_lightning.data.benchmarks.detection.",
    "ser_lightning.data.fashion_mnist.": "ser_lightning.sources.fashion_mnist.",
    "ser_lightning.data.folder.": "ser_lightning.sources.folder.",
    "ser_lightning.data.sources.": "ser_lightning.sources.",
    "ser_lightning.data.shapes.": "ser_lightning.sources.shapes.",
    "ser_lightning.data.torchvision_set.": "ser_lightning.sources.torchvision_set.",
    "ser_lightning.data.views.": "ser_lightning.data.pipelines.",
}


class UnsafeCheckpointError(ValueError):
    """A checkpoint is damaged, or holds more than tensors and plain values; it was not loaded."""


def load_checkpoint(path: str | Path, of_elsewhere: bool = False, **options: Any) -> dict[str, Any]:
    """Loads a checkpoint of tensors and plain values; nothing in it is executed.

    What is read is compared with the checksums (CRC-32) that torch writes into the file: with
    `mmap`, where tensors stay on disk, all but the tensors. `of_elsewhere` passes over what
    `trusted.stand_ins` lists, which other projects save beside their weights; further options are
    those of `torch.load`.

    Raises:
        FileNotFoundError: there is no such file.
        UnsafeCheckpointError: the file would need arbitrary objects to be built, is damaged, or is
            no checkpoint; the message says which.
    """
    path = Path(with_home(os.fspath(path)))
    if not path.is_file():
        state = "is a folder; give a file" if path.is_dir() else "does not exist; give another path"
        raise FileNotFoundError(f"checkpoint {path} {state}")
    _require_undamaged(path, with_tensors=not options.get("mmap"))
    if not is_archive(path):
        options.pop("mmap", None)  # which torch has for files of today only
    import torch  # noqa: PLC0415 - reports and tables need none

    try:
        with torch.serialization.safe_globals(stand_ins() if of_elsewhere else []):
            content = torch.load(path, weights_only=True, **options)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # whatever the content of a foreign file makes the reader raise
        reason = why_unreadable(path, error)
        raise UnsafeCheckpointError(
            f"checkpoint {path} was not loaded: {reason}{_instead(path)}"
        ) from error
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise UnsafeCheckpointError(
            f"{path} holds a {kind}; a state dict is needed, or a checkpoint"
        )
    return content


def require_whole(path: Path) -> dict[str, Any]:
    """A checkpoint whose every byte is looked at, its tensors on disk; raises as the other."""
    content = load_checkpoint(path, map_location="cpu", mmap=True)
    _require_undamaged(path, with_tensors=True)
    return content


def _require_undamaged(path: Path, with_tensors: bool) -> None:
    if found := damage(path, with_tensors):
        raise UnsafeCheckpointError(f"checkpoint {path} was not loaded: {found}{_instead(path)}")


def latest_checkpoint(folder: Path) -> tuple[Path, str]:
    """The latest whole checkpoint of a folder, and what is wrong with the last one, if so.

    Where none is there, it is the path of the last one.

    Raises:
        UnsafeCheckpointError: none that is there is whole.
    """
    last = last_checkpoint(folder)
    there = [path for path in (last, previous_checkpoint(folder)) if path.is_file()]
    wrong = "" if last.is_file() or not there else f"{last} does not exist"
    for path in there:
        found = _wrong_with(path)
        if not found:
            return path, wrong
        wrong = wrong or found
    if there:
        raise UnsafeCheckpointError(
            f"{wrong}; no other in {folder} is whole: restore one, or give another --run_dir"
        )
    return last, ""


def _wrong_with(path: Path) -> str:
    try:
        require_whole(path)
    except UnsafeCheckpointError as error:
        return str(error)
    return ""


def _instead(path: Path) -> str:
    """Names the whole one of the two checkpoints of a run that is not the given one."""
    folder = path.parent
    for other in (last_checkpoint(folder), previous_checkpoint(folder)):
        if other != path and other.is_file() and not damage(other):
            return f"; {other} is whole: give that"
    return ""


def last_checkpoint(folder: Path) -> Path:
    """The path of the latest checkpoint in a folder of checkpoints."""
    return folder / "last.ckpt"


def previous_checkpoint(folder: Path) -> Path:
    """The path of the one before it, which is there in case that the latest gets damaged."""
    return folder / "previous.ckpt"


def checkpoint_config(path: str | Path) -> dict[str, Any] | None:
    """The configuration stored in a checkpoint, in today's words; None if there is none.

    Raises:
        ValueError: as `read_config`, and as `load_checkpoint`.
    """
    content = load_checkpoint(path, of_elsewhere=True, map_location="cpu", mmap=True)
    record = content.get(CHECKPOINT_KEY)
    text = record.get("config") if isinstance(record, dict) else None
    return read_config(text, path) if isinstance(text, str) else None


def read_config(text: str, path: str | Path = "") -> dict[str, Any]:
    """A configuration of this version or an earlier one, in today's words; empty if it is none.

    Raises:
        ValueError: it is not plain YAML, is larger than any, or has a section that is none.
    """
    try:
        config = with_home(upgraded(plain_yaml(text)))
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"the configuration in {path or 'a text'} is not YAML that can be read ({reason}); "
            "restore it, or give your own as --config FILE"
        ) from error
    if not isinstance(config, dict):
        return {}
    wrong = [name for name in _SECTIONS if not isinstance(config.get(name) or {}, dict)]
    if wrong:
        raise ValueError(f"{path or 'the text'}: {wrong[0]} is no section; restore the file")
    return config


def upgraded(config: Any) -> Any:
    """Renames what has moved since version 0.1.0."""
    if isinstance(config, list):
        return [upgraded(value) for value in config]
    if not isinstance(config, dict):
        return config
    config = {key: upgraded(value) for key, value in config.items()}
    path = config.get("class_path")
    if isinstance(path, str):
        module, dot, name = path.rpartition(".")
        path = module + dot + RENAMED.get(name, name)
        old = next((old for old in MOVED if path.startswith(old)), "")
        config["class_path"] = MOVED.get(old, "") + path.removeprefix(old)
    return config
