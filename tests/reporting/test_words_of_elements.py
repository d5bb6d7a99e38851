"""What is drawn of a view, in words."""

import torch

from ser_lightning.batch import ViewRecord
from ser_lightning.groups import GroupElement
from ser_lightning.reporting.token_maps import describe_draws, describe_element


def test_words_name_flip_turn_and_the_grid_of_the_result():
    flip = torch.tensor([True, False])
    element = GroupElement.from_turns(flip, torch.tensor([1, 3]), (7, 9))
    assert describe_element(element) == "flip, 90 deg, 9x7 grid"
    assert describe_element(element, 1) == "270 deg, 9x7 grid"
    assert describe_element(GroupElement.identity(1, (8, 8))) == "upright, 8x8 grid"


def test_words_name_the_share_of_a_crop_and_the_colours_that_were_changed():
    nothing = torch.zeros(2)
    box = torch.tensor([[10.0, 0, 30, 40], [0, 0, 60, 80]])
    size = torch.tensor([[60.0, 80], [60, 80]])
    record = ViewRecord(size, box, *(nothing,) * 11)
    assert describe_draws(record) == "25 % of it"
    assert describe_draws(record, 1) == ""
    drawn = record._replace(
        flip=torch.tensor([1.0, 0]), jitter=torch.tensor([1.0, 1]), turn=torch.tensor([-12.0, 0]),
        blur_sigma=torch.tensor([0.0, 0.7]), solarize=torch.tensor([0.0, 1]),
    )  # fmt: skip
    assert describe_draws(drawn) == "25 % of it, -12 deg, flip, colours"
    assert describe_draws(drawn, 1) == "colours, blur, solarized"
