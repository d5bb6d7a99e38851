"""The figure of the local equivariance error: a panel per transformation."""

import pytest
from matplotlib.image import imread

from ser_lightning.reporting.lee_figure import lee_figure

METRICS = {
    f"lee/{row}/{name}_{place}": 0.5 + i
    for row in ("relative", "random_init_relative", "no_action")
    for name in ("rotation", "translation_x", "scale", "shear")
    for i, place in enumerate(("cls", "final", "block11", "block2"))
}


def test_figure_is_a_png_with_rows_of_panels(tmp_path):
    lee_figure(tmp_path / "new" / "one.png", {"lee/relative/shear_cls": 0.8, "top1": 3.0})
    lee_figure(tmp_path / "new" / "four.png", METRICS, "a title")
    one, four = (imread(tmp_path / "new" / f"{name}.png") for name in ("one", "four"))
    assert one.std() > 0.01
    assert four.shape[1] > 2.5 * one.shape[1]
    assert four.shape[0] > 1.5 * one.shape[0]


def test_metrics_of_another_stage_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no metric is called like lee/relative/rotation_cls"):
        lee_figure(tmp_path / "x.png", {"lee/rotation_cls": 3.0})
