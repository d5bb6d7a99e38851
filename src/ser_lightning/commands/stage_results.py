"""What becomes of a stage's result: its record and what lies beside it, lines and a figure."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from lightning.pytorch.utilities import rank_zero_info

from ser_lightning.evaluation.stage import StageResult
from ser_lightning.files import keep_as
from ser_lightning.results.hits import write_hits
from ser_lightning.results.measures import describe
from ser_lightning.results.points import write_points
from ser_lightning.results.record import (
    ResultRecord,
    class_map_sha256,
    read_record,
    result_path,
    write_record,
)

if TYPE_CHECKING:
    from ser_lightning.commands.evaluate import StageCommandLine

_MAX_LINES = 20  # of a result on the screen


def keep_result(cli: "StageCommandLine", result: StageResult, seconds: float) -> Path:
    """Writes the files of a result, shows it, and returns the path of its record."""
    stage, folder = cli.model, cli.run_dir
    record = _record(cli, result, seconds)
    path = result_path(folder, record, stage.variant)
    _keep_replaced(path, record)
    if result.label is not None:
        write_hits(path, result.hits, result.label, result.data_sha256, result.slots)
    if result.points is not None:
        write_points(path, result.points)
    write_record(record, folder, stage.variant)  # last: what a record has beside it is there
    what = " on ".join(part for part in (result.network or stage.name, result.dataset) if part)
    shown = list(result.metrics.items())[:_MAX_LINES]
    lines = [f"  {describe(name).title}: {describe(name).text(value)}" for name, value in shown]
    if len(shown) < len(result.metrics):
        lines.append(f"  ... {len(result.metrics) - len(shown)} more in the file")
    rank_zero_info("\n".join([f"{what}, {result.num_samples:,} images: {path}", *lines]))
    if stage.figure is not None and result.network is None:
        module, _, function = stage.figure.partition(":")
        figure = path.with_suffix(".png")
        title = f"{stage.title or stage.name.capitalize()}: {folder.name}, {result.dataset}"
        drawn = result.metrics if result.shown is None else result.shown
        getattr(import_module(module), function)(figure, drawn, title)
        if figure.is_file():
            rank_zero_info(f"{stage.name}: {figure}")
    return path


def _keep_replaced(path: Path, record: ResultRecord) -> None:
    """Says which other record is replaced, and keeps one of more images or official numbers."""
    try:
        before = read_record(path) if path.is_file() else record
    except ValueError:  # a damaged one tells nothing
        return
    if before.checkpoint_sha256 != record.checkpoint_sha256:
        sha = str(before.checkpoint_sha256)[:8]
        rank_zero_info(f"{path} replaces what was measured of {before.checkpoint}, {sha}")
    elif (before.official, before.num_samples) > (record.official, record.num_samples):
        kept = path.with_suffix(".json.bak")
        keep_as(path, kept)
        rank_zero_info(f"{path} replaces a record of {before.num_samples:,} images, now {kept}")


_NOT_HOW = {
    "checkpoint", "branch", "seed",  # fields of the record
    "timm_name", "num_heads", "pretrained",  # of the checkpoint
    "source", "image_size", "mean", "std",  # so are these
    "num_workers", "evaluation_batch_size",
    "alexnet",  # a record of its own
}  # fmt: skip
_PLACES = {
    "root", "imagenet_v2", "imagenet_r", "imagenet_sketch", "out_of_range", "frost_dir",
    "alexnet_weights",
}  # fmt: skip
"""Settings that name a file or a folder; without one, that they name none is part of how."""
_OF_TRAINING = (
    "max_epochs", "max_steps", "max_time", "limit_train_batches",
    "gradient_clip_val", "gradient_clip_algorithm", "accumulate_grad_batches",
)  # fmt: skip
_OF_TRAINING_DATA = ("global_batch_size", "holdout_fraction", "crop")


def settings(cli: "StageCommandLine") -> dict[str, Any]:
    """How stage, data and trainer were set, as parsed: nothing that could be forgotten.

    Places of files are left out, and so is the hardware. An option of the data that the stage has
    too is called `data.<name>`.
    """
    parsed = yaml.safe_load(cli.parser.dump(cli.config, skip_none=False))
    places = _PLACES | ({"head"} if cli.model.needs_head else set())  # else a kind of detector
    stage, data = (_how(parsed[part]["init_args"], places) for part in ("model", "data"))
    trainer = {"precision": str(cli.trainer.precision)}
    if cli.model.trains:
        given = {name: parsed["trainer"][name] for name in _OF_TRAINING}
        trainer |= {name: value for name, value in given.items() if value is not None}
    else:
        data = {name: value for name, value in data.items() if name not in _OF_TRAINING_DATA}
    data = {f"data.{name}" if name in stage else name: value for name, value in data.items()}
    return {**trainer, **data, **stage}


def _how(arguments: dict[str, Any], places: set[str]) -> dict[str, Any]:
    return {
        name: value
        for name, value in arguments.items()
        if name not in _NOT_HOW and not (name in places and value is not None)
    }


def _identity(cli: "StageCommandLine") -> dict[str, Any]:
    """What a record says of a backbone of elsewhere; nothing of a run, which its folder tells."""
    opened = cli.model.opened
    if opened.is_own:
        return {}
    named = " ".join([opened.name, *opened.given])
    return {
        "base": "", "method": named, "views": "",
        "configuration": f"{named} {opened.sha256}",
        "backbone": opened.backbone.arguments, "layout": opened.layout,
        "assumed": list(opened.assumed),
    }  # fmt: skip


_AS_MEASURED = (
    "dataset", "network", "feature", "protocol", "selected", "num_samples", "data_sha256",
    "metrics", "counts", "unofficial_reasons",
)  # fmt: skip


def _record(cli: "StageCommandLine", result: StageResult, seconds: float) -> ResultRecord:
    stage, data = cli.model, cli.datamodule
    names = stage.class_names(data, result.dataset)
    of_checkpoint: dict[str, Any] = {
        "checkpoint": str(cli.config.checkpoint),
        "checkpoint_sha256": stage.opened.sha256,
        "weights_key": stage.branch,
        "layer": stage.backbone.layer,
        "cls_layer": stage.backbone.cls_layer,
        "run": _identity(cli),
    }
    nothing: dict[str, Any] = {**dict.fromkeys(of_checkpoint), "weights_key": "", "run": {}}
    return ResultRecord(
        stage=stage.name,
        **(of_checkpoint if result.network is None else nothing),
        **{name: getattr(result, name) for name in _AS_MEASURED},
        transform=data.describe(),
        seed=stage.seed,
        data_root=str(getattr(data, "data_root", getattr(data.source, "root", ""))),
        class_map_sha256=class_map_sha256(names) if names else None,
        wall_seconds=seconds,
    )
