"""The model that a stored configuration describes, without the run around it."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from jsonargparse import ArgumentParser

from ser_lightning.objectives import Objective


def rebuilt(config: Mapping[str, Any], **backbone: Any) -> Objective:
    """The objective of a fit.yaml's content, in training mode, with weights of its own.

    Args:
        config: of `fit`.
        backbone: arguments of the backbone to build it with instead.
    """
    model = deepcopy(config["model"])
    arguments(arguments(model)["backbone"]).update(weights=None, **backbone)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Objective, "model")
    objective: Objective = parser.instantiate(parser.parse_object({"model": model})).model
    return objective.train()


def arguments(node: Any) -> dict[str, Any]:
    """What a class is built with, with or without class_path around it; empty for null."""
    found: dict[str, Any] = (node or {}).get("init_args", node or {})
    return found
