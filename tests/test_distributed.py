"""Collectives: identity on one process, the single-process result and gradient on two."""

import pytest
import torch
import torch.distributed as dist

from ser_lightning import distributed
from support import run_processes

WORLD = 2


def test_collectives_without_process_group_are_identity():
    x = torch.randn(3, 2, requires_grad=True)
    assert (distributed.world_size(), distributed.rank()) == (1, 0)
    assert distributed.gather_with_gradient(x) is x
    assert distributed.sum_with_gradient(x) is x
    for collective in (distributed.gather, distributed.gather_ragged, distributed.all_reduce_mean):
        assert torch.equal(collective(x), x)
        assert not collective(x).requires_grad


def test_all_reduce_mean_of_integers_is_floating_point():
    assert distributed.all_reduce_mean(torch.tensor(3)).dtype == torch.float32


def test_collectives_on_two_processes_equal_one_process():
    results = run_processes(_collectives, world_size=WORLD)
    inputs = _inputs()
    whole = torch.cat(inputs).requires_grad_()
    reference_loss = _loss(whole, whole)
    reference_loss.backward()

    assert [r["rank"] for r in results] == [0, 1]
    assert all(r["world"] == WORLD for r in results)
    for r in results:
        assert torch.equal(r["gather"], whole.detach())
        assert not r["gather_requires_grad"]
        assert torch.equal(r["gather_with_gradient"], whole.detach())
        torch.testing.assert_close(r["sum_with_gradient"], _product(whole.detach()))
        assert torch.equal(r["mask"], torch.tensor([True, False]))
        assert torch.equal(r["ragged"], torch.tensor([[0.0], [1.0], [1.0], [1.0]]))
        assert torch.equal(r["one_sided"], torch.ones(2))
        assert r["empty"].shape == (0, 4)
        assert r["mean"] == 0.5
        assert r["untouched"] == r["rank"]
    # DDP averages losses and gradients over ranks
    assert torch.stack([r["loss"] for r in results]).mean() == pytest.approx(
        reference_loss.item(), rel=1e-12
    )
    gradient = torch.cat([r["gradient"] for r in results]) / WORLD
    torch.testing.assert_close(gradient, whole.grad, rtol=1e-12, atol=1e-14)
    (exact,) = torch.autograd.grad(_loss_of_sum(_product(whole)), whole)
    for name, share in (("sum_gradient", 1), ("in_place_gradient", 1 / WORLD)):
        gradient = torch.cat([r[name] for r in results]) / WORLD
        torch.testing.assert_close(gradient, share * exact, rtol=1e-12, atol=1e-14)


def _inputs():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, 5, generator=generator, dtype=torch.float64) for _ in range(WORLD)]


def _loss(local, everyone):
    """Each local row against all rows, so that every rank's loss depends on every rank's input."""
    return (local @ everyone.T).exp().mean(dim=1).log().mean()


def _product(x):
    """A sum over rows, so over ranks: those of one rank give their part of it."""
    return x.T @ x


def _loss_of_sum(product):
    """Every rank computes it in full."""
    return product.sin().square().mean()


def _gradient_of_sum(x, in_place=False):
    x = x.detach().requires_grad_()
    product = _product(x)
    if in_place:  # behind autograd's back, as some public codes do
        dist.all_reduce(product.detach())
    else:
        product = distributed.sum_with_gradient(product)
    return torch.autograd.grad(_loss_of_sum(product), x)[0]


def _collectives():
    rank = dist.get_rank()
    x = _inputs()[rank].requires_grad_()
    everyone = distributed.gather_with_gradient(x)
    loss = _loss(x, everyone)
    loss.backward()
    own_rank = torch.tensor(float(rank))
    return {
        "rank": distributed.rank(),
        "world": distributed.world_size(),
        "gather": distributed.gather(x),
        "gather_requires_grad": distributed.gather(x).requires_grad,
        "gather_with_gradient": everyone.detach(),
        "loss": loss.detach(),
        "gradient": x.grad,
        "sum_with_gradient": distributed.sum_with_gradient(_product(x)).detach(),
        "sum_gradient": _gradient_of_sum(x),
        "in_place_gradient": _gradient_of_sum(x, in_place=True),
        "mask": distributed.gather(torch.tensor([rank == 0])),
        "ragged": distributed.gather_ragged(torch.full((1 + 2 * rank, 1), float(rank))),
        "one_sided": distributed.gather_ragged(torch.ones(2 * rank)),
        "empty": distributed.gather_ragged(torch.ones(0, 4)),
        "mean": distributed.all_reduce_mean(own_rank).item(),
        "untouched": own_rank.item(),
    }
