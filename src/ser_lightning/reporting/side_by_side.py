"""Runs that began alike, side by side: one table at 80 columns, and what it says in words."""

from collections.abc import Mapping, Sequence

from ser_lightning.reporting.summary import RunCurve
from ser_lightning.reporting.tables import text_lines

FAMILIES = {"rotation": "turns", "flip": "flips", "scale": "resizes"}
_VISIBLE = 0.02  # smaller differences of a score are not worth a word
_KEPT = 0.1  # a score is kept if it falls by no more
_CENTRED = "equivariance/mean_centred"


_NOTE = """
Score: cosine of the moved image's map and the image's map, moved likewise, less
the mean token; 1 is exact. Raw: with it, when tokens that are all alike have 1.
Before training is a reference, no rival: the tokens of an untrained ViT are
little but the colours of their patches, which move along by themselves."""


def side_by_side(runs: Sequence[RunCurve], num_classes: int = 0) -> str:
    """Sets the random initialisation, the same for all, and the ends of runs side by side.

    As aligned lines; the number of classes is for the chance level, 0 where there are no labels.
    """
    columns = [runs[0].metrics[0], *(run.metrics[-1] for run in runs)]
    rows = [["", "before training", *(run.name for run in runs)]]
    if num_classes:
        knn = [f"{values['knn_top1']:.1f} %" for values in columns]
        rows.append([f"k-NN top-1 (chance {100 / num_classes:.1f} %)", *knn])
    for family, words in FAMILIES.items():
        cells = [f"{values[f'{_CENTRED}/{family}']:.3f}" for values in columns]
        rows.append([f"token map follows {words}", *cells])
    raw = [[f"{values[f'equivariance/{family}']:.2f}" for family in FAMILIES] for values in columns]
    rows.append([f"raw ({', '.join(FAMILIES.values())})", *map(" ".join, raw)])
    return "\n".join([*text_lines(rows, num_labels=1), _NOTE])


def takeaway(runs: Sequence[RunCurve], num_classes: int = 0) -> str:
    """Says in plain words what two runs of one start show, without SER and with it."""
    without, with_ser = runs
    start, plain, ser = without.metrics[0], without.metrics[-1], with_ser.metrics[-1]
    words = [_verdicts(without.name, plain, ser), _kept(start, plain, ser)]
    if num_classes:
        name = "knn_top1"
        words.append(
            f"The nearest neighbours of a new image tell its class {ser[name]:.0f} times in 100, "
            f"{plain[name]:.0f} without SER (before training {start[name]:.0f}, by guessing "
            f"{100 / num_classes:.0f}); one run each, and seeds differ by several points."
        )
    return " ".join(filter(None, words))


def _verdicts(name: str, plain: Mapping[str, float], ser: Mapping[str, float]) -> str:
    """For each kind of move whether the map follows it more closely with SER than without."""
    found: dict[str, list[str]] = {"more closely": [], "equally closely": [], "less closely": []}
    for family, words in FAMILIES.items():
        ours, theirs = (values[f"{_CENTRED}/{family}"] for values in (ser, plain))
        is_alike = abs(ours - theirs) < _VISIBLE
        verdict = (
            "equally closely" if is_alike else "more closely" if ours > theirs else "less closely"
        )
        found[verdict].append(f"{words} ({ours:.2f}, {name} {theirs:.2f})")
    if found["more closely"]:
        begin = "With SER"
    elif found["less closely"]:
        begin = "SER does not help here:"
    else:
        begin = "SER makes no visible difference here:"
    said = (f"{_and(moves)} {verdict}" for verdict, moves in found.items() if moves)
    return f"{begin} the token map follows {'; '.join(said)} (scores; 1 is exact)."


def _kept(start: Mapping[str, float], plain: Mapping[str, float], ser: Mapping[str, float]) -> str:
    """What became of the score that turns have before training; "" where SER does not help."""
    before, without, with_ser = (v[f"{_CENTRED}/rotation"] for v in (start, plain, ser))
    if with_ser - without < _VISIBLE:
        return ""
    if with_ser >= before + _VISIBLE:
        return f"Its score for turns is above that before training ({before:.2f})."
    if with_ser >= before - _KEPT:
        return f"Its score for turns stays near that before training ({before:.2f})."
    return f"Its score for turns is below that before training, too ({before:.2f})."


def _and(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
