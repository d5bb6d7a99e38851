"""Records divided by those of another network, when a report is made; a stage measures one."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ser_lightning.corruptions import CORRUPTIONS, PERTURBATIONS
from ser_lightning.files import file_sha256
from ser_lightning.results.ratios import (
    ALEXNET,
    ALEXNET_CORRUPTION_ERRORS,
    ALEXNET_ERROR,
    corruption_errors,
    mean_over,
    relative_to,
)
from ser_lightning.results.record import RESULT_FOLDER, LoadedRecord, ResultRecord, find_records

_CORRUPTED, _PERTURBED = "imagenet-c", "imagenet-p"  # stages
_MUST_AGREE = {
    _CORRUPTED: ("severities", "generated", "frost", "jpeg_quality"),
    _PERTURBED: ("generated", "frame_stride", "difficulty"),
}
"""Settings without which a ratio makes no sense, by stage."""

_STEADINESS = {"mfr": "flip_probability", "mt5d": "top5_distance"}

Rates = dict[str, dict[int, float]]
"""Error rate in [0, 1] by corruption and severity; "clean" has the severity 0 alone."""


class _Division(NamedTuple):
    """What dividing by another network gave: ratios in percent, or why they are missing, by name.

    Attributes:
        by: the network, for a protocol.
        reasons: the other network's, against a comparison with published numbers.
    """

    by: str | dict[str, str]
    ratios: dict[str, float]
    missing: dict[str, str]
    reasons: tuple[str, ...] = ()


def with_ratios(
    records: Sequence[LoadedRecord], baselines: Sequence[LoadedRecord] = ()
) -> list[LoadedRecord]:
    """Adds mCE, relative mCE, mFR and mT5D to the records of ImageNet-C and -P.

    They are relative to AlexNet: to its published errors on ImageNet-C, on -P to a record with
    `network: alexnet` of the same videos, if there is one. A ratio to another network bears the
    name of its run: `mce_vs_<run>`. The protocol then says under "divided_by" what each ratio is
    relative to, or why it was left out; the other network's reasons count too.

    Raises:
        ValueError: if no record was made in the same way as any of the baselines.
    """
    networks = [loaded for loaded in records if loaded.record.network is not None]
    result, used, problems = [], False, dict[str, None]()
    for loaded in records:
        record = loaded.record
        # AlexNet's published errors are of these images and classes
        is_published = (record.stage, record.dataset) == (_CORRUPTED, "imagenet_c")
        divisions = [_published(record)] if is_published else []
        for other in [*networks, *baselines] if record.network is None else []:
            if (other.record.stage, other.record.dataset) == (record.stage, record.dataset):
                divisions.append(_divided(record, other))
                used |= other in baselines and bool(divisions[-1].ratios)
                problems |= dict.fromkeys(divisions[-1].missing.values())
        result.append(loaded._replace(record=_joined(record, divisions)))
    if baselines and not used:
        files = ", ".join(str(baseline.path) for baseline in baselines)
        why = "; ".join(problems) or "give a record of imagenet-c or imagenet-p on the same images"
        raise ValueError(f"nothing can be divided by {files}: {why}")
    return result


def find_baselines(path: Path) -> list[LoadedRecord]:
    """Reads what to divide by: a run folder, a record, or an AlexNet file of version 0.1.0.

    Raises:
        ValueError: if there is no such file, or it is no record of ImageNet-C or -P.
    """
    old = _old_alexnet(path)
    found = [old] if old else [r for r in find_records([path]) if r.record.stage in _MUST_AGREE]
    if not found:
        raise ValueError(f"{path} has no record of {' or '.join(_MUST_AGREE)}; evaluate it there")
    return found


def _old_alexnet(path: Path) -> LoadedRecord | None:
    """The record that `imagenet_p_baseline.json` of version 0.1.0 would be; None for others."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError:
        return None
    if not isinstance(content, dict) or "format" in content or "network" not in content:
        return None
    reason = content.get("unofficial_reason")
    record = ResultRecord(
        stage=_PERTURBED, dataset=content["dataset"], network=str(content["network"]).lower(),
        protocol=content["protocol"], metrics=content["metrics"], counts=content["counts"],
        unofficial_reasons=tuple(reason.split("; ")) if reason else (),
        checkpoint=None, checkpoint_sha256=None, weights_key="", layer=None, cls_layer=None,
        feature={}, transform={}, seed=0, data_root="", class_map_sha256=None, wall_seconds=0,
        num_samples=sum(n for name, n in content["counts"].items() if name.startswith("videos/")),
    )  # fmt: skip
    return LoadedRecord(path, path.parent, record)


def _joined(record: ResultRecord, divisions: Sequence[_Division]) -> ResultRecord:
    """A record with its ratios, and what they are relative to; a ratio beats a missing one."""
    ratios: dict[str, float] = {}
    told: dict[str, Any] = {}
    reasons = dict.fromkeys(record.unofficial_reasons)
    for division in divisions:
        told |= {n: f"left out: {why}" for n, why in division.missing.items() if n not in told}
        told |= dict.fromkeys(division.ratios, division.by)
        ratios |= division.ratios
        new = [reason for reason in division.reasons if division.ratios and reason not in reasons]
        reasons |= dict.fromkeys(f"baseline: {reason}" for reason in new)
    if not told:
        return record
    return replace(
        record,
        metrics={**record.metrics, **ratios},
        protocol={**record.protocol, "divided_by": told},
        unofficial_reasons=tuple(reasons),
    )


