"""The paper's cost: multiply-accumulates of a forward pass per image, two views, two branches."""

import pytest
import timm.layers
import torch
from torch.utils.flop_counter import FlopCounterMode

from ser_lightning.backbones import SplitViT
from ser_lightning.objectives.moco_v3 import MoCoV3
from ser_lightning.regularizers import SERRegularizer


@pytest.fixture(autouse=True)
def _written_out_attention():
    """The counter does not see the fused kernel on a CPU."""
    timm.layers.set_fused_attn(False)
    yield
    timm.layers.set_fused_attn(True)


def gmacs(function, *shape):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function(torch.empty(*shape, device="meta"))
    return counter.get_total_flops() / 2 / 1e9


def backbone_gmacs(**options):
    with torch.device("meta"):
        backbone = SplitViT(cls_only_last_block=False, **options).eval()
    return gmacs(backbone, 1, 3, 224, 224)


def test_forward_cost_of_moco_and_ser_is_the_papers():
    with torch.device("meta"):
        objective, regularizer = MoCoV3(SplitViT()).eval(), SERRegularizer(384)
    heads = 4 * gmacs(objective.projector, 1, 384) + 2 * gmacs(objective.predictor, 1, 256)
    moco = 4 * backbone_gmacs(cls_layer=0) + heads
    # The paper counts two passes of the projector for every image, whatever the partition ratio.
    ser = 4 * backbone_gmacs() + heads + 2 * gmacs(regularizer.projector, 1, 384, 14, 14)
    assert moco == pytest.approx(18.476, abs=5e-4)
    assert ser == pytest.approx(18.631, abs=5e-4)
    assert ser / moco == pytest.approx(1.0084, abs=5e-5)
