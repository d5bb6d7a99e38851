import math

import pytest
import torch
from torch import nn

from regularizers.equimod_stl_parts import (
    NUM_IMAGES,
    WIDTH,
    assert_same_gradients,
    contrast,
    features_of,
    head,
    layer_norm,
    loss_and_gradients,
    make_batch,
    make_cls,
    make_regularizer,
)
from ser_lightning.batch import ViewNeeds
from ser_lightning.regularizers.stl import STL


class Times(nn.Module):
    """Multiplies rows by a fixed matrix."""

    def __init__(self, matrix):
        super().__init__()
        self.matrix = matrix

    def forward(self, x):
        return x @ self.matrix


def oracle(regularizer, cls, batch):
    y1, y2 = (layer_norm(regularizer.norm, x) for x in cls[:2])
    t12 = head(regularizer.transformation_backbone, torch.cat([y1, y2], dim=1))
    t21 = head(regularizer.transformation_backbone, torch.cat([y2, y1], dim=1))
    moved = {1: [], 2: []}
    for i in range(len(y1)):
        partner = i + 1 if i % 2 == 0 else i - 1
        for view, t, y in ((1, t21, y2), (2, t12, y1)):
            matrix = (regularizer.hypernetwork.weight @ t[partner]).reshape(WIDTH, WIDTH)
            moved[view].append(matrix @ y[i])
    project = regularizer.equivariance_projector
    views = torch.cat([head(project, y1), head(project, y2)])
    predicted = torch.cat([head(project, torch.stack(moved[view])) for view in (1, 2)])
    num_images = len(y1)
    even, odd = (
        head(
            regularizer.transformation_projector,
            torch.stack([t[i] for t in (t12, t21) for i in range(start, num_images, 2)]),
        )
        for start in (0, 1)
    )
    tau = regularizer.temperature
    l_predicted = contrast(views, predicted, tau) + contrast(predicted, views, tau)
    l_shared = contrast(even, odd, tau) + contrast(odd, even, tau)
    return regularizer.equivariance * l_predicted + regularizer.transformation * l_shared


def test_loss_and_gradients_equal_the_loop_written_out():
    regularizer = make_regularizer(STL, temperature=0.3, equivariance=0.7, transformation=0.4)
    assert_same_gradients(regularizer, make_cls(), make_batch(), oracle, num_cls=2)


def test_parameter_count_at_width_384():
    regularizer = STL(384)
    count = {
        name: sum(p.numel() for p in child.parameters())
        for name, child in regularizer.named_children()
    }
    assert count == {
        "transformation_backbone": 114_944,
        "hypernetwork": 18_874_368,
        "equivariance_projector": 263_168,
        "transformation_projector": 33_024,
    }
    assert 42_890_752 + sum(count.values()) == 62_176_256  # with MoCo-v3
    assert STL.needs == ViewNeeds(cls=True, paired=True)


def test_logged_terms_are_weighted_and_add_up():
    cls, terms = make_cls(), {}
    for name, weights in {"both": (0.5, 2.0), "unweighted": (1.0, 1.0)}.items():
        regularizer = make_regularizer(STL, equivariance=weights[0], transformation=weights[1])
        output = regularizer.regularize(features_of(cls), None, make_batch())
        assert output.loss == sum(output.logs.values())
        assert not any(term.requires_grad for term in output.logs.values())
        terms[name] = output.logs
    both, unweighted = terms["both"], terms["unweighted"]
    assert both["loss/predicted"] == 0.5 * unweighted["loss/predicted"]
    assert both["loss/shared"] == 2 * unweighted["loss/shared"]


def test_images_all_alike_give_the_chance_value():
    cls = [make_cls()[0][:1].repeat(NUM_IMAGES, 1)] * 2
    regularizer = make_regularizer(STL)
    logs = regularizer.regularize(features_of(cls), None, make_batch()).logs
    # Both directions of 2 tau log(number of candidates): all views, or t12 and t21 of half of them.
    assert logs["loss/predicted"] == pytest.approx(0.8 * math.log(2 * NUM_IMAGES), rel=1e-12)
    assert logs["loss/shared"] == pytest.approx(0.08 * math.log(NUM_IMAGES), rel=1e-12)


def with_known_change(num_images=2):
    """View 2 is view 1 turned in feature space; STL with heads that know it, and its features."""
    turn = torch.eye(WIDTH).double().roll(num_images, 0)  # unit vector i to i + num_images
    first = torch.eye(WIDTH).double()[:num_images]
    second = first @ turn.T
    regularizer = make_regularizer(STL, is_final=True, hidden=2)
    # t is (1, 0) from view 1 to view 2 and (0, 1) back.
    of_first = torch.arange(WIDTH) < num_images
    to_t = torch.stack([of_first, ~of_first], dim=1).double()
    regularizer.transformation_backbone = Times(torch.cat([to_t, torch.zeros(WIDTH, 2)]))
    regularizer.hypernetwork.weight.data = torch.stack([turn.flatten(), turn.T.flatten()], dim=1)
    regularizer.equivariance_projector = nn.Identity()
    regularizer.transformation_projector = nn.Identity()
    return regularizer, features_of([first, second])


