"""The last block for [CLS] alone equals the full block, in values, gradients and draws."""

import copy

import pytest
import torch
from timm.layers import Attention, RmsNorm
from timm.models.vision_transformer import Block, ParallelScalingBlock, ResPostBlock
from torch import nn

from ser_lightning.backbones.attention import is_plain_block
from ser_lightning.backbones.packed import pack, run_cls_block
from ser_lightning.backbones.split_vit import SplitViT

VARIANTS = {
    "plain": {"qkv_bias": True},
    "no_bias": {"qkv_bias": False},
    "layer_scale": {"init_values": 0.3},
    "qk_norm": {"qk_norm": True},
    "scale_norms": {"scale_attn_norm": True, "scale_mlp_norm": True},
    "rms_norm": {"norm_layer": RmsNorm, "qk_norm": True},
    "drop_path": {"drop_path": 0.5},
}


def cls_block(block, tokens):
    return run_cls_block(block, pack([tokens]))


def make_block(**options):
    torch.manual_seed(0)
    block = Block(24, num_heads=3, **options).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    return block


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_cls_block_equals_full_block(variant, fused):
    block = make_block(**VARIANTS[variant])
    block.attn.fused_attn = fused
    assert is_plain_block(block)
    _assert_equal(block)


def test_cls_block_of_a_gated_attention_equals_full_block():
    block = make_block()
    block.attn = Attention(24, num_heads=3, gated=True).double()
    _assert_equal(block)


def test_cls_block_drops_like_the_full_block_in_distribution():
    block = make_block(attn_drop=0.5).eval()
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    torch.testing.assert_close(cls_block(block, x), block(x)[:, 0])
    torch.manual_seed(0)
    outputs = torch.stack([cls_block(block.train(), x) for _ in range(2)])
    assert not torch.equal(outputs[0], outputs[1])


@pytest.mark.parametrize("kind", [ResPostBlock, ParallelScalingBlock])
def test_unknown_block_falls_back_to_the_full_one(kind):
    assert not is_plain_block(kind(24, num_heads=3))
    options = {"embed_dim": 24, "depth": 2, "num_heads": 3, "block_fn": kind}
    model = SplitViT("vit_tiny_patch16_224", 32, layer=1, vit_options=options).double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    tokens = torch.cat(
        [model.vit.cls_token.expand(2, -1, -1), model.prefixes(x)[0].tokens.flatten(2).mT], dim=1
    )
    expected = model.vit.norm(model.vit.blocks[1](tokens))[:, 0]
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("cls_layer", [0, 1, 2, 3])
def test_embedding_of_a_whole_vit_is_the_same_with_the_full_last_block(cls_layer):
    options = {"embed_dim": 24, "depth": 4, "num_heads": 3, "drop_path_rate": 0.4}
    models = []
    for cls_only in (True, False):
        torch.manual_seed(0)
        models.append(
            SplitViT(
                "vit_tiny_patch16_224",
                32,
                layer=2,
                cls_layer=cls_layer,
                vit_options=options,
                cls_only_last_block=cls_only,
            ).double()
        )
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    outputs = []
    for model in models:
        torch.manual_seed(1)
        outputs.append(model(x))
        (outputs[-1] @ torch.arange(24.0).double()).sum().backward()
    torch.testing.assert_close(*outputs, rtol=1e-12, atol=1e-12)
    for first, second in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(first.grad, second.grad, rtol=1e-9, atol=1e-11)


def _assert_equal(block):
    full = copy.deepcopy(block)
    x = torch.randn(6, 5, 24, dtype=torch.float64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    torch.manual_seed(1)
    ours = cls_block(block, x)
    torch.manual_seed(1)
    theirs = full(y)[:, 0]
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    (ours**3).sum().backward()
    (theirs**3).sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-9, atol=1e-11)
    for (name, p), q in zip(block.named_parameters(), full.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-11, msg=name)
