"""Files of tensors and arrays that are refused when a byte has changed, or an end is missing.

Whoever reads one says what to do then. Files that others wrote have no checksum, and pass without.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from tokenize import TokenError
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from ser_lightning.damage import why_no_tensors
from ser_lightning.files import atomic_path

if TYPE_CHECKING:
    from torch import Tensor

CHECKSUM = "sha256"  # among the notes of a file of tensors, and in a record


def write_tensors(path: Path, tensors: "Mapping[str, Tensor]", notes: Mapping[str, str]) -> None:
    """Writes a safetensors file with its checksum, whole or not at all."""
    import safetensors.torch  # noqa: PLC0415 - arrays need no torch

    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save = safetensors.torch.save
    content = save(plain, {**notes, CHECKSUM: _hash(save(plain), notes)})
    with atomic_path(path) as partial:
        partial.write_bytes(content)


def read_tensors(
    path: Path, remedy: str, ours: str | None = None
) -> "tuple[dict[str, Tensor], dict[str, str]]":
    """The tensors and notes of a safetensors file.

    Args:
        path: of the file.
        remedy: what to do where it cannot be read.
        ours: a note without which others wrote it, and its checksum is of something else; None
            where only this project writes such files.

    Raises:
        ValueError: it is none, or not as it was written.
    """
    import safetensors.torch  # noqa: PLC0415 - arrays need no torch

    return _read(path, remedy, "pt", safetensors.torch.save, ours)


def read_arrays(path: Path, remedy: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The same as arrays of numpy, which has no bfloat16; without torch."""
    return _read(path, remedy, "np", safetensors.numpy.save)


def _read(
    path: Path,
    remedy: str,
    framework: str,
    save: Callable[[Any], bytes],
    ours: str | None = None,
) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        with safe_open(str(path), framework=framework) as file:
            notes = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        reason = f"it is not a safetensors file, or not whole ({error}); {remedy}"
        raise ValueError(f"{path} cannot be read: {why_no_tensors(path) or reason}") from error
    written = notes.pop(CHECKSUM, None)
    is_ours = ours is None or ours in notes
    if is_ours and written is not None and written != _hash(save(tensors), notes):
        raise ValueError(f"{path} is damaged: it is not what its checksum says; {remedy}")
    return tensors, notes


def read_array(path: Path, remedy: str, **options: Any) -> np.ndarray:
    """The array of numbers or texts in a `.npy` file; nothing in it is unpickled.

    The remedy says what to do where it cannot be read; further options are those of `numpy.load`.

    Raises:
        ValueError: it is none, or cut short.
    """
    try:
        array: np.ndarray = np.load(path, allow_pickle=False, **options)
    except (ValueError, EOFError, SyntaxError, TokenError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is no whole .npy file of numbers ({reason}); {remedy}") from error
    return array


def content_hash(content: Mapping[str, Any]) -> str:
    """SHA-256 of plain values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _hash(tensors: bytes, notes: Mapping[str, str]) -> str:
    return content_hash({**notes, CHECKSUM: hashlib.sha256(tensors).hexdigest()})
