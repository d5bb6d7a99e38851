"""What every add-on beside SER promises with every objective: tested here by existing."""

import pytest
import torch

from objectives.tiny_run import assert_equal_trees, tiny_fit
from ser_lightning.objectives.moco_v3 import MoCoV3
from ser_lightning.regularizers.augself import AugSelf
from ser_lightning.regularizers.overlap import OverlapRegularizer
from support import (
    WIDTH,
    add_ons,
    cls_add_ons,
    objective_classes,
    tiny_backbone,
    tiny_batch,
    tiny_with_add_on,
    turned,
    with_needs,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*isinstance.*treespec.*"),
]
by_add_on = pytest.mark.parametrize("add_on", add_ons(), ids=lambda cls: cls.__name__)


@by_add_on
@pytest.mark.parametrize("cls", objective_classes(), ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("layer", [2, 4], ids=["inner", "final"])
def test_every_trainable_parameter_receives_a_finite_gradient_and_no_other(cls, add_on, layer):
    module = tiny_with_add_on(cls, add_on, layer)
    module.training_step(with_needs(tiny_batch(), add_on.needs), 0).backward()
    for name, parameter in module.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("cls", objective_classes(), ids=lambda cls: cls.__name__)
def test_crops_that_are_turned_give_every_trainable_parameter_another_gradient(cls):
    batch = with_needs(tiny_batch(), OverlapRegularizer.needs)
    gradients = []
    for given in (batch, turned(batch)):
        module = tiny_with_add_on(cls, OverlapRegularizer)
        module.regularizer.ratio = 1.0
        module.training_step(given, 0).backward()
        gradients.append({n: p.grad for n, p in module.named_parameters() if p.grad is not None})
    assert set(gradients[1]) == {n for n, p in module.named_parameters() if p.requires_grad}
    changed = {n for n, g in gradients[1].items() if not torch.allclose(g, gradients[0][n])}
    assert "backbone.vit.blocks.0.attn.qkv.weight" in changed
    assert "backbone.vit.blocks.3.attn.qkv.weight" not in changed
    assert "regularizer.projector.0.weight" in changed


@by_add_on
def test_an_inner_layer_shields_later_blocks_from_the_add_on(add_on):
    module = tiny_with_add_on(MoCoV3, add_on, layer=2)
    batch = with_needs(tiny_batch(), add_on.needs)
    weight = module.regularizer.weight
    gradients = []
    for module.regularizer.weight in (weight, 0.0):
        module.zero_grad()
        module.training_step(batch, 0).backward()
        gradients.append([b.attn.qkv.weight.grad.clone() for b in module.backbone.vit.blocks])
    changed = [not torch.allclose(a, b, rtol=1e-4) for a, b in zip(*gradients, strict=True)]
    assert changed == [True, True, False, False]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@by_add_on
def test_loss_is_float32_under_autocast(add_on, dtype):
    module = tiny_with_add_on(MoCoV3, add_on)
    with torch.autocast("cpu", dtype):
        loss = module.training_step(with_needs(tiny_batch(), add_on.needs), 0)
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)


@pytest.mark.parametrize(
    "add_on",  # that of the overlap is interrupted in `test_overlap.py`
    [AugSelf, *(pytest.param(a, marks=pytest.mark.slow) for a in add_ons() if a is not AugSelf)],
    ids=lambda cls: cls.__name__,
)
def test_interrupted_run_ends_bit_identical_to_the_unbroken_one(add_on, tmp_path):
    path = tmp_path / "stopped.ckpt"
    whole = tiny_fit(MoCoV3, add_on=add_on, save_after=8, save_to=path)
    resumed = tiny_fit(MoCoV3, add_on=add_on, resume_from=path)
    assert resumed.losses == whole.losses[8:]
    assert_equal_trees(resumed.module.state_dict(), whole.module.state_dict())
    assert_equal_trees(resumed.optimizer, whole.optimizer)


@pytest.mark.parametrize("add_on", cls_add_ons(), ids=lambda cls: cls.__name__)
def test_add_on_refuses_a_layer_that_cls_has_not_reached(add_on):
    with pytest.raises(ValueError, match="cls_layer"):
        MoCoV3(tiny_backbone(), regularizer=add_on(WIDTH))  # [CLS] joins after block 2
