"""Command lines of `fit` that stop before they run, and the words with which any is refused."""

import pytest

from ser_lightning.cli import main
from ser_lightning.commands.fit import SERCommandLine


class Parsed(SERCommandLine):
    """Instantiates everything and runs nothing."""

    def _run_subcommand(self, subcommand):
        pass


class ParsedOnly(Parsed):
    """Instantiates nothing either."""

    def instantiate_classes(self):
        pass

    def after_instantiate_classes(self):
        pass


def refusal(args, capsys):
    """What a refused command says and exits with, which is no traceback."""
    with pytest.raises(SystemExit) as stop:
        main(args)
    text = capsys.readouterr().err + str(stop.value.code)
    assert "Traceback" not in text
    return text
