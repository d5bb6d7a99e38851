"""SimSiam: the loss and its stop-gradient, and the predictor's constant learning rate."""

import math

import pytest
import torch

from ser_lightning.backbones import SplitViT
from ser_lightning.losses import negative_cosine, projection_std
from ser_lightning.objectives.simsiam import SimSiam
from ser_lightning.run_length import RunLength
from support import tiny_batch, tiny_objective

# the first losses of tests/objectives/golden.py
GOLDEN = [2.867398, 4.832785, 2.622344, 2.734486, 3.013435]


def naive_negative_cosine(predictions, targets):
    """The docstring's formula, one image at a time."""
    cosines = [
        torch.dot(p, z) / (p.norm() * z.norm()) for p, z in zip(predictions, targets, strict=True)
    ]
    return -sum(cosines) / len(cosines)


def tiny_simsiam(ser=False, **options):
    return tiny_objective(SimSiam, ser, **options)


def embeddings_of(module, num=6):
    rng = torch.Generator().manual_seed(1)
    return tuple(
        torch.randn(num, module.backbone.width, generator=rng, dtype=torch.float64)
        for _ in range(2)
    )


def sgd(parameters, lr):
    return torch.optim.SGD(parameters, lr, momentum=0.9, weight_decay=1e-4)


@pytest.fixture
def ten_steps(monkeypatch):
    """A run of ten optimizer steps in five epochs, without a trainer."""
    monkeypatch.setattr(SimSiam, "run_length", RunLength(10, 2, "trainer.max_epochs"))


def test_loss_equals_naive_formula_in_value_and_gradient():
    predictions = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    targets = torch.randn(5, 7, dtype=torch.float64)
    pair = [f(predictions, targets) for f in (negative_cosine, naive_negative_cosine)]
    torch.testing.assert_close(*pair)
    torch.testing.assert_close(*(torch.autograd.grad(loss, predictions)[0] for loss in pair))


def test_loss_sends_no_gradient_to_targets():
    predictions, targets = (torch.randn(4, 3, requires_grad=True) for _ in range(2))
    negative_cosine(predictions, targets).backward()
    assert targets.grad is None
    assert predictions.grad.abs().sum() > 0


def test_loss_is_computed_in_float32_when_projections_are_not():
    predictions, targets = (torch.randn(4, 16).bfloat16() for _ in range(2))
    loss = negative_cosine(predictions, targets)
    assert torch.equal(loss, negative_cosine(predictions.float(), targets.float()))


@pytest.mark.parametrize("stops", [True, False])
def test_objective_stops_the_gradient_at_the_projections(stops):
    """The gradient of the naive loss is the module's with detached projections, not without."""
    module = tiny_simsiam().double()
    embeddings = embeddings_of(module)
    loss = module.invariance_loss(embeddings, None).loss
    z1, z2 = (module.projector(embedding) for embedding in embeddings)
    held = [z.detach() if stops else z for z in (z1, z2)]
    naive = (
        naive_negative_cosine(module.predictor(z1), held[1])
        + naive_negative_cosine(module.predictor(z2), held[0])
    ) / 2
    torch.testing.assert_close(loss, naive)
    weight = module.projector[0].weight
    gradients = [torch.autograd.grad(value, weight)[0] for value in (loss, naive)]
    assert torch.allclose(*gradients, rtol=1e-8, atol=1e-12) == stops


def test_nothing_but_the_predictor_is_trained_when_its_input_is_held():
    """Projections reach the loss through the predictor only."""
    module = tiny_simsiam()
    module.predictor.register_forward_pre_hook(lambda _, inputs: (inputs[0].detach(),))
    module.training_step(tiny_batch(), 0).backward()
    received = {name for name, p in module.named_parameters() if p.grad is not None}
    assert received == {f"predictor.{name}" for name, _ in module.predictor.named_parameters()}


def test_projection_std_tells_spread_from_collapse():
    spread = torch.randn(4096, 64)
    assert projection_std(spread) == pytest.approx(1 / math.sqrt(64), rel=0.02)  # measured 0.005
    assert projection_std(torch.ones(8, 64)) == pytest.approx(0, abs=1e-6)


