"""What the command line makes of words, before anything is built of them."""

from functools import cache

import lightning as L
import pytest

from ser_lightning.runtime.parser import ShortErrorParser, innermost

LIMITS = [f"limit_{part}_batches" for part in ("train", "val", "test", "predict")]
LIMITS += ["overfit_batches", "val_check_interval"]


@cache
def parser():
    """A parser of the trainer's options, and of files that hold them."""
    made = ShortErrorParser(prog="ser-fit")
    made.add_argument("--config", action="config")
    made.add_lightning_class_args(L.Trainer, "trainer")
    return made


@pytest.mark.parametrize("way", ["option", "file"])
@pytest.mark.parametrize(("text", "kind"), [("1", int), ("1.0", float), ("0.5", float), ("2", int)])
@pytest.mark.parametrize("name", LIMITS)
def test_number_of_batches_stays_an_int_and_a_share_a_float(name, text, kind, way):
    given = {
        "option": [f"--trainer.{name}", text],
        "file": ["--config", f"trainer: {{{name}: {text}}}"],
    }
    config = parser().parse_args(given[way])
    again = parser().parse_args(["--config", parser().dump(config)])
    for value in (config.trainer[name], again.trainer[name]):
        assert value == float(text)
        assert type(value) is kind


@pytest.mark.parametrize("name", LIMITS)
def test_default_of_a_number_of_batches_is_the_trainers(name):
    default = parser().get_defaults().trainer[name]
    assert default is None or (name == "overfit_batches" and default == 0.0)


def test_interval_of_validations_is_still_a_duration_too():
    config = parser().parse_args(["--trainer.val_check_interval", "00:00:10:00"])
    assert config.trainer.val_check_interval == "00:00:10:00"


def test_reason_is_kept_where_it_is_the_only_one():
    message = "Parser key \"layers\":\n  Expected a <class 'list'>. Got value: 3"
    assert innermost(message)[1:] == ["Expected a <class 'list'>. Got value: 3"]
    of_several = f"{message}\n  - Not of type int >= 0"
    assert innermost(of_several) == ['Parser key "layers":', "- Not of type int >= 0"]
