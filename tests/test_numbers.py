import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pytest
from jsonargparse import ArgumentError, ArgumentParser

from ser_lightning import numbers
from ser_lightning.numbers import (
    Angle,
    AreaInterval,
    AtLeastOne,
    AtLeastTwo,
    BelowOne,
    CropFraction,
    Degrees,
    HalfTurn,
    Minutes,
    NonNegative,
    NonNegativeInt,
    Percent,
    Positive,
    PositiveInt,
    PositiveInterval,
    Probability,
    Ratio,
    RatioInterval,
    checked,
    fits,
)

RANGES = {
    # type: name, some of its numbers, some others
    PositiveInt: ("int >= 1", [1, 7, np.int64(3), 2**63 - 1], [0, -1, 1.0, 1.5, 2**63]),
    NonNegativeInt: ("int >= 0", [0, 7], [-1, 0.0]),
    Positive: ("float > 0", [1e-9, 1, np.float32(3)], [0, -0.1]),
    NonNegative: ("float >= 0", [0, 0.5], [-1e-9]),
    Probability: ("float in [0, 1]", [0, 0.5, 1], [-0.1, 1.1, 255]),
    Ratio: ("float in (0, 1]", [0.1, 1], [0, 1.1]),
    BelowOne: ("float in [0, 1)", [0, 0.9], [1, -0.1]),
    HalfTurn: ("float in [0, 0.5]", [0, 0.5], [0.6, -0.1]),
    Minutes: ("float in (0, 1e+06]", [0.1, 1e6], [0, 1e300]),
    Percent: ("int in [1, 100]", [1, 100], [0, 101, 50.0]),
    AtLeastTwo: ("int >= 2", [2, 9], [1, 0, 2.5]),
    AtLeastOne: ("float >= 1", [1, 1.5], [0.99, -2]),
    Angle: ("float in [0, 180]", [0, 30, 180], [-1, 181]),
    Degrees: ("float in [0, 360]", [0, 359.5, 360], [-1, 361]),
    CropFraction: ("float in [0.1, 1]", [0.1, 0.875, 1], [0.09, 1.1]),
    AreaInterval: ("[a, b] with 0 < a <= b <= 16", [(0.7, 1.3), (16, 16)], [(100, 200), (0, 1)]),
    PositiveInterval: ("[a, b] with 0 < a <= b", [(1, 2), [1, 1]], [(2, 1), (0, 1), (1,), 3]),
    RatioInterval: ("[a, b] with 0 < a <= b <= 1", [(0.2, 1)], [(0.2, 1.1), (0, 1), (1, 0.2)]),
}
NO_NUMBERS = [math.nan, math.inf, -math.inf, True, None, "1", [], (math.nan, 1.0), (0.1, math.inf)]


@checked
@dataclass(frozen=True)
class Part:
    """A part.

    Args:
        share: some of it.
    """

    share: Ratio = 0.5


@checked
class Base:
    """The base."""

    def __init__(self, rate: Positive = 0.1, wavelengths: tuple[NonNegative, ...] = ()) -> None:
        self.rate, self.wavelengths = rate, wavelengths


@checked
class Example(Base):
    """An example.

    Args:
        size: its size.
        chance: its chance.
        span: its span.
        layer: a count or a fraction.
        part: its part.
    """

    def __init__(
        self,
        size: PositiveInt,
        chance: Probability | None = None,
        span: PositiveInterval = (1.0, 2.0),
        layer: NonNegativeInt | Probability | list[NonNegativeInt | Probability] = 0.25,
        part: Part = Part(),
        **base,
    ) -> None:
        super().__init__(**base)
        self.values = (size, chance, span, layer, part.share)


@checked
class Choice:
    """A choice."""

    def __init__(self, way: Literal["up", "down"] | None = "up") -> None:
        self.way = way


def test_word_that_is_no_choice_is_refused():
    assert [Choice(way).way for way in ("up", "down", None)] == ["up", "down", None]
    words = r"^Choice: way 'Up' must be one of 'up', 'down' \| None; the default is up$"
    with pytest.raises(ValueError, match=words):
        Choice("Up")


def test_class_without_a_constructor_of_its_own_is_checked_by_its_parents():
    class Unchecked:
        def __init__(self, rate: Positive = 0.1) -> None: ...

    for parent in (Base, Unchecked):
        own = checked(type("Own", (parent,), {}))
        with pytest.raises(ValueError, match=r"^Own: rate 0 must be float > 0"):
            own(rate=0)


@pytest.fixture
def parser():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Example)
    return parser


@pytest.mark.parametrize("kind", RANGES)
def test_range_is_named_after_what_it_accepts(kind):
    name, inside, outside = RANGES[kind]
    assert str(kind) == name
    assert [value for value in inside if not fits(kind, value)] == []
    assert [value for value in [*outside, *NO_NUMBERS] if fits(kind, value)] == []


