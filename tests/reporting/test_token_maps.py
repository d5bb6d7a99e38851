"""Token maps next to each other, and their colours."""

import pytest
import torch
import torch.nn.functional as F

from ser_lightning.groups import GroupElement
from ser_lightning.reporting.token_maps import colour_maps, token_maps_of


class PatchMean(torch.nn.Module):
    """Equivariant to flips and turns exactly."""

    patch_size = 4

    def token_maps(self, images, layers):
        return tuple(F.avg_pool2d(images, self.patch_size) for _ in layers)


def test_maps_of_an_equivariant_encoder_agree():
    element = GroupElement.from_turns(torch.tensor([True]), torch.tensor([1]), (3, 5))
    maps = token_maps_of(PatchMean(), torch.randn(3, 12, 20), element, 1, torch.zeros(3))
    assert maps.acted.shape == (3, 5, 3)
    torch.testing.assert_close(maps.transformed, maps.acted)
    torch.testing.assert_close(maps.agreement, torch.ones(5, 3))
    assert maps.centred == pytest.approx(1, abs=1e-6)


def test_a_scaled_map_has_the_size_of_the_transformed_image():
    element = GroupElement.identity(1, (4, 2))
    maps = token_maps_of(PatchMean(), torch.randn(3, 12, 12), element, 1, torch.zeros(3))
    assert maps.acted.shape == maps.transformed.shape == (3, 4, 2)
    assert 0 < maps.centred < 1


def test_the_mean_token_does_not_count():
    element, mean = GroupElement.identity(1, (4, 2)), torch.full((3,), 5.0)
    pixels = torch.randn(3, 12, 12)
    plain = token_maps_of(PatchMean(), pixels, element, 1, torch.zeros(3))
    shifted = token_maps_of(PatchMean(), pixels + 5, element, 1, mean)
    assert shifted.centred == pytest.approx(plain.centred, abs=1e-5)


def test_equal_tokens_have_equal_colours_in_all_maps():
    first = torch.randn(8, 3, 5)
    colours = colour_maps([first, first.flip(-1), torch.randn(8, 2, 2)])
    assert [x.shape for x in colours] == [(3, 5, 3), (3, 5, 3), (2, 2, 3)]
    torch.testing.assert_close(colours[0], colours[1].flip(1))
    assert all(x.min() >= 0 and x.max() <= 1 for x in colours)


def test_colours_do_not_depend_on_the_order_of_maps():
    first, second = torch.randn(8, 3, 5), torch.randn(8, 4, 4)
    forward, backward = colour_maps([first, second]), colour_maps([second, first])
    torch.testing.assert_close(forward[0], backward[1], atol=1e-5, rtol=0)


def test_colours_run_from_blue_to_orange():
    """Nobody needs to tell red from green: blue falls where red rises."""
    (colours,) = colour_maps([torch.randn(8, 20, 20)])
    hue = colours - colours.mean(2, keepdim=True)
    assert torch.corrcoef(hue[..., [0, 2]].flatten(0, 1).T)[0, 1] < -0.9


def test_constant_maps_have_a_colour_too():
    assert torch.isfinite(colour_maps([torch.ones(4, 2, 2)])[0]).all()
