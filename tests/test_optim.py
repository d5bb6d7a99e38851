"""Parameter groups, gradients clipped one by one, and what precedes a resume."""

from types import SimpleNamespace

import lightning as L
import pytest
import torch
from timm.optim import Lamb, Lars
from torch import nn

from ser_lightning.optim import check_optimizer, clip_each_, decay_groups
from ser_lightning.run_length import before_resuming, run_length


def naive_clip(gradient, max_norm):
    """Scales one gradient down if it is longer than allowed."""
    norm = gradient.square().sum().sqrt()
    return gradient * (max_norm / (norm + 1e-6)) if norm + 1e-6 > max_norm else gradient.clone()


def parameters_of(*gradients):
    parameters = []
    for gradient in gradients:
        parameter = nn.Parameter(torch.zeros(3 if gradient is None else gradient.shape))
        parameter.grad = None if gradient is None else gradient.clone()
        parameters.append(parameter)
    return parameters


def test_everything_is_one_group_when_biases_decay():
    layer = nn.Linear(3, 2)
    assert decay_groups(layer.parameters()) == [{"params": [layer.weight, layer.bias]}]


def test_vectors_and_scalars_are_not_decayed_when_biases_are_spared():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    model.scale = nn.Parameter(torch.tensor(1.0))
    decayed, spared = decay_groups(model.parameters(), decay_biases=False)
    assert "weight_decay" not in decayed
    assert [id(p) for p in decayed["params"]] == [id(model[0].weight)]
    assert spared["weight_decay"] == 0
    expected = [model.scale, model[0].bias, model[1].weight, model[1].bias]
    assert sorted(map(id, spared["params"])) == sorted(map(id, expected))


def test_groups_take_a_generator_once():
    layer = nn.Linear(3, 2)
    groups = decay_groups((p for p in layer.parameters()), decay_biases=False)
    assert [len(group["params"]) for group in groups] == [1, 1]


def test_decay_of_the_optimizer_acts_on_the_first_group_only():
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.bias.fill_(1.0)
    before = [p.detach().clone() for p in (layer.weight, layer.bias)]
    groups = decay_groups(layer.parameters(), decay_biases=False)
    optimizer = torch.optim.SGD(groups, 0.5, weight_decay=0.1)
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), 0.95 * before[0])
    assert torch.equal(layer.bias.detach(), before[1])


@pytest.mark.parametrize("max_norm", [0.3, 3.0])
def test_clipping_equals_a_loop_over_parameters(max_norm):
    shapes = [(4, 5), (7,), (2, 3, 3), ()]
    gradients = [2 * torch.randn(shape, dtype=torch.float64) for shape in shapes]
    gradients += [torch.full((2,), 1e-3, dtype=torch.float64)]
    parameters = parameters_of(*(gradient.float() for gradient in gradients))
    clip_each_(parameters, max_norm)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        torch.testing.assert_close(parameter.grad, naive_clip(gradient, max_norm).float())


def test_clipping_leaves_short_gradients_bit_for_bit():
    gradient = torch.tensor([0.1, -0.2])
    (parameter,) = parameters_of(gradient)
    clip_each_([parameter], 1.0)
    assert torch.equal(parameter.grad, gradient)


def test_clipping_looks_at_each_parameter_alone():
    long, short = parameters_of(torch.tensor([30.0, 40.0]), torch.tensor([0.3, 0.4]))
    clip_each_([long, short], 1.0)
    torch.testing.assert_close(long.grad, torch.tensor([0.6, 0.8]))
    assert torch.equal(short.grad, torch.tensor([0.3, 0.4]))


def test_clipping_keeps_zero_gradients_and_passes_over_missing_ones():
    zero, missing, long = parameters_of(torch.zeros(2), None, torch.tensor([3.0]))
    clip_each_([zero, missing, long], 1.0)
    assert torch.equal(zero.grad, torch.zeros(2))
    assert missing.grad is None
    torch.testing.assert_close(long.grad, torch.tensor([1.0]))


@pytest.mark.parametrize("gradients", [[], [None]])
def test_clipping_of_nothing_does_nothing(gradients):
    parameters = parameters_of(*gradients)
    clip_each_(parameters, 1.0)
    assert all(parameter.grad is None for parameter in parameters)


def test_clipping_shows_a_gradient_that_is_not_finite():
    (parameter,) = parameters_of(torch.tensor([1.0, float("nan")]))
    clip_each_([parameter], 1.0)
    assert parameter.grad.isnan().all()


@pytest.mark.parametrize(
    ("precision", "dtype"), [("64-true", torch.float64), ("bf16-mixed", torch.float32)]
)
def test_double_precision_begins_before_a_checkpoint_is_loaded(precision, dtype):
    module = L.LightningModule()
    module.layer = nn.Linear(2, 2)
    module.trainer = L.Trainer(accelerator="cpu", precision=precision, logger=False)
    before_resuming(module, {})
    assert {p.dtype for p in module.parameters()} == {dtype}


@pytest.mark.parametrize(
    ("batches", "remedy"), [(11, "limit_train_batches` to 8"), (3, "or lower accumulation")]
)
def test_remedy_of_a_part_of_a_step_can_be_followed(batches, remedy):
    trainer = SimpleNamespace(
        train_dataloader=(), num_training_batches=batches, accumulate_grad_batches=8, max_epochs=1,
        max_steps=-1,
    )  # fmt: skip
    with pytest.raises(ValueError, match=f"^{batches} batches of an epoch .*{remedy}$"):
        run_length(trainer)


@pytest.mark.parametrize(
    ("kind", "options", "problem"),
    [
        (Lars, {"trust_coeff": None}, "Lars: trust_coeff None is no number; the default is 0.001"),
        (Lars, {"eps": "small"}, "Lars: eps small is no number; the default is 1e-08"),
        (torch.optim.LBFGS, {}, "LBFGS computes the loss of a step many times"),
    ],
)
def test_optimizers_that_fail_at_their_first_step_are_refused(kind, options, problem):
    with pytest.raises(ValueError, match=problem):
        check_optimizer(kind(parameters_of(torch.ones(3)), **options))


@pytest.mark.parametrize("lr", [1, 0.1, torch.tensor(0.1)])
def test_numbers_of_any_kind_are_taken(lr):
    check_optimizer(torch.optim.AdamW(parameters_of(torch.ones(3)), lr, fused=None))
    check_optimizer(Lamb(parameters_of(torch.ones(3)), lr, max_grad_norm=None))
