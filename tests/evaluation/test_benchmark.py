"""A head on other images: classes are matched by name, hits counted as by hand."""

import json

import pytest
import torch

from ser_lightning.data.benchmarks import Condition
from ser_lightning.data.sources import MemoryImages
from ser_lightning.evaluation.alexnet import (
    ALEXNET_CORRUPTION_ERRORS,
    ALEXNET_ERROR,
    load_alexnet,
)
from ser_lightning.evaluation.baselines import entries, read_baseline
from ser_lightning.evaluation.benchmark import logit_table, top_hits
from ser_lightning.evaluation.robustness import CORRUPTIONS
from ser_lightning.reporting.paper import alexnet_clean_error, alexnet_corruption_errors


def condition(labels, names, name="set"):
    labels = torch.tensor(labels)
    return Condition(name, 0, MemoryImages(torch.zeros(len(labels), 3, 4, 4), labels, names), 1.0)


def test_classes_are_matched_by_name():
    table = logit_table([condition([0, 1], ("cat", "dog")), condition([2], ("x", "y", "ape"))], [
        "ape", "dog", "cat",
    ])  # fmt: skip
    assert table.tolist() == [[2, 1, -1], [-1, -1, 0]]


def test_labels_without_names_are_class_ids():
    assert logit_table([condition([2, 0], ())], ["a", "b", "c"]).tolist() == [[0, 1, 2]]
    with pytest.raises(ValueError, match=r"set has images of class 3, for which here.pt has no"):
        logit_table([condition([2, 3], ())], ["a", "b", "c"], "here.pt")


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


def test_alexnets_errors_are_those_of_the_report():
    assert tuple(ALEXNET_CORRUPTION_ERRORS) == CORRUPTIONS
    theirs = {name: tuple(rates) for name, rates in alexnet_corruption_errors().items()}
    assert theirs == ALEXNET_CORRUPTION_ERRORS
    assert alexnet_clean_error() == ALEXNET_ERROR


def test_missing_weights_of_alexnet_say_where_from(tmp_path):
    with pytest.raises(ValueError, match=r"none\.pth does not exist; fetch https://.*alexnet"):
        load_alexnet(str(tmp_path / "none.pth"))


def test_baseline_must_have_been_measured_in_the_same_way(tmp_path):
    path = str(tmp_path / "record.json")
    with pytest.raises(ValueError, match=r"record\.json is no record of a measurement"):
        read_baseline(path, {}, ())
    content = {"protocol": {"stride": 2}, "metrics": {"a": 1, "b": None}}
    (tmp_path / "record.json").write_text(json.dumps(content))
    assert read_baseline(path, {"stride": 2}, ["stride"]) == content
    with pytest.raises(ValueError, match="was measured with stride 2, not 1"):
        read_baseline(path, {"stride": 1}, ["stride"])
    assert entries(path, content, "metrics", ["a"]) == [1.0]
    with pytest.raises(ValueError, match="lacks the metrics b, c"):
        entries(path, content, "metrics", ["a", "b", "c"])
