import inspect

import numpy as np
import pytest
import torch

from ser_lightning.batch import LossOutput, Tap, ViewNeeds
from ser_lightning.objectives.moco_v3 import MoCoV3
from ser_lightning.regularizers import PerLayer, Regularizer, SERRegularizer
from support import WIDTH, cls_add_ons, tiny_backbone, tiny_batch

LOSS = torch.zeros((), requires_grad=True)


class Nothing(Regularizer):
    needs = ViewNeeds()

    def regularize(self, online, target, batch):
        return LossOutput(online, {})


def moco(make_regularizer):
    """MoCo-v3 at a seed; the regularizer draws its weights after the backbone."""
    torch.manual_seed(3)
    backbone = tiny_backbone(cls_layer=0)
    return MoCoV3(backbone, regularizer=make_regularizer(), hidden=48, projection=16)


def test_regularizer_keeps_its_width_and_weight():
    assert (Nothing(8).width, Nothing(8).weight) == (8, 1.0)
    assert Nothing(8, 0.0).weight == 0.0


@pytest.mark.parametrize("weight", [-0.1, float("nan")])
def test_negative_weight_raises(weight):
    with pytest.raises(ValueError, match="must be float >= 0"):
        Nothing(8, weight)


def test_regularizer_that_does_not_say_what_it_needs_is_refused():
    with pytest.raises(ValueError, match=r"^Silent does not .* needs; give it `needs = ViewNeeds"):
        type("Silent", (Regularizer,), {})


@pytest.mark.parametrize("wrap", [lambda own: own, lambda own: PerLayer([own])])
@pytest.mark.parametrize(
    "given",
    [
        torch.zeros(()),
        LossOutput(torch.zeros(()), {}),
        None,
        LossOutput(LOSS, None),
        LossOutput(LOSS, {"accuracy": 0.5}),
        LossOutput(LOSS, {"accuracy": np.float64(0.5)}),
        LossOutput(LOSS, {"accuracy": torch.zeros(2)}),
        LossOutput(LOSS, {"loss": torch.zeros(())}),
        LossOutput(LOSS, {"loss/invariance": torch.zeros(())}),
    ],
)
def test_regularizer_that_returns_no_loss_to_train_is_refused(wrap, given):
    regularizer = Nothing()
    regularizer.regularize = lambda online, target, batch: given
    module = moco(lambda: wrap(regularizer))
    words = r"^(Nothing|PerLayer)\.regularize returned .*; it must return LossOutput"
    with pytest.raises(ValueError, match=words):
        module.training_step(tiny_batch(), 0)


def test_regularizer_without_regularize_cannot_be_built():
    with pytest.raises(TypeError, match="abstract"):
        Regularizer()


def test_width_is_the_attached_backbones_unless_it_is_given():
    regularizer = Nothing()
    regularizer.attach([Tap(3, False, False)], 8)
    assert regularizer.width == 8
    with pytest.raises(ValueError, match=r"width 4, the backbone has 8; leave .*width` out"):
        Nothing(4).attach([Tap(3, False, False)], 8)
    with pytest.raises(ValueError, match="width 0 must be int >= 1"):
        Nothing(0)


@pytest.mark.parametrize("cls", [SERRegularizer, *cls_add_ons()], ids=lambda cls: cls.__name__)
def test_add_on_without_width_starts_bit_identical_to_one_that_is_given_the_backbones(cls):
    given, learned = moco(lambda: cls(WIDTH)).state_dict(), moco(cls).state_dict()
    assert list(given) == list(learned)
    assert all(torch.equal(given[name], learned[name]) for name in given)
    assert any(name.startswith("regularizer.") for name in given)


@pytest.mark.parametrize("cls", [SERRegularizer, *cls_add_ons()], ids=lambda cls: cls.__name__)
def test_width_may_be_left_out_of_every_add_on(cls):
    assert inspect.signature(cls).parameters["width"].default is None
    assert PerLayer([cls(), cls(7)]).width == 7
