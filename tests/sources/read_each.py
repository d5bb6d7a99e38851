"""Reads every file below a folder in a process of its own, with limits, and prints how it ended.

`python tests/sources/read_each.py FOLDER` prints a line of JSON per file: its name, and "read",
"unreadable" or whatever else happened: another exception, a signal.
"""

import json
import os
import resource
import signal
import sys
import warnings
from pathlib import Path

from ser_lightning.sources.base import UnreadableImage
from ser_lightning.sources.decode import read_image

SECONDS = 20
MEMORY = 4 * 2**30  # bytes, beyond what the libraries take; 179 million pixels in colour and alpha


def outcome_of(path):
    """What reading does, in this process."""
    try:
        image = read_image(path)
    except UnreadableImage as error:
        return "unreadable" if str(error).startswith(f"{path}: ") else f"unnamed: {error}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    is_image = image.dtype.itemsize == 1 and image.dim() == 3 and len(image) == 3
    return "read" if is_image else f"read as {image.dtype} {tuple(image.shape)}"


def in_child(path):
    """What reading does in a process of its own, which may take so much time and memory."""
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receiver)
        signal.alarm(SECONDS)
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY,) * 2)
        os.write(sender, outcome_of(path).encode(errors="replace")[:4000])
        os._exit(0)
    os.close(sender)
    with os.fdopen(receiver, "rb") as stream:
        said = stream.read().decode()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return said if status == 0 else f"ended by {signal.Signals(-status).name}"


def main(folder):
    """Reads all files, in order of their names."""
    warnings.simplefilter("ignore")
    for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
        name = os.fsencode(path.relative_to(folder)).decode(errors="replace")
        print(json.dumps([name, in_child(path)]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
