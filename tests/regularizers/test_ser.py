import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from regularizers.ser_parts import (
    GRIDS,
    HIDDEN,
    WIDTH,
    make_elements,
    make_maps,
    make_regularizer,
    oracle,
)
from ser_lightning.groups import GroupElement, act, relative
from ser_lightning.regularizers import SERRegularizer, token_info_nce


@pytest.mark.parametrize("grids", [GRIDS, ((3, 5), (4, 4)), ((2, 2), (5, 3))])
@pytest.mark.parametrize("with_target", [True, False])
def test_loss_equals_the_formula_written_out(grids, with_target):
    elements = make_elements(3, grids=grids)
    maps, target = make_maps(elements), make_maps(elements, seed=5)
    regularizer = make_regularizer()
    loss = regularizer(maps, elements, target if with_target else None).loss
    expected = oracle(regularizer, maps, elements, target if with_target else maps)
    # Measured: at most 2e-16 on equal, 1e-15 on other grids.
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)


def test_parameters_at_width_384():
    regularizer = SERRegularizer(384)
    assert sum(p.numel() for p in regularizer.projector.parameters()) == 458_752
    assert sum(p.numel() for p in regularizer.norm.parameters()) == 768
    assert list(regularizer.state_dict()) == [
        "norm.weight",
        "norm.bias",
        "projector.0.weight",
        "projector.2.weight",
    ]


def test_gradient_reaches_online_maps_norm_and_projector_but_not_the_target():
    elements = make_elements(3)
    maps = [x.requires_grad_() for x in make_maps(elements)]
    target = [x.requires_grad_() for x in make_maps(elements, seed=5)]
    regularizer = make_regularizer()
    regularizer(maps, elements, target).loss.backward()
    for x in (*maps, *regularizer.parameters()):
        assert x.grad.abs().max() > 1e-6
    assert all(x.grad is None for x in target)


def test_target_side_adds_no_gradient_to_norm_and_projector():
    elements = make_elements(3)
    maps, target = make_maps(elements), make_maps(elements, seed=5)
    regularizer = make_regularizer()
    regularizer(maps, elements, target).loss.backward()
    frozen = make_regularizer()  # the same weights, on the target side only
    online = make_regularizer()
    losses = []
    for i, j in ((0, 1), (1, 0)):
        moved = act(relative(elements[j], elements[i]), frozen._project([target[j]])[0].detach())
        pair = [F.normalize(x, dim=1).flatten(2).mT for x in (online._project([maps[i]])[0], moved)]
        losses.append(token_info_nce(*pair, 0, online.temperature))
    (sum(losses) / 2).backward()
    for one, other in zip(regularizer.parameters(), online.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-10, atol=1e-14)


def test_gradient_without_target_reaches_both_sides():
    elements = make_elements(3)
    maps = [x.requires_grad_() for x in make_maps(elements)]
    regularizer = make_regularizer()
    regularizer(maps, elements).loss.backward()
    both_sides = maps[0].grad.clone()
    maps[0].grad = None
    regularizer(maps, elements, [x.detach() for x in maps]).loss.backward()
    assert maps[0].grad.abs().max() > 1e-6
    assert not torch.allclose(maps[0].grad, both_sides)


def test_single_image_gives_exactly_zero_and_a_warning():
    elements = make_elements(1)
    with pytest.warns(UserWarning, match="loss of one image is 0, .* give it two or more"):
        assert make_regularizer()(make_maps(elements), elements).loss.item() == 0


