"""The figure of latent spaces: checkpoints side by side, of the same classes."""

import pytest
import torch
from matplotlib.image import imread

from ser_lightning.reporting.latent_figure import LatentPanel, latent_figure, latent_figures
from ser_lightning.results.points import Points, write_points

METRICS = {"purity": 40.0, "purity/cat": 50.0, "purity/dog": 30.0, "purity_chance": 10.0}


def panel(title, names=("cat", "dog")):
    label = torch.arange(20) % len(names)
    return LatentPanel(title, Points(torch.randn(20, 2), label, names), METRICS)


def test_figure_has_a_column_for_each_checkpoint(tmp_path):
    latent_figures(tmp_path / "new" / "one.png", [panel("one")])
    latent_figures(tmp_path / "new" / "two.png", [panel("one"), panel("two")], "a title")
    one, two = (imread(tmp_path / "new" / f"{name}.png") for name in ("one", "two"))
    assert one.std() > 0.01
    assert two.shape[1] > 1.5 * one.shape[1]


def test_figure_of_a_record_is_drawn_from_the_points_beside_it(tmp_path):
    write_points(tmp_path / "latent-shapes.json", panel("").points)
    latent_figure(tmp_path / "latent-shapes.png", METRICS, "a title")
    assert imread(tmp_path / "latent-shapes.png").std() > 0.01


def test_other_classes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="measured on other classes; give the same images"):
        latent_figures(tmp_path / "x.png", [panel("one"), panel("two", ("cat", "cow"))])


def test_class_with_dollars_is_no_formula(tmp_path):
    latent_figures(tmp_path / "x.png", [panel("a$b$", ("$\\frac$", "$"))])
    assert imread(tmp_path / "x.png").std() > 0.01