def test_projection_std_is_logged_without_gradient():
    module = tiny_simsiam().double()
    embeddings = embeddings_of(module)
    logs = module.invariance_loss(embeddings, None).logs
    both = torch.cat([module.projector(embedding) for embedding in embeddings])
    expected = (both / both.norm(dim=1, keepdim=True)).std(0, correction=0).mean().float()
    torch.testing.assert_close(logs, {"diagnostics/projection_std": expected.detach()})
    assert not logs["diagnostics/projection_std"].requires_grad


@pytest.mark.parametrize("decay_biases", [True, False])
def test_groups_hold_every_trainable_parameter_once(decay_biases):
    module = tiny_simsiam(ser=True, decay_biases=decay_biases)
    groups = module.parameter_groups()
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in module.trainable_parameters())
    constant = [p for g in groups if g.get("constant_learning_rate") for p in g["params"]]
    assert {id(p) for p in constant} == {id(p) for p in module.predictor.parameters()}
    assert "constant_learning_rate" not in groups[0]  # the one whose learning rate is logged
    spared = [id(p) for g in groups if g.get("weight_decay") == 0 for p in g["params"]]
    vectors = [] if decay_biases else [id(p) for p in module.trainable_parameters() if p.ndim < 2]
    assert sorted(spared) == sorted(vectors)


@pytest.mark.parametrize("decay_biases", [True, False])
@pytest.mark.parametrize("warmup_epochs", [0, 2])
def test_learning_rate_of_the_predictor_stays(ten_steps, warmup_epochs, decay_biases):
    module = tiny_simsiam(
        optimizer=sgd,
        base_learning_rate=0.05,
        global_batch_size=512,
        warmup_epochs=warmup_epochs,
        decay_biases=decay_biases,
    )
    configured = module.configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    predictor = {id(p) for p in module.predictor.parameters()}
    seen = []
    for _ in range(11):
        rates = {
            id(p) in predictor: group["lr"]
            for group in optimizer.param_groups
            for p in group["params"]
        }
        seen.append((rates[False], rates[True]))
        optimizer.step()
        scheduler.step()
    scheduled, constant = zip(*seen, strict=True)
    assert constant == (0.1,) * 11
    warmup = 2 * warmup_epochs
    assert scheduled[0] == (0.0 if warmup else 0.1)
    assert scheduled[warmup] == pytest.approx(0.1)
    assert scheduled[(warmup + 10) // 2] == pytest.approx(0.05)
    assert scheduled[10] == pytest.approx(0, abs=1e-12)


def test_steps_at_a_learning_rate_of_zero_move_the_predictor_only(ten_steps):
    module = tiny_simsiam(optimizer=sgd, warmup_epochs=1)
    optimizer = module.configure_optimizers()["optimizer"]  # at the start of the warm-up
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    module.training_step(tiny_batch(), 0).backward()
    optimizer.step()
    moved = {name for name, p in module.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {f"predictor.{name}" for name, _ in module.predictor.named_parameters()}


def test_parameter_count_is_that_of_backbone_and_heads():
    with torch.device("meta"):
        module = SimSiam(SplitViT(cls_layer=0))
    backbone = 21_665_664 - 295_296  # the patch embedding is frozen
    projector = (
        384 * 2048 + 2048 * 2048 + 2048 * 2048 + 2 * 2 * 2048
    )  # the last norm learns nothing
    predictor = 2048 * 512 + 2 * 512 + 512 * 2048 + 2048
    counted = sum(p.numel() for p in module.trainable_parameters())
    assert counted == backbone + projector + predictor


def test_predictor_has_a_bottleneck_of_a_quarter_unless_told():
    assert tiny_simsiam(projection=16).predictor[0].out_features == 4
    assert tiny_simsiam(predictor_hidden=10).predictor[0].out_features == 10


@pytest.mark.parametrize("options", [{"predictor_hidden": 0}, {"projection": 3}])
def test_predictor_without_hidden_units_is_refused(options):
    with pytest.raises(
        ValueError, match=r"predictor_hidden 0 (with a projection of|must be int >= 1)"
    ):
        tiny_simsiam(**options)
