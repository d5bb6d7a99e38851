"""Regressions on pairs of views: what a head sees, what it learns, and what it cannot."""

from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from object_tree import NUM_VIEWS
from ser_lightning.data.plan import BatchKey, Plan
from ser_lightning.evaluation.features import FeatureBatch, Features
from ser_lightning.evaluation.metrics.latents import joint_r2, relative_latents, target_widths
from ser_lightning.evaluation.view_pairs import (
    PairHeads,
    TrainingPairs,
    embeddings,
    predictions,
    whole_pairs,
)
from ser_lightning.run_length import RunLength
from support import run_processes, tiny_backbone

WIDTH = 10


def latents(num_objects, seed=0, views=NUM_VIEWS):
    rng = np.random.default_rng(seed)
    angles = rng.uniform(-np.pi / 2, np.pi / 2, (num_objects, views, 3))
    return np.concatenate([angles, rng.uniform(size=(num_objects, views, 4))], 2)


def stored(num_objects, rows=None, places=1):
    """Features in which every view has a number of its own."""
    total = num_objects * NUM_VIEWS
    values = np.arange(total, dtype=np.float32)[:, None, None] + np.zeros((1, places, WIDTH))
    return Features(
        values.astype(np.float32), torch.empty(0), np.arange(total) if rows is None else rows
    )


def heads_of(num_backbones=1, hidden=32, learning_rate=1e-3):
    return PairHeads(target_widths(7), num_backbones, WIDTH, hidden, learning_rate, seed=0)


def test_embeddings_are_those_of_each_backbone():
    backbones = [tiny_backbone().eval() for _ in range(2)]
    pixels = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        found = embeddings(backbones)(pixels)
        assert found.shape == (3, 2, 32)
        for place, backbone in enumerate(backbones):
            torch.testing.assert_close(found[:, place], backbone(pixels))


def test_heads_in_double_precision_predict():
    heads, tested = heads_of().double(), whole_pairs(stored(2), latents(NUM_VIEWS, views=2))
    alone = SimpleNamespace(global_rank=0, world_size=1)
    found, truth = predictions(heads, tested, 2, alone)
    assert len(found[0]) == len(truth) == len(tested.rows)


def test_step_has_two_views_of_an_object_and_what_they_differ_by():
    known, pairs = latents(12), TrainingPairs(stored(12), latents(12))
    pairs.plan = Plan(12, 4, 0, seed=3)
    seen = []
    for epoch in range(2):
        for step in range(len(pairs)):
            batch = pairs[BatchKey(epoch, step)]
            views = batch.features[:, :, 0, 0].long()
            objects = views // NUM_VIEWS
            assert (objects[:, 0] == objects[:, 1]).all()
            assert (views[:, 0] != views[:, 1]).all()
            seen += objects[:, 0].tolist()
            one, two = (known.reshape(-1, 7)[views[:, i]] for i in range(2))
            expected = relative_latents(one, two)
            assert np.array_equal(batch.label[:, :4], expected["rotation"])
            assert np.array_equal(batch.label[:, 4:], expected["colour"])
    assert sorted(seen) == sorted([*range(12)] * 2)


def test_ranks_share_the_pairs_of_a_step():
    plans = [Plan(12, 4, 0, 0, rank, 2) for rank in range(2)] + [Plan(12, 4, 0, 0)]
    parts = []
    for plan in plans:
        pairs = TrainingPairs(stored(12), latents(12))
        pairs.plan = plan
        parts.append(pairs[BatchKey(1, 2)])
    both = torch.cat([part.features for part in parts[:2]])
    assert torch.equal(both, parts[2].features)
    assert torch.cat([part.slot for part in parts[:2]]).tolist() == parts[2].slot.tolist()


def test_views_that_were_not_read_are_in_no_pair():
    rows = np.setdiff1d(np.arange(3 * NUM_VIEWS), [*range(49), *range(60, 70)])
    pairs = TrainingPairs(stored(3, rows), latents(3))
    assert pairs.objects.tolist() == [1, 2]  # of the first one, a single view was read
    pairs.plan = Plan(2, 2, 0, seed=0)
    seen = torch.cat([pairs[BatchKey(epoch, 0)].features[:, :, 0, 0] for epoch in range(400)])
    assert set(seen.flatten().long().tolist()) == {row for row in rows.tolist() if row >= NUM_VIEWS}


