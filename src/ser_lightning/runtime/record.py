"""Writes down what was run, in the run folder and in every checkpoint, and compares it."""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.cli import SaveConfigCallback
from typing_extensions import override

from ser_lightning.files import CHECKPOINT_KEY, atomic_path, read_config

_COMPARED = ("seed_everything", "model", "data", "evaluation", "trainer")

_COMPARED_OF_TRAINER = (
    "max_epochs", "max_steps", "precision", "accumulate_grad_batches", "limit_train_batches",
)  # fmt: skip


class RunRecord(SaveConfigCallback):
    """Saves the full configuration once per command, and inside every checkpoint.

    `fit.yaml` is written when training begins and never changed; a resumed run with another
    configuration adds `fit.step<N>.yaml`. The other commands write `<command>.yaml`.
    """

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Writes nothing yet: a run that fails to start must not overwrite a good record."""

    def _text(self) -> str:
        text: str = self.parser.dump(self.config, skip_none=False)
        return text

    def _write(self, trainer: L.Trainer, name: str) -> None:
        if trainer.is_global_zero:
            with atomic_path(Path(trainer.default_root_dir) / f"{name}.yaml") as partial:
                partial.write_text(self._text())

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        first = Path(trainer.default_root_dir) / "fit.yaml"
        if not first.exists():
            self._write(trainer, "fit")
        elif differences(read_config(first.read_text()), read_config(self._text())):
            self._write(trainer, f"fit.step{trainer.global_step}")

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
        checkpoint[CHECKPOINT_KEY] = {"config": self._text()}


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Lists what changes results and differs between two configurations.

    That is all of seed, model, data and evaluation, and a few settings of the trainer; not the
    hardware, nor options that are new and null.

    Returns:
        Lines such as "model.init_args.temperature: 0.2 -> 0.7", sorted by name.
    """
    before, after = _leaves(old), _leaves(new)
    names = before.keys() | {name for name, value in after.items() if value is not None}
    return [
        f"{name}: {before.get(name, '(not set)')} -> {after.get(name, '(not set)')}"
        for name in sorted(names)
        if before.get(name, "(not set)") != after.get(name, "(not set)")
    ]


def _leaves(config: dict[str, Any]) -> dict[str, Any]:
    leaves: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, child in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), child)
        else:
            leaves[prefix] = value

    walk("", {section: config[section] for section in _COMPARED if section in config})
    hardware = {
        name
        for name in leaves
        if name.startswith("trainer.") and name.split(".")[1] not in _COMPARED_OF_TRAINER
    }
    return {name: value for name, value in leaves.items() if name not in hardware}
