"""What an evaluation found, and under which conditions, as one JSON file per result."""

import hashlib
import json
import math
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, field, fields
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

from ser_lightning.files import folders_below, write_text
from ser_lightning.sealed import CHECKSUM, content_hash

RESULT_FOLDER = "results"
_RECORDS = "[!.]*.json"  # in it; hidden files are an operating system's
FORMAT = 2
"""Version of the file format; raise it when a field changes its meaning. Format 1 is still read."""

_RENAMED_STAGES = {"corruption": "imagenet-c", "perturbation": "imagenet-p"}  # since format 1

_PACKAGES = ("ser-lightning", "torch", "torchvision", "timm", "lightning")


def _versions() -> dict[str, str]:
    """Those of Python and of the packages that results depend on."""
    found = {**dict.fromkeys(_PACKAGES, "unknown"), "python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


@dataclass(frozen=True, kw_only=True)
class ResultRecord:
    """One evaluation of one checkpoint.

    Attributes:
        stage: name of its configuration, such as "linear" or "imagenet-c".
        dataset: on what it was measured, such as "imagenet1k"; "" for a stage without images.
        checkpoint: path of the evaluated file; None for random weights and another network.
        checkpoint_sha256: hash of its bytes; None where there is no file.
        weights_key: which weights of the checkpoint: "student", "teacher", ...
        layer: the block whose token map is measured; None where it does not matter.
        cls_layer: the block after which [CLS] joins; 0 is the input.
        feature: what the classifier sees: blocks, norm, pooling.
        transform: resizing, crop, interpolation, normalisation.
        protocol: settings of the stage. Results are averaged over seeds only where it is equal.
        selected: what was chosen on held-out data, such as learning rate and epoch, and what was
            taken from elsewhere for this run: the head.
        seed: seed of the evaluation, not of pretraining.
        data_root: folder of the images.
        num_samples: images (or videos) that entered the metrics.
        class_map_sha256: hash of which label each class name has, or which logit of a head that
            was trained elsewhere; None without names. See `class_map_sha256`.
        metrics: by name; accuracies in percent, others in their own unit; None where there is none.
        counts: raw counts by name, such as hits.
        unofficial_reasons: why the number may not be compared with published ones: sub-sampled,
            generated on the fly, ...; empty where it may.
        wall_seconds: duration of the evaluation.
        network: another network that was measured in the place of a checkpoint, such as
            "alexnet"; None for a checkpoint and for random weights.
        data_sha256: identity of the measured images; None where it is not known.
        run: replaces what the run folder says about the run, by key: base, method, views,
            equiv_layer, rho, lambda, groups as in the paper's tables, and configuration, a text
            that runs differing in the seed share.
        versions: versions of the software, by package.
        date: ISO 8601.

    Raises:
        ValueError: a field has the wrong type, stage, data set or network is no plain name, only
            one of checkpoint and hash is there, or a network and a checkpoint.
    """

    stage: str
    dataset: str
    checkpoint: str | None
    checkpoint_sha256: str | None
    weights_key: str
    layer: int | None
    cls_layer: int | None
    feature: dict[str, Any]
    transform: dict[str, Any]
    protocol: dict[str, Any]
    seed: int
    data_root: str
    num_samples: int
    class_map_sha256: str | None
    metrics: dict[str, float | None]
    counts: dict[str, int]
    unofficial_reasons: tuple[str, ...]
    wall_seconds: float
    network: str | None = None
    data_sha256: str | None = None
    selected: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=_versions)
    date: str = field(default_factory=_now)

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            _check_kind(name, getattr(self, name), kind)
        _check_name("stage", self.stage, "_ . + -")
        for what, plain in (("dataset", self.dataset), ("network", self.network)):
            if plain:
                _check_name(what, plain)
        if (self.checkpoint is None) != (self.checkpoint_sha256 is None):
            raise ValueError(
                f"checkpoint {self.checkpoint} with checkpoint_sha256 {self.checkpoint_sha256}; "
                "give both, or neither for random weights"
            )
        if self.network is not None and self.checkpoint is not None:
            raise ValueError(
                f"network {self.network} with the checkpoint {self.checkpoint}; a record is of one"
            )

    @property
    def official(self) -> bool:
        """Whether the number may be compared with published ones."""
        return not self.unofficial_reasons


class LoadedRecord(NamedTuple):
    """A record, the file it was found in, and the folder of the run that it describes."""

    path: Path
    run_dir: Path
    record: ResultRecord


def result_path(run_dir: Path, record: ResultRecord, variant: str = "") -> Path:
    """Where a record belongs: <run_dir>/results/<stage>[-<dataset>][-<network>][-<variant>].json.

    The variant tells apart records of a stage and data set that should both be kept, such as
    "seed1" or "momentum"; "" is that of the default settings.

    Raises:
        ValueError: if the variant is no plain name.
    """
    if variant:
        _check_name("variant", variant)
    parts = (record.stage, record.dataset, record.network, variant)
    name = "-".join(part for part in parts if part)
    return run_dir / RESULT_FOLDER / f"{name}.json"


def write_record(record: ResultRecord, run_dir: Path, variant: str = "") -> Path:
    """Writes a record to its `result_path`, whole or not at all; call it on one rank.

    Raises:
        ValueError: if a metric is not finite, or a field holds something that JSON does not know.
    """
    path = result_path(run_dir, record, variant)
    wrong = {n: v for n, v in record.metrics.items() if v is not None and not math.isfinite(v)}
    if wrong:
        some = ", ".join(f"{name} {value}" for name, value in list(wrong.items())[:3])
        raise ValueError(
            f"{some}: {len(wrong)} of {len(record.metrics)} metrics of {record.stage} on "
            f"{record.num_samples:,} images are no numbers, so {path} is not written; use more "
            "images, or weights that did not diverge"
        )
    content = {"format": FORMAT, **asdict(record), "official": record.official}
    try:
        content[CHECKSUM] = _measured_hash(content)
        text = json.dumps(content, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the record of {record.stage} cannot be written as JSON ({error}); use plain finite "
            "numbers, texts, lists and dictionaries"
        ) from error
    write_text(path, text + "\n")
    return path