def test_every_range_is_in_the_table_above():
    assert {value for value in vars(numbers).values() if type(value) is numbers.Range} == {*RANGES}


def test_help_shows_ranges(parser):
    text = " ".join(parser.format_help().split())
    for shown in (
        "(required, type: int >= 1)",
        "(type: float in [0, 1] | null, default: null)",
        "(type: [a, b] with 0 < a <= b, default: (1.0, 2.0))",
        "(type: float > 0, default: 0.1)",
        "some of it. (type: float in (0, 1], default: 0.5)",
    ):
        assert shown in text


@pytest.mark.parametrize(
    ("option", "parsed"),
    [
        ("--size=010", 10),  # 8 in YAML
        ("--chance=1", 1.0),
        ("--chance=null", None),
        ("--span=[1, 3]", (1.0, 3.0)),
        ("--layer=3", 3),
        ("--layer=0.5", 0.5),
        ("--layer=[1, 0.5]", [1, 0.5]),
        ("--rate=1e-4", 1e-4),
        ("--wavelengths=[1, 2]", (1.0, 2.0)),
    ],
)
def test_parsed_values_are_plain_numbers_and_survive_a_dump(parser, option, parsed):
    config = parser.parse_args(["--size=4", option])
    again = parser.parse_string(parser.dump(config))
    for found in (config, again):
        value = found[option[2:].split("=")[0]]
        assert repr(value) == repr(parsed)
    parser.instantiate(config)


@pytest.mark.parametrize(
    "option",
    [
        *("--size=0", "--size=1.5", "--size=true", "--chance=1.1", "--chance=nan", "--rate=0"),
        *("--span=[2, 1]", "--span=2", "--layer=1.5", "--layer=[1, -1]", "--part.share=0"),
        *("--wavelengths=[1, -1]", "--rate=inf", "--rate=5%", "--size=1e3", "--size=[1"),
        *("--size=@", "--span=1,3", "--span=(1, 3)", "--span='12'"),
    ],
)
def test_parser_refuses_values_outside_naming_the_range(parser, option):
    name, value = option[2:].split("=")
    with pytest.raises(ArgumentError, match=rf'(?s)"{name}".*(int|float|\[a, b\])'):
        parser.parse_args([f"--{name}={value}", *(["--size=4"] if name != "size" else [])])


def test_class_refuses_values_outside_naming_value_rule_and_default():
    with pytest.raises(ValueError, match=r"^Example: size 0 must be int >= 1$"):
        Example(0)
    with pytest.raises(ValueError, match=r"^Base: rate -1 must be float > 0; the default is 0.1$"):
        Example(4, rate=-1)
    with pytest.raises(ValueError, match=r"chance 2 must be float in \[0, 1\] \| None"):
        Example(4, chance=2)
    with pytest.raises(ValueError, match=r"wavelengths .1, -1. must be tuple\[float >= 0, ...\]"):
        Example(4, wavelengths=(1, -1))
    with pytest.raises(ValueError, match=r"^Example: part None must be \S*Part; the default is"):
        Example(4, part=None)
    assert Example(4, chance=None, layer=[3, 0.5]).values[3] == [3, 0.5]


@pytest.mark.parametrize(
    ("value", "is_right"), [(3, True), ("all", True), (None, True), (0, False), (1.5, False)]
)
def test_union_takes_the_values_of_its_parts_only(value, is_right):
    assert fits(PositiveInt | str | None, value) == is_right
    assert fits(PositiveInt | Literal["all"] | None, value) == is_right


@pytest.mark.parametrize("value", [3.0, 1.5, -1, True, None, "2", [1, -1], [1, None]])
def test_union_with_a_list_refuses_what_no_part_takes(value):
    place = NonNegativeInt | Probability
    assert not fits(place | list[place], value)
    assert fits(place | list[place], [3, 0.5])


def test_sequence_needs_every_value_in_the_range():
    assert fits(Sequence[PositiveInt], [1, 2])
    assert fits(Sequence[PositiveInt], ())
    assert not fits(Sequence[PositiveInt], (1, 0))
    assert not fits(Sequence[PositiveInt], 3)


def test_tuple_of_fixed_length_has_that_length():
    channels = tuple[Probability, Probability, Probability]
    assert fits(channels, (0.5, 0.4, 0.3))
    assert not fits(channels, (0.5, 0.4))
    assert not fits(channels, (123.7, 116.3, 103.5))


def test_dataclass_refuses_values_outside_even_when_replaced():
    with pytest.raises(ValueError, match=r"Part: share 0 must be float in \(0, 1\]"):
        replace(Part(), share=0)
