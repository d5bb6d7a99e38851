import math

import pytest
import torch
import torch.nn.functional as F

from ser_lightning.regularizers import token_info_nce


def unit(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return F.normalize(x, dim=-1).to(dtype).requires_grad_()


def naive_loss(anchors, candidates, first, temperature):
    """The loop of the docstring."""
    losses = []
    for i, image in enumerate(anchors):
        others = [m for m in range(len(candidates)) if m != first + i]
        for t, anchor in enumerate(image):
            positive = anchor @ candidates[first + i, t] / temperature
            negatives = [anchor @ k / temperature for m in others for k in candidates[m]]
            everything = torch.stack([positive, *negatives])
            losses.append(-positive + everything.logsumexp(0))
    return torch.stack(losses).mean()


def value_and_gradients(loss, anchors, candidates):
    return loss.detach(), *torch.autograd.grad(loss, (anchors, candidates))


@pytest.mark.parametrize("temperature", [0.005, 0.3, 10.0])
@pytest.mark.parametrize("block_bytes", [1, 1000, 2**25])
def test_loss_and_both_gradients_equal_the_naive_loop(temperature, block_bytes):
    anchors, candidates = unit(3, 4, 6), unit(6, 4, 6, seed=1)
    ours = token_info_nce(anchors, candidates, 2, temperature, block_bytes)
    oracle = naive_loss(anchors, candidates, 2, temperature)
    for one, other in zip(
        value_and_gradients(ours, anchors, candidates),
        value_and_gradients(oracle, anchors, candidates),
        strict=True,
    ):
        # Measured: relative to the largest entry at most 1e-14.
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12 * other.abs().max().item())


def test_gradcheck_in_both_arguments():
    anchors, candidates = unit(2, 3, 4), unit(5, 3, 4, seed=1)
    assert torch.autograd.gradcheck(
        lambda a, c: token_info_nce(a, c, 1, 0.3), (anchors, candidates)
    )


def test_loss_and_gradient_do_not_depend_on_the_block_size():
    anchors, candidates = (
        unit(7, 5, 8, dtype=torch.float32),
        unit(7, 5, 8, seed=1, dtype=torch.float32),
    )
    results = [
        value_and_gradients(
            token_info_nce(anchors, candidates, 0, 0.3, block_bytes), anchors, candidates
        )
        for block_bytes in (1, 2 * 4 * 5 * 35, 3 * 4 * 5 * 35, 2**25)
    ]
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-8)


