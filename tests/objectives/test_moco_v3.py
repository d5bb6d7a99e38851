"""MoCo-v3 with and without SER: the loss against its formula, and who receives a gradient."""

import math

import pytest
import torch

from ser_lightning.backbones import SplitViT
from ser_lightning.objectives.features import encode
from ser_lightning.objectives.moco_v3 import MoCoV3, contrastive_loss
from ser_lightning.regularizers import SERRegularizer
from support import tiny_batch, tiny_moco


def naive_contrastive(queries, keys, temperature):
    """The docstring's formula, one pair at a time."""
    total = 0.0
    for i in range(len(queries)):
        similarities = [
            torch.dot(queries[i] / queries[i].norm(), key / key.norm()) / temperature
            for key in keys
        ]
        total = total - similarities[i] + torch.logsumexp(torch.stack(similarities), 0)
    return 2 * temperature * total / len(queries)


def gradients(module, batch):
    module.zero_grad()
    module.training_step(batch, 0).backward()
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def test_contrastive_loss_equals_naive_formula_in_value_and_gradient():
    queries = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    keys = torch.randn(5, 7, dtype=torch.float64)
    loss, naive = contrastive_loss(queries, keys, 0.2), naive_contrastive(queries, keys, 0.2)
    torch.testing.assert_close(loss, naive)
    torch.testing.assert_close(*(torch.autograd.grad(value, queries)[0] for value in (loss, naive)))


def test_contrastive_loss_sends_no_gradient_to_keys():
    keys = torch.randn(4, 3, requires_grad=True)
    contrastive_loss(torch.randn(4, 3, requires_grad=True), keys, 0.2).backward()
    assert keys.grad is None


def test_contrastive_loss_of_identical_rows_is_its_chance_level():
    same = torch.ones(8, 4)
    assert contrastive_loss(same, same, 0.2) == pytest.approx(0.4 * math.log(8))


@pytest.mark.parametrize("ser", [True, False])
def test_every_trainable_parameter_receives_a_gradient(ser):
    module = tiny_moco(ser)
    received = gradients(module, tiny_batch())
    expected = {name for name, p in module.named_parameters() if p.requires_grad}
    assert set(received) == expected
    assert all(g.abs().sum() > 0 for g in received.values())


def test_momentum_branch_and_patch_embedding_are_frozen():
    frozen = {name for name, p in tiny_moco().named_parameters() if not p.requires_grad}
    assert {n for n in frozen if not n.startswith("momentum_")} == {
        "backbone.vit.patch_embed.proj.weight",
        "backbone.vit.patch_embed.proj.bias",
    }


def test_regularizer_gradient_reaches_prefix_norm_and_projector_only():
    module, batch = tiny_moco(), tiny_batch()
    online = encode(module.backbone, batch)
    loss = module.regularizer.regularize(online, module.target_features(batch), batch).loss
    loss.backward()
    received = {
        name
        for name, p in module.named_parameters()
        if p.grad is not None and p.grad.abs().sum() > 0
    }
    blocks = {n for n in received if ".blocks." in n}
    assert {int(n.split(".blocks.")[1].split(".")[0]) for n in blocks} == {0, 1}  # layer is 2
    assert received - blocks == {
        "backbone.vit.pos_embed",
        "regularizer.norm.weight",
        "regularizer.norm.bias",
        "regularizer.projector.0.weight",
        "regularizer.projector.2.weight",
    }


def test_weight_zero_gives_the_baseline_gradients_bit_for_bit():
    batch = tiny_batch()
    baseline = gradients(tiny_moco(ser=False), batch)
    weightless = gradients(tiny_moco(ser=True, weight=0.0), batch)
    for name, gradient in baseline.items():
        assert torch.equal(weightless[name], gradient), name


def test_weight_changes_the_gradients_of_the_prefix():
    batch = tiny_batch()
    name = "backbone.vit.blocks.0.attn.qkv.weight"
    with_ser, without = (gradients(tiny_moco(ser), batch)[name] for ser in (True, False))
    assert not torch.allclose(with_ser, without)


def test_separate_partition_adds_one_loss_per_sub_batch():
    batch = tiny_batch()
    module = tiny_moco(ser=False, partition="separate")
    online, target = encode(module.backbone, batch), module.target_features(batch)
    parts = [
        module.invariance_loss(
            tuple(v.embedding for v in getattr(online, part)),
            tuple(v.embedding for v in getattr(target, part)),
        ).loss
        for part in ("crop", "invertible")
    ]
    torch.testing.assert_close(module.training_step(batch, 0), parts[0] + parts[1])


@pytest.mark.parametrize(("num_crop", "num_invertible"), [(0, 4), (4, 0)])
def test_a_batch_may_consist_of_one_sub_batch(num_crop, num_invertible):
    module = tiny_moco(ser=num_invertible > 0)
    assert gradients(module, tiny_batch(num_crop, num_invertible))


def test_views_of_equal_size_are_encoded_as_if_alone():
    module, batch = tiny_moco(), tiny_batch(dtype=torch.float32)
    features = encode(module.backbone, batch)
    for view, output in zip(
        (*batch.crop, *batch.invertible), (*features.crop, *features.invertible), strict=True
    ):
        torch.testing.assert_close(module.backbone(view.pixels), output.embedding)


def test_parameter_counts_are_the_papers():
    with torch.device("meta"):
        plain = MoCoV3(SplitViT(cls_layer=0))
        ser = MoCoV3(SplitViT(), regularizer=SERRegularizer())
    counts = [sum(p.numel() for p in m.trainable_parameters()) for m in (plain, ser)]
    assert counts == [42_890_752, 43_349_888]


def test_regularizer_of_another_width_is_refused():
    with pytest.raises(ValueError, match="width 384, the backbone has 32"):
        MoCoV3(tiny_moco().backbone, regularizer=SERRegularizer(384))


@pytest.mark.parametrize(("option", "value"), [("temperature", 0.0), ("momentum", 1.5)])
def test_hyperparameters_out_of_range_are_refused(option, value):
    with pytest.raises(ValueError, match=f"{option} {value}"):
        tiny_moco(**{option: value})
