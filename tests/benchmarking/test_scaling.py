"""Made-up folders are as a walk finds them, points are measured, and lines fitted."""

from collections import Counter

import pytest

from benchmarks import scaling
from ser_lightning.sources import listing


def test_made_up_folders_are_what_the_walk_finds(tmp_path):
    made = scaling.made_up_folders(listing._Folder, num_images=7, num_classes=3)
    for folder in made.values():
        for image in folder.images:
            (tmp_path / image).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / image).touch()
    found, left_out = listing._walk(tmp_path, {}, (".jpeg",))
    assert left_out == Counter()
    assert list(found) == sorted(made)
    for name, folder in found.items():
        assert folder.images == made[name].images
        assert sorted(folder.folders) == made[name].folders


def test_index_is_kept_and_a_worker_holds_names_and_labels(monkeypatch):
    monkeypatch.setattr(listing, "_walk", listing._walk)  # put back after the test
    monkeypatch.setenv("SER_LIGHTNING_CACHE", "")  # the same
    found = scaling.measure_index(2000, 4)
    assert found["file_megabytes"] > 0  # an index was kept
    names = len("n00000000/n00000000_499.JPEG")
    assert found["megabytes_in_a_worker"] == pytest.approx(2000 * (names + 8) / 1e6, rel=0.3)


def test_order_is_eight_bytes_for_each_image_of_an_epoch():
    found = scaling.measure_order(500_000)
    assert found["megabytes_of_two_epochs"] <= 2 * 8 * 0.5 + 4
    assert found["order_seconds"] > found["step_seconds"] > 0


def test_line_passes_through_points_on_a_line():
    start, slope, worst = scaling.line_through([1, 2, 4], [5, 7, 11])
    assert (start, slope) == pytest.approx((3, 2))
    assert worst == pytest.approx(0, abs=1e-12)
    assert scaling.line_through([1, 2, 3], [1, 2, 6])[2] > 0.1


def test_loss_is_measured_beside_all_candidates():
    found = scaling.measure_loss(2, 3)
    assert found["gathered"] == 2 * 3 * scaling.TOKENS * scaling.CHANNELS * 4 / 1e6
    assert found["seconds"] > 0