def test_loss_is_the_mean_over_anchors():
    anchors, candidates = unit(4, 3, 6), unit(4, 3, 6, seed=1)
    alone = [token_info_nce(anchors[i : i + 1], candidates, i, 0.3) for i in range(4)]
    assert token_info_nce(anchors, candidates, 0, 0.3).item() == pytest.approx(
        torch.stack(alone).mean().item(), rel=1e-12
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_single_image_gives_exactly_zero_loss_and_gradient(dtype):
    anchors, candidates = unit(1, 5, 8, dtype=dtype), unit(1, 5, 8, seed=1, dtype=dtype)
    values = value_and_gradients(token_info_nce(anchors, candidates, 0, 0.3), anchors, candidates)
    assert all((value == 0).all() for value in values)


def test_random_features_at_large_temperature_give_log_of_the_candidates():
    anchors, candidates = unit(4, 9, 16), unit(4, 9, 16, seed=1)
    chance = math.log(1 + 3 * 9)
    # Measured: 3e-4 from it.
    assert token_info_nce(anchors, candidates, 0, 100.0).item() == pytest.approx(chance, abs=2e-3)


def features(kind):
    """(anchors, candidates): random, or nearly equal, opposite or collapsed to one vector."""
    anchors, noise = unit(4, 9, 32).detach(), 0.05 * unit(4, 9, 32, seed=1).detach()
    base = torch.ones_like(anchors) if kind == "collapsed" else anchors
    candidates = {"random": 20 * noise, "opposite": -anchors + noise}.get(kind, base + noise)
    if kind == "collapsed":
        anchors = base - noise
    return F.normalize(anchors, dim=-1), F.normalize(candidates, dim=-1)


KINDS = ["random", "aligned", "opposite", "collapsed"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [0.005, 0.3])
def test_float32_is_finite_and_equals_float64(kind, temperature):
    pair = features(kind)
    low = [x.float().requires_grad_() for x in pair]
    high = [x.detach().double().requires_grad_() for x in low]
    results = [value_and_gradients(token_info_nce(*x, 0, temperature), *x) for x in (low, high)]
    for one, other in zip(*results, strict=True):
        assert one.isfinite().all()
        # Measured: at most 1e-5 relative to the largest entry (logits of 200 at tau 0.005).
        scale = max(other.abs().max().item(), 1e-6)
        torch.testing.assert_close(one.double(), other, rtol=0, atol=4e-5 * scale)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_close_to_float64_of_the_same_values(kind):
    pair = features(kind)
    low = [x.bfloat16().requires_grad_() for x in pair]
    high = [x.detach().double().requires_grad_() for x in low]
    (loss, *grads), (exact_loss, *exact_grads) = (
        value_and_gradients(token_info_nce(*x, 0, 0.3), *x) for x in (low, high)
    )
    assert loss.dtype == torch.float32
    # Measured: at most 2.1e-4 (random), and 4.1e-3 (collapsed) if the mean were left in.
    assert loss.item() == pytest.approx(exact_loss.item(), abs=1e-3)
    for grad, exact in zip(grads, exact_grads, strict=True):
        assert grad.dtype == torch.bfloat16
        # Measured: 2.3e-3 to 2.7e-3, bfloat16's rounding of the result; 0.3 with the mean.
        assert (grad.double() - exact).norm() <= 1e-2 * exact.norm()


def test_autocast_leaves_the_products_in_the_given_dtype():
    anchors, candidates = (
        unit(3, 4, 6, dtype=torch.float32),
        unit(3, 4, 6, seed=1, dtype=torch.float32),
    )
    plain = value_and_gradients(token_info_nce(anchors, candidates, 0, 0.3), anchors, candidates)
    with torch.autocast("cpu", torch.bfloat16):
        loss = token_info_nce(anchors, candidates, 0, 0.3)
    for one, other in zip(plain, value_and_gradients(loss, anchors, candidates), strict=True):
        assert torch.equal(one, other)


def test_gradient_scales_with_the_incoming_gradient():
    anchors, candidates = unit(3, 4, 6), unit(3, 4, 6, seed=1)
    single = torch.autograd.grad(token_info_nce(anchors, candidates, 0, 0.3), anchors)[0]
    triple = torch.autograd.grad(3 * token_info_nce(anchors, candidates, 0, 0.3), anchors)[0]
    torch.testing.assert_close(triple, 3 * single)


def test_detached_argument_gets_no_gradient_and_the_other_the_same():
    anchors, candidates = unit(3, 4, 6), unit(3, 4, 6, seed=1)
    both = torch.autograd.grad(token_info_nce(anchors, candidates, 0, 0.3), (anchors, candidates))
    token_info_nce(anchors, candidates.detach(), 0, 0.3).backward()
    token_info_nce(anchors.detach(), candidates, 0, 0.3).backward()
    assert torch.equal(anchors.grad, both[0])
    assert torch.equal(candidates.grad, both[1])


def test_no_grad_gives_the_same_value_without_graph():
    anchors, candidates = unit(3, 4, 6), unit(3, 4, 6, seed=1)
    with torch.no_grad():
        loss = token_info_nce(anchors, candidates, 0, 0.3)
    assert not loss.requires_grad
    assert torch.equal(loss, token_info_nce(anchors, candidates, 0, 0.3).detach())


def test_inputs_are_left_unchanged():
    anchors, candidates = unit(3, 4, 6), unit(3, 4, 6, seed=1)
    copies = anchors.detach().clone(), candidates.detach().clone()
    token_info_nce(anchors, candidates, 0, 0.3).backward()
    assert torch.equal(anchors, copies[0])
    assert torch.equal(candidates, copies[1])


@pytest.mark.parametrize("temperature", [0.0, -0.3, float("nan")])
def test_temperature_that_is_not_positive_raises(temperature):
    with pytest.raises(ValueError, match="must be positive"):
        token_info_nce(unit(1, 2, 3), unit(1, 2, 3), 0, temperature)


@pytest.mark.parametrize(
    ("anchors", "candidates", "first", "message"),
    [
        ((2, 3, 4), (2, 5, 4), 0, "equal tokens"),
        ((2, 3, 4), (2, 3, 5), 0, "equal tokens"),
        ((6, 4), (6, 4), 0, "must be"),
        ((2, 3, 4), (4, 3, 4), 3, "do not lie within"),
        ((2, 3, 4), (4, 3, 4), -1, "do not lie within"),
        ((0, 3, 4), (4, 3, 4), 0, "do not lie within"),
    ],
)
def test_shapes_that_do_not_fit_raise(anchors, candidates, first, message):
    with pytest.raises(ValueError, match=message):
        token_info_nce(unit(*anchors), unit(*candidates), first, 0.3)


def test_mixed_dtypes_raise():
    with pytest.raises(ValueError, match="cast one of them"):
        token_info_nce(unit(1, 2, 3), unit(1, 2, 3).float(), 0, 0.3)