def test_perfect_prediction_of_orthogonal_features():
    regularizer, features = with_known_change()
    logs = regularizer.regularize(features, None, make_batch()).logs
    # Cosine 1 with the own row; 0 with the other 3, and with the partner's opposite change.
    assert logs["loss/predicted"] == pytest.approx(
        0.8 * math.log(1 + 3 * math.exp(-1 / 0.2)), rel=1e-12
    )
    assert logs["loss/shared"] == pytest.approx(0.08 * math.log(1 + math.exp(-1 / 0.2)), rel=1e-12)


def test_change_in_the_wrong_direction_gives_the_chance_value():
    regularizer, features = with_known_change()
    regularizer.hypernetwork.weight.data = regularizer.hypernetwork.weight.data.flip(1)
    logs = regularizer.regularize(features, None, make_batch()).logs
    # Both predictions are orthogonal to all 4 rows.
    assert logs["loss/predicted"] == pytest.approx(0.8 * math.log(4), rel=1e-12)


def test_random_weights_are_near_chance():
    num_images, width = 32, 128
    regularizer = make_regularizer(STL, True, width=width, hidden=8)
    regularizer.equivariance_projector = nn.Identity()
    logs = regularizer.regularize(
        features_of(make_cls(num_images, width=width)), None, make_batch(num_images)
    ).logs
    # Independent cosines of variance 1 / width raise log-sum-exp by half the logits' variance.
    expected = 0.8 * (math.log(2 * num_images) + 1 / (2 * width * 0.2**2))
    assert logs["loss/predicted"] == pytest.approx(expected, abs=0.1)  # measured: 0.06


def test_product_is_that_of_the_matrices_written_out():
    regularizer = make_regularizer(STL)
    y, t = torch.randn(5, WIDTH).double(), torch.randn(5, 7).double()
    matrices = regularizer.hypernetwork(t).reshape(5, WIDTH, WIDTH)
    expected = (matrices @ y[:, :, None])[:, :, 0]
    torch.testing.assert_close(regularizer._transform(y, t), expected, rtol=1e-12, atol=1e-14)


def test_gradient_reaches_both_cls_and_all_parameters_but_no_tokens():
    regularizer = make_regularizer(STL)
    cls = [x.requires_grad_() for x in make_cls()]
    features = features_of(cls)
    regularizer.regularize(features, None, make_batch()).loss.backward()
    for x in (*cls[:2], *regularizer.parameters()):
        assert x.grad.abs().max() > 1e-6
    assert cls[2].grad is None  # a plain view, which STL does not read
    assert all(view.taps[0].tokens.grad is None for view in features.crop)


@pytest.mark.parametrize(
    ("weights", "without"),
    [
        ({"equivariance": 0.0}, {"hypernetwork", "equivariance_projector"}),
        ({"transformation": 0.0}, {"transformation_projector"}),
    ],
)
def test_term_of_weight_0_trains_nothing(weights, without):
    regularizer = make_regularizer(STL, **weights)
    regularizer.regularize(features_of(make_cls()), None, make_batch()).loss.backward()
    still = {
        name
        for name, child in regularizer.named_children()
        if all(not p.grad.any() for p in child.parameters())
    }
    assert still == without


def test_only_an_inner_tap_is_normed():
    inner, final = make_regularizer(STL), make_regularizer(STL, is_final=True)
    assert not list(final.norm.parameters())
    final.load_state_dict(
        {k: v for k, v in inner.state_dict().items() if not k.startswith("norm.")}
    )
    cls, batch = make_cls()[:2], make_batch()
    normed = [inner.norm(x).detach() for x in cls]
    losses = [loss_and_gradients(*args, batch)[0] for args in ((inner, cls), (final, normed))]
    assert losses[0] == losses[1]
    assert loss_and_gradients(final, cls, batch)[0] != losses[0]


def test_loss_is_float32_under_autocast_and_close_to_it():
    regularizer = make_regularizer(STL).float()
    features = features_of([x.float() for x in make_cls()])
    exact = regularizer.regularize(features, None, make_batch()).loss
    with torch.autocast("cpu", torch.bfloat16):
        loss = regularizer.regularize(features, None, make_batch()).loss
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=0.03, atol=0)


@pytest.mark.parametrize(
    ("num_images", "num_views", "message"),
    [
        (
            5,
            2,
            "has 5 images on this rank, STL needs pairs of them; choose `data.global_batch_size`",
        ),
        (4, 0, "has 0 images on this rank"),
    ],
)
def test_images_that_do_not_pair_raise(num_images, num_views, message):
    features = features_of(make_cls(num_images)[:num_views])
    with pytest.raises(ValueError, match=message):
        make_regularizer(STL).regularize(features, None, make_batch())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature 0.0 must be float > 0; the default is 0.2"),
        ({"equivariance": -0.5}, "equivariance -0.5 must be float >= 0"),
        ({"transformation": -1.0}, "transformation -1.0 must be float >= 0"),
        ({"hidden": 0}, "hidden 0 must be int >= 1"),
        ({"weight": -1.0}, "weight -1.0 must be float >= 0"),
    ],
)
def test_invalid_argument_raises(options, message):
    with pytest.raises(ValueError, match=message):
        STL(width=8, **options)
