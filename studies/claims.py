"""What a study asks: rows and their runs, what they are compared by, and how that is judged."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ser_lightning.reporting.compare import GroupCost
from ser_lightning.reporting.groups import RunGroup
from ser_lightning.reporting.intervals import Interval, paired_difference, seed_difference
from ser_lightning.results.hits import load_hits
from ser_lightning.results.measures import describe


class Measure(NamedTuple):
    """A number that rows are compared by.

    Attributes:
        stage: which evaluation.
        metric: its name in the record.
        is_paired: whether records say which test images were right.
    """

    stage: str
    metric: str
    is_paired: bool = False


LINEAR = Measure("linear", "top1", is_paired=True)
KNN = Measure("knn", "top1_k20", is_paired=True)
CORRUPTED = Measure("imagenet-c", "top1/avg_without_frost")
HOLDS, OPPOSITE, NOISE = "holds", "the opposite", "cannot be told from noise"
"""Verdicts on a claim whose difference has an interval."""


class StudyRow(NamedTuple):
    """A row of the study with its runs.

    Attributes:
        name: as claims call it.
        family: the add-on, for the figure; "" for the baseline.
        layer: the block that it reads; None without one.
        runs: one per seed; its name is the row's label.
        cost: what one of them takes.
    """

    name: str
    family: str
    layer: int | None
    runs: RunGroup
    cost: GroupCost


class Claim(NamedTuple):
    """Something that the paper says.

    Attributes:
        text: in words, with its place and numbers.
        better: name of the row that should measure more.
        worse: name of the row that it is compared with.
        measure: what is compared.
    """

    text: str
    better: str
    worse: str
    measure: Measure


class Judged(NamedTuple):
    """A claim, and what was seen.

    Attributes:
        claim: of which both rows have runs.
        seen: the difference in words.
        verdict: whether it holds, in words.
        interval: the difference; None where it cannot be told.
    """

    claim: Claim
    seen: str
    verdict: str
    interval: Interval | None


def judge(claims: Sequence[Claim], rows: Sequence[StudyRow]) -> list[Judged]:
    """What was seen of each claim whose rows have runs.

    Raises:
        ValueError: if hits cannot be read.
    """
    named = {row.name: row for row in rows}
    return [
        _judge(claim, named[claim.better], named[claim.worse])
        for claim in claims
        if {claim.better, claim.worse} <= named.keys()
    ]


def values(row: StudyRow, measure: Measure) -> list[float]:
    """What the row's runs say, one number per seed."""
    found = (s.record.metrics.get(measure.metric) for s in row.runs.newest(measure.stage))
    return [value for value in found if value is not None]


def _judge(claim: Claim, better: StudyRow, worse: StudyRow) -> Judged:
    measure = claim.measure
    ours, theirs = (values(row, measure) for row in (better, worse))
    if not (ours and theirs):
        return Judged(claim, "-", "not measured", None)
    digits = describe(measure.metric).digits
    seen = f"{np.mean(ours) - np.mean(theirs):+.{digits}f}"
    found = _difference(better, worse, measure)
    if found is None and measure.is_paired:
        return Judged(claim, seen, "hits of a run are missing", None)
    if found is None or min(len(ours), len(theirs)) < 2:
        return Judged(claim, seen, "cannot be told (one seed)", None)
    seen = f"{found.difference:+.{digits}f} [{found.low:+.{digits}f}, {found.high:+.{digits}f}]"
    verdict = HOLDS if found.low > 0 else OPPOSITE if found.high < 0 else NOISE
    return Judged(claim, seen, verdict, found)


def _difference(better: StudyRow, worse: StudyRow, measure: Measure) -> Interval | None:
    """Paired by test image where those are known, else from the seeds; None if neither can be."""
    if measure.is_paired:
        rows = better, worse
        ours, theirs = (_hits(row, measure) for row in rows)
        is_whole = all(
            len(hits) == len(values(row, measure)) > 0
            for row, hits in zip(rows, (ours, theirs), strict=True)
        )
        return paired_difference(ours, theirs) if is_whole else None
    return seed_difference(values(better, measure), values(worse, measure))


def _hits(row: StudyRow, measure: Measure) -> list[np.ndarray]:
    """Which test images each run of a row classified right."""
    found = [load_hits(s.path, measure.metric) for s in row.runs.newest(measure.stage)]
    return [hits.values for hits in found if hits is not None]
