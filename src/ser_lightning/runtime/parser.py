"""A command-line parser that answers mistakes in a few lines, and knows the classes it takes."""

import difflib
import re
import sys
from functools import reduce
from operator import or_
from typing import Any, NoReturn, get_args

import yaml
from lightning.pytorch.cli import LightningArgumentParser
from typing_extensions import override

from ser_lightning.checkpoints import upgraded
from ser_lightning.files import with_home
from ser_lightning.runtime.class_help import (
    asked_for,
    class_help,
    concrete_classes,
    find_class,
    named_classes,
    parameters,
)
from ser_lightning.trusted import own_yaml

_UNKNOWN = re.compile(
    r"(?:Option|Key) '([^']+)' is not (?:accepted|expected)|unrecognized arguments: --([\w.]+)"
)
_PLACE = re.compile(r"Parser key \"([\w.]+)\"|given class_path '([\w.]+)'")
_MISSING = re.compile(r"^Parser key \"([\w.]+)\":\s+Expected a <class [^>]*>\. Got value: None\s*$")
_LINK = re.compile(r"Call to compute_fn of link .* failed: ")
_LINKED = re.compile(r"argument \S*?\(?([\w.]+)\)? --> ([\w.]+): .*")
_NO_CLASS = re.compile(r"Expected a dot import path string: (.*)")
_NOT_A_CLASS = re.compile(
    r" is no class|Not a valid subclass|not correspond to a subclass|but is abstract|"
    r"No module named|has no attribute"
)
_FIRST = {  # what to begin with, by command
    True: "give a stage's configuration, for example --config configs/eval/knn.yaml, and overlays "
    "after it; those of runs are for ser-fit fit",
    False: "give a configuration, for example --config configs/moco_ser.yaml, and overlays after "
    "it; those of configs/eval are for ser-fit evaluate",
}
_NOISE = (
    "Subtypes:", "Errors:", "Given value", "Does not validate", "Expected a <class 'None",
    "Expected a <class 'list", "Expected a path but", "Subclass types expect", "a class path (str)",
    "a dict with", "a dict without",
)  # fmt: skip
_BATCHES = (  # an int is a number of batches, a float a share of them
    "limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches",
    "overfit_batches", "val_check_interval",
)  # fmt: skip


def innermost(message: str) -> list[str]:
    """The lines of jsonargparse's message that say what is wrong, without what it tried."""
    lines = [line.strip() for line in message.splitlines()]
    kept = [line for line in lines if line and not line.removeprefix("- ").startswith(_NOISE)]
    if kept and all(line.endswith(":") for line in kept):  # the reason is one of those
        kept += [line for line in lines if line.startswith("Expected a ")]
    return kept


def _try_int_first(action: Any) -> None:
    """Keeps `1`, one batch, from being 1.0, all of them.

    Where another union of the same types was written before, with float first, Python's cache of
    `Optional[Union[int, float]]` gives that one, and jsonargparse tries its types in their order.
    """
    types = sorted(get_args(action._typehint), key=lambda each: each is not int)
    action._typehint = reduce(or_, types)


class ShortErrorParser(LightningArgumentParser):
    """Prints the innermost reasons and a suggestion instead of pages of usage.

    Attributes:
        roots: class of every section, by its name.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.roots: dict[str, type] = {}
        # An abbreviated option would be taken silently for the one it begins with.
        super().__init__(*args, allow_abbrev=False, **kwargs)

    @override
    def add_lightning_class_args(
        self, lightning_class: Any, nested_key: str, *args: Any, **kwargs: Any
    ) -> list[str]:
        self.roots[nested_key] = lightning_class
        added = super().add_lightning_class_args(lightning_class, nested_key, *args, **kwargs)
        for action in self._actions:
            if action.dest.startswith("trainer.") and action.dest.endswith(_BATCHES):
                _try_int_first(action)
        return added

    @override
    def parse_args(self, args: Any = None, *rest: Any, **kwargs: Any) -> Any:
        """Parses, or answers an option such as `--model.help MoCoV3` and exits."""
        if not self.roots:  # it has commands, whose parsers are asked next
            return super().parse_args(args, *rest, **kwargs)
        asked = asked_for(args)
        if asked is not None:
            print(class_help(self.roots, args, *asked))
            sys.exit(0)
        return super().parse_args(args, *rest, **kwargs)

    @override
    def parse_string(self, content: str, *rest: Any, **kwargs: Any) -> Any:
        """Parses a configuration, of an earlier version too."""
        stored = own_yaml(content)
        new = with_home(upgraded(stored))
        text = content if new == stored else yaml.safe_dump(new, sort_keys=False)
        return super().parse_string(text, *rest, **kwargs)

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Exits with status 2 after a few lines about what is wrong."""
        if not self.exit_on_error:
            super().error(message, ex)
        lines = innermost(_LINK.sub("", message))
        text = _NO_CLASS.sub(r"\1 is no class", "\n  ".join(lines))
        text = _LINKED.sub(r"--\2 is taken from \1; set it there", text)
        missing = _MISSING.search(message)
        if missing:
            text = f"--{missing[1]} is required"
        hint, cls = self._place(message)
        is_first = False  # a file without what a configuration has
        if _NOT_A_CLASS.search(text) and named_classes(hint):
            names = ", ".join(fitting.__name__ for fitting in concrete_classes(hint))
            text += f"\n  classes that fit there: {names}"
            is_first = hint is self.roots.get("model") and "Given value: {" in message
        if is_first or ("required" in text and "model" in text):
            text += f"\n  {_FIRST['evaluate' in self.prog]}"
        prog = self.prog.replace(" [options]", "")
        self.exit(
            2, f"ser-fit: error: {text}{self._suggestion(text, cls)}\n  (see: {prog} --help)\n"
        )

    def _place(self, message: str) -> tuple[Any, type | None]:
        """The annotation of the option that a message is about, and the class it belongs to."""
        hint: Any = None
        cls: type | None = None
        for key, path in _PLACE.findall(message):
            if path:
                cls = find_class(hint, path) or cls
            for part in key.split(".") if key else ():
                hint = parameters(cls).get(part) if cls else self.roots.get(part)
                cls = next(iter(named_classes(hint)), None)
        return hint, cls

    def _suggestion(self, text: str, cls: type | None) -> str:
        unknown = _UNKNOWN.search(text)
        if unknown is None:
            return ""
        name = (unknown[1] or unknown[2]).split(".")[-1]
        known = {part for action in self._actions for part in action.dest.split(".")}
        known |= parameters(cls).keys() if cls else set()
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
        return f"\n  did you mean '{close[0]}'?" if close and close[0] != name else ""
