"""Images of several shapes in one pass: values and gradients are those of every group alone."""

import copy

import pytest
import torch
from timm.layers import Attention, RmsNorm
from timm.models.vision_transformer import Block, ParallelScalingBlock
from torch import nn

from ser_lightning.backbones.packed import pack, run_block, run_cls_block
from ser_lightning.backbones.split_vit import SplitViT

SHAPES = [(3, 6), (2, 9), (1, 2)]
VARIANTS = {
    "plain": {"qkv_bias": True},
    "no_bias": {"qkv_bias": False},
    "layer_scale": {"init_values": 0.3},
    "norms": {"qk_norm": True, "scale_attn_norm": True, "scale_mlp_norm": True},
    "rms_norm": {"norm_layer": RmsNorm, "qk_norm": True},
}


def make_block(kind=Block, **options):
    torch.manual_seed(0)
    block = kind(24, num_heads=3, **options).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    return block


def groups(shapes=SHAPES):
    rng = torch.Generator().manual_seed(1)
    return [torch.randn(n, t, 24, generator=rng, dtype=torch.float64) for n, t in shapes]


def with_gradients(block, run):
    """Outputs of some groups, and gradients of a loss of them."""
    block.zero_grad()
    inputs = [group.requires_grad_() for group in groups()]
    outputs = run(inputs)
    sum((i + 1) * output.pow(3).sum() for i, output in enumerate(outputs)).backward()
    parameters = {n: p.grad.clone() for n, p in block.named_parameters() if p.grad is not None}
    return outputs, [group.grad for group in inputs], parameters


class HashedDrop(nn.Module):
    """Drops an image by its content, so that two runs drop the same ones."""

    def forward(self, tokens):
        assert tokens.dim() == 3
        return tokens * (tokens.sum((1, 2), keepdim=True) > 0)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_block_of_several_groups_equals_the_block_of_each(variant, fused):
    block = make_block(**VARIANTS[variant])
    block.attn.fused_attn = fused
    ours = with_gradients(block, lambda x: run_block(block, pack(x)).groups)
    alone = with_gradients(block, lambda x: [block(group) for group in x])
    torch.testing.assert_close(ours, alone)


@pytest.mark.parametrize("variant", VARIANTS)
def test_cls_block_of_several_groups_equals_the_block_of_each(variant):
    block = make_block(**VARIANTS[variant])
    sizes = [n for n, _ in SHAPES]
    ours = with_gradients(block, lambda x: run_cls_block(block, pack(x)).split(sizes))
    alone = with_gradients(block, lambda x: [block(group)[:, 0] for group in x])
    torch.testing.assert_close(ours, alone)


def test_gated_attention_is_gated():
    block = make_block()
    block.attn = Attention(24, num_heads=3, gated=True).double()
    ours = with_gradients(block, lambda x: run_block(block, pack(x)).groups)
    torch.testing.assert_close(ours, with_gradients(block, lambda x: [block(g) for g in x]))


def test_images_are_dropped_whole():
    block = make_block()
    block.drop_path1, block.drop_path2 = HashedDrop(), HashedDrop()
    ours = with_gradients(block, lambda x: run_block(block, pack(x)).groups)
    torch.testing.assert_close(ours, with_gradients(block, lambda x: [block(g) for g in x]))


def test_drop_path_draws_in_training_alone():
    block = make_block(drop_path=0.5)
    packed = pack(groups([(400, 3), (400, 2)]))
    block.eval()
    expected = torch.cat([block(group).flatten(0, 1) for group in packed.groups])
    torch.testing.assert_close(run_block(block, packed).tokens, expected)
    block.train()
    block.ls2 = nn.Identity()
    block.mlp = nn.Identity()
    block.norm2 = HashedZero()
    dropped = [
        (out == group).all(2).all(1).double().mean()
        for out, group in zip(run_block(block, packed).groups, packed.groups, strict=True)
    ]
    assert dropped == pytest.approx([0.5, 0.5], abs=0.1)  # four deviations


class HashedZero(nn.Module):
    """Turns the second half of a block off."""

    def forward(self, tokens):
        return torch.zeros_like(tokens)


def test_unknown_block_runs_group_by_group():
    block = make_block(ParallelScalingBlock)
    ours = with_gradients(block, lambda x: run_block(block, pack(x)).groups)
    torch.testing.assert_close(ours, with_gradients(block, lambda x: [block(g) for g in x]))


def test_linear_layers_run_once():
    block, calls = make_block(), []
    for layer in (block.norm1, block.attn.qkv, block.attn.proj, block.mlp, block.norm2):
        layer.register_forward_hook(lambda *_: calls.append(1))
    run_block(block, pack(groups()))
    assert len(calls) == 5


@pytest.mark.parametrize("cls_layer", [0, 1, 2, 3])
@pytest.mark.parametrize("layer", [1, 4, [1, 2]])
@pytest.mark.parametrize("sides", [[(32, 32)], [(32, 32), (24, 40)], [(16, 16), (8, 48), (32, 24)]])
def test_encoding_several_shapes_equals_encoding_each(sides, layer, cls_layer):
    options = {"embed_dim": 24, "depth": 4, "num_heads": 3}
    torch.manual_seed(0)
    ours = SplitViT(
        "vit_tiny_patch16_224", 32, layer, cls_layer, 8, options, freeze_patch_embed=False
    ).double()
    alone = copy.deepcopy(ours)
    rng = torch.Generator().manual_seed(2)
    images = [
        torch.randn(2 + i, 3, h, w, generator=rng, dtype=torch.float64)
        for i, (h, w) in enumerate(sides)
    ]
    found = ours.encode([*images, images[0]], num_without_embedding=1)
    assert found[-1][1] is None
    losses = []
    for image, (prefixes, embedding) in zip(images, found, strict=False):
        ((expected, whole),) = alone.encode([image])
        torch.testing.assert_close(prefixes, expected)
        torch.testing.assert_close(embedding, whole)
        pairs = (prefixes, embedding), (expected, whole)
        losses.append([p[-1].tokens.pow(3).mean() + e.pow(3).sum() for p, e in pairs])
    for total in map(sum, zip(*losses, strict=True)):
        total.backward()
    gradients = [{n: p.grad for n, p in m.named_parameters()} for m in (ours, alone)]
    assert any(g is not None for g in gradients[0].values())
    torch.testing.assert_close(*gradients)