def read_record(path: Path) -> ResultRecord:
    """Reads a record of this format or an older one.

    Raises:
        ValueError: if the file is no such record; the message names file and field.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # of the decoder of JSON or of UTF-8
        raise ValueError(f"{path} is not JSON ({error}); run the evaluation again") from error
    number = content.get("format") if isinstance(content, dict) else None
    if number not in (1, FORMAT):
        raise ValueError(
            f'{path} is no result record with "format": {FORMAT} or 1; give files that an '
            "evaluation of this version wrote"
        )
    written, hashed = content.pop(CHECKSUM, None), _measured_hash(content)
    del content["format"]
    if number == 1:
        content = _upgraded(content)
    content.pop("official", None)  # follows from the reasons
    if isinstance(content.get("unofficial_reasons"), list):
        content["unofficial_reasons"] = tuple(content["unofficial_reasons"])
    known = fields(ResultRecord)
    required = {f.name for f in known if f.default is f.default_factory is MISSING}
    missing, unknown = required - content.keys(), content.keys() - {f.name for f in known}
    if missing or unknown:
        raise ValueError(
            f"{path}: missing fields {sorted(missing)}, unknown fields {sorted(unknown)}; run the "
            "evaluation again with this version"
        )
    try:
        record = ResultRecord(**content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if number == FORMAT and written not in (None, hashed):
        raise ValueError(
            f"{path} is not what its checksum says: it is damaged, or changed elsewhere than in "
            f'`run`; run the evaluation again, or remove "{CHECKSUM}" if you changed it'
        )
    return record


def _measured_hash(content: Mapping[str, Any]) -> str:
    """Hash of a record's content, but for what people may say in it of the run."""
    return content_hash({name: value for name, value in content.items() if name != "run"})


def _upgraded(content: dict[str, Any]) -> dict[str, Any]:
    """The content of a file of format 1 under the names of today."""
    reasons, stage = content.pop("unofficial_reason", None), content.get("stage")
    if stage == "linear" and content.get("dataset") == "3diebench":
        stage = "3diebench"
    return {
        **content,
        "stage": _RENAMED_STAGES.get(str(stage), stage),
        "unofficial_reasons": str(reasons).split("; ") if reasons else [],
    }


def record_files(run: Path) -> list[Path]:
    """The records in a run's folder, in the order of their names; there may be none."""
    return sorted((run / RESULT_FOLDER).glob(_RECORDS))


def find_records(paths: Iterable[Path]) -> list[LoadedRecord]:
    """The records of run folders, of folders above them, and single files, each once, by path.

    Raises:
        ValueError: if a path does not exist or holds no record, or as `read_record`.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        folders = [] if path.is_file() else folders_below(path)
        kept = [each for each in folders if RESULT_FOLDER in (each.name, each.resolve().name)]
        files = sorted(file for each in kept for file in each.glob(_RECORDS))
        files = [path] if path.is_file() else files
        if not files:
            state = f"has no {RESULT_FOLDER}/*.json" if path.is_dir() else "does not exist"
            raise ValueError(f"{path} {state}; give run folders that were evaluated")
        for file in files:
            found.setdefault(file.resolve(), file)
    records = []
    for resolved, file in sorted(found.items()):
        folder = resolved.parent
        run_dir = folder.parent if folder.name == RESULT_FOLDER else folder
        records.append(LoadedRecord(file, run_dir, read_record(file)))
    return records


def class_map_sha256(classes: Mapping[str, int] | Sequence[str]) -> str:
    """Hashes which label each class name has: by name, or names in the order of their labels."""
    if not isinstance(classes, Mapping):
        classes = {name: label for label, name in enumerate(classes)}
    lines = sorted(f"{label} {name}" for name, label in classes.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _check_kind(name: str, value: Any, kind: Any) -> None:
    """Refuses a value of another type than annotated; an int is a float, a bool is no number."""
    if kind is Any:
        return
    if get_origin(kind) is dict and isinstance(value, dict):
        key_kind, value_kind = get_args(kind)
        for key, child in value.items():
            _check_kind(f"a key of {name}", key, key_kind)
            _check_kind(f"{name}[{key!r}]", child, value_kind)
        return
    if get_origin(kind) is tuple and isinstance(value, tuple):
        for child in value:
            _check_kind(f"a part of {name}", child, get_args(kind)[0])
        return
    kinds = get_args(kind) if isinstance(kind, UnionType) else (get_origin(kind) or kind,)
    accepted = {*kinds, int} if float in kinds else set(kinds)
    if type(value) not in accepted:
        wanted = " or ".join(sorted("null" if k is type(None) else k.__name__ for k in kinds))
        raise ValueError(f"{name} is {value!r} ({type(value).__name__}); it must be {wanted}")


def _check_name(what: str, name: str, signs: str = "_ . +") -> None:
    allowed = f"a-z0-9{re.escape(signs.replace(' ', ''))}"
    if not re.fullmatch(f"[a-z0-9][{allowed}]*", name):
        raise ValueError(
            f'{what} "{name}" names files; use lower-case letters, digits and the signs {signs}'
        )
