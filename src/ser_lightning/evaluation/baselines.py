"""Reading what another network achieved: its result record, or a file that a stage wrote."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ser_lightning.files import file_sha256

ALEXNET = "alexnet"
"""The network that published ratios are relative to."""


class Measured(NamedTuple):
    """What another network achieved.

    Attributes:
        path: of the file.
        name: the network, such as ALEXNET, or the folder of its run.
        sha256: of the file.
        content: "metrics" and "counts" by name.
    """

    path: str
    name: str
    sha256: str
    content: dict[str, Any]

    @property
    def unofficial_reason(self) -> str | None:
        """Why its numbers may not be compared with published ones; None if they may."""
        reason: str | None = self.content.get("unofficial_reason")
        return reason

    def describe(self) -> str | dict[str, str]:
        """Names it in a protocol; AlexNet is the same network in every file."""
        if self.name == ALEXNET:
            return ALEXNET
        return {"name": self.name, "sha256": self.sha256}

    def entries(self, part: str, names: Sequence[str]) -> list[float]:
        """Some of its numbers.

        Raises:
            ValueError: a name is missing.
        """
        values = self.content.get(part, {})
        missing = [name for name in names if values.get(name) is None]
        if missing:
            raise ValueError(
                f"{self.path} lacks the {part} {', '.join(missing[:5])}; measure them too, or "
                "leave the baseline out"
            )
        return [float(values[name]) for name in names]

    def check_counts(self, counts: Mapping[str, int]) -> None:
        """Compares numbers of images or videos.

        Raises:
            ValueError: a number is missing, or another one.
        """
        theirs = self.entries("counts", list(counts))
        for (name, number), other in zip(counts.items(), theirs, strict=True):
            if number != other:
                raise ValueError(
                    f"{self.path} was measured with {name} {other:g}, not {number}; measure both "
                    "on the same images"
                )


def read_baseline(
    path: str, protocol: Mapping[str, Any], must_agree: Sequence[str], dataset: str
) -> Measured:
    """Reads a JSON file of a measurement and checks that it was made in the same way.

    Args:
        path: a result record of the same stage, or a file of the same form.
        protocol: settings of this measurement.
        must_agree: names of the settings without which a comparison makes no sense.
        dataset: on which images this measurement is made.

    Raises:
        ValueError: there is no such file, or it was measured in another way.
    """
    file = Path(path).expanduser()
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        theirs = {**content["protocol"], "dataset": content["dataset"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no record of a measurement ({error or type(error).__name__}); give the "
            "results/*.json of this stage for another network"
        ) from error
    for name, ours in {"dataset": dataset, **{n: protocol[n] for n in must_agree}}.items():
        if theirs.get(name) != ours:
            raise ValueError(
                f"{path} was measured with {name} {theirs.get(name)}, not {ours}; "
                "measure both in the same way"
            )
    return Measured(path, _name(file, content), file_sha256(file), content)


def versus(metric: str, network: str) -> str:
    """The name of a ratio, which only AlexNet's may have without an addition."""
    return metric if network == ALEXNET else f"{metric}_vs_{network}"


def baseline_reasons(reason: str | None, own: Sequence[str | None]) -> list[str]:
    """The baseline's reasons against a comparison that are not our own already.

    Args:
        reason: its reasons, put together with "; ".
        own: ours, each put together in the same way.
    """
    known = {part for reasons in own if reasons for part in reasons.split("; ")}
    parts = reason.split("; ") if reason else []
    return [f"baseline: {part}" for part in parts if part not in known]


def _name(file: Path, content: Mapping[str, Any]) -> str:
    """The network that the file names, or else the folder of the run that the record is of."""
    network = content.get("network")
    if network is not None:
        return str(network).lower()
    folder = file.resolve().parent
    return folder.parent.name if folder.name == "results" else file.stem
