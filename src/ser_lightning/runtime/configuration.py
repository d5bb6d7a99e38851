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
    found: dict[str, Any] = {}
    for config in options(args, "--config", "-c"):
        given = leaves(content_of(config))
        found |= {option_name(name): value for name, value in given if value != {}}
    for argument, value in zip(args, [*args[1:], ""], strict=False):
        name, separator, inline = argument.partition("=")
        if name.startswith("--") and not name.endswith("+"):
            found[option_name(name[2:])] = inline if separator else value
    return found


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


def content_of(config: str) -> dict[str, Any]:
    """A configuration file's content; empty where it is no file, which the parser will say.

    Raises:
        ValueError: it is a pipe or a device, which would be read but once, or is no text or YAML;
            names the file.
    """
    path = Path(config)
    if "\n" in config or path.is_dir() or not path.exists():  # text of a configuration, or nothing
        return {}
    if not path.is_file():
        raise ValueError(f"{config} is a pipe or a device; give a file, or the text itself")
    text = read_text(path)
    try:
        content = with_home(upgraded(own_yaml(text)))
    except (yaml.YAMLError, ValueError) as error:
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


def refuse_linked_keys(configs: list[str], linked: dict[str, str]) -> None:
    """Raises where a file sets a value that is taken from elsewhere: it would have no effect."""
    for config in configs:
        content = content_of(config)
        for key, origin in linked.items():
            if sets(content, key):
                raise ValueError(
                    f"{config} sets {key}, which is taken from {origin}; remove it there and set "
                    f"{origin}"
                )


def refuse_linked_options(given: dict[str, Any], linked: dict[str, str]) -> None:
    """Raises where an option, of `given_options`, is taken from elsewhere, as `refuse_linked_keys`.

    The parser itself refuses those that are not below a class that is chosen by name.
    """
    for key, origin in linked.items():
        name = option_name(key)
        if "init_args" in key.split(".") and name in given:
            raise ValueError(
                f"--{name} {given[name]} has no effect, since it is taken from {origin}; remove it "
                f"and set --{origin}"
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
