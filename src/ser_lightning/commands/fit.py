"""`ser-fit fit | validate | test`: pretraining through LightningCLI."""

import os
import shlex
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from ser_lightning.batch import ViewNeeds
from ser_lightning.checkpoints import (
    CHECKPOINT_FOLDER,
    checkpoint_config,
    last_checkpoint,
    latest_checkpoint,
    read_config,
)
from ser_lightning.commands.pictures import Pictures
from ser_lightning.data import PartitionedDataModule
from ser_lightning.data.extra_views import check_turned
from ser_lightning.evaluation import OnlineEvaluation
from ser_lightning.objectives import Objective
from ser_lightning.reporting.summary import summary_table
from ser_lightning.run_length import is_trial
from ser_lightning.runtime.checkpoint import AtomicCheckpointIO, RunCheckpoint
from ser_lightning.runtime.configuration import (
    carried_over,
    checked_seed,
    content_of,
    options,
    packaged,
    refuse_empty_sections,
    refuse_linked,
    settle,
)
from ser_lightning.runtime.cores import (
    refuse_more_processes_than_cores,
    refuse_processes_that_do_not_meet,
    refuse_too_many_workers,
)
from ser_lightning.runtime.lock import locked
from ser_lightning.runtime.parser import ShortErrorParser
from ser_lightning.runtime.preemption import Preemption
from ser_lightning.runtime.progress_bar import Throughput, default_progress
from ser_lightning.runtime.resumable import (
    refuse_another_run,
    require_configuration,
    require_fit,
    resolved_checkpoint,
)
from ser_lightning.runtime.returned import ReturnsMemory
from ser_lightning.runtime.run_folder import (
    ConfigurationSaver,
    default_run_dir,
    differences,
    no_trace_of_failure,
    refuse_other_root,
    stored_configuration,
    usable_for,
)
from ser_lightning.runtime.watched import Watched, ended_early
from ser_lightning.trainer_rules import check_options, slow_precision

_LINKED = {
    "data.image_size": "model.init_args.backbone",
    "data.patch_size": "model.init_args.backbone",
    "data.needs": "model.init_args.regularizer",
    "data.seed": "seed_everything",
    "model.init_args.seed": "seed_everything",
    "model.init_args.global_batch_size": "data.global_batch_size",
}

_RANDOM = "allow_random_weights"
_WEIGHTS = "model.init_args.backbone.init_args.weights"
_DESCRIPTION = "Pretrain with SER, and measure as training does."
_DATA_FROM_MODEL: dict[str, Callable[[Objective], Any]] = {
    "image_size": lambda model: model.backbone.image_size,
    "patch_size": lambda model: model.backbone.patch_size,
    "needs": lambda model: getattr(model.regularizer, "needs", ViewNeeds()),
}


