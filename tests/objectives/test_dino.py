"""DINO: loss and centre against naive loops, its head, and what the teacher does not do."""

import pytest
import torch
from torch import nn

from ser_lightning.backbones import SplitViT
from ser_lightning.objectives.dino import DINO, DINOHead, cross_view_loss, teacher_probabilities
from ser_lightning.objectives.encode import encode
from ser_lightning.regularizers import SERRegularizer
from support import TINY_VIT, WIDTH, tiny_backbone, tiny_batch, tiny_objective

# the first losses of tests/objectives/golden.py
GOLDEN = [5.361956, 7.313587, 4.838801, 5.105422, 5.565256]


def tiny_dino(ser=True, **options):
    return tiny_objective(DINO, ser, **options)


def naive_probabilities(logits, centre, temperature):
    """softmax((g - c) / t), one entry at a time."""
    rows = []
    for row in logits:
        shares = [torch.exp((row[k] - centre[0, k]) / temperature) for k in range(len(row))]
        rows.append(torch.stack(shares) / sum(shares))
    return torch.stack(rows)


def naive_loss(student, targets, temperature):
    """The docstring's formula, one pair of views, image and prototype at a time."""
    pairs = []
    for u in range(len(targets)):
        for v in range(len(student)):
            if u == v:
                continue
            loss = 0.0
            for i in range(len(targets[u])):
                logits = student[v][i] / temperature
                for k in range(len(logits)):
                    log_share = logits[k] - torch.logsumexp(logits, 0)
                    loss = loss - targets[u][i, k] * log_share
            pairs.append(loss / len(targets[u]))
    return sum(pairs) / len(pairs), len(pairs)


def doubles(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("num_views", "num_pairs"), [(2, 2), (6, 10), (10, 18)])
def test_loss_equals_naive_loop_in_value_and_gradient(num_views, num_pairs):
    logits = doubles(num_views, 3, 5).requires_grad_()
    targets = doubles(2, 3, 5, seed=1).softmax(-1)
    loss = cross_view_loss(logits.unbind(), targets.unbind(), 0.1)
    naive, counted = naive_loss(logits.unbind(), targets.unbind(), 0.1)
    assert counted == num_pairs
    torch.testing.assert_close(loss, naive)
    torch.testing.assert_close(*(torch.autograd.grad(x, logits)[0] for x in (loss, naive)))


def test_loss_sends_no_gradient_to_the_targets():
    targets = doubles(2, 3, 5).requires_grad_()
    student = doubles(2, 3, 5, seed=1).requires_grad_()
    cross_view_loss(student.unbind(), targets.unbind(), 0.1).backward()
    assert targets.grad is None


def test_teacher_probabilities_equal_naive_loop_and_carry_no_gradient():
    logits, centre = doubles(3, 5).requires_grad_(), doubles(1, 5, seed=1)
    probabilities = teacher_probabilities(logits, centre, 0.04)
    torch.testing.assert_close(probabilities, naive_probabilities(logits, centre, 0.04).detach())
    assert not probabilities.requires_grad


def raw_outputs(module, batch):
    """The teacher's logits of both global views, crop sub-batch first."""
    features = module.target_features(batch)
    views = zip(features.crop, features.invertible, strict=True)
    return [module.momentum_projector(torch.cat([v.embedding for v in pair])) for pair in views]


@pytest.mark.parametrize("partition", ["joint", "separate"])
def test_centre_follows_the_mean_of_raw_outputs_after_each_loss(partition):
    module, expected = tiny_dino(partition=partition).double(), torch.zeros(1, 16).double()
    for seed in range(2):
        batch = tiny_batch(6, 4, seed, dtype=torch.float64, num_local=4)
        module.training_step(batch, 0).backward()
        rows = [row for view in raw_outputs(module, batch) for row in view]
        assert len(rows) == 2 * 10
        expected = 0.9 * expected + 0.1 * sum(rows) / len(rows)
        torch.testing.assert_close(module.centre, expected)


def test_loss_of_a_step_is_that_of_the_centre_before_it():
    module, batch = tiny_dino(ser=False).double(), tiny_batch(dtype=torch.float64)
    module.centre.copy_(doubles(1, 16))
    raw = raw_outputs(module, batch)
    targets = [naive_probabilities(view, module.centre.clone(), 0.04) for view in raw]
    embeddings = encode(module.backbone, batch)
    views = zip(embeddings.crop, embeddings.invertible, strict=True)
    student = [module.projector(torch.cat([v.embedding for v in pair])) for pair in views]
    torch.testing.assert_close(module.training_step(batch, 0), naive_loss(student, targets, 0.1)[0])


