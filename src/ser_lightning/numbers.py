"""Ranges and choices of options: in the signature, in the help, checked wherever a value enters.

    @checked
    class Crop:
        def __init__(self, size: PositiveInt, p_flip: Probability = 0.5) -> None: ...

The command line refuses a value outside of its range while it parses, and its help shows the range
as the option's type, "float in [0, 1]". `checked` refuses it when the class is used from Python.
NaN, infinity and bool are numbers of no range. Values stay plain numbers; a type checker sees int,
float and tuple.
"""

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from jsonargparse.typing import register_type

T = TypeVar("T", bound=type)

_LARGEST = 2**63 - 1  # whole number that torch and numpy know


def checked(cls: T) -> T:
    """Makes a class, or dataclass, refuse what its annotations do not allow.

    Those are numbers outside of a range, words that no `Literal` names, and None for a default.

    Raises:
        ValueError: on construction; names the class, the argument, the range and the default.
    """
    build: Any = cls.__init__  # type: ignore[misc]  # its own, or a parent's
    signature = inspect.signature(build)

    @functools.wraps(build)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        for name, value in signature.bind(self, *args, **kwargs).arguments.items():
            hint, default = annotations(cls).get(name), signature.parameters[name].default
            is_required = default is inspect.Parameter.empty
            is_checked = has_range(hint) or (value is None and not is_required)
            if hint is not None and is_checked and not fits(hint, value):
                remedy = "" if is_required else f"; the default is {default}"
                shown = repr(value) if isinstance(value, str) else value
                raise ValueError(f"{cls.__name__}: {name} {shown} must be {_words(hint)}{remedy}")
        build(self, *args, **kwargs)

    cls.__init__ = init  # type: ignore[misc]
    return cls


def _words(hint: Any) -> str:
    """An annotation as a message says it."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " | ".join(map(_words, parts))
    if origin is Literal:
        return f"one of {', '.join(map(repr, parts))}"
    if hint is NoneType:
        return "None"
    return inspect.formatannotation(hint).replace("collections.abc.", "")


@functools.cache
def annotations(cls: type) -> dict[str, Any]:
    """The annotations of a constructor's arguments."""
    return get_type_hints(inspect.unwrap(vars(cls)["__init__"]))


def has_range(hint: Any) -> bool:
    """Whether an annotation is a range, a choice, or a sequence or union with one in it."""
    is_range = isinstance(hint, Range) or get_origin(hint) is Literal
    return is_range or any(map(has_range, get_args(hint)))


def fits(hint: Any, value: Any) -> bool:
    """Whether a value is one that an annotation with ranges asks for."""
    if isinstance(hint, Range):
        return hint.accepts(value)
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(fits(part, value) for part in parts)
    if origin is Literal:
        return value in parts
    if origin not in (tuple, list, Sequence) or not has_range(hint):
        kind = origin or hint
        return kind is Any or not isinstance(kind, type) or isinstance(value, kind)
    is_fixed = origin is tuple and Ellipsis not in parts
    values = value if isinstance(value, tuple | list) else [None]
    hints = parts if is_fixed else parts[:1] * len(values)
    return len(hints) == len(values) and all(map(fits, hints, values))


class Range(type):
    """The class of the types below: a name that reads as a range, and what it accepts."""

    accepts: Callable[[Any], bool]

    def __repr__(cls) -> str:
        return cls.__name__


def within(
    kind: type, low: float, high: float = math.inf, *, above: bool = False, below: bool = False
) -> Range:
    """The type of the numbers from `low` to `high`, whose name is its range.

    `above` leaves out `low` itself, `below` leaves out `high`.
    """
    numbers: Any = Integral if kind is int else Real
    if high < math.inf:
        name = f"{kind.__name__} in {'(' if above else '['}{low:g}, {high:g}{')' if below else ']'}"
    else:
        name = f"{kind.__name__} {'>' if above else '>='} {low:g}"

    def accepts(value: Any) -> bool:
        return (
            isinstance(value, numbers)
            and not isinstance(value, bool)
            and math.isfinite(value)
            and (low < value if above else low <= value)
            and (value < high if below else value <= high)
            and (numbers is Real or value <= _LARGEST)
        )

    return _registered(name, kind, accepts)


def interval(high: float = math.inf) -> Range:
    """The type of two numbers 0 < a <= b, at most `high`."""
    side = within(float, 0, high, above=True)
    name = "[a, b] with 0 < a <= b" + (f" <= {high:g}" if high < math.inf else "")

    def accepts(value: Any) -> bool:
        is_pair = isinstance(value, tuple | list) and len(value) == 2
        return is_pair and all(map(side.accepts, value)) and value[0] <= value[1]

    def pair(value: Any) -> Any:  # a text is no pair of its digits
        return float(value) if isinstance(value, str) else tuple(map(float, value))

    return _registered(name, pair, accepts)


def _registered(name: str, convert: Callable[[Any], Any], accepts: Callable[[Any], bool]) -> Range:
    """A type of that name for signatures, which jsonargparse parses to plain values."""

    def parsed(value: Any) -> Any:
        if isinstance(value, str):
            for read in (convert, yaml.safe_load):  # YAML reads 010 as 8, and 1e-4 as text
                with suppress(ValueError, yaml.YAMLError):
                    value = read(value)
                    break
        if not accepts(value):
            is_huge = isinstance(value, int) and value > _LARGEST
            # behind the name of the range
            raise ValueError(f"given {value}{', more than 64 bits hold' if is_huge else ''}")
        return convert(value)

    def dumped(value: Any) -> Any:
        value = parsed(value)
        return list(value) if isinstance(value, tuple) else value

    def is_parsed(value: Any, _: type) -> bool:
        return accepts(value) and repr(value) == repr(convert(value))

    result = Range(name, (), {"accepts": staticmethod(accepts), "__module__": "builtins"})
    register_type(result, dumped, parsed, type_check=is_parsed)
    return result


if TYPE_CHECKING:
    PositiveInt = int
    NonNegativeInt = int
    Positive = float
    NonNegative = float
    Probability = float
    Ratio = float
    BelowOne = float
    HalfTurn = float
    Angle = float
    AtLeastOne = float
    Minutes = float
    Percent = int
    AtLeastTwo = int
    Degrees = float
    CropFraction = float
    AreaInterval = tuple[float, float]
    PositiveInterval = tuple[float, float]
    RatioInterval = tuple[float, float]
else:
    PositiveInt = within(int, 1)
    NonNegativeInt = within(int, 0)
    Positive = within(float, 0, above=True)
    NonNegative = within(float, 0)
    Probability = within(float, 0, 1)
    Ratio = within(float, 0, 1, above=True)
    BelowOne = within(float, 0, 1, below=True)
    HalfTurn = within(float, 0, 0.5)
    Angle = within(float, 0, 180)
    AtLeastOne = within(float, 1)
    Minutes = within(float, 0, 1e6, above=True)  # two years
    Percent = within(int, 1, 100)
    AtLeastTwo = within(int, 2)
    Degrees = within(float, 0, 360)
    CropFraction = within(float, 0.1, 1)  # of a resized side, which is at most ten times a crop's
    AreaInterval = interval(16)  # times a grid's, of at most four times its side
    PositiveInterval = interval()
    RatioInterval = interval(1)
