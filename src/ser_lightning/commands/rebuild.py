"""The model that a stored configuration describes, without the run around it."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from ser_lightning.objectives import Objective
from ser_lightning.reporting.same_weights import arguments
from ser_lightning.runtime.stored import Origin, plain_sections
from ser_lightning.trusted import Untrusted


def rebuilt(config: Mapping[str, Any], file: Path, **backbone: Any) -> Objective:
    """The objective of a fit.yaml's content, in training mode, with weights of its own.

    `backbone` are arguments in place of stored ones.

    Raises:
        Untrusted: it names a class that is not of this package.
    """
    if "model" not in config:
        raise ValueError(f"{file} does not say how to build its model; give the file of a run")
    origin = Origin(file, file.parent)
    try:
        sections = plain_sections({"model": config["model"]}, {"model": Objective}, origin)
    except Untrusted as error:  # these commands have no option to give it by
        reason = str(error).partition("; if you trust")[0]
        raise Untrusted(f"{reason}; build an objective of your own from Python") from None
    model = deepcopy(sections["model"])
    arguments(arguments(model)["backbone"]).update(weights=None, **backbone)
    arguments(model)["compile"] = False
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Objective, "model")
    objective: Objective = parser.instantiate(parser.parse_object({"model": model})).model
    return objective.train()
