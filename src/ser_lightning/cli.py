"""The command line: which verb is which function. Nothing else is imported until one is chosen."""

import difflib
import sys
from importlib import import_module

import ser_lightning

COMMANDS = {  # verb: module, function of the arguments, what it does
    "fit": ("commands.fit", "fit", "pretrain an objective, or go on with a run"),
    "validate": ("commands.fit", "validate", "measure a run as training does: k-NN, equivariance"),
    "test": ("commands.fit", "test", "the same, logged as a test"),
    "evaluate": ("commands.evaluate", "evaluate", "one stage of configs/eval on a checkpoint"),
    "evaluate-all": ("commands.evaluate_all", "evaluate_all", "every stage whose images are there"),
    "compare": ("commands.compare", "compare", "runs side by side, averaged over seeds"),
    "look": ("commands.look", "look", "a page of a run, or of two: curves, pictures, settings"),
    "latent": (
        "commands.latent",
        "latent",
        "classes in the latent space, checkpoints side by side",
    ),
    "report": ("commands.report", "report", "results next to the paper's, with figures"),
    "replay": ("commands.replay", "replay", "a step that was not finite, run again"),
    "export": ("commands.export", "export", "the backbone for timm, transformers, ONNX, ..."),
    "embed": ("commands.embed", "embed", "embeddings of a folder of images, in a file"),
    "cost": ("commands.cost", "cost", "parameters and multiply-accumulates of runs"),
    "demo": (
        "commands.demo",
        "demo",
        "MoCo-v3 beside MoCo-v3 + SER on generated patterns, with a picture",
    ),
}


def main(args: list[str] | None = None) -> None:
    """The entry point of ser-fit."""
    verb, *rest = (sys.argv[1:] if args is None else args) or [""]
    if verb in COMMANDS:
        module, function, _ = COMMANDS[verb]
        run = import_module("ser_lightning.runtime.launch").run
        run(f"ser_lightning.{module}", function, rest)
    elif verb in ("-h", "--help"):
        print(_help())
    elif verb == "--version":
        print(f"ser-fit {ser_lightning.__version__}")
    else:
        print(_mistake(verb), file=sys.stderr)
        sys.exit(2)


def _help() -> str:
    lines = [f"  {verb:<14}{text}" for verb, (_, _, text) in COMMANDS.items()]
    head = ["usage: ser-fit COMMAND [options]", "", "Commands, each with --help:"]
    foot = ["", "With --debug an error shows its traceback; ser-fit --version tells the version."]
    return "\n".join([*head, *lines, *foot])


def _mistake(verb: str) -> str:
    if not verb:
        return _help()
    if verb.startswith("-"):
        return f"ser-fit: error: {verb} before a command; type, for example, ser-fit fit {verb}"
    close = difflib.get_close_matches(verb, COMMANDS, n=1)
    suggestion = f"; did you mean '{close[0]}'?" if close else ""
    return f"ser-fit: error: no command '{verb}'{suggestion}\n  (see: ser-fit --help)"
