"""A head on other images: classes are matched by name, hits counted as by hand."""

import pytest
import torch

from ser_lightning.corruptions import CORRUPTIONS
from ser_lightning.data.benchmarks import Condition
from ser_lightning.evaluation.benchmark_stage import logit_table
from ser_lightning.evaluation.metrics.accuracy import top_hits
from ser_lightning.evaluation.stages.imagenet_p import load_alexnet
from ser_lightning.results.ratios import ALEXNET_CORRUPTION_ERRORS, ALEXNET_ERROR
from ser_lightning.sources.base import MemoryImages
from ser_lightning.sources.released import CIFAR_CLASSES


def condition(labels, names, name="set"):
    labels = torch.tensor(labels)
    return Condition(name, 0, MemoryImages(torch.zeros(len(labels), 3, 4, 4), labels, names), 1.0)


def test_classes_are_matched_by_name():
    table = logit_table([condition([0, 1], ("cat", "dog")), condition([2], ("x", "y", "ape"))], [
        "ape", "dog", "cat",
    ])  # fmt: skip
    assert table.tolist() == [[2, 1, -1], [-1, -1, 0]]


def test_two_classes_of_one_name_have_a_logit_each():
    names = ("crane", "dog", "crane")
    assert logit_table([condition([0, 1, 2], names)], names).tolist() == [[0, 1, 2]]


def test_labels_without_names_are_class_ids():
    assert logit_table([condition([2, 0], ())], ["a", "b", "c"]).tolist() == [[0, 1, 2]]
    with pytest.raises(ValueError, match=r"set has images of class 3, for which here.pt has no"):
        logit_table([condition([2, 3], ())], ["a", "b", "c"], "here.pt")


def test_head_whose_classes_are_numbers_has_them_by_number():
    numbers = sorted(map(str, range(12)))  # as folders, "10" comes after "1"
    expected = [numbers.index(str(number)) for number in range(12)]
    assert logit_table([condition([2, 11], ())], numbers).tolist() == [expected]
    assert logit_table([condition([2, 11], tuple(numbers))], numbers).tolist() == [[*range(12)]]
    ordered = [str(number) for number in range(12)]
    by_name = [int(name) for name in numbers]  # class folders, and a head in the order of ids
    assert logit_table([condition([2, 11], tuple(numbers))], ordered).tolist() == [by_name]
    cifar = condition([2, 9], CIFAR_CLASSES[10])
    assert logit_table([cifar], ordered[:10]).tolist() == [[*range(10)]]
    with pytest.raises(ValueError, match="class c, for which the head has no logit"):
        logit_table([condition([2, 9], tuple("abcdefghij"))], ordered[:10])
    with pytest.raises(ValueError, match="has images of class c, for which the head has no logit"):
        logit_table([condition([2], ("a", "b", "c"))], numbers)


def test_padded_numbers_are_ids_too():
    numbers = [f"{number:02}" for number in range(12)]
    assert logit_table([condition([2, 11], ())], numbers).tolist() == [[*range(12)]]


def test_labels_without_names_are_not_guessed_for_a_head_of_other_numbers():
    names = sorted(str(number + 1) for number in range(12))
    with pytest.raises(ValueError, match=r"may be places or numbers of the head's .*1, 10, 11, \."):
        logit_table([condition([2, 11], ())], names)


def test_cifars_classes_are_not_those_of_another_head_of_ten():
    with pytest.raises(ValueError, match="images of class bird, for which the head has no logit"):
        logit_table([condition([2, 9], CIFAR_CLASSES[10])], [f"plant{n}" for n in range(10)])


def test_class_without_a_logit_is_named():
    with pytest.raises(
        ValueError, match=r"sketch has images of class ape.*it has cat, dog, \.\.\."
    ):
        logit_table([condition([0, 2], ("cat", "dog", "ape"), "sketch")], ["cat", "dog"])


def test_hits_equal_a_sort():
    logits = torch.randn(40, 7, generator=torch.Generator().manual_seed(0))
    label = torch.arange(40) % 7
    order = logits.argsort(1, descending=True)
    expected = [[row[0] == y, y in row[:5]] for row, y in zip(order.tolist(), label, strict=True)]
    assert top_hits(logits, label).tolist() == [[bool(a), bool(b)] for a, b in expected]
    assert top_hits(logits[:, :3], torch.zeros(40, dtype=torch.long))[:, 1].all()


def test_alexnets_errors_have_the_means_that_others_divide_by():
    means = [0.886428, 0.894468, 0.922640, 0.819880, 0.826268, 0.785948, 0.798360, 0.866816]
    means += [0.826572, 0.819324, 0.564592, 0.853204, 0.646056, 0.717840, 0.606500]
    assert tuple(ALEXNET_CORRUPTION_ERRORS) == CORRUPTIONS
    found = [sum(rates) / 5 for rates in ALEXNET_CORRUPTION_ERRORS.values()]
    assert found == pytest.approx(means, abs=1e-9)
    assert pytest.approx(100 - 56.522) == 100 * ALEXNET_ERROR  # accuracy that torchvision states


def test_missing_weights_of_alexnet_say_where_from(tmp_path):
    with pytest.raises(ValueError, match=r"none\.pth does not exist; fetch https://.*alexnet"):
        load_alexnet(str(tmp_path / "none.pth"))


def test_images_without_a_class_are_refused():
    with pytest.raises(ValueError, match=r"set has images with the label -1.*folder per class"):
        logit_table([condition([-1, 1], ("cat", "dog"))], ["cat", "dog"])
