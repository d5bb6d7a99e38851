"""A run's folder: where it is, and the configuration that it and its checkpoints hold."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from itertools import dropwhile
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.cli import SaveConfigCallback
from typing_extensions import override

from ser_lightning.checkpoints import (
    CHECKPOINT_FOLDER,
    CHECKPOINT_KEY,
    CONFIGURATION,
    OF_THE_WEIGHTS,
    checkpoint_config,
    latest_checkpoint,
    read_config,
)
from ser_lightning.files import read_text, write_text
from ser_lightning.runtime.configuration import content_of, given_options, is_text, leaves, sets
from ser_lightning.runtime.stored import Origin, plain_sections
from ser_lightning.trusted import printable

_COMPARED = ("seed_everything", "model", "data", "evaluation")
_LIMIT = "trainer.limit_train_batches"  # 1 is one batch, 1.0 all of them
_CHANGES_NOTHING = ".grad_checkpointing"  # but memory


def run_folder_of(checkpoint: Path) -> Path:
    """The folder of the run that a checkpoint belongs to."""
    folder = Path(checkpoint).absolute().parent
    return folder.parent if folder.name == CHECKPOINT_FOLDER else folder


def refuse_other_root(trainer: dict[str, Any]) -> None:
    """Raises where a trainer is told a folder of its own: everything goes to the run's."""
    folder = trainer.get("default_root_dir")
    if folder is not None:
        raise ValueError(
            f"trainer.default_root_dir {folder} has no effect: a run has one folder; leave it out "
            f"and give --run_dir {folder}"
        )


@contextmanager
def no_trace_of_failure(folder: Path, has_begun: Callable[[], bool]) -> Iterator[None]:
    """Removes what a start has written into the run's folder, where it fails before its first step.

    What lay there before stays. The folder must be locked, since it may be another run's.
    """

    def written() -> set[Path]:
        patterns = ("fit*.yaml", "hparams.yaml", "pictures/*.png")
        events = f"events.out.tfevents.*.{os.getpid()}.*"
        return {path for pattern in (*patterns, events) for path in folder.glob(pattern)}

    before = written()
    places = (folder / CHECKPOINT_FOLDER, folder / "pictures")
    new = [place for place in places if not place.exists()]
    try:
        yield
    except BaseException:
        if not has_begun():
            for path in written() - before:
                path.unlink(missing_ok=True)
            for place in new:
                with suppress(OSError):  # somebody has put something there
                    place.rmdir()
        raise


def default_run_dir(configs: Sequence[str | Path], checkpoint: str | None) -> Path:
    """runs/<first file with a model>, as below `configs`; else where the checkpoint lies.

    A later file that names other images gives the folder: runs/fashion_mnist/moco_ser.
    """
    files = list(dropwhile(lambda file: "model" not in content_of(file), map(str, configs)))
    if files:
        names = [Path("run") if is_text(file) else Path(file) for file in files]
        parts = names[0].with_suffix("").parts
        above = parts[:-1]
        first = len(parts) - 1 - above[::-1].index("configs") if "configs" in above else -1
        others = [
            name.stem
            for name, file in zip(names[1:], files[1:], strict=True)
            if sets(content_of(file), "data.source")
        ]
        return Path("runs", *others[-1:], *parts[first:])
    folder = Path(checkpoint or "").parent
    return folder.parent if folder.name == CHECKPOINT_FOLDER else Path("runs") / "run"


def stored_configuration(args: list[str]) -> tuple[Path, dict[str, Any]]:
    """A run's own configuration, and the file that holds it; empty where there is none.

    The file is the checkpoint that `--ckpt_path` names; for `last`, or without it, the last
    checkpoint in `--run_dir`, or the record of a run that has no checkpoint yet.
    """
    given = given_options(args)
    checkpoint, run_dir = str(given.get("ckpt_path") or "last"), str(given.get("run_dir") or "")
    if checkpoint not in ("last", "null"):
        path = Path(checkpoint)
        return path, (checkpoint_config(path) if path.is_file() else None) or {}
    path, _ = latest_checkpoint(Path(run_dir) / CHECKPOINT_FOLDER)
    if run_dir and path.is_file():
        return path, checkpoint_config(path) or {}
    record = Path(run_dir) / CONFIGURATION
    is_there = bool(run_dir) and record.is_file()
    return record, read_config(read_text(record), record) if is_there else {}