def test_head_trains_by_its_own_error_alone():
    heads, rng = heads_of(num_backbones=2), torch.Generator().manual_seed(0)
    features = torch.randn(6, 2, 2, WIDTH, generator=rng)
    batch = FeatureBatch(features, torch.randn(6, 6, generator=rng), torch.arange(6))
    losses = heads.losses(batch)
    heads.objective(losses).backward()
    assert heads.tasks == [(0, "rotation"), (0, "colour"), (1, "rotation"), (1, "colour")]
    for number, (place, target) in enumerate(heads.tasks):
        seen = torch.cat([features[:, 0, place], features[:, 1, place]], 1)
        truth = batch.label[:, :4] if target == "rotation" else batch.label[:, 4:]
        own = F.mse_loss(heads.heads[number](seen), truth)
        torch.testing.assert_close(losses[number], own)
        expected = torch.autograd.grad(own, list(heads.heads[number].parameters()))
        for parameter, gradient in zip(heads.heads[number].parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient)
    optimizer = heads.configure(RunLength(1, 1, "trainer.max_epochs"))
    assert isinstance(optimizer, torch.optim.Adam)
    assert (optimizer.defaults["lr"], optimizer.defaults["weight_decay"]) == (1e-3, 0)


def told(values, known, tested, told_latents):
    """R2 by target of heads that were trained on features of all views, on those of pairs."""
    total = len(known) * NUM_VIEWS
    pairs = TrainingPairs(Features(values, torch.empty(0), np.arange(total)), known)
    pairs.plan = Plan(len(known), 64, 0, seed=0)
    heads = heads_of(hidden=64, learning_rate=3e-3)
    optimizer = heads.configure(RunLength(1, 1, "trainer.max_epochs"))
    for epoch in range(60):
        for step in range(len(pairs)):
            optimizer.zero_grad()
            heads.losses(pairs[BatchKey(epoch, step)]).sum().backward()
            optimizer.step()
    features = Features(tested, torch.empty(0), np.arange(len(tested)))
    found, truth = predictions(heads, whole_pairs(features, told_latents), 50, trainer())
    return {
        target: joint_r2(values, truth[:, heads.columns[target]])
        for (_, target), values in zip(heads.tasks, found, strict=True)
    }


def trainer():
    return L.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
                     enable_progress_bar=False, enable_model_summary=False)  # fmt: skip


def widened(known):
    """(views, 1, WIDTH) features that have all latents, and nothing else."""
    flat = known.reshape(-1, 7)
    return np.pad(flat, ((0, 0), (0, WIDTH - 7)))[:, None].astype(np.float32)


@pytest.mark.slow
def test_what_the_features_have_is_told_and_of_noise_nothing():
    known, test = latents(256), latents(300, seed=1, views=2)
    exact = told(widened(known), known, widened(test), test)
    assert exact["colour"] > 0.98  # measured: 0.996
    assert exact["rotation"] > 0.85  # measured: 0.93
    rng = np.random.default_rng(2)
    noise = [rng.normal(size=(n, 1, WIDTH)).astype(np.float32) for n in (256 * NUM_VIEWS, 600)]
    nothing = told(noise[0], known, noise[1], test)
    assert nothing["colour"] < 0.05
    assert (
        nothing["rotation"] < 0.26
    )  # a constant: 0.23, one mean for all numbers: w is above the others


def test_constant_of_each_number_is_worth_something_in_the_joint_r2():
    """Why noise is not worth 0 for rotations: the fourth number of a quaternion is often near 1."""
    test = latents(4000, views=2)
    truth = torch.from_numpy(relative_latents(test[:, 0], test[:, 1])["rotation"])
    constant = joint_r2(truth.mean(0).expand_as(truth), truth)
    assert constant == pytest.approx(0.23, abs=0.02)


def test_pairs_with_an_unread_view_are_left_out():
    test = latents(5, views=2)
    values = np.arange(10, dtype=np.float32)[:, None, None] + np.zeros((1, 1, WIDTH), np.float32)
    tested = whole_pairs(Features(values, torch.empty(0), np.array([0, 1, 3, 4, 5, 8, 9])), test)
    assert tested.rows.tolist() == [0, 2, 4]
    assert tested.label.shape == (3, 6)
    expected = relative_latents(test[[0, 2, 4], 0], test[[0, 2, 4], 1])["rotation"]
    assert np.array_equal(tested.label[:, :4], expected)


def predicted(count):
    """What this rank has of the predictions of `count` pairs by untrained heads."""
    test = latents(count, views=2)
    features = Features(widened(test), torch.empty(0), np.arange(2 * count))
    rank = type("Rank", (), {
        "global_rank": torch.distributed.get_rank(),
        "world_size": torch.distributed.get_world_size(),
    })  # fmt: skip
    found, _ = predictions(heads_of(), whole_pairs(features, test), 2, rank)
    return [values.tolist() for values in found]


@pytest.mark.slow
@pytest.mark.parametrize("count", [7, 1])  # with one, a rank has none
def test_two_processes_predict_each_pair_once_in_order(count):
    (one,) = run_processes(predicted, count, world_size=1)
    both = run_processes(predicted, count)
    assert len(one[0]) == count
    for found in both:
        for values, expected in zip(found, one, strict=True):
            assert np.allclose(values, expected, atol=1e-6)
