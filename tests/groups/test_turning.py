"""Turns by any angle: exact where they can be, bilinear elsewhere, and what stays inside."""

import math

import pytest
import torch
from scipy import ndimage

from ser_lightning.groups import GroupElement, act
from ser_lightning.groups.turning import stays_inside, turn, turn_each


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_quarter_turns_are_those_of_the_action_bit_by_bit(quarters):
    maps = torch.randn(2, 3, 5, 5)
    element = GroupElement.from_turns(
        torch.zeros(2, dtype=torch.bool), torch.full((2,), quarters), (5, 5)
    )
    assert torch.equal(turn(maps, 90.0 * quarters), act(element, maps))
    assert torch.equal(turn(maps, 90.0 * quarters - 360), act(element, maps))


@pytest.mark.parametrize("degrees", [10, 45, 46, 100, 200.5, 314, -30])
@pytest.mark.parametrize("side", [5, 8])
def test_other_turns_are_bilinear_with_zeros_around(degrees, side):
    maps = torch.randn(1, 1, side, side, dtype=torch.float64)
    expected = ndimage.rotate(
        maps[0, 0].numpy(), degrees, reshape=False, order=1, mode="grid-constant"
    )
    torch.testing.assert_close(turn(maps, degrees)[0, 0], torch.from_numpy(expected))


@pytest.mark.parametrize("degrees", [10.0, 45.0, 200.5, -30.0])
@pytest.mark.parametrize("shape", [(8, 8), (5, 9)])
def test_turns_each_on_its_own_are_bilinear_with_reflections_around(degrees, shape):
    maps = torch.randn(2, 1, *shape, dtype=torch.float64)
    moved = turn_each(maps, torch.tensor([degrees, -2 * degrees]))
    for one, before, angle in zip(moved, maps, (degrees, -2 * degrees), strict=True):
        expected = ndimage.rotate(before[0].numpy(), angle, reshape=False, order=1, mode="reflect")
        torch.testing.assert_close(one[0], torch.from_numpy(expected))


@pytest.mark.parametrize("degrees", [0, 17, 45, 90, 123, 180, 270, 359])
@pytest.mark.parametrize("side", [4, 7, 14])
def test_cells_stay_inside_whose_corners_do(degrees, side):
    angle = math.radians(degrees)
    inside = stays_inside(degrees, side)
    for row in range(side):
        for column in range(side):
            corners = [(column + i - side / 2, row + j - side / 2) for i in (0, 1) for j in (0, 1)]
            before = [
                abs(part)
                for x, y in corners
                for part in (
                    math.cos(angle) * x - math.sin(angle) * y,
                    math.sin(angle) * x + math.cos(angle) * y,
                )
            ]
            assert inside[row, column] == (max(before) <= side / 2 + 1e-9)


def test_inside_no_cell_is_blended_with_what_is_around():
    for degrees in (15, 45, 77):
        turned = turn(torch.ones(1, 1, 9, 9), degrees)[0, 0]
        torch.testing.assert_close(turned[stays_inside(degrees, 9)], torch.ones(()).expand(
            int(stays_inside(degrees, 9).sum())))  # fmt: skip
        assert turned[0, 0] < 0.9


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_the_result_alone(dtype):
    maps = torch.linspace(0, 1, 224).expand(2, 3, 224, 224).to(dtype)
    angles = torch.tensor([30.0, -7.0])
    expected = turn_each(maps.float(), angles).to(dtype)
    torch.testing.assert_close(turn_each(maps, angles), expected, rtol=0, atol=0)
    torch.testing.assert_close(turn(maps, 30), turn(maps.float(), 30).to(dtype), rtol=0, atol=0)


def test_maps_that_are_not_square_are_refused():
    with pytest.raises(ValueError, match="a map of 4 x 6 cannot be turned in its frame"):
        turn(torch.zeros(1, 1, 4, 6), 30)
