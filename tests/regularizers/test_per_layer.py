"""One add-on per layer: each reads its own tap, and the sum of their losses counts."""

import pytest
import torch

from ser_lightning.batch import BranchFeatures, LossOutput, TapFeatures, ViewFeatures, ViewNeeds
from ser_lightning.groups.frame import MAX_SCALE
from ser_lightning.objectives.encode import encode
from ser_lightning.objectives.moco_v3 import MoCoV3
from ser_lightning.regularizers import PerLayer, Regularizer, SERRegularizer
from ser_lightning.regularizers.overlap import OverlapRegularizer
from support import WIDTH, tiny_backbone, tiny_batch, tiny_moco


class MeanOfTokens(Regularizer):
    needs = ViewNeeds()

    def regularize(self, online, target, batch):
        loss = online.crop[0].taps[0].tokens.mean()
        return LossOutput(loss, {"loss/mean": loss.detach()})


class NeedsPlain(MeanOfTokens):
    needs = ViewNeeds(plain=True)


class NeedsRotated(MeanOfTokens):
    needs = ViewNeeds(rotated=True)


def features(values):
    taps = tuple(TapFeatures(torch.full((2, 4, 1, 1), v), None) for v in values)
    return BranchFeatures((ViewFeatures(taps, torch.zeros(2, 4)),), ())


def moco(layer, regularizer, **backbone):
    torch.manual_seed(0)
    return MoCoV3(
        tiny_backbone(layer=layer, **backbone), regularizer=regularizer, hidden=48, projection=16
    )


def sers(num):
    torch.manual_seed(1)
    return [SERRegularizer(WIDTH, hidden=24) for _ in range(num)]


def test_scale_is_the_largest_of_those_that_compare_crops():
    overlaps = [OverlapRegularizer(WIDTH, max_scale=scale) for scale in (1.2, 1.5)]
    assert PerLayer([*overlaps, *sers(1)]).max_scale == 1.5
    assert PerLayer(sers(2)).max_scale == SERRegularizer.max_scale == MAX_SCALE


def test_each_add_on_reads_its_tap_and_weighs_in():
    per_layer = PerLayer([MeanOfTokens(4, weight=2.0), MeanOfTokens(4, weight=0.5)])
    output = per_layer.regularize(features([3.0, 8.0]), None, tiny_batch())
    assert output.loss == 2 * 3 + 0.5 * 8
    assert output.logs == {
        "loss/equivariance_1": 3, "loss/mean_1": 3, "loss/equivariance_2": 8, "loss/mean_2": 8,
    }  # fmt: skip


def test_needs_are_those_of_all_add_ons():
    assert PerLayer([SERRegularizer(4), NeedsPlain(4)]).needs == ViewNeeds(True, plain=True)


def test_one_layer_equals_the_add_on_alone():
    batch, alone = tiny_batch(), tiny_moco()
    wrapped = tiny_moco()
    ser = wrapped.regularizer
    wrapped.regularizer = PerLayer([ser])
    assert torch.equal(wrapped.training_step(batch, 0), alone.training_step(batch, 0))


def test_several_layers_add_up_the_losses_of_single_ones():
    batch = tiny_batch()
    whole = moco([1, 2, 4], PerLayer(sers(3)), cls_layer=2)
    online, target = encode(whole.backbone, batch), whole.target_features(batch)
    total = whole.regularizer.regularize(online, target, batch).loss
    expected = 0
    for layer, ser in zip([1, 2, 4], sers(3), strict=True):
        single = moco(layer, ser, cls_layer=2)
        online, target = encode(single.backbone, batch), single.target_features(batch)
        expected = expected + ser.regularize(online, target, batch).loss
        assert torch.allclose(online.crop[0].embedding, single.backbone(batch.crop[0].pixels))
    torch.testing.assert_close(total, expected)


def test_every_parameter_receives_a_gradient_at_all_layers():
    module = moco([1, 2, 3, 4], PerLayer(sers(4)), cls_layer=1)
    module.training_step(tiny_batch(), 0).backward()
    for name, parameter in module.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_a_single_add_on_stands_for_one_at_every_layer_each_with_its_own_weights():
    single = moco([1, 2, 4], PerLayer([SERRegularizer(hidden=24)]), cls_layer=2).state_dict()
    listed = moco([1, 2, 4], PerLayer([SERRegularizer(hidden=24) for _ in range(3)]), cls_layer=2)
    listed = listed.state_dict()
    assert list(single) == list(listed)
    assert all(torch.equal(single[name], listed[name]) for name in listed)
    first, second = (single[f"regularizer.regularizers.{i}.projector.0.weight"] for i in (0, 1))
    assert not torch.equal(first, second)


@pytest.mark.parametrize(("layer", "num"), [([1, 2], 3), (2, 2)])
def test_wrong_number_of_add_ons_raises(layer, num):
    with pytest.raises(ValueError, match=f"{num} add-ons for"):
        moco(layer, PerLayer(sers(num)))


def test_several_layers_without_per_layer_raise():
    with pytest.raises(ValueError, match="reads one layer"):
        moco([1, 2], sers(1)[0])


@pytest.mark.parametrize("widths", [[], [8, 4]])
def test_widths_that_differ_or_none_raise(widths):
    with pytest.raises(ValueError, match="one width is needed"):
        PerLayer([SERRegularizer(w) for w in widths])


def test_extra_views_of_two_kinds_raise():
    with pytest.raises(ValueError, match="one kind"):
        PerLayer([NeedsPlain(4), NeedsRotated(4)])