def usable_for(args: list[str], config: dict[str, Any], roots: dict[str, Any], file: Path) -> str:
    """Keeps of a run's configuration, from a file, what describes it; for fit, its hardware too.

    Raises:
        Untrusted: it names what a file may not decide, and the options do not.
    """
    keys = ["seed_everything", "model", "data", "evaluation", "pictures"]
    keys += ["trainer", "checkpoint"] if args[0] == "fit" else []
    kept = {key: config[key] for key in keys if key in config}
    origin = Origin(file, run_folder_of(file), given_options(args))
    return yaml.safe_dump(plain_sections(kept, roots, origin))


class ConfigurationSaver(SaveConfigCallback):
    """Saves the full configuration once per command, and inside every checkpoint.

    `fit.yaml` is what the weights were first trained with; a run that goes on with another
    configuration adds `fit.step<N>.yaml`. The other commands write `<command>.yaml`. Loggers get it
    as hyperparameters.
    """

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Tells the loggers; a run that fails to start must not overwrite a good record."""
        for logger in trainer.loggers if stage == "fit" else ():
            logger.log_hyperparams(read_config(self._text))

    @cached_property
    def _text(self) -> str:
        """The configuration, which no longer changes; to write it takes a tenth of a second."""
        text: str = self.parser.dump(self.config, skip_none=False)
        return text

    def _write(self, trainer: L.Trainer, name: str) -> None:
        if trainer.is_global_zero:
            write_text(Path(trainer.default_root_dir) / f"{name}.yaml", self._text)

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        first = Path(trainer.default_root_dir) / CONFIGURATION
        if trainer.global_step == 0:  # what lies there is of weights that are gone
            for other in first.parent.glob("fit.step*.yaml") if trainer.is_global_zero else ():
                other.unlink()
            if not first.exists() or self._differs(read_text(first)):
                self._write(trainer, "fit")
            return
        if not first.exists() and trainer.is_global_zero:  # goes on with another run's weights
            stored = checkpoint_config(Path(str(trainer.ckpt_path))) if trainer.ckpt_path else None
            text = self._text if stored is None else yaml.safe_dump(stored, sort_keys=False)
            write_text(first, text)
        trainer.strategy.barrier("fit.yaml")
        if self._differs(read_text(first)):
            self._write(trainer, f"fit.step{trainer.global_step}")

    def _differs(self, stored: str) -> bool:
        return bool(differences(read_config(stored), read_config(self._text)))

    @override
    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._write(trainer, "validate")

    @override
    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._write(trainer, "test")

    @override
    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[CHECKPOINT_KEY] = {"config": self._text}


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What changes results, such as "model.init_args.temperature: 0.2 -> 0.7", sorted by name.

    That is all of seed, model, data and evaluation, and a few settings of the trainer; not the
    hardware, nor options that are new and null.
    """
    before, after = _leaves(old), _leaves(new)
    names = before.keys() | {name for name, value in after.items() if value is not None}
    pairs = {name: [side.get(name, "(not set)") for side in (before, after)] for name in names}
    found = [
        f"{name}: {old} -> {new}"
        for name, (old, new) in sorted(pairs.items())
        if old != new or (name == _LIMIT and old == 1 and type(old) is not type(new))
    ]
    return [printable(line) for line in found]


def _leaves(config: dict[str, Any]) -> dict[str, Any]:
    """What is compared, by dotted name."""
    trainer = config.get("trainer") or {}
    kept = {section: config[section] for section in _COMPARED if section in config}
    kept |= {f"trainer.{name}": trainer[name] for name in OF_THE_WEIGHTS if name in trainer}
    return {n: value for n, value in leaves(kept) if not n.endswith(_CHANGES_NOTHING)}
