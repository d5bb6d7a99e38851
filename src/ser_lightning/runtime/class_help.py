"""Which classes an option takes, told from constructors' annotations, and their help.

`--model.help MoCoV3`, `--model.backbone.help` and the like, for every option that is a class.
"""

import inspect
from collections.abc import Callable
from importlib import import_module
from itertools import pairwise
from typing import Any, get_args, get_origin, get_type_hints

from jsonargparse import SUPPRESS, ArgumentParser

from ser_lightning.runtime.configuration import given_options, option_name

_SUFFIX = ".help"


def asked_for(args: list[str]) -> tuple[str, str] | None:
    """The option, without dashes, and the class whose help is asked for; "" for any class."""
    for argument, following in pairwise([*args, "--"]):
        option, separator, name = argument.partition("=")
        if option.startswith("--") and option.endswith(_SUFFIX):
            if not separator and not following.startswith("-"):
                name = following
            return option[2:].removesuffix(_SUFFIX), name
    return None


def class_help(roots: dict[str, type], args: list[str], key: str, name: str) -> str:
    """What a class takes, or which classes an option takes where several can stand there.

    The key is the option without dashes, the roots are the class of every section. Without a name
    it is the class that the arguments choose, or the only one.

    Raises:
        ValueError: the option or the class does not exist.
    """
    hint = _hint_at(roots, key, args)
    if not named_classes(hint):
        raise ValueError(f"--{key} is no option that takes a class")
    classes = concrete_classes(hint)
    cls = find_class(hint, name or chosen_class(args, key))
    if cls is None and not name and len(classes) == 1:
        (cls,) = classes
    if cls is not None:
        return _help_of(cls, key, hint)
    if name:
        names = ", ".join(fitting.__name__ for fitting in classes)
        raise ValueError(f"--{key}{_SUFFIX} {name}: no such class; those that fit: {names}")
    width = max(len(cls.__name__) for cls in classes)
    lines = [
        f"  {cls.__name__:<{width}}  {(inspect.getdoc(cls) or '').partition(chr(10))[0]}"
        for cls in classes
    ]
    head = f"--{key} takes one of these classes; --{key}{_SUFFIX} CLASS lists its options:"
    return "\n".join([head, *lines])


def chosen_class(args: list[str], key: str) -> str:
    """The class that options and configurations name for a key, the last one; "" for none."""
    name = given_options(args).get(option_name(key))
    return name if isinstance(name, str) else ""


def _help_of(cls: type, key: str, hint: Any) -> str:
    parser = ArgumentParser(usage=SUPPRESS, add_help=False, description=None)
    is_made_later = get_origin(hint) is Callable  # from positional arguments, by us
    skip: set[str | int] = {len(get_args(hint)[0])} if is_made_later else set()
    parser.add_class_arguments(cls, key, skip=skip, fail_untyped=False)
    return f"{cls.__module__}.{cls.__name__}\n\n{parser.format_help().strip()}"


def parameters(cls: type) -> dict[str, Any]:
    """The annotation of every constructor argument, the parents' included, by name."""
    hints: dict[str, Any] = {}
    for parent in reversed(cls.__mro__):
        if "__init__" in vars(parent):
            hints |= get_type_hints(vars(parent)["__init__"])
    if not hints:  # a NamedTuple
        hints = get_type_hints(cls)
    return {name: hint for name, hint in hints.items() if name != "return"}


def named_classes(hint: Any) -> list[type]:
    """The classes that an annotation speaks of; of a function, those that it returns."""
    if inspect.isclass(hint) and get_origin(hint) is None:
        is_plain = hint.__module__ in ("builtins", "datetime", "pathlib")
        return [] if is_plain else [hint]
    arguments = get_args(hint)
    if get_origin(hint) is Callable:
        arguments = arguments[-1:]
    found = [cls for argument in arguments for cls in named_classes(argument)]
    return list(dict.fromkeys(found))


def concrete_classes(hint: Any) -> list[type]:
    """The classes that can stand where an annotation is, by name."""
    found: dict[str, type] = {}
    waiting = named_classes(hint)
    while waiting:
        cls = waiting.pop()
        waiting += cls.__subclasses__()
        if not inspect.isabstract(cls) and not cls.__name__.startswith("_"):
            found.setdefault(cls.__name__, cls)
    return [found[name] for name in sorted(found)]


def find_class(hint: Any, name: str) -> type | None:
    """The class with a short name or an import path, if it can stand where an annotation is."""
    module, _, last = name.rpartition(".")
    if not module:
        return next((cls for cls in concrete_classes(hint) if cls.__name__ == name), None)
    try:
        cls = getattr(import_module(module), last, None)
    except ImportError:
        return None
    bases = tuple(named_classes(hint))
    return cls if inspect.isclass(cls) and issubclass(cls, bases) else None


def _hint_at(roots: dict[str, type], key: str, args: list[str]) -> Any:
    """The annotation of an option such as `model.regularizer`; None if there is no such option."""
    first, *rest = option_name(key).split(".")
    hint: Any = roots.get(first)
    place = first
    for part in rest:
        cls = find_class(hint, chosen_class(args, place))
        bases = [cls] if cls else [*named_classes(hint), *concrete_classes(hint)]
        hint = next((parameters(base)[part] for base in bases if part in parameters(base)), None)
        place += f".{part}"
    return hint
