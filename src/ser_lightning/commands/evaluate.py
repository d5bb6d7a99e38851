"""`ser-fit evaluate`: one stage of evaluation on one checkpoint, through LightningCLI."""

import os
import time
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from typing_extensions import override

from ser_lightning.checkpoints import CONFIGURATION, checkpoint_config, read_config
from ser_lightning.commands.stage_results import keep_result, settings
from ser_lightning.commands.stored_images import (
    data_of_checkpoint,
    is_pretrained,
    refuse_two_folders,
    results_folder,
)
from ser_lightning.data.labelled import LabelledDataModule
from ser_lightning.evaluation import stages  # noqa: F401 - short names
from ser_lightning.evaluation.stage import Folders, Stage
from ser_lightning.files import read_text
from ser_lightning.reporting.runs import resumptions
from ser_lightning.results.record import read_record, record_files
from ser_lightning.runtime.class_help import chosen_class, find_class
from ser_lightning.runtime.configuration import (
    checked_seed,
    given_options,
    packaged,
    refuse_empty_sections,
    refuse_linked,
)
from ser_lightning.runtime.cores import (
    refuse_more_processes_than_cores,
    refuse_processes_that_do_not_meet,
    refuse_too_many_workers,
)
from ser_lightning.runtime.parser import ShortErrorParser
from ser_lightning.runtime.preemption import EndsAtOnce
from ser_lightning.runtime.progress_bar import default_progress
from ser_lightning.runtime.run_folder import differences, refuse_other_root
from ser_lightning.trainer_rules import check_options

_LINKED = {
    "model.init_args.checkpoint": "checkpoint",
    "data.init_args.image_size": "model.init_args.image_size",
    "model.init_args.seed": "seed_everything",
    "data.init_args.seed": "seed_everything",
}
_OFF = ("use_distributed_sampler", "logger", "enable_checkpointing", "enable_model_summary")


class StageCommandLine(LightningCLI):
    """Builds a stage from `--config configs/eval/<stage>.yaml --checkpoint FILE`, and runs it.

    The images are those that the checkpoint was trained on, unless `--data.source` says otherwise.
    Results go to `results/` of the checkpoint's run.
    """

    def __init__(self, args: list[str]) -> None:
        super().__init__(
            Stage,
            LabelledDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            parser_class=ShortErrorParser,
            parser_kwargs={"prog": "ser-fit evaluate", "description": "Evaluate a checkpoint."},
            save_config_callback=None,
            trainer_defaults={"num_sanity_val_steps": 0, **dict.fromkeys(_OFF, False)},
            args=args,
            run=False,
        )

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        images = (
            "Folder of the images to measure, in place of those that the checkpoint was trained "
            "on: a source's root, released corruptions, or the sets of `shift`."
        )
        folder = (
            "Folder for results/ and the feature cache. Default: the checkpoint's run, or "
            "runs/<name> of a backbone of elsewhere."
        )
        file = (
            "File to evaluate: a run's checkpoint, an export, or weights in the layout of timm, "
            "torchvision, DeiT, DINO, DINOv2, MoCo-v3, MAE, solo-learn, mmpretrain, CLIP, Hugging "
            "Face or SER's public code; or timm's name of a ViT."
        )
        parser.add_argument("--checkpoint", type=str, required=True, help=file)
        parser.add_argument("--images", type=str | None, default=None, help=images)
        parser.add_argument("--run_dir", type=str | None, default=None, help=folder)
        parser.link_arguments("checkpoint", "model.init_args.checkpoint")
        parser.link_arguments("seed_everything", "model.init_args.seed", compute_fn=checked_seed)
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=checked_seed)
        parser.link_arguments(
            "model",
            "data.init_args.image_size",
            lambda stage: stage.backbone.image_size,
            apply_on="instantiate",
        )

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        args = [packaged(argument) for argument in args]
        args += options_of_images(args)
        refuse_linked(args, _LINKED)
        given = given_options(args)
        path = given.get("checkpoint")
        if path is not None:  # its own data come first
            root = given.get("data.source.root")
            options = data_of_checkpoint(Path(path), root, args)
            own = {"data": {"class_path": "LabelledDataModule", "init_args": options}}
            args = ["--config", yaml.safe_dump(own), *args]
        self.config = parser.parse_args(args)
        self.run_dir = Path(
            self.config.run_dir or results_folder(Path(path or ""), is_pretrained(args))
        )
        refuse_empty_sections(self.config, "trainer")
        refuse_a_part(self.config.trainer)

    @override
    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        config = self._get(self.config_init, "trainer")
        refuse_other_root(config)
        check_options(config, keeps_checkpoints=False)
        refuse_too_many_workers(self.datamodule.num_workers)
        config["callbacks"] = [*(config["callbacks"] or []), EndsAtOnce()]
        if config["enable_progress_bar"] is not False:
            config["callbacks"].append(default_progress())
        kwargs["default_root_dir"] = str(self.run_dir)
        trainer = super().instantiate_trainer(**kwargs)
        refuse_more_processes_than_cores(trainer)
        refuse_processes_that_do_not_meet(trainer)
        return trainer


