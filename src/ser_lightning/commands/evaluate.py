"""`ser-fit evaluate`: one stage of evaluation on one checkpoint, through LightningCLI."""

import os
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from ser_lightning.data.labelled import LabelledDataModule
from ser_lightning.evaluation import stages  # noqa: F401 - short names
from ser_lightning.evaluation.stage import Stage, StageResult
from ser_lightning.files import checkpoint_config
from ser_lightning.results.hits import write_hits
from ser_lightning.results.record import ResultRecord, class_map_sha256, write_record
from ser_lightning.runtime import (
    ShortErrorParser,
    checked_seed,
    default_progress,
    options,
    packaged,
    run_folder_of,
)

MAX_LINES = 20  # of a result on the screen

_FROM_CHECKPOINT = (
    "source",
    "num_workers",
    "mean",
    "std",
    "evaluation_crop_fraction",
)


class StageCommandLine(LightningCLI):
    """Builds a stage from `--config configs/eval/<stage>.yaml --checkpoint FILE`, and runs it.

    The images are those that the checkpoint was trained on, unless `--data.source` says otherwise.
    Results go to `results/` of the checkpoint's run.
    """

    def __init__(self, args: list[str] | None = None) -> None:
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
            trainer_defaults={
                "num_sanity_val_steps": 0,
                "use_distributed_sampler": False,
                "logger": False,
                "enable_checkpointing": False,
                "enable_model_summary": False,
            },
            args=args,
            run=False,
        )

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--checkpoint", type=str, required=True, help="File to evaluate.")
        parser.add_argument(
            "--run_dir",
            type=str | None,
            default=None,
            help="Folder for results/ and the feature cache. Default: the checkpoint's run.",
        )
        parser.link_arguments("checkpoint", "model.init_args.checkpoint")
        parser.link_arguments("seed_everything", "model.init_args.seed", compute_fn=checked_seed)
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=checked_seed)
        parser.link_arguments(
            "model", "data.init_args.image_size", _image_size, apply_on="instantiate"
        )

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        args = [packaged(argument) for argument in (sys.argv[1:] if args is None else args)]
        path = next(iter(options(args, "--checkpoint")), None)
        if path is not None:  # its own data come first
            has_other_root = bool(options(args, "--data.source.root"))
            args = ["--config", _data_of(Path(path), has_other_root), *args]
        self.config = parser.parse_args(args)
        refuse_a_part(self.config.trainer)

    @override
    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        config = self._get(self.config_init, "trainer")
        if config["enable_progress_bar"] is not False:
            config["callbacks"] = [*(config["callbacks"] or []), default_progress()]
        kwargs["default_root_dir"] = str(run_dir(self.config))
        return super().instantiate_trainer(**kwargs)


def run_dir(config: Any) -> Path:
    """The run that a checkpoint belongs to, or what `--run_dir` says."""
    return Path(config.run_dir) if config.run_dir else run_folder_of(config.checkpoint)


def refuse_a_part(trainer: Any) -> None:
    """Refuses to leave images out behind the stages' back.

    Raises:
        ValueError: if the trainer is to stop a test early.
    """
    found = {}
    if trainer.fast_dev_run:
        found["fast_dev_run"] = trainer.fast_dev_run
    limit = trainer.limit_test_batches
    if limit is not None and (limit != 1 or isinstance(limit, int)):  # 1 is one batch, 1.0 is all
        found["limit_test_batches"] = limit
    for name, value in found.items():
        raise ValueError(
            f"trainer.{name} {value} would leave images out, and no record would say so; remove "
            "it, and give --data.num_train N and --data.num_test N for a shorter run"
        )


def _image_size(stage: Stage) -> int:
    return stage.backbone.image_size


_OF_A_FOLDER = ("train", "evaluation", "labels")
"""Options of a source that say what is where below its root; they do not fit another root."""


def stored_source(checkpoint: Path, has_other_root: bool) -> dict[str, Any]:
    """The source of the images that a checkpoint was trained on, as class_path and init_args.

    Args:
        checkpoint: file of a pretraining run.
        has_other_root: whether it is to read another folder, whose splits are looked for anew.

    Raises:
        ValueError: if there is no such file, or it holds no configuration.
    """
    source: dict[str, Any] = _stored_data(checkpoint)["source"]
    arguments = source.get("init_args") or {}
    if has_other_root:
        arguments = {name: v for name, v in arguments.items() if name not in _OF_A_FOLDER}
    return {**source, "init_args": arguments}


