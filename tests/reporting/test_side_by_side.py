"""Runs side by side: the table fits a terminal, the sentence says what the numbers say."""

import pytest

from ser_lightning.reporting.side_by_side import RunCurve, side_by_side, takeaway

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
    assert lines[0].split() == ["random", "init", "MoCo-v3", "+", "SER"]
    assert lines[2].split()[-6:] == ["10.0", "%", "50.0", "%", "49.5", "%"]
    assert lines[3].split()[-6:] == ["0.700", "(0.700)", "0.400", "(0.400)", "0.900", "(0.900)"]


def test_table_without_labels_has_no_knn():
    assert "k-NN" not in side_by_side(runs((None, 0.4), (None, 0.9), (None, 0.7)))


@pytest.mark.parametrize(
    ("ser", "words"),
    [
        (0.9, "SER teaches token maps to move with the image; MoCo-v3 alone does not."),
        (0.65, "With SER token maps go on moving with the image; MoCo-v3 alone unlearns that."),
        (0.5, "With SER token maps move with the image better than with MoCo-v3 alone."),
        (0.41, "SER makes no visible difference here."),
        (0.2, "SER does not help here."),
    ],
)
def test_takeaway_follows_the_numbers(ser, words):
    said = takeaway(runs((50.0, 0.4), (49.5, ser)), 12)
    assert said.startswith(words)
    assert f"score {ser:.2f} with SER, 0.40 without, 0.70 before training" in said


def test_takeaway_speaks_of_classes_only_where_there_are_some():
    labelled, unlabelled = runs((50.0, 0.4), (49.0, 0.9)), runs((None, 0.4), (None, 0.9), (None, 1))
    assert "right 50 times in 100 without SER and 49 with it" in takeaway(labelled, 12)
    assert "class" not in takeaway(unlabelled)


def test_points_skip_what_was_not_measured():
    curve = RunCurve("a", [0, 5], [{"x": 1.0}, {"x": 2.0, "y": 3.0}])
    assert curve.points("x") == ([0, 5], [1.0, 2.0])
    assert curve.points("y") == ([5], [3.0])
