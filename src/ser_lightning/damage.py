"""What is wrong with a file of torch: told from its checksums, its beginning and torch's error."""

import errno
import lzma
import re
import struct
import zipfile
import zlib
from functools import cache
from importlib.metadata import version
from pathlib import Path


def damage(path: Path, with_tensors: bool = True) -> str:
    """What is wrong with the bytes of a torch file; empty where they are as they were written.

    Files of before torch 1.6 have no checksums, and pass. Tensors, of which about 2 GB are read a
    second, may be left out.
    """
    state = path.stat()
    return _damage(path, with_tensors, (state.st_ino, state.st_size, state.st_mtime_ns))


def is_archive(path: Path) -> bool:
    """Whether a file begins as those of torch do since version 1.6."""
    with path.open("rb") as stream:
        return stream.read(4) == b"PK\x03\x04"


@cache
def _damage(path: Path, with_tensors: bool, state: tuple[int, ...]) -> str:
    if not is_archive(path):
        return ""
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if with_tensors or "/data/" not in entry.filename:
                    with archive.open(entry) as stream:
                        while stream.read(1 << 20):
                            pass
    except (*_OF_ZIP, OSError) as error:
        if isinstance(error, OSError) and error.errno == errno.EIO:
            return "it cannot be read: its disk reports an error; fetch it again"
        if isinstance(error, OSError) and error.errno not in _OF_BYTES:
            raise
        is_cut = str(error) == _NO_END
        return f"it is {_CUT if is_cut else _CHANGED}; fetch it again"
    return ""


_OF_ZIP = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, RuntimeError,
           ValueError, OverflowError)  # fmt: skip
_OF_BYTES = (None, errno.EINVAL)  # of bz2, and of a place before the start
_NO_END = "File is not a zip file"
_CUT = "cut short: its end is missing"
_CHANGED = "damaged: a part of it is not what its checksum says"
AS_ONE = (
    "save the model as one, with transformers by save_pretrained(folder, max_shard_size='100GB'), "
    "and give that"
)
_GIVE = "give a file that ser-fit or torch.save wrote"
_IMAGES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\x00", b"MM\x00*")
_LFS = b"version https://git-lfs"
_POINTER = "it is a pointer of Git LFS; fetch the file itself by git lfs pull"
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # a pickle of torch's number for such files


def _keep_weights(path: Path) -> str:
    """The command that writes a file's weights without what has to be unpickled."""
    keep = (
        "f = lambda c: {k: v if isinstance(v, torch.Tensor) else f(v) for k, v in "
        "getattr(c, 'state_dict', lambda: c)().items() "
        "if isinstance(v, (dict, torch.Tensor, torch.nn.Module))}"
    )
    load = f"torch.load({str(path)!r}, map_location='cpu', weights_only=False)"
    return f"python -c \"import torch; {keep}; torch.save(f({load}), 'weights.pth')\""


def why_no_tensors(path: Path) -> str:
    """What else a file is that is called safetensors, and a remedy; empty where it may be one."""
    if is_archive(path):
        return f"it is a file of torch; name it {path.stem}.pth"
    with path.open("rb") as stream:
        return _POINTER if stream.read(len(_LFS)) == _LFS else ""


def _parts(path: Path) -> set[str]:
    """The names of an archive's parts; those of `torch.save` where torch says better what is."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.rpartition("/")[2] for name in archive.namelist()}
    except (*_OF_ZIP, OSError):
        return {"data.pkl"}


def why_unreadable(path: Path, error: Exception) -> str:
    """Why torch cannot load a file, as far as its beginning and the error tell, and a remedy."""
    with path.open("rb") as stream:
        start = stream.read(512)
    foreign = re.search(r"GLOBAL ([\w.]+)", str(error))
    length = int.from_bytes(start[:8], "little")  # of a safetensors file's header
    named = "" if path.suffix == ".safetensors" else f"; name it {path.stem}.safetensors"
    reason = re.sub(r"\[enforce fail at [^]]*\][ .]*", "", " ".join(str(error).split()))
    parts = _parts(path) if start.startswith(b"PK") else set()
    answers = {
        "it is empty; take another": not start,
        f"it is an image; {_GIVE}": start.startswith(_IMAGES),
        "it is a safetensors file: weights alone, to start a new run with as "
        f"--model.backbone.weights FILE.safetensors{named}": start[8:9] == b"{"
        and length < path.stat().st_size,
        f"it holds more than tensors and plain values ({foreign and foreign[1]}), which could run "
        f"foreign code; if you trust it, this keeps its weights alone: {_keep_weights(path)}": (
            foreign is not None
        ),
        "it is in torch's format of before 1.6, damaged or with what only unpickling reads; if you "
        f"trust it, this keeps its weights alone: {_keep_weights(path)}": (
            start.startswith(_LEGACY)
        ),
        f"it is the index of a model in several files; {AS_ONE}": path.name.endswith(".index.json"),
        _POINTER: start.startswith(_LFS),
        f"it is a text file; {_GIVE}": all(byte > 31 or byte in b"\t\n\r\f" for byte in start),
        "it is a zip archive that torch.save did not write, but TorchScript; if you trust it, this "
        'keeps its weights alone: python -c "import torch; '
        f"torch.save(torch.jit.load({str(path)!r}, 'cpu').state_dict(), 'weights.pth')\"": (
            {"data.pkl", "constants.pkl"} <= parts
        ),
        "it is a zip archive that torch.save did not write, such as packed files, arrays of NumPy "
        "or a graph of torch.export; unpack it, or give a file of weights": (
            start.startswith(b"PK") and "data.pkl" not in parts
        ),
        f"torch {version('torch')} cannot read it ({reason[:150]}); use a newer torch": (
            start.startswith(b"PK")
        ),
    }
    found = [answer for answer, is_true in answers.items() if is_true]
    return [*found, f"it is no file of torch, or damaged; {_GIVE}"][0]
