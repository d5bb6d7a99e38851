"""Runs side by side: the table fits a terminal, the sentence says what the numbers say."""

import pytest

from ser_lightning.reporting.side_by_side import side_by_side, takeaway
from ser_lightning.reporting.summary import RunCurve

FAMILIES = ("rotation", "flip", "scale")


def metrics(knn, score):
    scores = {f"equivariance/{kind}{f}": score for kind in ("mean_centred/", "") for f in FAMILIES}
    return scores | ({} if knn is None else {"knn_top1": knn})


def runs(plain, ser, start=(10.0, 0.7)):
    steps = [0, 50]
    return [
        RunCurve("MoCo-v3", steps, [metrics(*start), metrics(*plain)]),
        RunCurve("+ SER", steps, [metrics(*start), metrics(*ser)]),
    ]


def test_table_holds_start_and_ends_and_fits_80_columns():
    table = side_by_side(runs((50.0, 0.4), (49.5, 0.9)), 12)
    lines = table.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["before", "training", "MoCo-v3", "+", "SER"]
    assert lines[2].split()[-6:] == ["10.0", "%", "50.0", "%", "49.5", "%"]
    assert lines[3].split()[-3:] == ["0.700", "0.400", "0.900"]
    assert lines[6].split()[-9:] == [*["0.70"] * 3, *["0.40"] * 3, *["0.90"] * 3]


def test_table_without_labels_has_no_knn():
    assert "k-NN" not in side_by_side(runs((None, 0.4), (None, 0.9), (None, 0.7)))


@pytest.mark.parametrize(
    ("ser", "begin", "kept"),
    [
        (
            0.9,
            "With SER the token map",
            "Its score for turns is above that before training (0.70).",
        ),
        (
            0.65,
            "With SER the token map",
            "Its score for turns stays near that before training (0.70).",
        ),
        (
            0.5,
            "With SER the token map",
            "Its score for turns is below that before training, too (0.70).",
        ),
        (0.41, "SER makes no visible difference here: the token map", ""),
        (0.2, "SER does not help here: the token map", ""),
    ],
)
def test_takeaway_follows_the_numbers(ser, begin, kept):
    said = takeaway(runs((50.0, 0.4), (49.5, ser)), 12)
    assert said.startswith(f"{begin} follows turns ({ser:.2f}, MoCo-v3 0.40), flips (")
    assert kept in said
    assert ("score for turns" in said) == bool(kept)


def test_takeaway_judges_every_kind_of_move():
    without, with_ser = runs((50.0, 0.4), (49.5, 0.5))
    with_ser.metrics[-1]["equivariance/mean_centred/flip"] = 0.39
    with_ser.metrics[-1]["equivariance/mean_centred/scale"] = 0.3
    assert takeaway([without, with_ser]).startswith(
        "With SER the token map follows turns (0.50, MoCo-v3 0.40) more closely; flips (0.39, "
        "MoCo-v3 0.40) equally closely; resizes (0.30, MoCo-v3 0.40) less closely (scores; 1 is "
        "exact). Its score for turns is below"
    )


def test_takeaway_speaks_of_classes_only_where_there_are_some():
    labelled, unlabelled = runs((50.0, 0.4), (49.0, 0.9)), runs((None, 0.4), (None, 0.9), (None, 1))
    assert "tell its class 49 times in 100, 50 without SER" in takeaway(labelled, 12)
    assert "class" not in takeaway(unlabelled)


def test_points_skip_what_was_not_measured():
    curve = RunCurve("a", [0, 5], [{"x": 1.0}, {"x": 2.0, "y": 3.0}])
    assert curve.points("x") == ([0, 5], [1.0, 2.0])
    assert curve.points("y") == ([5], [3.0])
