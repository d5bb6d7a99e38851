"""Which classes an option of the command line takes, told from the annotations of constructors."""

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any, get_args, get_origin, get_type_hints


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


def hint_at(roots: dict[str, type], key: str, chosen: Callable[[str], str | None]) -> Any:
    """The annotation of an option such as `model.regularizer`; None if there is no such option.

    Args:
        roots: class of every section.
        key: the option, without dashes.
        chosen: the class that a configuration names for a key; None where it names none.
    """
    first, *rest = [part for part in key.split(".") if part != "init_args"]
    hint: Any = roots.get(first)
    place = first
    for part in rest:
        name = chosen(place)
        cls = find_class(hint, name) if name else None
        bases = [cls] if cls else [*named_classes(hint), *concrete_classes(hint)]
        hint = next((parameters(base)[part] for base in bases if part in parameters(base)), None)
        place += f".{part}"
    return hint