def _published(record: ResultRecord) -> _Division:
    """Divides by AlexNet's published errors, at the severities that were measured."""
    errors = _error_rates(record)
    alexnet = {
        name: {severity: rates[severity - 1] for severity in errors.get(name, ())}
        for name, rates in ALEXNET_CORRUPTION_ERRORS.items()
    }
    return _Division(ALEXNET, *_of_corruptions(record, alexnet, ALEXNET_ERROR))


def _divided(record: ResultRecord, other: LoadedRecord) -> _Division:
    """Divides by another network's record of the same stage and data set."""
    theirs, suffix = other.record, ""
    by: str | dict[str, str] = ALEXNET
    if theirs.network != ALEXNET:
        in_run = other.path.parent.name == RESULT_FOLDER
        name = theirs.network or (other.run_dir.name if in_run else other.path.stem)
        suffix, by = f"_vs_{name}", {"name": name, "sha256": file_sha256(other.path)}
    ratios: dict[str, float] = {}
    if difference := _difference(record, other):
        names = ("mce",) if record.stage == _CORRUPTED else tuple(_STEADINESS)
        missing = dict.fromkeys(names, difference)
    elif record.stage == _PERTURBED:
        ratios, missing = _of_perturbations(record, other)
    elif absent := [name for name in CORRUPTIONS if name not in _error_rates(record)]:
        lacking = ", ".join(absent)
        missing = {"mce": f"a mean of 15 corruptions needs all of them, {lacking} was not measured"}
    else:
        ratios, missing = _of_corruptions(record, _error_rates(theirs), _clean_error(theirs))
    return _Division(
        by,
        {name + suffix: value for name, value in ratios.items()},
        {name + suffix: why for name, why in missing.items()},
        theirs.unofficial_reasons,
    )


def _difference(record: ResultRecord, other: LoadedRecord) -> str:
    """Why another record was not made in the same way; "" if it was."""
    theirs = other.record
    for name in _MUST_AGREE[record.stage]:
        setting, their_setting = record.protocol.get(name), theirs.protocol.get(name)
        if setting != their_setting:
            return (
                f"{other.path} was measured with {name} {their_setting}, not {setting}; measure "
                "both in the same way"
            )
    if None not in (hashes := (record.data_sha256, theirs.data_sha256)) and len(set(hashes)) > 1:
        return f"{other.path} was measured on other images; measure both on the same ones"
    counts = {f"videos/{name}" for name in PERTURBATIONS}
    if record.stage == _CORRUPTED:  # with a severity, so not the clean images
        counts = {n for n in record.counts if n.startswith("samples/") and n.count("/") > 1}
    for name in sorted(counts & record.counts.keys()):
        if name not in theirs.counts:
            return f"{other.path} lacks the counts {name}; measure them too"
        if theirs.counts[name] != record.counts[name]:
            return (
                f"{other.path} was measured with {name} {theirs.counts[name]}, not "
                f"{record.counts[name]}; measure both on the same images"
            )
    return ""


def _error_rates(record: ResultRecord) -> Rates:
    """Error rates from the counts of a record."""
    rates: Rates = {}
    for key, num_samples in record.counts.items():
        what, _, condition = key.partition("/")
        if what == "samples" and f"hits/{condition}" in record.counts:
            name, _, severity = condition.partition("/")
            error = 1 - record.counts[f"hits/{condition}"] / num_samples
            rates.setdefault(name, {})[int(severity or 0)] = error
    return rates


def _clean_error(record: ResultRecord) -> float | None:
    """The error rate on clean images that was given or measured."""
    given: float | None = record.selected.get("clean_error")
    return _error_rates(record).get("clean", {}).get(0) if given is None else given


def _of_corruptions(
    record: ResultRecord, baseline: Rates, clean_baseline: float | None
) -> tuple[dict[str, float], dict[str, str]]:
    """The mCE and relative mCE, as far as all 15 corruptions and the clean errors are known."""
    rates = _error_rates(record)
    if not set(CORRUPTIONS) <= rates.keys():
        return {}, {}
    ours = {name: [rates[name][s] for s in sorted(rates[name])] for name in CORRUPTIONS}
    theirs = {name: [of[s] for s in sorted(of)] for name, of in baseline.items()}
    clean = _clean_error(record)
    ratios = {"mce": mean_over(corruption_errors(ours, theirs), CORRUPTIONS)}
    if clean is None or clean_baseline is None:
        why = "the error on clean images is not known; give --data.source.root DIR to imagenet-c"
        return ratios, {"relative_mce": why}
    try:
        relative = corruption_errors(ours, theirs, clean, clean_baseline)
    except ValueError as error:
        return ratios, {"relative_mce": str(error)}
    return {**ratios, "relative_mce": mean_over(relative, CORRUPTIONS)}, {}


def _of_perturbations(
    record: ResultRecord, other: LoadedRecord
) -> tuple[dict[str, float], dict[str, str]]:
    """The mFR and mT5D, where all 10 official perturbations are there."""
    ratios, missing = {}, {}
    for ratio, metric in _STEADINESS.items():
        keys = [f"{metric}/{name}" for name in PERTURBATIONS]
        ours, theirs = (
            {key: value for key in keys if (value := metrics.get(key)) is not None}
            for metrics in (record.metrics, other.record.metrics)
        )
        if len(ours) < len(keys):
            continue
        try:
            ratios[ratio] = mean_over(relative_to(ours, theirs), keys)
        except ValueError as error:
            missing[ratio] = f"{other.path}: {error}"
    return ratios, missing
