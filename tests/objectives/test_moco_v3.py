"""MoCo-v3 with and without SER: the loss against its formula, and who receives a gradient."""

import math

import pytest
import torch
from torch import nn

from ser_lightning.backbones import SplitViT
from ser_lightning.backbones.heads import CrossRankBatchNorm1d
from ser_lightning.objectives.encode import encode
from ser_lightning.objectives.moco_v3 import MoCoV3, contrastive_loss
from ser_lightning.regularizers import SERRegularizer
from support import TINY_VIT, WIDTH, tiny_backbone, tiny_batch, tiny_moco

# the first losses of tests/objectives/golden.py
GOLDEN = [5.759607, 7.683186, 5.52225, 5.696427, 5.573505]


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


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_moco_heads_have_the_papers_parameter_counts():
    moco = MoCoV3(tiny_backbone(vit_options=TINY_VIT | {"embed_dim": 384, "num_heads": 6}))
    assert count(moco.projector) == 19_415_040
    assert count(moco.predictor) == 2_105_344


def test_moco_projector_has_no_bias_and_an_affine_free_last_norm():
    head = MoCoV3(tiny_backbone(), hidden=5, projection=4).projector
    kinds = [type(layer) for layer in head]
    hidden = [nn.Linear, CrossRankBatchNorm1d, nn.ReLU]
    assert kinds == [*hidden, *hidden, nn.Linear, CrossRankBatchNorm1d]
    assert all(layer.bias is None for layer in head if isinstance(layer, nn.Linear))
    assert [layer.affine for layer in head if isinstance(layer, nn.BatchNorm1d)] == [1, 1, 0]


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


def embeddings_of_six_views():
    rng = torch.Generator().manual_seed(0)
    views = [torch.randn(5, WIDTH, generator=rng, dtype=torch.float64) for _ in range(6)]
    return tuple(views), tuple(view + 0.1 for view in views[:2])


@pytest.mark.parametrize(("reduction", "factor"), [("sum", 1.0), ("mean", 0.1)])
def test_local_views_are_contrasted_with_both_global_keys_and_never_with_each_other(
    reduction, factor
):
    module = tiny_moco(ser=False, reduction=reduction).double()
    online, target = embeddings_of_six_views()
    with torch.no_grad():
        queries = [module.predictor(module.projector(view)) for view in online]
        keys = [module.momentum_projector(view) for view in target]
        naive = 0.0
        for i, j in [(0, 1), (1, 0), *((i, j) for i in (2, 3, 4, 5) for j in (0, 1))]:
            naive = naive + naive_contrastive(queries[i], keys[j], 0.2)
        loss = module.invariance_loss(online, target).loss
    torch.testing.assert_close(loss, factor * naive)


def test_momentum_branch_encodes_global_views_only():
    module = tiny_moco()
    sides = []
    module.momentum_backbone.vit.patch_embed.register_forward_hook(
        lambda _, inputs, __: sides.append(inputs[0].shape[-1])
    )
    features = module.target_features(tiny_batch(num_local=4))
    assert (len(features.crop), len(features.invertible)) == (2, 2)
    upright = {view.pixels.shape[-1] for view in tiny_batch().crop}
    turned = {view.pixels.shape[-1] for view in tiny_batch(num_local=4).invertible[:2]}
    assert set(sides) == upright | turned


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
