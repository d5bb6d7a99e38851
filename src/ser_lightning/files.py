"""Files that appear whole or not at all, what names their content, and what a checkpoint says.

A checkpoint's configuration is read here; `runtime/run_folder.py` writes it.
"""

import hashlib
import os
import pickle
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml

from ser_lightning.processes import is_running

CHECKPOINT_KEY = "ser_lightning"  # of this package's record in a checkpoint
PARTIAL = ".partial"
MAX_VALUES = 100_000  # of a configuration; those of this package hold less than 1,000

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
    """A checkpoint holds more than tensors and plain values; it was not loaded."""


def load_checkpoint(path: str | Path, **options: Any) -> dict[str, Any]:
    """Loads a checkpoint of tensors and plain values; nothing in it is executed.

    Raises:
        FileNotFoundError: there is no such file.
        UnsafeCheckpointError: the file would need arbitrary objects to be built, or is damaged.
    """
    path = with_home(os.fspath(path))
    if not Path(path).is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    try:
        return torch.load(path, weights_only=True, **options)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise UnsafeCheckpointError(
            f"checkpoint {path} was not loaded: it is damaged, or holds more than tensors and "
            "plain values, which could run foreign code; save its state dict alone, best as "
            f"safetensors ({str(error).strip().partition(chr(10))[0]})"
        ) from error


def last_checkpoint(folder: Path) -> Path:
    """The path of the latest checkpoint in a folder of checkpoints."""
    return folder / "last.ckpt"


def checkpoint_config(path: str | Path) -> dict[str, Any] | None:
    """The configuration stored in a checkpoint, in today's words; None if there is none."""
    record = load_checkpoint(path, map_location="cpu", mmap=True).get(CHECKPOINT_KEY) or {}
    return read_config(record["config"]) if "config" in record else None


def read_config(text: str) -> dict[str, Any]:
    """A configuration of this version or an earlier one, in today's words; empty if it is none."""
    config = with_home(upgraded(load_yaml(text)))
    return config if isinstance(config, dict) else {}


def with_home(value: Any) -> Any:
    """Writes the home folder out in every path, "~/x", of a structure of plain values."""
    if isinstance(value, list):
        return [with_home(entry) for entry in value]
    if isinstance(value, dict):
        return {key: with_home(entry) for key, entry in value.items()}
    is_path = isinstance(value, str) and value.startswith("~")
    return os.path.expanduser(value) if is_path else value


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        ValueError: it is no text in UTF-8; names the file.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is no text in UTF-8 (byte {error.start}); save it as UTF-8, or give another "
            "file"
        ) from error


def load_yaml(text: str) -> Any:
    """Plain YAML, of a size that can be gone through.

    Raises:
        YAMLError: it is none, or nested without end.
        ValueError: it holds more than `MAX_VALUES`, with all that aliases repeat.
    """
    try:
        content = yaml.safe_load(text)
    except RecursionError:
        raise yaml.YAMLError("the YAML is nested too deeply; a configuration is flat") from None
    waiting, num_values = [content], 0
    while waiting:
        node = waiting.pop()
        num_values += 1
        if num_values > MAX_VALUES:
            raise ValueError(
                f"the YAML holds more than {MAX_VALUES:,} values, or an alias (*name) within what "
                "it stands for; write out what it repeats"
            )
        if isinstance(node, dict):
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node
    return content


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


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path in the same folder, and renames it to `path` on success.

    File and folder are flushed to disk. On any error the temporary file is removed, and an old
    file at `path` stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / f".{path.name}.{uuid.uuid4().hex}{PARTIAL}"
    try:
        yield partial
        _flush(partial)
        partial.replace(path)
        _flush(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def sweep(folder: Path) -> None:
    """Removes what killed processes left half-written in a folder."""
    for partial in folder.glob(f".*{PARTIAL}"):
        partial.unlink(missing_ok=True)


def new_folder(parent: Path) -> Path:
    """A new folder to fill, named after this process; those that killed ones left are removed."""
    host, pid = socket.gethostname(), os.getpid()
    for old in parent.glob(f"*{PARTIAL}"):
        *_, of_host, of_pid, _ = ("", "", *old.name.rsplit(".", 3))
        if not of_pid.isdecimal() or (of_host == _label(host) and not is_running(int(of_pid))):
            shutil.rmtree(old, ignore_errors=True)
    folder = parent / f"{uuid.uuid4().hex}.{_label(host)}.{pid}{PARTIAL}"
    folder.mkdir(parents=True)
    return folder


def put_in_place(folder: Path, final: Path) -> None:
    """Renames a filled folder; where another process has put its own there, that one stays."""
    try:
        folder.rename(final)
    except OSError:
        if not final.is_dir():
            raise
        shutil.rmtree(folder, ignore_errors=True)


def _label(host: str) -> str:
    return host.replace(".", "-")


def file_sha256(path: Path) -> str:
    """SHA-256 of the file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
