"""Ratios to another network are made from records, and only of what was measured alike."""

import json

import numpy as np
import pytest

from results.result_records import alexnet, corrupted, perturbed, record
from ser_lightning.corruptions import CORRUPTIONS, PERTURBATIONS
from ser_lightning.files import file_sha256
from ser_lightning.results.division import find_baselines, with_ratios
from ser_lightning.results.ratios import (
    ALEXNET_CORRUPTION_ERRORS,
    ALEXNET_ERROR,
    corruption_errors,
    mean_over,
)
from ser_lightning.results.record import LoadedRecord, write_record


def loaded(made, folder, variant=""):
    path = write_record(made, folder, variant)
    return LoadedRecord(path, folder, made)


def divided(made, tmp_path, *baselines, beside=()):
    """The record of a run with its ratios."""
    first = loaded(made, tmp_path / "ser")
    others = [loaded(other, tmp_path / "ser", f"v{i}") for i, other in enumerate(beside)]
    return with_ratios([first, *others], baselines)[0].record


def random_rates(severities=(1, 2, 3, 4, 5)):
    rng = np.random.default_rng(0)
    return {
        name: {s: int(rng.integers(300, 900)) / 1000 for s in severities} for name in CORRUPTIONS
    }


@pytest.mark.parametrize("severities", [(1, 2, 3, 4, 5), (1, 5), (3,)])
def test_mce_equals_what_the_counts_give(tmp_path, severities):
    rates = random_rates(severities)
    found = divided(corrupted(rates, clean=0.25, severities=severities), tmp_path)
    # as the stage computed it before: errors of the counts, in the order of the severities
    errors = {
        name: [1 - round(1000 * (1 - of[s])) / 1000 for s in severities]
        for name, of in rates.items()
    }
    theirs = {n: [r[s - 1] for s in severities] for n, r in ALEXNET_CORRUPTION_ERRORS.items()}
    relative = corruption_errors(errors, theirs, 0.25, ALEXNET_ERROR)
    assert found.metrics == {
        "top1/avg": 50.0,
        "mce": mean_over(corruption_errors(errors, theirs), CORRUPTIONS),
        "relative_mce": mean_over(relative, CORRUPTIONS),
    }
    assert found.protocol["divided_by"] == {"mce": "alexnet", "relative_mce": "alexnet"}
    assert found.official


def test_clean_error_may_be_given(tmp_path):
    rates = random_rates()
    given = divided(corrupted(rates, selected={"clean_error": 0.25}), tmp_path)
    measured = divided(corrupted(rates, clean=0.25), tmp_path)
    assert given.metrics == measured.metrics
    without = divided(corrupted(rates), tmp_path)
    assert "mce" in without.metrics
    assert "relative_mce" not in without.metrics
    told = without.protocol["divided_by"]["relative_mce"]
    assert told.startswith("left out: the error on clean images is not known; give")


@pytest.mark.parametrize(
    "made",
    [
        record(),
        corrupted({"fog": {1: 0.5}}),  # of one corruption there is no mean
        corrupted(0.5, dataset="shapes"),  # AlexNet's errors are those of ImageNet
        perturbed(),  # AlexNet was not measured
    ],
)
def test_what_has_no_ratio_stays_as_it_is(tmp_path, made):
    assert divided(made, tmp_path) == made


def test_ratio_to_another_run_has_another_name_and_its_reasons(tmp_path):
    theirs = corrupted(0.8, clean=0.2, unofficial_reasons=("ours too", "head: of clean images"))
    other = loaded(theirs, tmp_path / "moco")
    ours = corrupted(0.5, clean=0.3, unofficial_reasons=("ours too",))
    found = divided(ours, tmp_path, other)
    assert found.metrics["mce_vs_moco"] == pytest.approx(62.5)
    assert found.metrics["relative_mce_vs_moco"] == pytest.approx(100 * 0.2 / 0.6)
    assert found.metrics["mce"] == divided(ours, tmp_path).metrics["mce"]
    by = found.protocol["divided_by"]
    assert by["mce_vs_moco"] == {"name": "moco", "sha256": file_sha256(other.path)}
    assert by["mce"] == "alexnet"
    assert found.unofficial_reasons == ("ours too", "baseline: head: of clean images")


def test_a_corruption_that_was_not_measured_is_named(tmp_path):
    rates = {name: of for name, of in random_rates().items() if name not in ("frost", "fog")}
    ours, theirs = (corrupted(rates, dataset="shapes") for _ in range(2))
    with pytest.raises(ValueError, match="needs all of them, frost, fog was not measured"):
        divided(ours, tmp_path, loaded(theirs, tmp_path / "moco"))


def test_baseline_outside_a_run_is_named_by_its_file(tmp_path):
    path = loaded(corrupted(0.8, dataset="shapes"), tmp_path / "x").path.rename(tmp_path / "m.json")
    found = divided(corrupted(0.4, dataset="shapes"), tmp_path, *find_baselines(path))
    assert found.metrics["mce_vs_m"] == pytest.approx(50)
    assert set(found.protocol["divided_by"]) == {"mce_vs_m", "relative_mce_vs_m"}


