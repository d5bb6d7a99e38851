"""[CLS] may join anywhere but behind the last block, wherever the loss is: Figure 3's sweep."""

import pytest
import torch

from ser_lightning.objectives.moco_v3 import MoCoV3
from ser_lightning.regularizers import SERRegularizer
from support import WIDTH, cls_add_ons, tiny_backbone, tiny_batch, with_needs

BEFORE_AT_AND_AFTER = [(2, 0), (2, 1), (2, 2), (2, 3), (3, 1), (1, 3), (4, 2), (0, 3)]


def step(add_on, layer, cls_layer):
    """An objective after a step of SGD, and the weights before it."""
    torch.manual_seed(0)
    backbone = tiny_backbone(layer=layer, cls_layer=cls_layer)
    module = MoCoV3(backbone, regularizer=add_on(WIDTH), hidden=48, projection=16)
    before = {name: weight.detach().clone() for name, weight in module.named_parameters()}
    optimizer = torch.optim.SGD(list(module.trainable_parameters()), 0.1)
    module.training_step(with_needs(tiny_batch(), module.regularizer.needs), 0).backward()
    optimizer.step()
    return module, before


def assert_trained(module, before):
    for name, weight in module.named_parameters():
        assert weight.isfinite().all(), name
        assert (weight.grad is not None) == weight.requires_grad, name
    moved = [not torch.equal(weight, before[name]) for name, weight in module.named_parameters()
             if name.startswith("backbone.vit.") and weight.requires_grad]  # fmt: skip
    assert all(moved)


@pytest.mark.parametrize(("layer", "cls_layer"), BEFORE_AT_AND_AFTER)
def test_ser_trains_wherever_cls_joins(layer, cls_layer):
    module, before = step(SERRegularizer, layer, cls_layer)
    assert (module.backbone.layer, module.backbone.cls_layer) == (layer, cls_layer)
    assert_trained(module, before)


def test_places_of_cls_give_other_losses():
    losses = set()
    for cls_layer in range(4):
        torch.manual_seed(0)
        module = MoCoV3(
            tiny_backbone(layer=2, cls_layer=cls_layer), regularizer=SERRegularizer(WIDTH),
            hidden=48, projection=16,
        )  # fmt: skip
        losses.add(round(module.training_step(tiny_batch(), 0).item(), 4))
    assert len(losses) == 4


@pytest.mark.parametrize("add_on", cls_add_ons(), ids=lambda cls: cls.__name__)
@pytest.mark.parametrize(("layer", "cls_layer"), [(3, 0), (3, 1), (3, 2), (4, 3)])
def test_add_ons_on_cls_train_wherever_it_joins_before_them(add_on, layer, cls_layer):
    assert_trained(*step(add_on, layer, cls_layer))


@pytest.mark.parametrize("add_on", cls_add_ons(), ids=lambda cls: cls.__name__)
@pytest.mark.parametrize(("layer", "cls_layer"), [(2, 2), (2, 3)])
def test_add_ons_on_cls_say_that_it_joins_too_late(add_on, layer, cls_layer):
    with pytest.raises(ValueError, match="after block 2, where it has not joined"):
        step(add_on, layer, cls_layer)
