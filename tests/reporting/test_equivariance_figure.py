"""The figure over depth: what it takes from the metrics, and that it is written."""

import pytest
from matplotlib.image import imread

from ser_lightning.reporting.equivariance_figure import _angle_curves, _curves, equivariance_figure

METRICS = {
    f"equivariance/{row}{family}_{place}": 0.5 + 0.1 * i
    for row in ("", "chance/", "random_init_mean_centred/")
    for family in ("rotation", "flip")
    for i, place in enumerate(("block0", "block1", "final"))
}


def test_final_norm_follows_the_last_block():
    curves = _curves({**METRICS, "top1": 3.0, "equivariance/scale_final": None})
    assert set(curves) == {
        (family, row)
        for family in ("rotation", "flip")
        for row in ("", "chance", "random_init_mean_centred")
    }
    assert curves["flip", "chance"] == pytest.approx({0: 0.5, 1: 0.6, 2: 0.7})


def test_figure_is_a_png_with_a_panel_per_family(tmp_path):
    equivariance_figure(tmp_path / "new" / "one.png", {"equivariance/flip_final": 0.8})
    equivariance_figure(tmp_path / "new" / "two.png", METRICS, "a title")
    one, two = (imread(tmp_path / "new" / f"{name}.png") for name in ("one", "two"))
    assert one.std() > 0.01
    assert two.shape[1] > 1.5 * one.shape[1]


def test_angles_have_a_row_of_their_own(tmp_path):
    angles = {
        f"equivariance/{row}turn{angle}_{place}": angle / 400
        for row in ("", "random_init/", "no_action/")
        for angle in (22.5, 90, 180)
        for place in ("final", "block1")
    }
    assert _angle_curves({**METRICS, **angles})["block1"]["no_action"][22.5] == 22.5 / 400
    assert list(_angle_curves(angles)) == ["block1", "final"]
    equivariance_figure(tmp_path / "one.png", METRICS)
    equivariance_figure(tmp_path / "two.png", {**METRICS, **angles})
    one, two = (imread(tmp_path / f"{name}.png") for name in ("one", "two"))
    assert two.shape[0] > 1.5 * one.shape[0]


def test_metrics_of_another_stage_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no metric is called like equivariance/flip_final"):
        equivariance_figure(tmp_path / "x.png", {"top1": 3.0})