def test_flips_are_divided_by_alexnets_on_the_same_videos(tmp_path):
    found = divided(perturbed(2.0, 1.0), tmp_path, beside=[alexnet(flips=4.0, distance=4.0)])
    assert (found.metrics["mfr"], found.metrics["mt5d"]) == pytest.approx((50, 25))
    assert found.protocol["divided_by"] == {"mfr": "alexnet", "mt5d": "alexnet"}
    other = loaded(perturbed(8.0, 1.0), tmp_path / "moco")
    found = divided(perturbed(2.0, 1.0), tmp_path, other)
    assert (found.metrics["mfr_vs_moco"], found.metrics["mt5d_vs_moco"]) == pytest.approx((25, 100))
    assert "mfr" not in found.metrics


def test_alexnet_that_was_measured_alike_is_found_among_others(tmp_path):
    beside = [alexnet(videos=5), alexnet(flips=8.0), alexnet(videos=6)]
    found = divided(perturbed(2.0), tmp_path, beside=beside)
    assert found.metrics["mfr"] == pytest.approx(25)
    assert found.protocol["divided_by"]["mfr"] == "alexnet"


def test_baseline_that_never_flips_has_no_ratio(tmp_path):
    theirs = alexnet()
    theirs.metrics["flip_probability/snow"] = 0.0
    found = divided(perturbed(), tmp_path, beside=[theirs])
    assert "mfr" not in found.metrics
    assert found.metrics["mt5d"] == pytest.approx(100)
    told = found.protocol["divided_by"]["mfr"]
    assert "the baseline's flip_probability/snow is 0.0, which must be positive" in told


def test_perturbation_that_the_baseline_lacks_is_named(tmp_path):
    theirs = alexnet()
    del theirs.metrics["flip_probability/snow"]
    theirs.metrics["flip_probability/tilt"] = None
    told = divided(perturbed(), tmp_path, beside=[theirs]).protocol["divided_by"]["mfr"]
    assert "the baseline lacks flip_probability/snow, flip_probability/tilt" in told


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        ({"severities": (1,)}, {}, r"measured with severities \[1, 2, 3, 4, 5\], not \[1\]"),
        ({"dataset": "shapes"}, {}, "give a record of imagenet-c or imagenet-p on the same"),
        ({"data_sha256": "a" * 64}, {"data_sha256": "b" * 64}, "was measured on other images"),
        ({}, {"counts": {}}, "lacks the counts samples/brightness/1"),
        (
            {},
            {"counts": dict.fromkeys(corrupted(0.5).counts, 12)},
            "was measured with samples/brightness/1 12, not 1000; measure both on the same images",
        ),
    ],
)
def test_baseline_must_have_been_measured_in_the_same_way(tmp_path, ours, theirs, message):
    other = loaded(corrupted(0.5, **theirs), tmp_path / "moco")
    with pytest.raises(ValueError, match=message):
        divided(corrupted(0.5, **ours), tmp_path, other)


def test_what_one_run_lacks_is_no_error_where_another_has_it(tmp_path):
    other = loaded(corrupted(0.5, dataset="shapes"), tmp_path / "moco")
    first = loaded(corrupted(0.4, dataset="shapes"), tmp_path / "a")
    second = loaded(corrupted(0.4, dataset="shapes", severities=(1,)), tmp_path / "b")
    first, second = with_ratios([first, second], [other])
    assert first.record.metrics["mce_vs_moco"] == pytest.approx(80)
    told = second.record.protocol["divided_by"]["mce_vs_moco"]
    assert told.startswith("left out: ")
    assert second.record.metrics == {"top1/avg": 50.0}


def test_alexnet_file_of_version_0_1_0_is_read(tmp_path):
    content = {
        "network": "AlexNet",
        "dataset": "imagenet_p",
        "protocol": perturbed().protocol,
        "counts": perturbed().counts,
        "metrics": perturbed(8.0).metrics,
        "unofficial_reason": "every 2. frame only; a part",
    }
    path = tmp_path / "imagenet_p_baseline.json"
    path.write_text(json.dumps(content))
    found = divided(perturbed(2.0), tmp_path, *find_baselines(path))
    assert found.metrics["mfr"] == pytest.approx(25)
    assert found.unofficial_reasons == (
        "baseline: every 2. frame only",
        "baseline: a part",
    )
    assert len(PERTURBATIONS) == find_baselines(path)[0].record.num_samples / 10


def test_files_that_are_no_baseline_are_named(tmp_path):
    path = tmp_path / "record.json"
    with pytest.raises(ValueError, match="does not exist"):
        find_baselines(path)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"record\.json is not JSON"):
        find_baselines(path)
    with pytest.raises(ValueError, match="has no record of imagenet-c or imagenet-p"):
        find_baselines(loaded(record(), tmp_path / "run").path)
