"""Corruption errors against plain sums and the published check values."""

import math

import pytest

from ser_lightning.corruptions import CORRUPTIONS, EXTRA_PERTURBATIONS, PERTURBATIONS
from ser_lightning.reporting.paper import paper_tables
from ser_lightning.results.ratios import (
    ALEXNET_CORRUPTION_ERRORS,
    ALEXNET_ERROR,
    accuracy_percent,
    corruption_errors,
    mean_over,
    relative_to,
)

ALEXNET = ALEXNET_CORRUPTION_ERRORS
PAPER_MCE = {
    ("MoCo-v3", "2"): 76.51,
    ("AugSelf", "2"): 77.08,
    ("STL", "2"): 83.76,
    ("SER", "2"): 75.07,
    ("EquiMod", "3"): 78.92,
    ("E-SSL", "2+4"): 72.55,
    ("SER", "2+4"): 72.04,
}


def flat(accuracy):
    """Error rates of five severities with the given accuracy in percent."""
    return [1 - accuracy / 100] * 5


def test_corruption_errors_of_resnet50():
    errors = {"brightness": flat(68.02), "gaussian_noise": flat(29.29)}
    result = corruption_errors(errors, ALEXNET)
    assert result == {
        "brightness": pytest.approx(56.64, abs=0.005),
        "gaussian_noise": pytest.approx(79.77, abs=0.005),
    }


@pytest.mark.parametrize("row", paper_tables()["table12"].rows, ids=lambda row: row.subject.label())
def test_mce_of_the_papers_accuracies(row):
    errors = {name: flat(row.values[name]) for name in reversed(CORRUPTIONS)}
    mce = mean_over(corruption_errors(errors, ALEXNET), CORRUPTIONS)
    assert mce == pytest.approx(PAPER_MCE[row.subject.method, row.subject.views], abs=0.005)
    average = mean_over(accuracy_percent(errors), CORRUPTIONS)
    assert average == pytest.approx(row.values["avg"], abs=0.00501)


def test_errors_equal_the_loops():
    errors = {"fog": [0.5, 0.6, 0.9], "snow": [0.2, 0.4, 0.7]}
    baseline = {"snow": [0.3, 0.5, 0.9], "fog": [0.6, 0.8, 0.8], "frost": [0.1]}
    ce, relative = {}, {}
    for name, rates in errors.items():
        ours = theirs = ours_added = theirs_added = 0.0
        for s, rate in enumerate(rates):
            ours += rate
            theirs += baseline[name][s]
            ours_added += rate - 0.1
            theirs_added += baseline[name][s] - 0.25
        ce[name], relative[name] = 100 * ours / theirs, 100 * ours_added / theirs_added
    assert corruption_errors(errors, baseline) == pytest.approx(ce)
    result = corruption_errors(errors, baseline, 0.1, 0.25)
    assert result == pytest.approx(relative)
    assert accuracy_percent(errors) == pytest.approx({"fog": 100 / 3, "snow": 170 / 3})


def test_the_baseline_has_a_hundred_percent_of_its_own_error():
    ce = corruption_errors(ALEXNET, ALEXNET)
    clean = ALEXNET_ERROR
    relative = corruption_errors(ALEXNET, ALEXNET, clean, clean)
    assert ce == relative == dict.fromkeys(CORRUPTIONS, pytest.approx(100))


def test_relative_error_is_zero_where_corruption_does_no_harm():
    errors = {"fog": [0.3] * 5}
    result = corruption_errors(errors, ALEXNET, 0.3, ALEXNET_ERROR)
    assert result["fog"] == pytest.approx(0, abs=1e-9)


def test_baseline_means_are_the_published_ones():
    means = {name: round(math.fsum(rates) / 5, 6) for name, rates in ALEXNET.items()}
    assert means["gaussian_noise"] == 0.886428
    assert means["jpeg_compression"] == 0.6065
    assert tuple(ALEXNET) == CORRUPTIONS


def test_flip_rates_are_relative_to_the_baseline_of_the_same_name():
    result = relative_to({"scale": 0.2, "tilt": 0.1}, {"tilt": 0.4, "scale": 0.25, "shear": 1.0})
    assert result == {"scale": pytest.approx(80), "tilt": pytest.approx(25)}


def test_names_of_the_perturbations():
    assert len(set(PERTURBATIONS)) == 10
    assert "snow" in PERTURBATIONS
    assert "spatter" not in PERTURBATIONS
    columns = set(paper_tables()["table13"].rows[0].values) - {"avg"}
    assert columns == {*PERTURBATIONS, *EXTRA_PERTURBATIONS}


def test_mean_leaves_other_names_out():
    assert mean_over({"a": 1.0, "b": 3.0, "other": 100.0}, ["a", "b"]) == 2.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_over({"fog": 1.0}, ["fog", "snow"]), "the average lacks snow"),
        (lambda: mean_over({}, []), "no names"),
        (lambda: corruption_errors({"frost_procedural": flat(50)}, ALEXNET), "lacks frost_proced"),
        (lambda: corruption_errors({"fog": [0.5]}, ALEXNET), "1 severities and the baseline 5"),
        (lambda: corruption_errors({"fog": [50.0] * 5}, ALEXNET), "not in percent"),
        (lambda: accuracy_percent({"fog": []}), "give at least one"),
        (lambda: corruption_errors({"fog": [0.5]}, {"fog": [0.0]}), "does not raise the baseline"),
        (lambda: relative_to({"tilt": 1.0}, {"tilt": 0.0}), "must be positive"),
        (lambda: relative_to({"tilt": 1.0}, {}), "the baseline lacks tilt"),
        (
            lambda: corruption_errors({"fog": flat(50)}, ALEXNET, 0.1, 0.99),
            "does not raise the baseline's error",
        ),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
