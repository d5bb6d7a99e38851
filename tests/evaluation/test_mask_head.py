"""The linear head of masks: batch norm, a 1x1 convolution, a loss of the pixels that count."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ser_lightning.evaluation.mask_head import LinearMaskHead, mask_loss, predicted_masks
from support import run_processes

CLASSES = 5


def batch(seed=0, count=4):
    """Token maps and masks, of which the images have very different numbers of counted pixels."""
    rng = torch.Generator().manual_seed(seed)
    tokens = torch.randn(count, 8, 3, 4, generator=rng)
    truth = torch.randint(CLASSES, (count, 12, 16), generator=rng)
    for number in range(count):
        truth[number, : 3 * number] = 255
    return tokens, truth


def test_head_is_batch_norm_and_a_linear_layer_for_every_token():
    head, (tokens, _) = LinearMaskHead(8, CLASSES), batch()
    norm, linear = nn.BatchNorm2d(8), nn.Linear(8, CLASSES)
    linear.load_state_dict({"weight": head.classify.weight[:, :, 0, 0], "bias": head.classify.bias})
    expected = linear(norm(tokens).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(head(tokens), expected)
    torch.testing.assert_close(head.norm.running_var, norm.running_var)


def test_loss_is_the_mean_over_pixels_that_count():
    tokens, truth = batch()
    logits = LinearMaskHead(8, CLASSES)(tokens)
    large = F.interpolate(logits, (12, 16), mode="bilinear")
    losses = [
        -large[image, :, y, x].log_softmax(0)[truth[image, y, x]]
        for image in range(4)
        for y in range(12)
        for x in range(16)
        if truth[image, y, x] != 255
    ]
    torch.testing.assert_close(mask_loss(logits, truth), torch.stack(losses).mean())


def test_masks_of_which_nothing_counts_have_no_loss_but_a_gradient_of_zero():
    tokens, truth = batch()
    head = LinearMaskHead(8, CLASSES)
    loss = mask_loss(head(tokens), torch.full_like(truth, 255))
    loss.backward()
    assert loss == 0
    assert torch.equal(head.classify.weight.grad, torch.zeros_like(head.classify.weight))


def test_masks_are_predicted_at_the_size_of_each_image():
    logits = torch.zeros(2, CLASSES, 3, 4)
    logits[0, 3, :, :2] = logits[1, 2] = 1  # class 3 on the left, class 2 everywhere
    first, second = predicted_masks(logits, [(30, 40), (7, 5)])
    assert (first[:, :15] == 3).all()
    assert (first[:, 25:] == 0).all()
    assert second.tolist() == [[2] * 5] * 7


def gradients(rank_of):
    """Loss, gradients and running mean of two heads' sum on this rank's share of a batch."""
    torch.set_default_dtype(torch.float64)
    tokens, truth = (part.tensor_split(2)[rank_of] for part in batch()) if rank_of >= 0 else batch()
    head = LinearMaskHead(8, CLASSES).double()
    module = head if rank_of < 0 else DistributedDataParallel(head)
    loss = mask_loss(module(tokens.double()), truth)
    loss.backward()
    grads = {name: p.grad.tolist() for name, p in head.named_parameters()}
    return loss.item(), grads, head.norm.running_mean.tolist()


def on_ranks():
    return gradients(torch.distributed.get_rank())


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one():
    both = run_processes(on_ranks)
    torch.set_default_dtype(torch.float32)
    loss, grads, mean = gradients(-1)
    torch.set_default_dtype(torch.float32)
    assert sum(found[0] for found in both) / 2 == pytest.approx(loss, rel=1e-12)
    for _, found, tracked in both:
        assert tracked == pytest.approx(mean, abs=1e-12)
        for name, expected in grads.items():
            difference = torch.tensor(found[name]) - torch.tensor(expected)
            assert difference.abs().max() < 1e-7, name
