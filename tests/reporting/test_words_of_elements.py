"""Group elements in words."""

import torch

from ser_lightning.groups import GroupElement
from ser_lightning.reporting import describe_element


def test_words_name_flip_turn_and_the_grid_of_the_result():
    flip = torch.tensor([True, False])
    element = GroupElement.from_turns(flip, torch.tensor([1, 3]), (7, 9))
    assert describe_element(element) == "flip, 90 deg, 9x7 grid"
    assert describe_element(element, 1) == "270 deg, 9x7 grid"
    assert describe_element(GroupElement.identity(1, (8, 8))) == "upright, 8x8 grid"
