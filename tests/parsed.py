"""Command lines of `fit` that stop before they run, and the words with which any is refused."""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from ser_lightning.cli import main
from ser_lightning.commands.fit import SERCommandLine
from ser_lightning.data import PartitionedDataModule
from ser_lightning.objectives import Objective
from ser_lightning.runtime.configuration import settle

ROOT = Path(__file__).parents[1]
TINY = str(ROOT / "tests" / "tiny.yaml")


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


@cache
def command_line():
    """One command line, whose parser reads all the configurations."""
    return ParsedOnly(["fit", "--config", TINY])


class FitParser(NamedTuple):
    """The parser of `fit` alone: in the parser of all commands a run is checked twice."""

    parser: LightningArgumentParser

    def parse_args(self, args):
        return Namespace(subcommand=args[0], fit=self.parser.parse_args(args[1:]))


@cache
def parsed(args):
    """The configuration of a run, with what follows from its add-on."""
    cli = command_line()
    here = [str(ROOT / a) if a.startswith("configs/") else a for a in args]
    if not any("data.source" in a or Path(a).stem in ("fashion_mnist", "demo") for a in here):
        here += ["--data.source.root", "images"]
    cli.parse_arguments(FitParser(cli._parser("fit")), ["fit", *here])
    settle(cli.config["fit"])
    return cli.config


class Built(NamedTuple):
    """A run without its trainer: the objective has its weights on the meta device."""

    model: Objective
    data: PartitionedDataModule
    config: dict


def build(args):
    """What a command line would train, and on which batches."""
    cli = command_line()
    cli.config = parsed(args)
    with torch.device("meta"):
        parts = cli._parser("fit").instantiate_classes(cli.config["fit"])
    cli.model, cli.datamodule = parts.model, parts.data
    SERCommandLine.after_instantiate_classes(cli)
    return Built(parts.model, parts.data, cli.config["fit"].as_dict())


def refusal(args, capsys):
    """What a refused command says and exits with, which is no traceback."""
    with pytest.raises(SystemExit) as stop:
        main(args)
    text = capsys.readouterr().err + str(stop.value.code)
    assert "Traceback" not in text
    return text