def require_checkpoint(path: Path) -> None:
    """Refuses what is no file.

    Raises:
        ValueError: names it and the remedy.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ValueError(
            f"checkpoint {path} {what}; give --checkpoint FILE, such as "
            "runs/moco_ser/checkpoints/last.ckpt"
        )


def _stored_data(path: Path) -> dict[str, Any]:
    require_checkpoint(path)
    stored = checkpoint_config(path)
    if stored is None:
        raise ValueError(
            f"{path} holds no configuration of a run; evaluate a checkpoint that ser-fit wrote"
        )
    data: dict[str, Any] = stored["data"]
    return data


def _data_of(path: Path, has_other_root: bool) -> str:
    """A configuration text with the images that a checkpoint was trained on."""
    data = _stored_data(path)
    arguments = {key: data[key] for key in _FROM_CHECKPOINT if key in data}
    arguments["source"] = stored_source(path, has_other_root)
    return yaml.safe_dump({"data": {"class_path": "LabelledDataModule", "init_args": arguments}})


def evaluate(args: list[str]) -> None:
    """Runs a stage and writes one record per result."""
    cli = StageCommandLine(args)
    stage, data, trainer = cli.model, cli.datamodule, cli.trainer
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        data.prepare_data()
    start = time.monotonic()
    folder = run_dir(cli.config)
    data.needs_labels = stage.needs_labels
    stage.settings = settings(cli)
    results = stage.run(trainer, data, folder)
    seconds = time.monotonic() - start
    if trainer.is_global_zero:
        for result in results:
            _keep(cli, result, folder, seconds)


def _keep(cli: StageCommandLine, result: StageResult, folder: Path, seconds: float) -> None:
    """Writes the files of a result, and shows it."""
    stage = cli.model
    path = write_record(_record(cli, result, seconds), folder, stage.variant)
    if result.label is not None:
        write_hits(path, result.hits, result.label, result.data_sha256)
    what = " on ".join(part for part in (result.network or stage.name, result.dataset) if part)
    shown = list(result.metrics.items())[:MAX_LINES]
    lines = [f"  {name}: {value:.4g}" for name, value in shown]
    if len(shown) < len(result.metrics):
        lines.append(f"  ... {len(result.metrics) - len(shown)} more in the file")
    rank_zero_info("\n".join([f"{what}, {result.num_samples:,} images: {path}", *lines]))
    if stage.figure is not None and result.network is None:
        module, _, function = stage.figure.partition(":")
        figure = path.with_suffix(".png")
        title = f"{stage.name.capitalize()}: {folder.name}, {result.dataset}"
        getattr(import_module(module), function)(figure, result.metrics, title)
        rank_zero_info(f"{stage.name}: {figure}")


_NOT_HOW = {
    "checkpoint", "branch", "seed",  # fields of the record
    "source", "image_size", "mean", "std",  # so are these
    "num_workers", "evaluation_batch_size",
    "alexnet",  # a record of its own
}  # fmt: skip
_OF_TRAINING = (
    "max_epochs", "max_steps", "max_time", "limit_train_batches",
    "gradient_clip_val", "gradient_clip_algorithm", "accumulate_grad_batches",
)  # fmt: skip
_OF_TRAINING_DATA = ("global_batch_size", "holdout_fraction", "crop")


def settings(cli: StageCommandLine) -> dict[str, Any]:
    """How stage, data and trainer were set, as parsed: nothing that could be forgotten.

    Places of files are left out, and so is the hardware. An option of the data that the stage has
    too is called `data.<name>`.
    """
    parsed = yaml.safe_load(cli.parser.dump(cli.config, skip_none=False))
    stage, data = (_how(parsed[part]["init_args"]) for part in ("model", "data"))
    trainer = {"precision": str(cli.trainer.precision)}
    if cli.model.trains:
        given = {name: parsed["trainer"][name] for name in _OF_TRAINING}
        trainer |= {name: value for name, value in given.items() if value is not None}
    else:
        data = {name: value for name, value in data.items() if name not in _OF_TRAINING_DATA}
    data = {f"data.{name}" if name in stage else name: value for name, value in data.items()}
    return {**trainer, **data, **stage}


def _how(arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in arguments.items()
        if name not in _NOT_HOW
        and not (isinstance(value, str) and (os.sep in value or Path(value).exists()))
    }


def _record(cli: StageCommandLine, result: StageResult, seconds: float) -> ResultRecord:
    stage, data = cli.model, cli.datamodule
    names = stage.class_names(data, result.dataset)
    of_checkpoint = {
        "checkpoint": str(cli.config.checkpoint),
        "checkpoint_sha256": stage.checkpoint_sha256,
        "weights_key": stage.branch,
        "layer": stage.backbone.layer,
        "cls_layer": stage.backbone.cls_layer,
    }
    nothing = {**dict.fromkeys(of_checkpoint), "weights_key": ""}
    return ResultRecord(
        stage=stage.name,
        dataset=result.dataset,
        network=result.network,
        **(of_checkpoint if result.network is None else nothing),
        feature=result.feature,
        transform=data.describe(),
        protocol=result.protocol,
        selected=result.selected,
        seed=stage.seed,
        data_root=str(getattr(data, "data_root", getattr(data.source, "root", ""))),
        num_samples=result.num_samples,
        class_map_sha256=class_map_sha256(names) if names else None,
        data_sha256=result.data_sha256,
        metrics=dict(result.metrics),
        counts=result.counts,
        unofficial_reasons=result.unofficial_reasons,
        wall_seconds=seconds,
    )
