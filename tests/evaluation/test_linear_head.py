"""The linear classifier's file, and accuracy counted sample by sample."""

import json
from types import SimpleNamespace

import pytest
import torch

from ser_lightning.evaluation.linear_head import HeadOrigin, LinearClassifier, head_path
from ser_lightning.evaluation.metrics.accuracy import percent, top_hits
from ser_lightning.evaluation.stage import Stage
from support import tiny_backbone


def classifier(layers=(3, 4), names=("arrow", "flag", "arrow, mirrored")):
    torch.manual_seed(0)
    made = LinearClassifier(layers, 32, names)
    torch.nn.init.normal_(made.linear.bias)
    return made


def test_logits_are_those_of_the_tokens_side_by_side():
    backbone, pixels = tiny_backbone().eval(), torch.randn(2, 3, 16, 16)
    made = classifier()
    third, fourth = backbone.cls_tokens(pixels, [3, 4])
    weight = made.linear.weight
    expected = third @ weight[:, :32].T + fourth @ weight[:, 32:].T + made.linear.bias
    torch.testing.assert_close(made(backbone, pixels), expected)


def test_logits_are_float32_under_autocast():
    backbone, made = tiny_backbone().eval(), classifier()
    with torch.autocast("cpu", torch.bfloat16):
        tokens = torch.cat(backbone.cls_tokens(torch.ones(1, 3, 16, 16), [3, 4]), dim=1)
        logits = made(backbone, torch.ones(1, 3, 16, 16))
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, made.linear(tokens.float()))


def test_file_brings_back_weights_layers_and_names(tmp_path):
    made, path = classifier(), tmp_path / "results" / "head.safetensors"
    made.save(path)
    loaded = LinearClassifier.load(path)
    assert torch.equal(loaded.linear.weight, made.linear.weight)
    assert torch.equal(loaded.linear.bias, made.linear.bias)
    assert loaded.layers == [3, 4]
    assert loaded.class_names == ["arrow", "flag", "arrow, mirrored"]
    assert not any(p.requires_grad for p in loaded.parameters())
    assert [file.name for file in path.parent.iterdir()] == ["head.safetensors"]


def test_file_says_what_the_head_was_trained_on(tmp_path):
    made, path = classifier(), tmp_path / "head.safetensors"
    made.save(path)
    assert LinearClassifier.load(path).origin is None
    selected = {"base_learning_rate": 3.0, "epoch": 47, "holdout_top1": None}
    made.origin = HeadOrigin("abc-online", {"rates": [1.0, 3.0]}, selected, 2, ("without crops",))
    made.save(path)
    assert LinearClassifier.load(path).origin == made.origin


@pytest.mark.parametrize(
    ("seed", "branch", "default", "detector", "expected"),
    [
        (0, "online", "online", "", ""),
        (0, "momentum", "momentum", "", ""),  # DINO is measured by its teacher
        (0, "momentum", "online", "", "momentum"),
        (0, "online", "momentum", "", "online"),
        (3, "online", "online", "", "seed3"),
        (1, "momentum", "online", "fcos", "momentum_fcos_seed1"),
    ],
)
def test_variant_is_empty_for_the_default_alone(seed, branch, default, detector, expected):
    own = SimpleNamespace(given=())
    names = {"seed": seed, "branch": branch, "default_branch": default, "flavour": detector}
    stage = SimpleNamespace(opened=own, **names)
    assert Stage.variant.fget(stage) == expected


def test_heads_of_variants_lie_side_by_side(tmp_path):
    results = tmp_path / "results"
    assert head_path(tmp_path, "shapes") == results / "linear-shapes.safetensors"
    assert head_path(tmp_path, "shapes", "seed1") == results / "linear-shapes-seed1.safetensors"


def test_head_of_version_0_1_0_keeps_its_reasons():
    old = {"checkpoint": "a", "protocol": {}, "selected": {}, "seed": 0}
    for reason, reasons in (("x; y", ("x", "y")), (None, ())):
        text = json.dumps({**old, "unofficial_reason": reason})
        assert HeadOrigin.read(text).unofficial_reasons == reasons


def test_missing_file_names_the_stage_that_writes_it(tmp_path):
    with pytest.raises(ValueError, match=r"none\.safetensors does not exist; run the linear stage"):
        LinearClassifier.load(tmp_path / "none.safetensors")


def test_accuracy_is_a_share_of_the_samples_not_of_the_classes():
    # class 0 has nine samples, all hit; class 1 has one, missed: macro average would be 50
    logits = torch.tensor([[2.0, 1.0, 0.0]]).repeat(10, 1)
    label = torch.tensor([0] * 9 + [1])
    hits = top_hits(logits, label)
    assert percent(hits) == pytest.approx([90, 100])  # the latter of three classes
    assert hits.sum(0).tolist() == [9, 10]


@pytest.mark.parametrize("num_classes", [4, 5, 12])
def test_accuracy_equals_a_naive_loop(num_classes):
    rng = torch.Generator().manual_seed(1)
    logits = torch.randn(23, num_classes, generator=rng)
    label = torch.randint(num_classes, (23,), generator=rng)
    top1 = top5 = 0
    for row, truth in zip(logits.tolist(), label.tolist(), strict=True):
        ranked = sorted(range(num_classes), key=lambda c: -row[c])
        top1 += truth == ranked[0]
        top5 += truth in ranked[:5]
    assert percent(top_hits(logits, label)) == pytest.approx([100 * top1 / 23, 100 * top5 / 23])
