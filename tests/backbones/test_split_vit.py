"""SplitViT against plain timm, against written-out loops, and against the paper's counts."""

import copy

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed, set_fused_attn
from torch.utils.flop_counter import FlopCounterMode

from ser_lightning.backbones.split_vit import SplitViT

TINY = {"embed_dim": 24, "depth": 4, "num_heads": 3}


def tiny(dtype=torch.float64, **kwargs):
    torch.manual_seed(0)
    options = {**TINY, **kwargs.pop("vit_options", {})}
    defaults = {"image_size": 32, "patch_size": 8, "layer": 2, "vit_options": options}
    return SplitViT("vit_tiny_patch16_224", **{**defaults, **kwargs}).to(dtype)


def images(height=32, width=32, num_images=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(num_images, 3, height, width, generator=generator, dtype=dtype)


def written_out(model, x, stop):
    """All tokens after `stop` blocks, by the plain loop over blocks."""
    vit, grid = model.vit, (x.shape[2] // 8, x.shape[3] // 8)
    tokens = torch.stack(
        [
            torch.einsum("bchw,dchw->bd", x[:, :, 8 * i : 8 * i + 8, 8 * j : 8 * j + 8], kernel)
            + vit.patch_embed.proj.bias
            for kernel in [vit.patch_embed.proj.weight]
            for i in range(grid[0])
            for j in range(grid[1])
        ],
        dim=1,
    )
    late = model.cls_layer > 0
    position = resample_abs_pos_embed(
        vit.pos_embed, grid, model.grid, num_prefix_tokens=0 if late else 1, antialias=False
    )
    cls = vit.cls_token.expand(len(x), -1, -1)
    tokens = tokens + position if late else torch.cat([cls, tokens], dim=1) + position
    for number, block in enumerate(vit.blocks[:stop]):
        if late and number == model.cls_layer:
            tokens = torch.cat([cls, tokens], dim=1)
        tokens = block(tokens)
    return tokens


def test_forward_with_cls_at_input_equals_plain_timm():
    model = tiny(cls_layer=0)
    plain = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, num_classes=0, **TINY
    ).double()
    plain.load_state_dict(model.timm_state_dict())
    x = images()
    torch.testing.assert_close(model(x), plain(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        model.prefixes(x)[0].tokens,
        plain.forward_intermediates(x, [1], intermediates_only=True)[0],
        rtol=1e-12,
        atol=1e-12,
    )


@pytest.mark.parametrize("layer", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("cls_layer", [None, 0, 1, 2, 3])
@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
def test_prefix_and_embedding_equal_written_out_loop(layer, cls_layer, size):
    model = tiny(layer=layer, cls_layer=cls_layer)
    x = images(*size)
    ((prefix,), found) = model.encode([x])[0]
    expected = written_out(model, x, layer)
    expected = model.vit.norm(expected) if layer == model.depth else expected
    joined = expected.shape[1] > (size[0] // 8) * (size[1] // 8)
    expected_map = expected[:, 1:] if joined else expected
    for row, column in [(0, 0), (0, 2), (size[0] // 8 - 1, size[1] // 8 - 1)]:
        torch.testing.assert_close(
            prefix.tokens[:, :, row, column], expected_map[:, row * (size[1] // 8) + column]
        )
    assert prefix.tokens.shape == (2, 24, size[0] // 8, size[1] // 8)
    assert (prefix.cls is not None) == joined
    if joined:
        torch.testing.assert_close(prefix.cls, expected[:, 0])
    embedding = model.vit.norm(written_out(model, x, model.depth))[:, 0]
    torch.testing.assert_close(found, embedding, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cls_layer", [0, 2])
def test_gradients_equal_written_out_loop(cls_layer):
    model = tiny(cls_layer=cls_layer)
    reference = copy.deepcopy(model)
    x, weight = images(24, 40), torch.randn(24, dtype=torch.float64)
    (model(x) @ weight).sum().backward()
    (reference.vit.norm(written_out(reference, x, 4))[:, 0] @ weight).sum().backward()
    for (name, ours), other in zip(model.named_parameters(), reference.parameters(), strict=True):
        if name.startswith("vit.patch_embed."):
            assert ours.grad is None
        else:
            torch.testing.assert_close(ours.grad, other.grad, rtol=1e-9, atol=1e-12, msg=name)


def test_gradient_of_token_map_stays_in_the_prefix():
    model = tiny(layer=2)
    model.prefixes(images())[0].tokens.square().sum().backward()
    assert all(p.grad is not None for p in model.vit.blocks[:2].parameters())
    assert model.vit.pos_embed.grad is not None
    rest = [*model.vit.blocks[2:].parameters(), *model.vit.norm.parameters(), model.vit.cls_token]
    assert all(p.grad is None for p in rest)


@pytest.mark.parametrize("cls_layer", [0, 1, 3])
def test_token_maps_of_several_layers_equal_single_prefixes(cls_layer):
    model, x, layers = tiny(cls_layer=cls_layer), images(24, 40), (4, 0, 2, 2)
    maps = model.token_maps(x, layers)
    for layer, tokens in zip(layers, maps, strict=True):
        single = tiny(layer=layer, cls_layer=cls_layer)
        torch.testing.assert_close(tokens, single.prefixes(x)[0].tokens)


def test_cls_tokens_end_in_the_embedding_and_refuse_blocks_without_cls():
    model, x = tiny(cls_layer=1), images()
    two, last = model.cls_tokens(x, (2, 4))
    torch.testing.assert_close(last, model(x))
    torch.testing.assert_close(two, model.vit.norm(written_out(model, x, 2)[:, 0]))
    with pytest.raises(ValueError, match=r"layer 1 is not in 2\.\.4; \[CLS\] joins after block 1"):
        model.cls_tokens(x, (1, 4))
    tiny(cls_layer=0).cls_tokens(x, (0,))


def test_bfloat16_on_cpu_writes_attention_out_and_float32_fuses_it():
    model = tiny(torch.float32)
    x = images(dtype=torch.float32)
    reference = model(x)
    assert all(block.attn.fused_attn for block in model.vit.blocks)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        reduced = model(x)
    assert not any(block.attn.fused_attn for block in model.vit.blocks)
    assert torch.cosine_similarity(reference, reduced.float()).min() > 0.999
    twin = copy.deepcopy(model)
    assert torch.equal(twin(x), reference)
    assert all(block.attn.fused_attn for block in twin.vit.blocks)
    assert not any(block.attn.fused_attn for block in model.vit.blocks)
    model.bfloat16()(x.bfloat16())
    assert not any(block.attn.fused_attn for block in model.vit.blocks)


def test_parameter_counts_are_the_papers():
    def count(model, trainable):
        return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)

    early, late = SplitViT(cls_layer=0), SplitViT()
    assert count(early, trainable=False) == 21_665_664
    assert count(early, trainable=True) == 21_665_664 - 295_296
    assert count(late, trainable=True) == 21_665_664 - 295_296 - 384
    assert count(SplitViT(freeze_patch_embed=False), trainable=True) == 21_665_664 - 384


@pytest.mark.parametrize(
    ("cls_layer", "cls_only", "gmacs"),
    # 0.3187 GMAC, 6.9 %, is what the last block saves; the full ones are the paper's convention
    [(0, False, 4.598498), (3, False, 4.592284), (0, True, 4.279830), (3, True, 4.273616)],
)
def test_forward_operations_are_the_papers(cls_layer, cls_only, gmacs):
    set_fused_attn(False)  # the CPU kernel is not counted
    try:
        model = SplitViT(cls_layer=cls_layer, cls_only_last_block=cls_only).to("meta")
    finally:
        set_fused_attn(True)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, 224, 224, device="meta"))
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmacs, abs=1e-6)


def test_moco_initialisation_has_the_xavier_bound_and_zero_bias():
    projection = SplitViT().vit.patch_embed.proj
    bound = (6 / (3 * 16 * 16 + 384)) ** 0.5
    assert bound == pytest.approx(0.0722, abs=1e-4)
    assert 0.999 * bound < projection.weight.abs().max() <= bound
    assert not projection.bias.any()
    assert not projection.weight.requires_grad


def test_default_timm_initialisation_draws_the_class_token_like_the_rest():
    width = {"embed_dim": 384, "depth": 1, "num_heads": 6}
    model = SplitViT(weight_init="", vit_options=width, layer=1, cls_layer=0)
    assert model.vit.cls_token.std().item() == pytest.approx(0.02, rel=0.2)
    assert model.vit.blocks[0].attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("cls_layer", [{}, {"cls_layer": "auto"}, {"cls_layer": None}])
def test_depth_as_layer_puts_cls_at_the_input(cls_layer):
    assert tiny(layer=4, **cls_layer).cls_layer == 0
    assert tiny(layer=3, **cls_layer).cls_layer == 3
    assert tiny(layer=3, **cls_layer).arguments["cls_layer"] == 3  # what an export says


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer": 5}, r"layer 5 is not in 0\.\.4"),
        ({"layer": -1}, r"layer -1 must be int >= 0"),
        ({"cls_layer": 4}, r"cls_layer 4 is not in 0\.\.3"),
        ({"image_size": 36}, "image_size 36 is not a multiple of the patch size 8; use 32"),
        ({"image_size": 4}, "image_size 4 is not a multiple of the patch size 8; use 8"),
        ({"image_size": 0}, "image_size 0 must be int >= 1"),
        ({"patch_size": (8, 4)}, r"patch_size \(8, 4\) must be int >= 1"),
        (
            {"weight_init": "xavier"},
            "weight_init 'xavier' must be one of 'moco', '', 'jax'; the default is moco",
        ),
        ({"vit_options": {"class_token": False}}, "vit_options must not set class_token"),
        ({"vit_options": {"in_chans": 1}}, "in_chans 1, but images have 3 .*leave it out"),
        ({"vit_options": {"reg_tokens": 4}}, "cls_layer above 0 with 4 register tokens"),
        ({"vit_options": {"num_headz": 4}}, "timm cannot build vit_tiny_patch16_224.*num_headz"),
        ({"vit_options": {"num_heads": 5}}, "timm cannot build"),
    ],
)
def test_wrong_argument_is_refused_with_its_value(arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny(**arguments)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_smal_patch16_224", "did you mean vit_small_patch16_224"),
        ("nothing_like_it", "timm has no model 'nothing_like_it'"),
        ("resnet18", "resnet18 is not a plain ViT"),
        ("vit_medium_patch16_reg4_gap_256", "cls_layer above 0 with 4 register tokens"),
        ("deit_tiny_distilled_patch16_224", "not a plain ViT"),
    ],
)
def test_model_that_is_no_plain_vit_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        SplitViT(name)


def test_image_of_broken_patches_is_refused():
    with pytest.raises(ValueError, match="32 x 36 pixels is not made of whole patches of 8"):
        tiny().prefixes(images(32, 36))
    with pytest.raises(ValueError, match=r"layer 5 is not in 0\.\.4"):
        tiny().token_maps(images(), (0, 5))
    with pytest.raises(ValueError, match="list is empty"):
        tiny().token_maps(images(), ())


@pytest.mark.parametrize("cls_layer", [0, 1, 2, 3])
def test_several_layers_give_the_prefix_of_each_and_the_same_embedding(cls_layer):
    x = images()
    several = tiny(layer=[1, 2, 4], cls_layer=cls_layer)
    assert (several.layer, several.layers) == (1, (1, 2, 4))
    prefixes = several.prefixes(x)
    for layer, prefix in zip([1, 2, 4], prefixes, strict=True):
        single = tiny(layer=layer, cls_layer=cls_layer)
        single.load_state_dict(several.state_dict())
        (expected,) = single.prefixes(x)
        torch.testing.assert_close(prefix.tokens, expected.tokens)
        assert (prefix.cls is None) == (expected.cls is None)
        if prefix.cls is not None:
            torch.testing.assert_close(prefix.cls, expected.cls)
        torch.testing.assert_close(several(x), single(x))


def test_layers_default_cls_layer_is_the_first_of_several():
    assert tiny(layer=[3, 2]).cls_layer == 2


@pytest.mark.parametrize("layer", [[], [2, 2], [0.5, 2], [1, 9]])
def test_lists_of_layers_that_make_no_sense_raise(layer):
    with pytest.raises(ValueError, match="layer"):
        tiny(layer=layer)


@pytest.mark.parametrize("cls_layer", [0, 2])
def test_parameters_have_the_strides_that_buckets_of_gradients_have(cls_layer):
    for name, parameter in tiny(cls_layer=cls_layer).named_parameters():
        assert parameter.stride() == torch.empty(parameter.shape).stride(), name


def test_images_of_whole_numbers_are_refused():
    with pytest.raises(ValueError, match=r"images are torch\.uint8; give floats, normalised"):
        tiny()(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


@pytest.mark.parametrize("layers", [[0.25], [0.5, 4], [2.0], [True], [-1], [torch.tensor(1)]])
def test_token_maps_are_asked_for_by_whole_numbers(layers):
    with pytest.raises(ValueError, match=r"^layer .* must be int >= 0, a number of blocks$"):
        tiny().token_maps(images(32, 32), layers)


def test_layers_may_be_a_tuple():
    assert tiny(layer=(1, 2)).layers == (1, 2)


def test_epsilon_is_that_of_every_kind_of_norm():
    vit = tiny(vit_options={"norm_layer": "rmsnorm", "norm_eps": 1e-2}).vit
    assert {each.eps for each in vit.modules() if hasattr(each, "eps")} == {1e-2}


def test_unknown_argument_beside_a_checkpoint_is_the_callers(tmp_path):
    tiny().export_safetensors(tmp_path / "vit.safetensors")
    with pytest.raises(TypeError, match="unexpected keyword argument 'image_sise'"):
        SplitViT.from_checkpoint(tmp_path / "vit.safetensors", image_sise=64)
