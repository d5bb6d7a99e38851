import pytest

from ser_lightning.batch import LossOutput, ViewNeeds
from ser_lightning.regularizers import Regularizer


class Nothing(Regularizer):
    needs = ViewNeeds()

    def regularize(self, online, target, batch):
        return LossOutput(online, {})


def test_regularizer_keeps_its_width_and_weight():
    assert (Nothing(8).width, Nothing(8).weight) == (8, 1.0)
    assert Nothing(8, 0.0).weight == 0.0


@pytest.mark.parametrize("weight", [-0.1, float("nan")])
def test_negative_weight_raises(weight):
    with pytest.raises(ValueError, match="must be 0 or positive"):
        Nothing(8, weight)


def test_regularizer_without_regularize_cannot_be_built():
    with pytest.raises(TypeError, match="abstract"):
        Regularizer()
