"""Blocks that are computed again in the backward pass give the same numbers, bit for bit."""

import pytest
import torch
from timm.models.vision_transformer import Block

from ser_lightning.backbones.split_vit import SplitViT
from ser_lightning.objectives.dino import DINO
from support import PATCH, TINY_VIT, tiny_batch

DROPPED = TINY_VIT | {"drop_path_rate": 0.3, "proj_drop_rate": 0.1}


def backbone(grad_checkpointing, **options):
    torch.manual_seed(0)
    defaults = {"image_size": 16, "patch_size": PATCH, "layer": 2, "vit_options": DROPPED}
    return SplitViT(
        "vit_tiny_patch16_224", grad_checkpointing=grad_checkpointing, **defaults | options
    )


def step(grad_checkpointing, dtype=torch.float32, **options):
    """The loss of a student and a teacher, all gradients, and how often a block was computed."""
    module = DINO(backbone(grad_checkpointing, **options), hidden=48, projection=16)
    num_calls = []
    for part in module.modules():
        if isinstance(part, Block):
            part.norm2.register_forward_hook(lambda *_: num_calls.append(1))
    torch.manual_seed(7)  # of dropped paths
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        loss = module.training_step(tiny_batch(num_local=2), 0)
    loss.backward()
    gradients = {n: p.grad for n, p in module.named_parameters() if p.requires_grad}
    return loss, gradients, len(num_calls)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "options",
    [{}, {"cls_layer": 0, "layer": [1, 3]}, {"cls_only_last_block": False}, {"layer": 0}],
    ids=["one layer", "several layers", "all tokens", "no prefix"],
)
def test_loss_and_gradients_are_the_same_bit_for_bit(options, dtype):
    loss, gradients, num_calls = step(False, dtype, **options)
    again, gradients_again, num_calls_again = step(True, dtype, **options)
    assert torch.equal(again, loss)
    for name, gradient in gradients.items():
        assert torch.equal(gradients_again[name], gradient), name
    assert num_calls_again > num_calls  # the student's blocks ran twice


def test_only_what_enters_a_block_is_kept():
    images = torch.randn(4, 3, 16, 16)
    kept = []
    for grad_checkpointing in (False, True):
        model = backbone(grad_checkpointing)
        sizes = {}

        def pack(x, sizes=sizes, model=model):
            if not any(x.data_ptr() == p.data_ptr() for p in model.parameters()):
                sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            model(images)
        kept.append(sum(sizes.values()))
    inputs = 4 * 4 * (16 + 16 + 17 + 17) * 32  # bytes of 4 images' tokens that enter the blocks
    assert inputs <= kept[1] <= 1.1 * inputs + 4 * 4 * 3 * 16 * 16  # and the images
    assert kept[1] < kept[0] / 4


def test_nothing_is_computed_again_without_gradients():
    model = backbone(True)
    num_calls = []
    model.vit.blocks[0].register_forward_hook(lambda *_: num_calls.append(1))
    with torch.no_grad():
        model(torch.randn(1, 3, 16, 16))
    assert len(num_calls) == 1


def test_weights_and_arguments_are_those_of_a_backbone_without():
    assert backbone(True).arguments == backbone(False).arguments
    assert backbone(True).state_dict().keys() == backbone(False).state_dict().keys()
