"""Reading what another network achieved: its result record, or a file that a stage wrote."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def read_baseline(path: str, protocol: Mapping[str, Any], must_agree: Sequence[str]) -> Any:
    """Reads a JSON file of a measurement and checks that it was made in the same way.

    Args:
        path: a result record of the same stage, or a file of the same form.
        protocol: settings of this measurement.
        must_agree: names of the settings without which a comparison makes no sense.

    Returns:
        The file's content: "metrics" and "counts" by name.

    Raises:
        ValueError: there is no such file, or it was measured in another way.
    """
    try:
        content = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
        theirs = content["protocol"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no record of a measurement ({error or type(error).__name__}); give the "
            "results/*.json of this stage for another network"
        ) from error
    for name in must_agree:
        if theirs.get(name) != protocol[name]:
            raise ValueError(
                f"{path} was measured with {name} {theirs.get(name)}, not {protocol[name]}; "
                "measure both in the same way"
            )
    return content


def entries(path: str, content: Any, part: str, names: Sequence[str]) -> list[float]:
    """Some numbers of a file that `read_baseline` read.

    Raises:
        ValueError: a name is missing.
    """
    values = content.get(part, {})
    missing = [name for name in names if values.get(name) is None]
    if missing:
        raise ValueError(
            f"{path} lacks the {part} {', '.join(missing[:5])}; measure them too, or leave the "
            "baseline out"
        )
    return [float(values[name]) for name in names]
