"""Short error messages for the command line."""

import difflib
import inspect
import re
import sys
from typing import Any, NoReturn

from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LightningArgumentParser

_UNKNOWN = re.compile(
    r"(?:Option|Key) '([^']+)' is not (?:accepted|expected)|unrecognized arguments: --([\w.]+)"
)
_NOISE = ("Subtypes:", "Errors:", "Given value", "Does not validate", "- Expected a <class 'None")


class ShortErrorParser(LightningArgumentParser):
    """Prints the innermost reasons and a suggestion instead of pages of usage."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # An abbreviated option would be taken silently for the one it begins with.
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Exits with status 2 after a few lines about what is wrong."""
        if not self.exit_on_error:
            super().error(message, ex)
        lines = [line.strip() for line in message.strip().splitlines()]
        lines = [line for line in lines if line and not line.startswith(_NOISE)]
        text = "\n  ".join(lines)
        if "required" in text and "model" in text:
            text += "\n  give a configuration, for example --config configs/moco_ser.yaml"
        if "Expected a dot import path string" in text:
            text += f"\n  classes with a short name: {', '.join(_short_names())}"
        self.exit(
            2, f"ser-fit: error: {text}{self._suggestion(text)}\n  (see: {self.prog} --help)\n"
        )

    def _suggestion(self, text: str) -> str:
        unknown = _UNKNOWN.search(text)
        if unknown is None:
            return ""
        name = (unknown[1] or unknown[2]).split(".")[-1]
        known = {part for key in self._known_keys() for part in key.split(".")}
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
        return f"\n  did you mean '{close[0]}'?" if close and close[0] != name else ""

    def _known_keys(self) -> list[str]:
        keys = [action.dest for action in self._actions]
        for cls in _configurable_classes():
            keys += list(inspect.signature(vars(cls)["__init__"]).parameters)
        return keys


def _short_names() -> list[str]:
    """Modules that a configuration can name by their class alone: objectives, stages."""
    modules = [cls for cls in _configurable_classes() if issubclass(cls, LightningModule)]
    return sorted({cls.__name__ for cls in modules if not inspect.isabstract(cls)})


def _configurable_classes() -> list[type]:
    """Every class of this package with arguments: all that a configuration can name."""
    return [
        value
        for name, module in list(sys.modules.items())
        if name.startswith("ser_lightning.")
        for value in vars(module).values()
        if isinstance(value, type)
        and value.__module__.startswith("ser_lightning.")
        and "__init__" in vars(value)
    ]
