"""SER on views turned by any angle: compared where both see the image."""

import numpy as np
import pytest
import torch

from objectives.tiny_run import assert_equal_trees, tiny_fit
from regularizers.ser_parts import (
    batch_of,
    features_of,
    make_elements,
    make_maps,
    make_regularizer,
)
from ser_lightning.groups import Frame, GroupElement, GroupSampler, relative, transport
from ser_lightning.objectives.moco_v3 import MoCoV3
from ser_lightning.regularizers import token_info_nce

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*isinstance.*treespec.*"),
]


def turned(elements, *angles):
    return tuple(
        element._replace(angle=torch.tensor(angle))
        for element, angle in zip(elements, angles, strict=True)
    )


def test_loss_and_gradients_equal_the_parts_written_out():
    elements = turned(make_elements(3), [10.0, -40.0, 25.0], [0.0, 5.0, -30.0])
    regularizer = make_regularizer()
    maps = tuple(x.requires_grad_() for x in make_maps(elements))
    frames = [Frame.of_element(element) for element in elements]

    def unit(projected):
        return torch.nn.functional.normalize(projected, dim=1).flatten(2).mT

    projected = [
        regularizer.projector(regularizer.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
        for x in maps
    ]
    losses = []
    for anchor, other in ((0, 1), (1, 0)):
        moved, valid = transport(projected[other], frames[other], frames[anchor])
        assert 0 < valid.sum() < valid.numel()
        losses.append(
            token_info_nce(unit(projected[anchor]), unit(moved), 0, 0.3, valid=valid.flatten(1))
        )
    expected = sum(losses) / 2
    output = regularizer(maps, elements)
    torch.testing.assert_close(output.loss, expected, rtol=1e-12, atol=0)
    leaves = [*maps, *regularizer.parameters()]
    for one, two in zip(
        torch.autograd.grad(output.loss, leaves),
        torch.autograd.grad(expected, leaves),
        strict=True,
    ):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-13)


def test_angles_of_zero_give_the_loss_of_bilinear_whole_views_of_one_grid():
    elements = make_elements(3, grids=((4, 4), (4, 4)))
    maps, regularizer = make_maps(elements), make_regularizer()
    still = turned(elements, [0.0] * 3, [0.0] * 3)
    torch.testing.assert_close(
        regularizer(maps, still).loss, regularizer(maps, elements).loss, rtol=1e-12, atol=0
    )


def test_log_that_is_no_loss_is_the_mean_over_pairs():
    elements = turned(make_elements(3), [10.0, -40.0, 25.0], [0.0, 5.0, -30.0])
    maps, regularizer = make_maps(elements), make_regularizer()
    one, two = (
        regularizer.regularize(features_of(maps * n), None, batch_of(elements * n)) for n in (1, 2)
    )
    chance = "loss/equivariance_chance"
    assert one.logs["valid_tokens"] == two.logs["valid_tokens"] > 0
    assert 2 * one.logs[chance] == two.logs[chance]
    assert 2 * one.loss == two.loss


def test_turned_views_have_no_exact_action():
    first, second = turned(make_elements(3), [1.0] * 3, [2.0] * 3)
    with pytest.raises(ValueError, match="transport"):
        relative(first, second)


@pytest.mark.slow
def test_interrupted_run_ends_bit_identical_to_the_unbroken_one(tmp_path):
    path = tmp_path / "stopped.ckpt"
    options = {"group": GroupSampler(angle=30.0)}
    whole = tiny_fit(MoCoV3, save_after=8, save_to=path, **options)
    resumed = tiny_fit(MoCoV3, resume_from=path, **options)
    plain = tiny_fit(MoCoV3)
    assert resumed.losses == whole.losses[8:]
    assert whole.losses != plain.losses
    assert_equal_trees(resumed.module.state_dict(), whole.module.state_dict())


def test_elements_move_their_angles_with_them():
    element = GroupElement.identity(2, (4, 4))._replace(angle=torch.tensor([1.0, 2.0]))
    assert element.to("meta").angle.device.type == "meta"
    assert np.array_equal(element.to("cpu").angle, [1.0, 2.0])