def options_of_images(args: list[str]) -> list[str]:
    """What `--images` means to the stage that is to be run."""
    stage = find_class(Stage, chosen_class(args, "model"))
    folder = given_options(args).get("images")
    if stage is None or folder is None:
        return []
    folders: Folders = stage.folders  # type: ignore[attr-defined]
    refuse_two_folders(folder, args, *(f"--{option}" for _, option in folders))
    if len(folders) == 1:
        return [f"--{folders[0][1]}", folder]
    given = folder_options(folders, Path(folder))
    if not given:
        names = ", ".join(name for name, _ in folders)
        raise ValueError(f"--images {folder} holds none of {names}; give the folder around them")
    return given


def folder_options(folders: Folders, root: Path) -> list[str]:
    """The options for those folders below a root that are there."""
    present = [(option, root / name) for name, option in folders if (root / name).is_dir()]
    return [part for option, path in present for part in (f"--{option}", str(path))]


def refuse_a_part(trainer: Any) -> None:
    """Refuses to stop a test early: images would be left out behind the stages' back."""
    limit = trainer.limit_test_batches
    is_all = limit is None or (limit == 1 and isinstance(limit, float))  # 1 is one batch
    for name, is_whole in (
        ("fast_dev_run", not trainer.fast_dev_run),
        ("limit_test_batches", is_all),
    ):
        if not is_whole:
            raise ValueError(
                f"trainer.{name} {getattr(trainer, name)} would leave images out, and no record "
                "would say so; remove it, and give --data.num_train N and --data.num_test N for a "
                "shorter run"
            )


def evaluate(args: list[str]) -> list[Path]:
    """Runs a stage and writes one record per result, whose paths the first process returns."""
    cli = StageCommandLine(args)
    stage, data, trainer = cli.model, cli.datamodule, cli.trainer
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        data.prepare_data()
    start = time.monotonic()
    data.needs_labels = stage.needs_labels
    stage.settings = settings(cli)
    if (cli.run_dir / CONFIGURATION).is_file():
        refuse_folder_of_another(cli.run_dir, stage.opened.path)
    elif stage.opened.path is not None:
        refuse_results_of_another(cli.run_dir, stage.opened.sha256)
    results = stage.run(trainer, data, cli.run_dir)
    seconds = time.monotonic() - start
    return [keep_result(cli, result, seconds) for result in results if trainer.is_global_zero]


def refuse_folder_of_another(folder: Path, checkpoint: Path | None) -> None:
    """Refuses the folder of a run that another run's checkpoint is not of.

    Tables would count the results as that run's.

    Raises:
        ValueError: names what differs, and the remedy.
    """
    own = None if checkpoint is None else checkpoint_config(checkpoint)
    if own is None:
        return  # the record says what it is of
    found = []
    for path in (folder / CONFIGURATION, *resumptions(folder)):
        lines = differences(read_config(read_text(path), path), own)
        found.append([line for line in lines if not line.startswith("data.source.")])
    if all(found):
        raise ValueError(
            f"{folder} is the folder of another run than {checkpoint}'s ({found[0][0]}); leave "
            "--run_dir out, or give a folder of its own"
        )


def refuse_results_of_another(folder: Path, sha256: str) -> None:
    """Refuses a folder that has results of another backbone of the same name.

    Raises:
        ValueError: names the record, and the remedy.
    """
    for path in record_files(folder):
        other = read_record(path).checkpoint_sha256
        if other is not None and other != sha256:
            raise ValueError(
                f"{path} is of other weights ({other[:8]}, these are {sha256[:8]}); give --run_dir "
                "FOLDER, another one for each backbone"
            )
