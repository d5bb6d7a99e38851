"""What is wrong with a file of torch: told from its checksums, its beginning and torch's error."""

import re
import zipfile
import zlib
from functools import cache
from pathlib import Path

import torch


def damage(path: Path, with_tensors: bool = True) -> str:
    """What is wrong with the bytes of a torch file; empty where they are as they were written.

    Files of before torch 1.6 have no checksums, and pass.

    Args:
        path: of the file.
        with_tensors: whether tensors are read too, about 2 GB a second, or the rest alone.
    """
    state = path.stat()
    return _damage(path, with_tensors, (state.st_ino, state.st_size, state.st_mtime_ns))


@cache
def _damage(path: Path, with_tensors: bool, state: tuple[int, ...]) -> str:
    with path.open("rb") as stream:
        if stream.read(4) != b"PK\x03\x04":
            return ""
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if with_tensors or "/data/" not in entry.filename:
                    with archive.open(entry) as stream:
                        while stream.read(1 << 20):
                            pass
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        return f"it is damaged or cut short ({error}); fetch it again"
    return ""


_IMAGES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\x00", b"MM\x00*")


def why_unreadable(path: Path, error: Exception) -> str:
    """Why torch cannot load a file, as far as its beginning and the error tell, and a remedy."""
    with path.open("rb") as stream:
        start = stream.read(512)
    foreign = re.search(r"GLOBAL ([\w.]+)", str(error))
    if not start:
        return "it is empty; take another"
    if start.startswith(_IMAGES):
        return "it is an image; give a file that ser-fit or torch.save wrote"
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
        return (
            "it is a safetensors file: weights alone, to start a new run with as "
            "--model.backbone.weights FILE.safetensors"
        )
    if foreign is not None:
        return (
            f"it holds more than tensors and plain values ({foreign[1]}), which could run foreign "
            "code; save its state dict alone, best as safetensors"
        )
    if all(byte > 31 or byte in b"\t\n\r\f" for byte in start):
        return "it is a text file; give a file that ser-fit or torch.save wrote"
    reason = " ".join(str(error).split()) or type(error).__name__
    return (
        f"it is damaged, no checkpoint, or of a newer torch than {torch.__version__}: "
        f"{reason.partition('. ')[0][:200]}; fetch it again"
    )
