"""What a run costs, counted once: a file beside its configuration, read without torch."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from ser_lightning.files import write_text
from ser_lightning.sealed import content_hash

COST_FILE = "cost.json"
VERSION = 2
"""Of how cost is counted; raise it with every change that moves a count."""


class UnknownCost(ValueError):  # noqa: N818 - it is an answer, not a mistake
    """The cost cannot be computed; the message says why."""


class Cost(NamedTuple):
    """What training takes."""

    num_parameters: int
    """Trainable ones: without momentum branch and frozen patch embedding."""
    macs_per_image: float
    """Multiply-accumulates of one forward pass, per image of the batch."""


def kept_cost(folder: Path, config: Mapping[str, Any]) -> Cost:
    """The cost of the run in a folder, from its file; else counted, and kept where that can be.

    The file has a hash of the configuration and of `VERSION`; for others it is counted anew.

    Raises:
        UnknownCost: as `run_cost`.
    """
    counted = {name: json.dumps(config.get(name), default=str) for name in ("model", "data")}
    key = content_hash({"version": VERSION, **counted})
    path = folder / COST_FILE
    with suppress(OSError, ValueError, LookupError, TypeError):
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["key"] == key:
            return Cost(int(kept["num_parameters"]), float(kept["macs_per_image"]))
    from ser_lightning.commands.cost import run_cost  # noqa: PLC0415 - it builds the model

    found = run_cost(config)
    with suppress(OSError):
        write_text(path, json.dumps({"key": key, **found._asdict()}))
    return found
