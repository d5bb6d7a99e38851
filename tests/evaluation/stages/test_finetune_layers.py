"""What fine-tuning trains, and how fast each layer of it learns."""

import math

import pytest
import torch

from ser_lightning.evaluation.stages.finetune import (
    FinetunedClassifier,
    layer_number,
    trainable_copy,
)
from ser_lightning.optim import warmup_cosine
from support import TINY_VIT, tiny_backbone


def images(size=8):
    torch.manual_seed(1)
    return torch.randn(size, 3, 16, 16)


def classifier(cls_layer=None, drop_path_rate=0.1, **options):
    torch.manual_seed(0)
    backbone = tiny_backbone(layer=2, cls_layer=cls_layer, **options)
    return FinetunedClassifier(trainable_copy(backbone, drop_path_rate), 5, 0.001, seed=0)


@pytest.mark.parametrize("position", ["learned", "sincos"])
@pytest.mark.parametrize("cls_layer", [0, 2])
def test_every_parameter_gets_a_gradient(cls_layer, position):
    model = classifier(cls_layer, position_embedding=position)
    model.train()
    model.head.weight.data.normal_()  # the small initial head makes small gradients
    torch.nn.functional.cross_entropy(model(images()), torch.arange(8) % 5).backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad, name
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_copy_computes_the_same_and_leaves_the_original_alone():
    backbone = tiny_backbone().eval()
    copy = trainable_copy(backbone, 0.3)
    assert torch.equal(copy.eval()(images()), backbone(images()))
    assert backbone.arguments["vit_options"] == TINY_VIT
    assert not any(p.requires_grad for p in backbone.vit.patch_embed.parameters())


def test_drop_path_rises_linearly_and_acts_in_training_only():
    model = trainable_copy(tiny_backbone(), 0.3)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in model.vit.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])
    pixels = images()
    assert torch.equal(model.eval()(pixels), model(pixels))
    model.train()
    assert not torch.equal(model(pixels), model(pixels))


@pytest.mark.parametrize(("cls_layer", "layer_of_cls"), [(0, 0), (2, 3)])
def test_learning_rates_follow_the_layers(cls_layer, layer_of_cls):
    model, depth = classifier(cls_layer), TINY_VIT["depth"]
    groups = model.parameter_groups(0.1, 0.05, 0.75)
    rates = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert len(rates) == len(list(model.parameters()))  # each once
    expected = {
        "backbone.vit.patch_embed.proj.weight": (0, 0.05),
        "backbone.vit.patch_embed.proj.bias": (0, 0.0),
        "backbone.vit.pos_embed": (0, 0.0),
        "backbone.vit.cls_token": (layer_of_cls, 0.0),
        "backbone.vit.norm.weight": (depth + 1, 0.0),
        "head.weight": (depth + 1, 0.05),
        "head.bias": (depth + 1, 0.0),
    }
    for i in range(depth):
        expected[f"backbone.vit.blocks.{i}.mlp.fc1.weight"] = (i + 1, 0.05)
        expected[f"backbone.vit.blocks.{i}.norm1.weight"] = (i + 1, 0.0)
    parameters = dict(model.named_parameters())
    for name, (layer, decay) in expected.items():
        rate, weight_decay = rates[id(parameters[name])]
        assert rate == pytest.approx(0.1 * 0.75 ** (depth + 1 - layer)), name
        assert weight_decay == decay, name


def test_layer_numbers_of_a_deep_model():
    assert layer_number("backbone.vit.blocks.11.attn.qkv.weight", 12, 3) == 12
    assert layer_number("backbone.vit.cls_token", 12, 3) == 4
    assert layer_number("backbone.vit.norm.bias", 12, 3) == 13


def test_schedule_rises_linearly_and_falls_along_a_cosine():
    def rate(step):
        return warmup_cosine(step, 110, 10, 0.02, 0.1)

    assert [rate(0), rate(5), rate(10)] == pytest.approx([0.1, 0.55, 1.0])
    assert rate(60) == pytest.approx(0.51)
    assert rate(35) == pytest.approx(0.02 + 0.98 * (1 + math.cos(math.pi / 4)) / 2)
    assert rate(110) == pytest.approx(0.02)


def test_head_starts_small_and_depends_on_the_seed_only():
    backbone = tiny_backbone()
    heads = []
    for scale, seed in ((1.0, 0), (0.001, 0), (1.0, 1)):
        torch.manual_seed(scale > 0.5)
        heads.append(FinetunedClassifier(backbone, 5, scale, seed).head)
    torch.testing.assert_close(heads[1].weight, 0.001 * heads[0].weight)
    assert not torch.equal(heads[2].weight, heads[0].weight)
    assert heads[0].weight.std().item() == pytest.approx(0.02, rel=0.3)
    assert not heads[0].bias.any()