def test_separate_partition_uses_one_centre_for_both_losses():
    module, batch = tiny_dino(ser=False, partition="separate"), tiny_batch()
    online, target = encode(module.backbone, batch), module.target_features(batch)
    parts = [
        module.invariance_loss(*(tuple(v.embedding for v in getattr(b, part)) for b in branches))
        for branches in [(online, target)]
        for part in ("crop", "invertible")
    ]
    assert torch.equal(module.centre, torch.zeros(1, 16))  # no step, no move
    torch.testing.assert_close(module.training_step(batch, 0), parts[0].loss + parts[1].loss)


def test_teacher_entropy_of_indifferent_outputs_is_its_maximum():
    module = tiny_dino()
    nn.init.zeros_(module.momentum_projector.last_layer.parametrizations.weight.original0)
    embeddings = (torch.randn(4, WIDTH), torch.randn(4, WIDTH))
    logs = module.invariance_loss(embeddings, embeddings).logs
    torch.testing.assert_close(logs["diagnostics/teacher_entropy"], torch.tensor(16.0).log())


def test_head_is_initialised_as_in_dino():
    torch.manual_seed(0)
    head = DINOHead(64, hidden=128, bottleneck=32, projection=256)
    for layer in head.mlp[::2]:
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert not layer.bias.any()
    torch.testing.assert_close(head.last_layer.weight.norm(dim=1), torch.ones(256))
    assert head(torch.randn(8, 64)).abs().max() <= 1  # cosines


def test_parameter_counts_are_those_of_the_public_code():
    with torch.device("meta"):
        plain = DINO(SplitViT(cls_layer=0, freeze_patch_embed=False))
        unit = DINO(SplitViT(cls_layer=0, freeze_patch_embed=False), norm_last_layer=True)
        ser = DINO(SplitViT(freeze_patch_embed=False), regularizer=SERRegularizer())

    def count(parameters):
        return sum(p.numel() for p in parameters if p.requires_grad)

    assert count(plain.projector.parameters()) == 22_352_128
    assert count(unit.projector.parameters()) == 22_352_128 - 65_536
    totals = [count(m.trainable_parameters()) for m in (plain, ser)]
    assert totals == [44_017_792, 44_017_792 + 458_752 + 768 - 384]
    assert plain.centre.shape == (1, 65_536)


def dropping_backbone():
    return tiny_backbone(vit_options=TINY_VIT | {"drop_path_rate": 0.9})


def tokens(features):
    return [view.taps[0].tokens for view in (*features.crop, *features.invertible)]


@pytest.mark.parametrize("directly", [False, True])
def test_stochastic_depth_is_the_students_only_whatever_the_mode(directly):
    torch.manual_seed(0)
    module, batch = DINO(dropping_backbone(), hidden=48, projection=16), tiny_batch()
    for mode in (None, True, False, True):
        if mode is not None:
            (module.momentum_backbone if directly else module).train(mode)
        first, second = (module.target_features(batch) for _ in range(2))
        assert all(map(torch.equal, tokens(first), tokens(second)))
    online = encode(module.backbone, batch)
    assert not all(map(torch.equal, tokens(online), tokens(encode(module.backbone, batch))))
    assert all(map(torch.equal, tokens(first), tokens(encode(module.backbone.eval(), batch))))


def test_regularizer_compares_with_the_teachers_token_maps(monkeypatch):
    torch.manual_seed(0)
    regularizer = SERRegularizer(WIDTH, hidden=24)
    module = DINO(dropping_backbone(), regularizer=regularizer, hidden=48, projection=16)
    batch, seen, regularize = tiny_batch(), [], regularizer.regularize

    def spy(online, target, batch):
        seen.append(target)
        return regularize(online, target, batch)

    monkeypatch.setattr(regularizer, "regularize", spy)
    module.training_step(batch, 0)
    expected = encode(module.momentum_backbone, batch)
    assert all(map(torch.equal, tokens(seen[0]), tokens(expected)))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("temperature", 0.0),
        ("teacher_temperature", -1.0),
        ("initial_teacher_temperature", 0.0),
        ("teacher_temperature_warmup_epochs", -1),
        ("weight_decay", -0.1),
        ("final_weight_decay", -0.1),
        ("freeze_last_layer", -1),
        ("centre_momentum", 1.5),
        ("momentum", 1.5),
    ],
)
def test_hyperparameters_out_of_range_are_refused(option, value):
    with pytest.raises(ValueError, match=f"{option} {value}"):
        tiny_dino(**{option: value})
