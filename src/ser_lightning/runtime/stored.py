"""A stored configuration as far as it may decide: every class and place in it is looked at.

Where an option takes a class, jsonargparse would import what the file names, or read another file.
Here the constructors' annotations say where that is, before jsonargparse sees anything.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin

from ser_lightning.runtime.class_help import find_class, named_classes, parameters
from ser_lightning.trusted import Untrusted, trusted_class, writes_outside


class Origin(NamedTuple):
    """Where a configuration comes from."""

    file: Path
    folder: Path
    """Of the run, which alone it may write to."""
    given: Mapping[str, Any] = {}
    """What the user says instead, by dotted option."""


def plain_sections(
    config: Mapping[str, Any], roots: Mapping[str, Any], origin: Origin
) -> dict[str, Any]:
    """The sections of a configuration, as far as a file may decide them.

    Args:
        config: in today's words.
        roots: what every section builds, a class or an annotation, by its name; a section without
            one has plain values only.
        origin: where it comes from; what is refused there is left out where the user says it.

    Raises:
        Untrusted: it names a class that is not of the list, a further file, or a place to write
            to; the message says which, and how to allow it.
    """
    return dict(_allowed(config, roots, "", None, origin))


class _Refused(Exception):  # noqa: N818 - becomes `Untrusted`, or the user has said it otherwise
    """What is wrong with a value, in words."""


def _allowed(
    children: Mapping[str, Any], hints: Mapping[str, Any], place: str, owner: Any, origin: Origin
) -> Iterator[tuple[str, Any]]:
    """The options of one class, a section or a plain mapping that may stay."""
    is_lightning = str(getattr(owner, "__module__", "")).startswith("lightning.")
    for name, child in children.items():
        option = f"{place}.{name}" if place else str(name)
        if isinstance(child, list) and option in origin.given:
            continue  # the user's own value replaces it
        try:
            if is_lightning and writes_outside(name, child, origin.folder):
                raise _Refused(f"would write to {child!r}, outside of {origin.folder}")
            yield name, _plain(child, hints.get(name), option, origin)
        except _Refused as error:
            if option not in origin.given:
                raise Untrusted(
                    f"{origin.file}: {option} {error}, which is not taken from a file; if you "
                    f"trust it, give it yourself, as --{option} VALUE or in a --config FILE"
                ) from None


def _plain(node: Any, hint: Any, place: str, origin: Origin) -> Any:
    """A value of one option, whose annotation says whether it is a class."""
    classes = [cls for cls in named_classes(hint) if cls is not Any]
    if isinstance(node, list):
        return [_plain(child, hint, place, origin) for child in node]
    if isinstance(node, str) and "." not in node and find_class(hint, node):
        node = {"class_path": node}
    if isinstance(node, str) and not _takes_texts(hint) and not _is_word(node):
        raise _Refused(f"names {node!r}")
    if place.endswith(".download"):
        return False  # it would fetch files to wherever the configuration says
    if not isinstance(node, dict):
        return node
    if "class_path" not in node:
        owner = next(iter(classes), None)
        if owner and "." in place and not trusted_class(_path_of(owner)):
            raise _Refused(f"describes a {_path_of(owner)}")  # jsonargparse would build one
        hints = {name: hint for cls in classes for name, hint in parameters(cls).items()}
        return dict(_allowed(node, hints, place, owner, origin))
    path = _import_path(str(node["class_path"]), hint)
    is_given = node["class_path"] == origin.given.get(place)
    cls = find_class(hint, path) if is_given else trusted_class(path)
    if cls is None or not classes or not issubclass(cls, tuple(classes)):
        raise _Refused(f"names {path!r}")
    hints = parameters(cls)
    return {"class_path": path} | {
        key: dict(_allowed(node[key], hints, place, cls, origin))
        for key in ("init_args", "dict_kwargs")
        if isinstance(node.get(key), dict)
    }


def _import_path(name: str, hint: Any) -> str:
    """The import path that a short name stands for, of classes that are imported already."""
    found = find_class(hint, name) if "." not in name else None
    return _path_of(found) if found else name


def _path_of(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _takes_texts(hint: Any) -> bool:
    """Whether an option takes any text as it is, and nothing that a text would be imported for."""
    parts, found = [hint], list[Any]()
    while parts:
        found.append(parts.pop())
        parts += get_args(found[-1])
    is_made = any(get_origin(part) is Callable or part is Callable for part in found)
    return str in found and not is_made and not named_classes(hint)


def _is_word(text: str) -> bool:
    """Whether a text is a name that only a list of names can know: no import path, nor a file."""
    return re.fullmatch(r"[\w-]*", text) is not None and not Path(text).is_file()
