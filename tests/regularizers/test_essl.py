"""E-SSL against a loop over images, and what it calls a turn."""

import math

import pytest
import torch
from torch import nn

from regularizers.essl_parts import (
    BATCH,
    TURNS,
    WIDTH,
    make_classes,
    make_features,
    make_regularizer,
    oracle,
)
from ser_lightning.batch import Tap, ViewNeeds
from ser_lightning.regularizers.essl import ESSL

WORLD = 2


@pytest.mark.parametrize("is_final", [False, True])
def test_loss_and_gradients_equal_the_formula_written_out(is_final):
    classes = make_classes()
    regularizer = make_regularizer(is_final)
    output = regularizer.regularize(make_features(classes), None, BATCH)
    expected, share = oracle(regularizer, classes)
    # Measured: 1e-16.
    torch.testing.assert_close(output.loss, expected, rtol=1e-12, atol=0)
    assert output.logs["essl/rotation_accuracy"].item() == pytest.approx(share)
    assert 0 < share < 1
    assert torch.equal(output.logs["loss/rotation"], output.loss.detach())

    inputs = [*classes, *regularizer.parameters()]
    for one, other in zip(
        torch.autograd.grad(output.loss, inputs), torch.autograd.grad(expected, inputs), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-14)


def test_gradient_reaches_all_turns_norm_and_head_alone():
    classes = make_classes()
    online, target = make_features(classes), make_features(make_classes())
    regularizer = make_regularizer()
    output = regularizer.regularize(online, target, BATCH)
    output.loss.backward()
    for x in (*classes, *regularizer.parameters()):
        assert x.grad.abs().max() > 1e-6
    untouched = [taps[0].tokens for taps in (*online.extra, *target.extra)]
    untouched += [taps[0].cls for taps in target.extra]
    assert all(x.grad is None for x in untouched)
    assert not any(value.requires_grad for value in output.logs.values())


def test_parameters_at_width_384():
    regularizer = ESSL(384)
    assert sum(p.numel() for p in regularizer.parameters()) == 397_316
    names = [type(layer).__name__ for layer in regularizer.head]
    assert names == [*(["Linear", "LayerNorm", "ReLU"] * 2), "Linear", "LayerNorm", "Linear"]
    regularizer.attach([Tap(3, True, False)], 384)
    assert sum(p.numel() for p in regularizer.norm.parameters()) == 768


def test_weight_and_needs():
    assert ESSL(384).weight == 0.4
    assert ESSL.needs == ViewNeeds(cls=True, rotated=True)


@pytest.mark.parametrize("is_final", [True, False])
def test_only_an_inner_tap_has_a_norm(is_final):
    classes = make_classes()
    regularizer = make_regularizer(is_final)
    assert isinstance(regularizer.norm, nn.Identity if is_final else nn.LayerNorm)
    # LayerNorm takes the scale of a row out, but for its epsilon; the biased head does not.
    losses = [
        regularizer.regularize(make_features([scale * x for x in classes]), None, BATCH).loss
        for scale in (1, 3)
    ]
    assert torch.isclose(*losses, rtol=1e-4) == (not is_final)


def test_constant_answers_give_log_four_and_a_quarter():
    regularizer = make_regularizer()
    nn.init.zeros_(regularizer.head[-1].weight)
    nn.init.ones_(regularizer.head[-1].bias)
    output = regularizer.regularize(make_features(make_classes()), None, BATCH)
    assert output.loss.item() == pytest.approx(math.log(4))
    assert output.logs["essl/rotation_accuracy"].item() == 0.25


@pytest.mark.parametrize(
    ("shift", "loss", "accuracy"), [(0, 0.0, 1.0), (1, 50.0, 0.0), (2, 50.0, 0.0)]
)
def test_label_of_a_view_is_its_place_among_the_extra_views(shift, loss, accuracy):
    """Each [CLS] names one turn, and the head repeats it."""
    named = torch.eye(TURNS, dtype=torch.float64).roll(shift, 0)
    classes = [50 * row.expand(2, TURNS) for row in named]
    regularizer = ESSL(TURNS)
    regularizer.attach([Tap(4, True, True)], TURNS)
    regularizer.head = nn.Identity()
    output = regularizer.regularize(make_features(classes), None, BATCH)
    assert output.loss.item() == pytest.approx(loss, abs=1e-12)
    assert output.logs["essl/rotation_accuracy"].item() == accuracy


def test_nothing_is_read_back_from_the_device():
    """Tensors on the meta device hold no numbers: whatever asks for one raises."""
    classes = [cls.detach().to("meta").requires_grad_() for cls in make_classes()]
    output = make_regularizer().to("meta").regularize(make_features(classes), None, BATCH)
    output.loss.backward()
    assert output.loss.shape == output.logs["essl/rotation_accuracy"].shape == ()


def test_bfloat16_autocast_is_close_to_float32():
    classes = [cls.detach().float() for cls in make_classes(16)]
    regularizer = make_regularizer().float()
    losses = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses.append(regularizer.regularize(make_features(classes), None, BATCH).loss)
    assert losses[1].dtype == torch.float32
    # Measured: 7e-4.
    torch.testing.assert_close(losses[1], losses[0], rtol=5e-3, atol=0)


@pytest.mark.parametrize("num_views", [0, 1, 3, 5])
def test_other_than_four_extra_views_raise(num_views):
    features = make_features(make_classes(num_views=num_views))
    with pytest.raises(ValueError, match=f"has {num_views} extra views, .* exactly 4: .*; keep"):
        make_regularizer().regularize(features, None, BATCH)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": -1.0}, "weight -1.0"),
        ({"width": 0}, "width 0 must be int >= 1"),
        ({"hidden": 0}, "hidden 0 must be int >= 1"),
    ],
)
def test_bad_options_raise(options, message):
    with pytest.raises(ValueError, match=message):
        ESSL(**options)


def test_tap_before_cls_raises():
    with pytest.raises(ValueError, match=r"ESSL reads .CLS. after block 3"):
        ESSL(WIDTH).attach([Tap(3, False, False)], WIDTH)
