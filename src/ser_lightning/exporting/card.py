"""README.md of an export: what the weights are, as far as their file and its run say it."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from ser_lightning.exporting.formats import FORMATS
from ser_lightning.exporting.opened import Opened, preparation
from ser_lightning.results.measures import describe
from ser_lightning.results.record import LoadedRecord, find_records, record_files
from ser_lightning.trusted import printable

UNKNOWN = "unknown"
_MOST = 8  # metrics of a record
_PATHS = ("root", "splits", "weights")  # options of sources and the backbone


def model_card(opened: Opened, name: str, folder: str, licence: str, checked: str) -> str:
    """The text of README.md.

    Args:
        opened: what is exported.
        name: of the format.
        folder: what the export is called in the lines that load it.
        licence: of the weights, as the user says.
        checked: how the export was compared with the backbone.
    """
    return "\n".join(
        [
            *_head(FORMATS[name].library, licence),
            printable(f"# {opened.run_dir.name} ({opened.branch} branch)"),
            "",
            *_what(opened),
            "",
            "## Load",
            "",
            "```python",
            FORMATS[name].load.replace("FOLDER", folder),
            "```",
            "",
            checked,
            "",
            *_images(opened),
            "",
            *_training(opened.config),
            "",
            *_results(opened),
            "",
            "## Licence",
            "",
            f"Weights: {licence}. Images that they were trained on: {UNKNOWN}.",
            "",
        ]
    )


def _head(library: str, licence: str) -> Iterator[str]:
    """What the Hugging Face hub reads."""
    facts = {"license": licence, "pipeline_tag": "image-feature-extraction"}
    facts |= {"library_name": library} if library else {}
    yield from ("---", yaml.safe_dump(facts, sort_keys=False).rstrip(), "---", "")


def _what(opened: Opened) -> Iterator[str]:
    backbone = opened.backbone
    cls = f"joins after block {backbone.cls_layer}" if backbone.cls_layer else "is at the input"
    yield (
        f"A ViT without classifier: {printable(backbone.arguments['name'])}, {backbone.depth} "
        f"blocks, {backbone.width} channels, patches of {backbone.patch_size} and images of "
        f"{backbone.image_size} pixels; [CLS] {cls}. The embedding is [CLS] after the final norm."
    )
    yield ""
    is_file = opened.path.is_file()
    source = f"the {opened.branch} branch of a file" if is_file else f"{opened.layout},"
    yield f"Weights: {source} with SHA-256 `{opened.sha256}`, exported by ser-lightning."
    if opened.guessed:
        yield ""
        yield f"Assumed, since the file does not say: {'; '.join(opened.guessed)}."


def _images(opened: Opened) -> Iterator[str]:
    yield from ("## Images", "", "| | |", "|---|---|", "| channels | red, green, blue in [0, 1] |")
    for name, value in preparation(opened.clean).items():
        is_assumed = " (assumed: the file does not say)" if name in opened.assumed else ""
        yield f"| {name.replace('_', ' ')} | {value}{is_assumed} |"


def _training(config: Mapping[str, Any]) -> Iterator[str]:
    yield from ("## Training", "")
    if not config:
        yield f"Data set and configuration: {UNKNOWN}; the file does not say."
        return
    source = (config.get("data") or {}).get("source")
    yield f"Data set: {_named(source)}. The configuration, without folders:"
    kept = {key: config[key] for key in ("seed_everything", "model", "data") if key in config}
    trainer = config.get("trainer") or {}
    length = ("max_epochs", "max_steps", "precision", "accumulate_grad_batches")
    kept["trainer"] = {key: trainer[key] for key in length if trainer.get(key) is not None}
    text = yaml.safe_dump(_without_folders(kept), sort_keys=False, allow_unicode=False)
    yield from ("", "```yaml", text.rstrip().replace("```", ""), "```")


def _named(source: Any) -> str:
    """The class of a source and its plain options."""
    if not isinstance(source, dict) or "class_path" not in source:
        return UNKNOWN
    given = _without_folders(source.get("init_args") or {})
    options = ", ".join(f"{key} {value}" for key, value in given.items() if value is not None)
    name = str(source["class_path"]).rpartition(".")[2]
    return printable(f"{name}{f' ({options})' if options else ''}").replace("`", "")


def _without_folders(node: Any, name: str = "") -> Any:
    """Plain values in which a path is its last part alone: others need not know the disk."""
    if isinstance(node, Mapping):
        return {key: _without_folders(value, key) for key, value in node.items()}
    if isinstance(node, list):
        return [_without_folders(value) for value in node]
    is_path = isinstance(node, str) and (name in _PATHS or Path(node).is_absolute())
    return Path(node).name if is_path else node


def _results(opened: Opened) -> Iterator[str]:
    yield from ("## Results", "")
    found = _records(opened)
    if not found:
        yield "None: the run has no record of these weights."
        return
    yield from ("| stage | images | measured | official |", "|---|---|---|---|")
    for loaded in found:
        record = loaded.record
        shown = [
            f"{describe(key).title} {describe(key).text(value)}"
            for key, value in list(record.metrics.items())[:_MOST]
        ]
        more = len(record.metrics) - len(shown)
        values = "; ".join([*shown, *([f"{more} more"] if more > 0 else [])])
        reasons = "; ".join(record.unofficial_reasons) or "yes"
        images = f"{record.dataset}, {record.num_samples:,}"
        yield " | ".join(["", record.stage, images, values, reasons, ""]).strip()


def _records(opened: Opened) -> list[LoadedRecord]:
    """The run's records of exactly these weights."""
    if not (files := record_files(opened.run_dir)):
        return []
    return [
        loaded
        for loaded in find_records(files)
        if loaded.record.checkpoint_sha256 == opened.sha256
        and loaded.record.weights_key == opened.branch
    ]