@pytest.mark.parametrize("parities", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_equivariant_maps_have_positive_similarity_one_for_all_of_d4(parities):
    """Patch means as the encoder; 16 images take all 4 x 4 pairs that share these parities."""
    codes = torch.arange(16)
    elements = tuple(
        GroupElement((codes // a) % 2 == 1, (codes // b) % 2 == 1, parity, (4, 4))
        for (a, b), parity in zip(((1, 2), (4, 8)), parities, strict=True)
    )
    torch.manual_seed(0)
    images = torch.randn(16, WIDTH, 16, 16, dtype=torch.float64)
    maps = [F.avg_pool2d(act(e, images, cell=4), 4) for e in elements]
    regularizer = make_regularizer(temperature=0.001)
    projected = regularizer._project(maps)
    moved = act(relative(elements[1], elements[0]), projected[1])
    similarity = F.cosine_similarity(projected[0], moved, dim=1)
    # Measured: within 4e-16 of 1.
    torch.testing.assert_close(similarity, torch.ones_like(similarity), rtol=0, atol=1e-12)
    exact = regularizer(maps, elements, maps).loss
    wrong = regularizer(maps, (elements[1], elements[1]), maps).loss
    assert exact < 0.2 < wrong


def test_chance_level_is_the_loss_of_equal_features():
    elements = make_elements(3, grids=((3, 4), (2, 5)))
    maps = [torch.ones_like(x) for x in make_maps(elements)]
    regularizer = make_regularizer()
    torch.nn.init.ones_(regularizer.norm.bias)
    output = regularizer(maps, elements)
    expected = (math.log(1 + 2 * 12) + math.log(1 + 2 * 10)) / 2
    assert output.logs["loss/equivariance_chance"].item() == pytest.approx(expected)
    assert output.loss.item() == pytest.approx(expected)
    assert not output.logs["loss/equivariance_chance"].requires_grad


@pytest.mark.parametrize("with_target", [True, False])
def test_bfloat16_autocast_is_close_to_float32(with_target):
    elements = make_elements(4)
    maps = [x.float().requires_grad_() for x in make_maps(elements)]
    target = [x.detach() for x in maps] if with_target else None
    regularizer = make_regularizer().float()
    grads = []
    losses = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = regularizer(maps, elements, target).loss
        assert loss.dtype == torch.float32
        losses.append(loss.item())
        grads.append(torch.autograd.grad(loss, [*maps, *regularizer.parameters()]))
    # Measured: 1.1e-3 in the loss, 8e-3 relative in the gradients.
    assert losses[1] == pytest.approx(losses[0], abs=5e-3)
    for exact, rounded in zip(*grads, strict=True):
        assert (exact - rounded).norm() <= 2e-2 * exact.norm()


def test_ten_lines_in_a_plain_loop_lower_the_loss():
    torch.manual_seed(0)
    encoder = torch.nn.Conv2d(3, WIDTH, 4, stride=4)
    regularizer = SERRegularizer(width=WIDTH, hidden=HIDDEN)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *regularizer.parameters()], lr=1e-2)
    images = torch.randn(4, 3, 16, 16)
    elements = make_elements(4, grids=((4, 4), (4, 4)))
    losses = []
    for _ in range(20):
        maps = tuple(encoder(act(element, images, cell=4)) for element in elements)
        loss = regularizer(maps, elements).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("target", [False, True])
def test_map_of_another_shape_than_its_element_raises(target):
    elements = make_elements(3)
    maps = make_maps(elements)
    swapped = (maps[0].mT, maps[1])
    with pytest.raises(ValueError, match="target_maps of" if target else "^maps of"):
        make_regularizer()(*((maps, elements, swapped) if target else (swapped, elements)))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda maps, elements: (maps[:1], elements[:1]),
        lambda maps, elements: ((*maps, maps[0]), elements),
        lambda maps, elements: (tuple(view[0] for view in maps), elements),
        lambda maps, elements: (tuple(view[:, 1:] for view in maps), elements),
        lambda maps, elements: (tuple(view[1:] for view in maps), elements),
    ],
    ids=["one view", "three maps", "one image", "other channels", "fewer images"],
)
def test_maps_that_are_not_of_two_views_raise(spoil):
    elements = make_elements(3)
    with pytest.raises(ValueError, match=r"^maps of shapes .* give .*; pass two views, each"):
        make_regularizer()(*spoil(make_maps(elements), elements))


@pytest.mark.parametrize("kind", ["numpy", "tolist"])
def test_maps_that_are_no_tensors_raise(kind):
    elements = make_elements(3)
    maps = tuple(getattr(view, kind)() for view in make_maps(elements))
    name = {"numpy": "ndarray", "tolist": "list"}[kind]
    with pytest.raises(ValueError, match=rf"^maps are {name} and {name}; give tensors"):
        make_regularizer()(maps, elements)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": -1.0}, "weight -1.0"),
        ({"temperature": 0.0}, "temperature 0.0"),
        ({"width": 0}, "width 0 must be int >= 1"),
        ({"hidden": 0}, "hidden 0 must be int >= 1"),
    ],
)
def test_bad_options_raise(options, message):
    with pytest.raises(ValueError, match=message):
        SERRegularizer(**options)


def test_projector_of_a_narrow_backbone_is_twice_its_width():
    widths = {width: SERRegularizer(width).projector[0].out_channels for width in (64, 96, 384)}
    assert widths == {64: 128, 96: 192, 384: 512}


def test_loss_without_a_width_says_how_to_give_it():
    maps = torch.zeros(2, 8, 4, 4)
    element = GroupElement.identity(2, (4, 4))
    with pytest.raises(ValueError, match=r"SERRegularizer\(width=8\)"):
        SERRegularizer()((maps, maps), (element, element))


def test_projection_is_norm_and_two_convolutions_of_every_map():
    torch.manual_seed(0)
    regularizer = SERRegularizer(8, hidden=12).double()
    torch.nn.init.normal_(regularizer.norm.weight)
    maps = [torch.randn(2, 8, h, w, dtype=torch.float64) for h, w in ((3, 4), (5, 2))]
    for view, projected in zip(maps, regularizer._project(maps), strict=True):
        normed = regularizer.norm(view.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        torch.testing.assert_close(projected, regularizer.projector(normed))


def test_every_layer_of_a_projector_of_ones_own_is_used_and_trained():
    elements = make_elements(3)
    regularizer = make_regularizer()
    regularizer.projector = nn.Sequential(
        nn.Conv2d(WIDTH, 6, 1), nn.GELU(), nn.Conv2d(6, 5, 1), nn.ReLU(), nn.Conv2d(5, 4, 1)
    ).double()
    maps = make_maps(elements)
    found = regularizer._project(maps)
    for view, projected in zip(maps, found, strict=True):
        normed = regularizer.norm(view.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        expected = regularizer.projector(normed)
        torch.testing.assert_close(projected, expected, rtol=1e-10, atol=1e-12)
    regularizer(maps, elements).loss.backward()
    assert all(p.grad.abs().max() > 0 for p in regularizer.parameters())
