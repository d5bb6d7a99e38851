"""Every numeric option that a configuration can set has a range, which is checked and shown."""

from collections.abc import Callable
from typing import get_args, get_origin, get_type_hints

import pytest

from ser_lightning.data import PartitionedDataModule
from ser_lightning.data.labelled import LabelledDataModule
from ser_lightning.evaluation import OnlineEvaluation, stages  # noqa: F401 - all stages
from ser_lightning.evaluation.stage import Stage
from ser_lightning.numbers import has_range
from ser_lightning.objectives import Objective
from ser_lightning.runtime import RunCheckpoint
from ser_lightning.runtime.class_help import class_help, concrete_classes, named_classes

SECTIONS = (
    Objective, PartitionedDataModule, RunCheckpoint, OnlineEvaluation,  # fit
    Stage, LabelledDataModule,  # evaluate
)  # fmt: skip


def constructors(cls):
    """The classes of this package whose constructor is a part of a class's."""
    ours = [parent for parent in cls.__mro__ if parent.__module__.startswith("ser_lightning.")]
    return [parent for parent in ours if "__init__" in vars(parent)]


def reachable():
    """Every class that a configuration can name, with its parents."""
    found, waiting = set(), list(SECTIONS)
    while waiting:
        hint = waiting.pop()
        ours = [c for c in named_classes(hint) if c.__module__.startswith("ser_lightning.")]
        for cls in (
            parent for own in ours for c in concrete_classes(own) for parent in constructors(c)
        ):
            if cls not in found:
                found.add(cls)
                waiting += get_type_hints(cls.__init__).values()
    return sorted(found, key=lambda cls: (cls.__module__, cls.__name__))


def leaves(hint):
    """The plain types in an annotation; those that a factory is called with are no options."""
    parts = () if get_origin(hint) is Callable else get_args(hint)
    return [leaf for part in parts for leaf in leaves(part)] if parts else [hint]


def test_the_options_of_fit_and_evaluate_are_found():
    names = {cls.__name__ for cls in reachable()}
    assert {"DINO", "SplitViT", "GroupSampler", "PhotometricRecipe", "Shapes", "STL"} <= names
    assert {"FinetuneStage", "KNNStage", "ImageNetCDataModule", "LocalCrops"} <= names


@pytest.mark.parametrize("cls", reachable(), ids=lambda cls: cls.__name__)
def test_every_numeric_option_has_a_range_that_its_class_checks(cls):
    hints = get_type_hints(cls.__init__)
    free = [name for name, hint in hints.items() if {int, float} & set(leaves(hint))]
    assert not free, f"{cls.__name__}: annotate {free} with a range of ser_lightning.numbers"
    if any(has_range(hint) for hint in hints.values()):
        assert hasattr(cls.__init__, "__wrapped__"), f"decorate {cls.__name__} with @checked"


def test_help_of_a_class_shows_the_ranges_of_its_options():
    shown = " ".join(class_help({"model": Objective}, [], "model", "DINO").split())
    for option in (
        "temperature. (type: float > 0, default: 0.1)",
        "DINO: 0.996. (type: float in [0, 1], default: 0.982)",
        "(type: float > 0 | null, default: 0.3)",
        "images per optimizer step; ser-fit takes it from `data`. (type: int >= 1, default: 2048)",
    ):
        assert option in shown
