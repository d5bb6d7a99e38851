"""What a run is asked to be: arguments and files before the parser sees them, and what follows.

What is settled here stands in fit.yaml and in every checkpoint: they say what was trained.
"""

from argparse import Namespace
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from ser_lightning.checkpoints import upgraded
from ser_lightning.files import read_text, with_home
from ser_lightning.trusted import own_yaml


def options(args: list[str], *names: str) -> list[str]:
    """The values given to an option, as `--name value` or `--name=value`."""
    values = []
    for position, argument in enumerate(args):
        name, separator, value = argument.partition("=")
        if name in names and (separator or position + 1 < len(args)):
            values.append(value if separator else args[position + 1])
    return values


def given_options(args: list[str]) -> dict[str, Any]:
    """What the command line and its configurations say, by dotted option: see `option_name`."""
    return {name: value for _, name, value in _given(args)}


def _given(args: list[str]) -> Iterator[tuple[str, str, Any]]:
    """The configuration, "" for the command line itself, the option and its value, in order."""
    for config in options(args, "--config", "-c"):
        for name, value in _named_leaves(content_of(config)).items():
            yield config, name, value
    for argument, value in zip(args, [*args[1:], ""], strict=False):
        name, separator, inline = argument.partition("=")
        if name.startswith("--") and not name.endswith("+"):
            text = inline if separator else value
            is_section = text.startswith("{") or name in ("--model", "--data")  # or its file
            given = _named_leaves(content_of(text), name[2:]) if is_section else {}
            for option, leaf in (given or {option_name(name[2:]): text}).items():
                yield "", option, leaf


def _named_leaves(content: dict[str, Any], place: str = "") -> dict[str, Any]:
    return {option_name(key): value for key, value in leaves(content, place) if value != {}}


def option_name(key: str) -> str:
    """A dotted key as an option: without `init_args`, and a class by the option that takes it."""
    kept = [part for part in key.split(".") if part not in ("init_args", "class_path")]
    return ".".join(kept)


def leaves(node: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a configuration, by dotted key."""
    if isinstance(node, dict) and node:
        for key, child in node.items():
            yield from leaves(child, f"{place}.{key}" if place else str(key))
    else:
        yield place, node


def with_home_folder(argument: str) -> str:
    """Writes the home folder out in `~/x` and `--name=~/x`, which no shell does in the latter."""
    name, separator, value = argument.partition("=")
    is_option = argument.startswith("--") and separator
    written: str = f"{name}={with_home(value)}" if is_option else with_home(argument)
    return written


def is_text(config: str) -> bool:
    """Whether a configuration is given as a text, and not as the name of a file."""
    return "\n" in config or config.startswith("{")


def content_of(config: str) -> dict[str, Any]:
    """What a configuration file says, or a text in place of it; empty where it is neither.

    The parser will say so, as it does of a text that is no YAML.

    Raises:
        ValueError: it is a pipe or a device, which would be read but once, or a file that is no
            text or YAML; names the file.
    """
    path = Path(config)
    if not is_text(config) and (path.is_dir() or not path.exists()):
        return {}
    if not (is_text(config) or path.is_file()):
        raise ValueError(f"{config} is a pipe or a device; give a file, or the text itself")
    text = config if is_text(config) else read_text(path)
    try:
        content = with_home(upgraded(own_yaml(text)))
    except (yaml.YAMLError, ValueError) as error:
        if is_text(config):
            return {}
        raise ValueError(f"{config}: {error}") from error
    return content if isinstance(content, dict) else {}


def sets(content: dict[str, Any], key: str) -> bool:
    """Whether a configuration says something of a dotted key, or of a part of it."""
    return any(f"{place}.".startswith(f"{key}.") for place, _ in leaves(content))


def carried_over(args: list[str], model: Any) -> str | None:
    """Says which values a run's class takes over from one that was chosen before; None for none.

    The parser keeps them where both classes have the option.
    """
    cls, other, carried = model.class_path.rpartition(".")[2], "", dict[str, Any]()
    for config in options(args, "--config", "-c"):
        node = content_of(config).get("model") or {}
        node = {"class_path": node} if isinstance(node, str) else node
        name, given = str(node.get("class_path", "")), node.get("init_args") or {}
        carried = {key: value for key, value in carried.items() if key not in given}
        if name and name.rpartition(".")[2] != cls:
            other, carried = name, carried | given
    typed = {option_name(each[2:].partition("=")[0]) for each in args}
    kept = [
        key if isinstance(value, dict) else f"{key} {value}"
        for key, value in carried.items()
        if f"model.{key}" not in typed and None not in (value, model.init_args.get(key))
    ]
    remedy = f"begin with a configuration of {cls}, or give values as --model.OPTION VALUE"
    said = f"model: {cls} takes from the configuration of {other}: {', '.join(kept)}; {remedy}"
    return said if kept else None


def refuse_linked(args: list[str], linked: dict[str, str]) -> None:
    """Raises where a value that is taken from elsewhere is given: it would have no effect.

    Wherever it stands: in a file, in an option of its own, or in a section given as a whole.
    """
    for config, name, value in _given(args):
        for key, origin in linked.items():
            if f"{name}.".startswith(f"{option_name(key)}."):
                place = f"{config}: " if config else ""
                raise ValueError(
                    f"{place}--{name} {value} has no effect, since it is taken from {origin}; "
                    f"remove it and set --{option_name(origin)}"
                )


def refuse_empty_sections(config: Any, *names: str) -> None:
    """Raises where a section is null, of which there would be nothing to build."""
    for name in names:
        if config.get(name) is None:
            raise ValueError(f"{name} null is no section; leave it out for its defaults")


def packaged(argument: str) -> str:
    """Finds configs/... in the installed package or its checkout, where there is none around.

    It stands alone, or as the value of `--name=configs/...`.
    """
    option, separator, value = argument.rpartition("=")
    is_path = value.startswith("configs/") and (not separator or option.startswith("-"))
    if not is_path or Path(value).exists():
        return argument
    package = Path(__file__).parents[1]
    places = (package / value, package.parents[1] / value)  # a wheel; an editable install
    return option + separator + str(next((path for path in places if path.is_file()), value))


def checked_seed(seed: bool | int) -> int:
    """The seed of a run; `true` and `false` would draw with a seed that no record names."""
    if isinstance(seed, bool) or not 0 <= seed < 2**32:
        shown = str(seed).lower()
        raise ValueError(f"seed_everything {shown} is no seed; give a number below {2**32}")
    return seed


def settle(config: Any) -> None:
    """Replaces what a configuration leaves to its add-on, and leaves out what nothing reads.

    Without an add-on, `cls_layer: auto` is 0: [CLS] stands at the input. Without one that needs
    the invertible sub-batch, there is none: every image becomes crops. The configuration of `fit`
    is changed in place.
    """
    from lightning.pytorch.utilities import rank_zero_info  # noqa: PLC0415 - options need none

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
    arguments = node.get("init_args") or Namespace()  # a class without arguments has none
    return needs.invertible or any(map(_needs_invertible, vars(arguments).values()))
