"""Flips and top-5 distances against loops over whole rankings."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from ser_lightning.evaluation.metrics.flips import (
    PerturbationSums,
    top5_distance,
    video_sums,
)

NUM_CLASSES = 1000


def total(*results):
    """The sums over the videos of all parts."""
    return PerturbationSums(*torch.cat(results).sum(0).tolist())


def rankings(num_videos=3, num_frames=9, seed=0):
    """(V, T, 1000) classes from best to worst, of logits that change slowly."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(num_videos, 1, NUM_CLASSES))
    logits = logits + 0.3 * rng.normal(size=(num_videos, num_frames, NUM_CLASSES)).cumsum(1)
    return np.argsort(-logits, axis=2)


def ranked_distance(before, after):
    """d = sum_{i=1..5} of the ranks j in 1..5 between i and the new rank of the i-th class."""
    rank = np.empty(NUM_CLASSES, dtype=int)
    rank[after] = np.arange(1, NUM_CLASSES + 1)
    distance = 0
    for i in range(1, 6):
        new = rank[before[i - 1]]
        for j in range(min(i, new) + 1, max(i, new) + 1):
            distance += 1 <= j - 1 <= 5
    return distance


def compared(num_frames, reference, difficulty):
    """(reference, frame) for every comparison, one offset after the other."""
    for offset in range(difficulty):
        frames = list(range(offset, num_frames, difficulty))
        for before, after in pairwise(frames):
            yield (0 if reference == "first" else before), after


CASES = [("first", 1), ("previous", 1), ("previous", 2), ("previous", 4), ("previous", 8)]


@pytest.mark.parametrize(("reference", "difficulty"), CASES)
def test_results_equal_the_loops_over_whole_rankings(reference, difficulty):
    ranked = rankings()
    label = ranked[:, 0, 0].copy()
    label[1] = ranked[1, 3, 2]
    expected = []
    for video, truth in zip(ranked, label, strict=True):
        pairs = list(compared(len(video), reference, difficulty))
        flips = [video[b][0] != video[a][0] for b, a in pairs]
        distances = [ranked_distance(video[b], video[a]) for b, a in pairs]
        best = sum(frame[0] == truth for frame in video)
        five = sum(truth in frame[:5] for frame in video)
        whole, steadiness = best == len(video), (np.mean(flips), np.mean(distances))
        expected.append([1, len(video), best, five, whole, *steadiness])
    lists = torch.from_numpy(ranked[..., :5].copy())
    result = video_sums(lists, torch.from_numpy(label), reference, difficulty)
    torch.testing.assert_close(result, torch.tensor(np.array(expected), dtype=torch.float64))
    sums = PerturbationSums(*result.unbind(1))
    assert sums.flip_rate.sum() > 0


def test_distance_is_not_symmetric_in_the_lists():
    before, after = torch.tensor([0, 1, 2, 3, 4]), torch.tensor([5, 0, 1, 2, 3])
    assert top5_distance(before, after).item() == 5  # four classes move by one, the last leaves
    assert top5_distance(after, before).item() == 9  # the first leaves, four move by one


def test_distance_of_equal_and_of_disjoint_lists():
    lists = torch.arange(10).view(2, 5)
    assert top5_distance(lists, lists).tolist() == [0, 0]
    assert top5_distance(lists, lists.flip(0)).tolist() == [15, 15]


def test_flips_with_the_first_frame_differ_from_those_with_the_previous():
    def flip_rate(*how):
        lists = torch.tensor([[1, 2, 2, 2, 1]])[..., None].expand(-1, -1, 5)
        return total(video_sums(lists, torch.tensor([1]), *how)).flip_rate

    assert flip_rate("first") == 0.75
    assert flip_rate("previous") == 0.5
    assert flip_rate("previous", 2) == pytest.approx(2 / 3)


def test_percentages():
    top5 = torch.arange(5).repeat(2, 4, 1)
    top5[1, 2] = torch.arange(5).flip(0)
    values = total(video_sums(top5, torch.tensor([0, 0]), "previous")).percentages()
    assert values == {
        "top1": 87.5,
        "top5": 100.0,
        "all_frames_right": 50.0,
        "flip_probability": pytest.approx(100 * (2 / 3) / 2),
        "top5_distance": pytest.approx((12 + 12) / 3 / 2),
    }


def test_every_video_weighs_the_same_whatever_its_length():
    long = torch.tensor([[1, 2] * 10 + [1]])[..., None].expand(-1, -1, 5)
    short = torch.tensor([[1, 1]])[..., None].expand(-1, -1, 5)
    label = torch.tensor([1])
    parts = [video_sums(x, label, "previous") for x in (long, short)]
    assert total(*parts).percentages()["flip_probability"] == 50.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: video_sums(x, x[:, 0], "previous", 4), "difficulty 4 for videos of 4 frames"),
        (lambda x: video_sums(x, x[:, 0], "previous", 0), "difficulty 0"),
        (lambda x: top5_distance(x, x), "lists of 4 and 4 classes"),
        (lambda x: total(torch.empty(0, 7)).percentages(), "no videos"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(2, 4, dtype=torch.int64))


def test_fewer_than_five_classes_have_no_top5_distance():
    lists = torch.tensor([[[0, 1, 2], [1, 0, 2], [0, 1, 2]]])
    sums = video_sums(lists, torch.tensor([0]), "previous")[0].tolist()
    assert sums[:6] == [1, 3, 2, 3, 0, 1]
    assert math.isnan(sums[6])
