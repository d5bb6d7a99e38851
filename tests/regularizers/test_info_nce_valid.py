"""InfoNCE over the tokens that are valid, against the loop and against the loss of all tokens."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from regularizers.test_info_nce import unit, value_and_gradients
from ser_lightning.regularizers import token_info_nce

B, M, T, FIRST = 3, 6, 4, 2


def naive_loss(anchors, candidates, first, temperature, valid):
    """The loop of the docstring; one process, so that the mean is over its own valid anchors."""
    losses = []
    for i, image in enumerate(anchors):
        others = [m for m in range(len(candidates)) if m != first + i]
        negatives = [(m, t) for m in others for t in range(len(image)) if valid[m, t]]
        for t, anchor in enumerate(image):
            if not valid[first + i, t]:
                continue
            positive = anchor @ candidates[first + i, t] / temperature
            logits = [anchor @ candidates[m, u] / temperature for m, u in negatives]
            losses.append(-positive + torch.stack([positive, *logits]).logsumexp(0))
    number = valid.sum().double() * len(anchors) / len(candidates)
    return torch.stack(losses).sum() / number if losses else 0 * anchors.sum()


def mask(kind):
    generator = torch.Generator().manual_seed(4)
    valid = torch.rand(M, T, generator=generator) < 0.5
    if kind == "one token":
        valid = torch.zeros(M, T, dtype=torch.bool)
        valid[FIRST, 1] = valid[0, 3] = True
    if kind == "one image":
        valid[:] = False
        valid[FIRST + 1] = True
    if kind == "anchors without":
        valid[FIRST : FIRST + B] = False
    return valid


@pytest.mark.parametrize("kind", ["half", "one token", "one image", "anchors without"])
@pytest.mark.parametrize("block_bytes", [1, 2**25])
def test_loss_and_both_gradients_equal_the_naive_loop(kind, block_bytes):
    anchors, candidates, valid = unit(B, T, 6), unit(M, T, 6, seed=1), mask(kind)
    ours = token_info_nce(anchors, candidates, FIRST, 0.3, block_bytes, valid)
    oracle = naive_loss(anchors, candidates, FIRST, 0.3, valid)
    assert ours.isfinite()
    one = value_and_gradients(ours, anchors, candidates)
    loss, *gradients = (oracle.detach(), *torch.autograd.grad(
        oracle, (anchors, candidates), allow_unused=True, materialize_grads=True
    ))  # fmt: skip
    for a, b in zip(one, (loss, *gradients), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)  # measured: 1e-15


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block_bytes", [1, 2**25])
def test_all_valid_is_the_loss_of_all_tokens_to_the_last_bit_of_rounding(dtype, block_bytes):
    anchors, candidates = unit(B, T, 6, dtype=dtype), unit(M, T, 6, seed=1, dtype=dtype)
    every = torch.ones(M, T, dtype=torch.bool)
    results = [
        value_and_gradients(
            token_info_nce(anchors, candidates, FIRST, 0.3, block_bytes, valid), anchors, candidates
        )
        for valid in (None, every)
    ]
    for one, other in zip(*results, strict=True):
        # a sum divided by their number and a mean may differ in the last bit
        epsilon = torch.finfo(torch.float32 if dtype == torch.bfloat16 else dtype).eps
        torch.testing.assert_close(one, other, rtol=4 * epsilon, atol=0)


def test_what_is_not_valid_has_no_influence_and_no_gradient():
    valid = mask("half")
    anchors, candidates = unit(B, T, 6), unit(M, T, 6, seed=1)
    before = token_info_nce(anchors, candidates, FIRST, 0.3, valid=valid)
    gradients = torch.autograd.grad(before, (anchors, candidates))
    assert (gradients[0][~valid[FIRST : FIRST + B]] == 0).all()
    assert (gradients[1][~valid] == 0).all()
    assert (gradients[1][valid] != 0).any(-1).all()
    with torch.no_grad():
        other = torch.where(valid[..., None], candidates, unit(M, T, 6, seed=9))
        after = token_info_nce(anchors, other, FIRST, 0.3, valid=valid)
    torch.testing.assert_close(before, after, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_nothing_valid_is_a_loss_of_zero_without_gradient(dtype):
    anchors, candidates = unit(B, T, 6, dtype=dtype), unit(M, T, 6, seed=1, dtype=dtype)
    nothing = torch.zeros(M, T, dtype=torch.bool)
    loss = token_info_nce(anchors, candidates, FIRST, 0.3, valid=nothing)
    assert all((x == 0).all() for x in value_and_gradients(loss, anchors, candidates))


def test_ranks_with_unequal_numbers_average_to_the_mean_over_all_valid_anchors():
    tokens, keys = unit(M, T, 6), unit(M, T, 6, seed=1)
    valid = mask("half")
    valid[: M // 2, :2] = False
    whole = token_info_nce(tokens, keys, 0, 0.3, valid=valid)
    halves = [
        token_info_nce(tokens[first : first + M // 2], keys, first, 0.3, valid=valid)
        for first in (0, M // 2)
    ]
    torch.testing.assert_close(torch.stack(halves).mean(), whole, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "valid", [torch.ones(M, T), torch.ones(B, T, dtype=torch.bool)], ids=["float", "other shape"]
)
def test_a_mask_of_another_kind_is_refused(valid):
    with pytest.raises(ValueError, match="give one bool for each"):
        token_info_nce(unit(B, T, 6), unit(M, T, 6, seed=1), FIRST, 0.3, valid=valid)


class Sizes(TorchDispatchMode):
    """The elements of the largest tensor that is made, and of all."""

    def __init__(self):
        super().__init__()
        self.largest = self.total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and not function.is_view:
            self.largest = max(self.largest, made.numel())
            self.total += made.numel()
        return made


@pytest.mark.parametrize("masked", [False, True], ids=["all", "valid"])
def test_memory_is_linear_in_the_images(masked):
    largest = []
    for num_images in (16, 32):
        anchors, candidates = unit(num_images, T, 6), unit(num_images, T, 6, seed=1)
        valid = torch.rand(num_images, T) < 0.5 if masked else None
        with Sizes() as made:
            token_info_nce(anchors, candidates, 0, 0.3, 1, valid).backward()
        largest.append(made.largest)
        assert made.total >= (num_images * T) ** 2  # all pairs were there, a block at a time
    assert largest[1] == 2 * largest[0]
