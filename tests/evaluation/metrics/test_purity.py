"""The purity of neighbourhoods: against naive loops, and embeddings whose purity is known."""

import pytest
import torch

from ser_lightning.evaluation.metrics.purity import chance_purity, mean_by_class, neighbour_purity


def naive(embeddings, label, k):
    values = []
    for i in range(len(label)):
        cosines = [
            (torch.cosine_similarity(embeddings[i], embeddings[j], dim=0).item(), j)
            for j in range(len(label)) if j != i
        ]  # fmt: skip
        nearest = sorted(cosines, reverse=True)[:k]
        values.append(sum(bool(label[j] == label[i]) for _, j in nearest) / k)
    return torch.tensor(values)


@pytest.mark.parametrize("k", [1, 4, 29])
def test_purity_is_that_of_the_naive_loop(k):
    embeddings, label = torch.randn(30, 6, dtype=torch.float64), torch.arange(30) % 4
    torch.testing.assert_close(neighbour_purity(embeddings, label, k), naive(embeddings, label, k))


def test_classes_that_lie_apart_are_pure_and_copies_count_once():
    label = torch.arange(40) % 4
    axes = torch.eye(4)[label]
    assert neighbour_purity(axes, label, 9).eq(1).all()  # all of a class are copies
    assert neighbour_purity(torch.ones(5, 3), torch.zeros(5, dtype=torch.int64), 4).eq(1).all()


def test_purity_at_random_is_chance():
    label = torch.arange(400) % 4
    generator = torch.Generator().manual_seed(0)
    found = neighbour_purity(torch.randn(400, 64, generator=generator), label, 20).mean().item()
    assert found == pytest.approx(chance_purity(label), abs=0.03)  # measured: 0.009
    assert chance_purity(label) == pytest.approx(99 / 399)


def test_mean_by_class_is_the_mean_of_each():
    values, label = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 2, 2])
    found = mean_by_class(values, label, 3)
    assert found[[0, 2]].tolist() == [1, 3]
    assert found[1].isnan()


def test_more_neighbours_than_others_are_refused():
    with pytest.raises(ValueError, match="k 5 neighbours among 4 other images"):
        neighbour_purity(torch.randn(5, 2), torch.zeros(5, dtype=torch.int64), 5)
