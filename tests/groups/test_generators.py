"""How maps begin to change: against differences of bilinear sampling, and in closed form."""

import math

import pytest
import torch

from sampled_action import central_difference, sampled
from ser_lightning.groups.generators import GENERATORS, generate


def coordinates(side):
    place = (torch.arange(side, dtype=torch.float64) + 0.5 - side / 2) / (side / 2)
    return place.expand(side, side), place[:, None].expand(side, side)


@pytest.mark.parametrize("name", GENERATORS)
def test_generator_is_the_derivative_of_bilinear_sampling(name):
    maps = torch.randn(2, 3, 7, 7, dtype=torch.float64)
    expected = central_difference(lambda t: sampled(name, t, maps), 1e-6)
    # measured: 3e-5, of the order of the step, as sampling has a kink at 0
    torch.testing.assert_close(generate(name, maps), expected, atol=3e-4, rtol=0)


def test_generators_of_the_coordinates_are_the_velocities():
    x, y = coordinates(6)
    maps = torch.stack([x, y])[None]
    for name, (dx, dy) in GENERATORS.items():
        expected = torch.stack([a * x + b * y + c for a, b, c in (dx, dy)])[None]
        torch.testing.assert_close(generate(name, maps), -expected, atol=1e-12, rtol=0)


def test_sides_of_one_map_have_the_same_unit():
    ramp = torch.arange(12, dtype=torch.float64).expand(1, 1, 4, 12)
    # half of the shorter side is 2 pixels
    torch.testing.assert_close(generate("translation_x", ramp), torch.full_like(ramp, -2))


def test_rotation_is_counter_clockwise_as_quarter_turns_are():
    maps = torch.randn(1, 2, 5, 5, dtype=torch.float64)
    turned = sampled("rotation", math.pi / 2, maps)
    torch.testing.assert_close(turned, torch.rot90(maps, 1, (-2, -1)))


def test_constant_maps_do_not_change():
    assert not any(generate(name, torch.ones(1, 1, 3, 4)).any() for name in GENERATORS)


def test_unknown_transformations_and_single_cells_are_refused():
    with pytest.raises(ValueError, match="no transformation 'spin'; use some of translation_x"):
        generate("spin", torch.zeros(1, 1, 4, 4))
    with pytest.raises(ValueError, match="a map of 1 x 4 has no neighbours"):
        generate("scale", torch.zeros(1, 1, 1, 4))
