"""`ser-fit evaluate`: one stage of evaluation on one checkpoint, through LightningCLI."""

import os
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info

from ser_lightning.data.labelled import LabelledDataModule
from ser_lightning.evaluation import stages  # noqa: F401 - short names
from ser_lightning.evaluation.head_stage import BenchmarkStage
from ser_lightning.evaluation.stage import Stage, StageResult, stage_variant
from ser_lightning.evaluation.stages.detection import DetectionStage
from ser_lightning.files import checkpoint_config
from ser_lightning.reporting.equivariance_figure import equivariance_figure
from ser_lightning.results.record import ResultRecord, class_map_sha256, write_record
from ser_lightning.runtime import (
    ShortErrorParser,
    checked_seed,
    default_progress,
    options,
    packaged,
    run_folder,
)

DEFAULT_DETECTOR = "faster_rcnn"
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

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the checkpoint, and links what must agree."""
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

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses; the checkpoint's own data come first."""
        args = [packaged(argument) for argument in (sys.argv[1:] if args is None else args)]
        path = next(iter(options(args, "--checkpoint")), None)
        if path is not None:
            args = ["--config", _data_of(Path(path)), *args]
        self.config = parser.parse_args(args)
        refuse_a_part(self.config.trainer)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Adds a progress bar that says what it is doing."""
        config = self._get(self.config_init, "trainer")
        if config["enable_progress_bar"] is not False:
            config["callbacks"] = [*(config["callbacks"] or []), default_progress()]
        kwargs["default_root_dir"] = str(run_dir(self.config))
        return super().instantiate_trainer(**kwargs)


def run_dir(config: Any) -> Path:
    """The run that a checkpoint belongs to, or what `--run_dir` says."""
    return Path(config.run_dir) if config.run_dir else run_folder(config.checkpoint)


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


def _data_of(path: Path) -> str:
    """A configuration text with the images that a checkpoint was trained on.

    Raises:
        ValueError: if there is no such file, or it holds no configuration.
    """
    if not path.is_file():
        raise ValueError(f"checkpoint {path} does not exist; give --checkpoint FILE")
    stored = checkpoint_config(path)
    if stored is None:
        raise ValueError(
            f"{path} holds no configuration of a run; evaluate a checkpoint that ser-fit wrote"
        )
    data = stored["data"]
    arguments = {key: data[key] for key in _FROM_CHECKPOINT if key in data}
    return yaml.safe_dump({"data": {"class_path": "LabelledDataModule", "init_args": arguments}})


def evaluate(args: list[str]) -> None:
    """Runs a stage and writes one record per result."""
    cli = StageCommandLine(args)
    stage, data, trainer = cli.model, cli.datamodule, cli.trainer
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        data.prepare_data()
    start = time.monotonic()
    folder = run_dir(cli.config)
    results = stage.run(trainer, data, folder)
    seconds = time.monotonic() - start
    for result in results:
        record = _record(cli, result, seconds)
        if trainer.is_global_zero:
            path = write_record(record, folder, variant(stage))
            shown = list(result.metrics.items())[:MAX_LINES]
            lines = [f"  {name}: {value:.4g}" for name, value in shown]
            if len(shown) < len(result.metrics):
                lines.append(f"  ... {len(result.metrics) - len(shown)} more in the file")
            rank_zero_info("\n".join([f"{stage.name}: {path}", *lines]))
            if stage.name == "equivariance":
                figure = path.with_suffix(".png")
                title = f"Equivariance over depth: {folder.name}, {result.dataset}"
                equivariance_figure(figure, result.metrics, title)
                rank_zero_info(f"{stage.name}: {figure}")


def variant(stage: Stage) -> str:
    """Tells the record apart from those of another seed, branch or detector."""
    detector = ""
    if isinstance(stage, DetectionStage) and stage.head != DEFAULT_DETECTOR:
        detector = stage.head
    return stage_variant(stage, detector)


def _class_map(stage: Stage, data: LabelledDataModule, dataset: str) -> str | None:
    """Hashes which label, or logit, each class has; None where classes have no names."""
    if isinstance(stage, BenchmarkStage):
        return class_map_sha256(stage.class_map(dataset))
    names = data.class_names
    return class_map_sha256(names) if names else None


def _record(cli: StageCommandLine, result: StageResult, seconds: float) -> ResultRecord:
    stage, data = cli.model, cli.datamodule
    return ResultRecord(
        stage=stage.name,
        dataset=result.dataset,
        checkpoint=str(cli.config.checkpoint),
        checkpoint_sha256=stage.checkpoint_sha256,
        weights_key=stage.branch,
        layer=stage.backbone.layer,
        cls_layer=stage.backbone.cls_layer,
        feature=result.feature,
        transform=data.describe(),
        protocol=result.protocol,
        selected=result.selected,
        seed=stage.seed,
        data_root=str(getattr(data, "data_root", getattr(data.source, "root", ""))),
        num_samples=result.num_samples,
        class_map_sha256=_class_map(stage, data, result.dataset),
        metrics=dict(result.metrics),
        counts=result.counts,
        unofficial_reasons=tuple((result.unofficial_reason or "").split("; "))
        if result.unofficial_reason
        else (),
        wall_seconds=seconds,
    )