class SERCommandLine(LightningCLI):
    """LightningCLI with one run folder, exact resume and checks across sections."""

    def __init__(self, args: list[str]) -> None:
        self.verb = args[0]
        super().__init__(
            Objective,
            PartitionedDataModule,
            subclass_mode_model=True,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            seed_everything_default=0,
            parser_class=ShortErrorParser,
            parser_kwargs={"prog": "ser-fit", "description": _DESCRIPTION},
            save_config_callback=ConfigurationSaver,
            trainer_defaults={"num_sanity_val_steps": -1, "use_distributed_sampler": False},
            args=args,
        )

    @override
    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        given = {"model", "datamodule", "verbose"}  # by us, to the trainer's method
        return {self.verb: given | {"train_dataloaders", "val_dataloaders", "dataloaders"}}

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        folder = (
            "Folder of the run: checkpoints, logs, configuration. Default: runs/<config>, or "
            "with nothing but a checkpoint the folder it lies in."
        )
        random = "Let validate and test measure a freshly initialised backbone."
        parser.add_argument("--run_dir", type=str | None, default=None, help=folder)
        parser.add_argument(f"--{_RANDOM}", type=bool, default=False, help=random)
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.add_lightning_class_args(OnlineEvaluation, "evaluation")
        parser.add_lightning_class_args(Pictures, "pictures")
        parser.link_arguments("seed_everything", "data.seed", compute_fn=checked_seed)
        parser.link_arguments("seed_everything", "model.init_args.seed", compute_fn=checked_seed)
        parser.link_arguments("data.global_batch_size", "model.init_args.global_batch_size")
        for name, of_model in _DATA_FROM_MODEL.items():
            parser.link_arguments("model", f"data.{name}", of_model, apply_on="instantiate")

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses; where no --config has a model, the run's own configuration comes first."""
        args = [packaged(argument) for argument in args]
        self._settled = False
        self.config_files = options(args, "--config", "-c")
        refuse_linked(args, _LINKED)
        if not any("model" in content_of(config) for config in self.config_files):
            path, stored = stored_configuration(args)
            if stored:
                self._settled = True
                print(f"ser-fit: configuration taken from {path}", file=sys.stderr)
                of_verb: Any = self._parser(args[0])
                args[1:1] = ["--config", usable_for(args, stored, of_verb.roots, path)]
            elif options(args, "--ckpt_path") not in ([], ["last"], ["null"]):
                require_configuration(path, args)
        self.config = parser.parse_args(args)
        if note := carried_over(args, self.config[args[0]].model):
            rank_zero_info(note)

    @override
    def _parse_ckpt_path(self) -> None:
        """Does nothing: Lightning would let a checkpoint's values override the command line."""

    @override
    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        refuse_empty_sections(config, "trainer", "data", "checkpoint", "evaluation", "pictures")
        if not self._settled:
            settle(config)
        self.run_dir = Path(config.run_dir or default_run_dir(self.config_files, config.ckpt_path))
        config.run_dir = str(self.run_dir)
        config.ckpt_path = self._resolved_checkpoint(config.ckpt_path)
        if config.ckpt_path:
            self._report_differences(Path(config.ckpt_path))

    @override
    def instantiate_classes(self) -> None:
        """Builds the run; `weights` are not read where a checkpoint replaces them, but recorded."""
        config = self.config[self.subcommand]
        weights = config.get(_WEIGHTS) if config.ckpt_path else None
        if weights is not None:
            config[_WEIGHTS] = None
        super().instantiate_classes()
        if weights is not None:
            config[_WEIGHTS] = self.model.backbone.weights = weights

    def _resolved_checkpoint(self, path: str | None) -> str | None:
        measures_own = self.verb != "fit" and not (path or self._get(self.config, _RANDOM))
        if measures_own and not latest_checkpoint(self.run_dir / CHECKPOINT_FOLDER)[0].is_file():
            raise ValueError(
                f"{self.verb} without --ckpt_path would measure random weights; give --ckpt_path "
                f"FILE or last, or --{_RANDOM} true"
            )
        path = resolved_checkpoint("last" if measures_own else path, self.run_dir, self.verb)
        if self.verb == "fit" and int(os.environ.get("LOCAL_RANK", "0")) == 0:
            refuse_another_run(path, self.run_dir)
        return path

    def _report_differences(self, path: Path) -> None:
        stored = checkpoint_config(path)
        current = self._parser(self.subcommand).dump(self.config[self.subcommand], skip_none=False)
        changed = differences(stored, read_config(current)) if stored else []
        if changed:
            head = f"this {self.subcommand} differs from the configuration in {path}; "
            rank_zero_info("\n  ".join([f"{head}the values on the right are used:", *changed]))

    @override
    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        config = self._get(self.config_init, "trainer")
        refuse_other_root(config)
        check_options(config)
        refuse_too_many_workers(self.datamodule.num_workers)
        checkpoint, evaluation = (
            self._get(self.config_init, name) for name in ("checkpoint", "evaluation")
        )
        measured = partial(evaluation.measured, self.model.backbone)
        checkpoint.dirpath = str(self.run_dir / CHECKPOINT_FOLDER)
        self.preemption = Preemption(checkpoint)
        config["callbacks"] = [*_as_list(config["callbacks"]), self.preemption]
        config["callbacks"] += [Throughput(), ReturnsMemory(), Watched(measured)]
        has_progress = any(isinstance(each, ProgressBar) for each in config["callbacks"])
        if config["enable_progress_bar"] is not False and not has_progress:
            config["callbacks"].append(default_progress())
        plugins = [*_as_list(config["plugins"]), AtomicCheckpointIO()]
        if SLURMEnvironment.detect():
            plugins.append(SLURMEnvironment(auto_requeue=False))
        kwargs |= {"plugins": plugins, "default_root_dir": str(self.run_dir)}
        if config["logger"] in (None, True):
            # what `validate` measures would stand at step 0 of the run's curves
            kwargs["logger"] = self.verb != "validate" and TensorBoardLogger(
                str(self.run_dir), name="", version="", default_hp_metric=False
            )
        trainer = super().instantiate_trainer(**kwargs)
        refuse_more_processes_than_cores(trainer)
        refuse_processes_that_do_not_meet(trainer)
        if note := slow_precision(trainer):
            rank_zero_info(note)
        return trainer

    @override
    def after_instantiate_classes(self) -> None:
        regularizer, invertible = self.model.regularizer, self.datamodule.invertible
        if regularizer is not None and regularizer.needs.invertible and invertible is None:
            raise ValueError(
                f"{type(regularizer).__name__} needs an invertible sub-batch, but "
                "`data.invertible` is null; set it, or set `model.init_args.regularizer` to null"
            )
        if self.datamodule.crop.local is not None and not self.model.accepts_local_views:
            raise ValueError(
                f"{type(self.model).__name__} compares two views, but `data.crop.local` asks for "
                "local crops; set it to null, or use an objective for many views (MoCoV3, DINO)"
            )
        turned = self.datamodule.crop.turned
        if turned is not None and self.verb == "fit":  # whatever was trained can be measured
            name = None if regularizer is None else type(regularizer).__name__
            check_turned(turned, name, regularizer.compared_ratios() if regularizer else set())
        checkpoint = self._get(self.config, "ckpt_path")
        if checkpoint:
            require_fit(Path(checkpoint), self.model, self.verb)

    def fit(self, **arguments: Any) -> None:
        """Trains, alone in the run's folder."""
        with ExitStack() as stack:
            if self.trainer.is_global_zero and not is_trial(self.trainer):
                begun = partial(getattr, self.preemption, "has_stepped")
                stack.enter_context(locked(self.run_dir))
                stack.enter_context(no_trace_of_failure(self.run_dir, begun))
                # one may have ended since the checkpoint was looked for
                refuse_another_run(arguments["ckpt_path"], self.run_dir)
            self.preemption.await_queue()
            self.trainer.fit(**arguments)

    def validate(self, **arguments: Any) -> None:
        """Measures; the table is ours alone."""
        self.trainer.validate(**arguments, verbose=False)
        self.print_summary()

    def test(self, **arguments: Any) -> None:
        """Measures; the table is ours alone."""
        self.trainer.test(**arguments, verbose=False)
        self.print_summary()

    def after_fit(self) -> None:
        """Prints random init next to trained, and what to type next."""
        self.print_summary()
        if why := ended_early(self.trainer):
            rank_zero_info(f"\n{why}")
        path = last_checkpoint(self.run_dir / CHECKPOINT_FOLDER)
        if self.trainer.is_global_zero and path.is_file():
            has_labels = self._get(self.config_init, "evaluation").num_classes > 0
            stage = "knn" if has_labels else "equivariance"  # which needs none
            print(
                f"\nRun folder: {self.run_dir}\nCheckpoint: {path}\n"
                f"Next:       ser-fit look {shlex.quote(str(self.run_dir))}\n"
                f"            ser-fit evaluate --config configs/eval/{stage}.yaml \\\n"
                f"                --checkpoint {shlex.quote(str(path))}"
            )

    def print_summary(self) -> None:
        """Prints a table; a baseline measured with another k-NN bank is left out."""
        evaluation = self._get(self.config_init, "evaluation")
        if not (self.trainer.is_global_zero and evaluation.latest):
            return
        is_fit = self.subcommand == "fit"
        baseline = evaluation.baseline if is_fit else {}
        columns = (evaluation.baseline_name, "trained") if is_fit else ("", "measured")
        width = self.model.backbone.width
        table = summary_table(baseline, evaluation.latest, evaluation.num_classes, width, columns)
        print(
            f"\n{table}\nMeasured on {evaluation.num_queries:,} images; the k-NN bank has "
            f"{evaluation.num_bank:,} others."
        )
        if is_fit and evaluation.history:
            measured = evaluation.history[-1]["step"]
            if measured != self.trainer.global_step:
                print(f"Measured after step {measured} of {self.trainer.global_step}.")


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def fit(args: list[str]) -> None:
    """Pretrains, or goes on with a run."""
    SERCommandLine(["fit", *args])


def validate(args: list[str]) -> None:
    """Measures a run as training does."""
    SERCommandLine(["validate", *args])


def test(args: list[str]) -> None:
    """Measures a run, logged as a test."""
    SERCommandLine(["test", *args])
