"""Heads: sizes, and batch normalisation on two processes equal to one."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from ser_lightning.backbones.heads import CrossRankBatchNorm1d, mlp
from support import run_processes

WORLD = 2


def test_mlp_of_two_widths_is_one_layer():
    head = mlp((3, 2), last_bias=True)
    assert len(head) == 1
    assert head[0].bias is not None
    with pytest.raises(ValueError, match=r"widths \(3,\) make no layer"):
        mlp((3,))


@pytest.mark.parametrize("last_norm", ["none", "affine", "affine_free"])
def test_every_parameter_of_a_head_gets_a_gradient(last_norm):
    head = mlp((3, 5, 2), last_norm=last_norm, bias=True)
    (head(torch.randn(7, 3)) ** 3).sum().backward()
    assert all(p.grad is not None for p in head.parameters())


def test_one_process_is_plain_batch_norm_with_the_same_state():
    plain, ours = nn.BatchNorm1d(4), CrossRankBatchNorm1d(4)
    x = torch.randn(6, 4)
    assert torch.equal(ours(x), plain(x))
    plain.load_state_dict(ours.state_dict())
    assert torch.equal(ours.eval()(x), plain.eval()(x))


@pytest.mark.slow
def test_batch_norm_on_two_processes_equals_one_process():
    results = run_processes(_rank_results, world_size=WORLD)
    for name in CASES:
        reference = _run(nn.BatchNorm1d, name, torch.cat(_inputs(name)))
        ours = [result[name] for result in results]
        exact = {"rtol": 1e-11, "atol": 1e-11}
        torch.testing.assert_close(
            torch.cat([r["output"] for r in ours]), reference["output"], **exact
        )
        torch.testing.assert_close(
            torch.cat([r["input_gradient"] for r in ours]), reference["input_gradient"], **exact
        )
        for key in reference["gradients"]:
            total = sum(r["gradients"][key] for r in ours)
            torch.testing.assert_close(total, reference["gradients"][key], **exact)
        for r in ours:
            assert r["state"].keys() == reference["state"].keys()
            for key, value in reference["state"].items():
                torch.testing.assert_close(r["state"][key], value, **exact)
    # bfloat16 in and out, but near 100 bfloat16 steps by 0.5: its statistics would be rounded
    mean = torch.cat([_bfloat16_input(rank) for rank in range(WORLD)]).double().mean()
    for result in results:
        assert result["bfloat16"].dtype == torch.bfloat16
        assert result["running_mean"].item() == pytest.approx(mean.item(), rel=1e-6)
    output = torch.cat([result["bfloat16"] for result in results]).double()
    assert output.square().mean().item() == pytest.approx(1, rel=1e-3)


CASES = {
    "affine": {"num_features": 3},
    "affine_free": {"num_features": 3, "affine": False},
    "cumulative": {"num_features": 3, "momentum": None},
    "untracked": {"num_features": 3, "track_running_stats": False},
    "sequence": {"num_features": 3},
}


def _inputs(name):
    shape = (4, 3, 5) if name == "sequence" else (4, 3)
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    return [first * 3 + 7, second]


def _bfloat16_input(rank):
    generator = torch.Generator().manual_seed(rank)
    return (torch.randn(512, 1, generator=generator) * 8 + 100).bfloat16()


def _run(kind, name, x):
    """Two training steps' buffers; output and gradients of a loss summed over samples."""
    torch.manual_seed(0)
    module = kind(**CASES[name]).double()
    for parameter in module.parameters():
        nn.init.uniform_(parameter)
    module(x + 1)
    x = x.clone().requires_grad_()
    output = module(x)
    (output**3 + output.sin()).sum().backward()
    return {
        "output": output.detach(),
        "input_gradient": x.grad,
        "gradients": {key: p.grad for key, p in module.named_parameters()},
        "state": module.state_dict(),
    }


def _rank_results():
    rank = dist.get_rank()
    result = {name: _run(CrossRankBatchNorm1d, name, _inputs(name)[rank]) for name in CASES}
    norm = CrossRankBatchNorm1d(1, momentum=1.0)
    result["bfloat16"] = norm(_bfloat16_input(rank)).detach()
    result["running_mean"] = norm.running_mean
    if rank == 0:  # no collective in evaluation, or this rank would wait for ever
        norm.eval()(_bfloat16_input(rank))
    return result
