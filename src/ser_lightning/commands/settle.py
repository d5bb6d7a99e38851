"""What follows from a run's add-on, or from its lack: settled in the configuration itself.

So that fit.yaml and every checkpoint say what was trained.
"""

from importlib import import_module
from typing import Any

from lightning.pytorch.utilities import rank_zero_info


def settle(config: Any) -> None:
    """Replaces what a configuration leaves to its add-on, and leaves out what nothing reads.

    Without an add-on, `cls_layer: auto` is 0: [CLS] stands at the input. Without one that needs
    the invertible sub-batch, there is none: every image becomes crops.

    Args:
        config: of `fit`, parsed; changed in place.
    """
    model, data = config.model.init_args, config.data
    regularizer = model.get("regularizer")
    backbone = model.backbone.init_args
    if regularizer is None and backbone.get("cls_layer") == "auto":
        backbone.cls_layer = 0
    if data.get("invertible") is not None and not _needs_invertible(regularizer):
        data.invertible = None
        rank_zero_info("data: no invertible sub-batch, since no add-on reads it")


def _needs_invertible(node: Any) -> bool:
    """Whether an add-on, or one of those within it, needs the invertible sub-batch."""
    if isinstance(node, list):
        return any(map(_needs_invertible, node))
    if node is None or not hasattr(node, "class_path"):
        return False
    module, _, name = node.class_path.rpartition(".")
    needs = getattr(import_module(module), name).needs
    return needs.invertible or any(map(_needs_invertible, vars(node.init_args).values()))
