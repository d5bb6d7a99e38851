"""k-NN against plain loops, and its edges."""

import math

import pytest
import torch

from ser_lightning.evaluation.metrics.knn import (
    KNNAccuracy,
    knn_accuracy,
    knn_hits,
    knn_predict,
    nearest,
)


def looped_classes(bank, labels, queries, num_classes, k, temperature):
    """DINO's definition, one query and one neighbour at a time."""
    bank = [row / row.norm() for row in bank.double()]
    result = []
    for query in queries.double():
        similarity = [float(query @ row / query.norm()) for row in bank]
        nearest = sorted(range(len(bank)), key=lambda j: -similarity[j])[:k]
        votes = [0.0] * num_classes
        for j in nearest:
            votes[int(labels[j])] += math.exp(similarity[j] / temperature)
        voted = {int(labels[j]) for j in nearest}
        order = sorted(voted, key=lambda c: (-votes[c], c))[:5]
        result.append(order + [-1] * (5 - len(order)))
    return torch.tensor(result)


@pytest.mark.parametrize("num_classes", [2, 4, 11])
@pytest.mark.parametrize("chunk_size", [1, 7, 1000])
def test_predictions_equal_the_loops(num_classes, chunk_size):
    rng = torch.Generator().manual_seed(num_classes)
    bank = 3 * torch.randn(40, 6, generator=rng)
    labels = torch.randint(num_classes, (40,), generator=rng)
    queries = 5 * torch.randn(23, 6, generator=rng)
    result = knn_predict(bank, labels, queries, [1, 5, 40], chunk_size=chunk_size)
    for k, classes in result.items():
        expected = looped_classes(bank, labels, queries, num_classes, k, 0.07)
        torch.testing.assert_close(classes, expected)


def test_accuracy_is_a_percentage_of_the_queries():
    bank = torch.eye(4)
    labels = torch.tensor([0, 1, 2, 3])
    queries = torch.eye(4)
    result = knn_accuracy(bank, labels, queries, torch.tensor([0, 1, 2, 0]), k=1)
    assert result[1].top1 == 75.0
    assert result[1].top5 == 75.0  # one neighbour votes for one class


def test_classes_without_votes_are_not_among_the_best_five():
    bank, labels = torch.eye(6), torch.tensor([3, 4, 5, 0, 1, 2])
    query = torch.tensor([[1.0, 0.5, 0.2, 0.0, 0.0, 0.0]])
    classes = knn_predict(bank, labels, query, k=2)[2]
    assert classes.tolist() == [[3, 4, -1, -1, -1]]
    hits = knn_hits(bank, labels, query.repeat(3, 1), torch.tensor([4, 5, 0]), k=[2, 6])
    assert hits[2].any(1).tolist() == [True, False, False]
    assert hits[6].any(1).tolist() == [True, True, True]
    cold = knn_predict(bank, labels, query, k=2, temperature=1e-4)[2]
    assert cold.tolist() == [[3, 4, -1, -1, -1]]  # a vote that underflows is one


def test_hits_name_the_place_of_the_true_class():
    bank, labels = torch.eye(3), torch.tensor([0, 1, 2])
    queries = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.9, 0.0]])
    hits = knn_hits(bank, labels, queries, torch.tensor([0, 1]), k=(2, 3))
    assert hits[2].tolist() == [[True, *4 * [False]], [False, True, *3 * [False]]]
    assert KNNAccuracy.of(hits[3]) == (50.0, 100.0)


def test_a_class_that_is_among_the_queries_alone_is_never_right():
    bank, labels = torch.eye(2), torch.tensor([0, 1])
    hits = knn_hits(bank, labels, bank, torch.tensor([0, 7]), k=1)[1]
    assert hits.tolist() == [[True, *4 * [False]], 5 * [False]]


def test_top5_misses_a_class_that_ranks_sixth():
    bank = torch.stack([torch.tensor([math.cos(0.1 * i), math.sin(0.1 * i)]) for i in range(6)])
    query = torch.tensor([[1.0, 0.0]])
    result = knn_accuracy(bank, torch.arange(6), query.repeat(2, 1), torch.tensor([4, 5]), k=6)
    assert result[6] == (0.0, 50.0)


def test_votes_of_half_precision_features_at_a_low_temperature_stay_finite():
    bank = torch.nn.functional.normalize(torch.randn(10, 3), dim=1).half()
    labels = torch.arange(10)
    predictions = knn_predict(bank, labels, bank, k=3, temperature=1e-3)
    torch.testing.assert_close(predictions[3][:, 0], labels)


def test_closer_neighbours_outvote_a_majority_at_a_low_temperature():
    bank = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, -0.8]])
    labels = torch.tensor([0, 1, 1])
    query = torch.tensor([[1.0, 0.0]])
    assert knn_predict(bank, labels, query, k=3, temperature=0.07)[3][0, 0] == 0
    assert knn_predict(bank, labels, query, k=3, temperature=100.0)[3][0, 0] == 1


@pytest.mark.parametrize("k", [0, 11])
def test_k_outside_the_bank_is_refused(k):
    with pytest.raises(ValueError, match=f"k {k} with a bank of 10"):
        knn_predict(torch.randn(10, 3), torch.arange(10), torch.randn(2, 3), k=k)


def test_missing_labels_and_queries_are_refused():
    bank, labels = torch.randn(4, 3), torch.arange(4)
    with pytest.raises(ValueError, match="label -1 is negative"):
        knn_accuracy(bank, labels, bank, torch.full((4,), -1), k=1)
    with pytest.raises(ValueError, match="no queries"):
        knn_accuracy(bank, labels, bank[:0], labels[:0], k=1)
    with pytest.raises(ValueError, match=r"temperature 0\.0 must be positive"):
        knn_accuracy(bank, labels, bank, labels, k=1, temperature=0.0)


def test_nearest_equal_the_loop():
    rng = torch.Generator().manual_seed(0)
    bank, queries = torch.randn(20, 4, generator=rng), 7 * torch.randn(3, 4, generator=rng)
    cosine, rows = nearest(bank, queries, 5)
    for query, values, found in zip(queries, cosine, rows, strict=True):
        every = [float(query @ row / (query.norm() * row.norm())) for row in bank]
        expected = sorted(range(20), key=lambda j: -every[j])[:5]
        assert found.tolist() == expected
        assert values.tolist() == pytest.approx([every[j] for j in expected], abs=1e-6)
