"""Flavours of the ViT: where it is cut, fixed positions, official MoCo-v3, other sizes."""

import copy
import math
from pathlib import Path

import jsonargparse
import pytest
import safetensors.torch
import timm
import torch
import yaml
from timm.layers import resample_abs_pos_embed

from ser_lightning.backbones import SplitViT, momentum_copy, update_momentum
from ser_lightning.backbones.vit import block_number, sincos_position
from ser_lightning.objectives.moco_v3 import MoCoV3
from ser_lightning.regularizers import SERRegularizer
from support import TINY_VIT, tiny_backbone

CONFIGS = Path(__file__).parents[2] / "configs"


def on_meta(*args, **kwargs):
    with torch.device("meta"):
        return SplitViT(*args, **kwargs)


def images(side=16):
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def position_oracle(height, width, channels):
    """The embedding entry by entry; MoCo-v3's public code runs over the rows first."""
    bands = channels // 4
    entries = torch.empty(1, height * width, channels, dtype=torch.float64)
    for row in range(height):
        for column in range(width):
            for i in range(bands):
                omega = 1 / 10000 ** (i / bands)
                patch = entries[0, row * width + column]
                patch[i] = math.sin(row * omega)
                patch[bands + i] = math.cos(row * omega)
                patch[2 * bands + i] = math.sin(column * omega)
                patch[3 * bands + i] = math.cos(column * omega)
    return entries


@pytest.mark.parametrize(
    ("layer", "depth", "expected"),
    [
        (0.25, 12, 3),
        (0.25, 24, 6),
        (0.2, 12, 2),
        (0.22, 12, 3),
        (0.0, 12, 0),
        (1.0, 12, 12),
        (1, 12, 1),
        (3, 12, 3),
        (0.5, 5, 2),  # a half goes to the even block
        (0.5, 7, 4),
    ],
)
def test_float_is_a_fraction_of_the_depth_and_int_a_number_of_blocks(layer, depth, expected):
    number = block_number(layer, depth)
    assert number == expected
    assert type(number) is int


PLACE = r"must be int >= 0 \| float in \[0, 1\] \| list\[int >= 0 \| float in \[0, 1\]\]"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer": 3.0}, rf"layer 3\.0 {PLACE}; the default is 3$"),
        ({"layer": 1.5}, rf"layer 1\.5 {PLACE}"),
        ({"layer": [1, 9.0]}, rf"layer \[1, 9\.0\] {PLACE}"),
        ({"layer": -0.25}, rf"layer -0\.25 {PLACE}"),
        ({"layer": -1}, rf"layer -1 {PLACE}"),
        ({"layer": math.nan}, f"layer nan {PLACE}"),
        ({"layer": math.inf}, f"layer inf {PLACE}"),
        ({"layer": True}, f"layer True {PLACE}"),
        ({"image_size": 0}, "image_size 0 must be int >= 1"),
        ({"vit_options": {**TINY_VIT, "drop_path_rate": 1.5}}, r"drop_path_rate 1\.5 must be"),
        ({"vit_options": {**TINY_VIT, "depth": 0}}, "vit_options: depth 0 must be int in"),
        ({"vit_options": {**TINY_VIT, "mlp_ratio": -4}}, "mlp_ratio -4 must be float > 0"),
        ({"cls_layer": 4}, r"cls_layer 4 is not in 0\.\.3"),
        (
            {"position_embedding": "rotary"},
            "position_embedding 'rotary' must be one of 'learned', 'sincos'; the default is",
        ),
        (
            {"position_embedding": "sincos", "vit_options": {"embed_dim": 6, "num_heads": 3}},
            "width 6 is not a multiple of 4",
        ),
    ],
)
def test_wrong_flavour_is_refused_with_its_value(arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_backbone(**arguments)


def test_fraction_splits_where_its_number_of_blocks_does():
    for fraction, number in ((0.25, 1), (0.5, 2), (1.0, 4), (0.0, 0)):
        model = tiny_backbone(layer=fraction)
        same = tiny_backbone(layer=number)
        assert (model.layer, model.cls_layer) == (same.layer, same.cls_layer)
        assert type(model.layer) is type(model.cls_layer) is int
        assert model.arguments["layer"] is fraction
    model(images())


@pytest.mark.parametrize(
    ("text", "given", "number"), [("0.25", 0.25, 1), ("3", 3, 3), ("1", 1, 1), ("1.0", 1.0, 4)]
)
def test_command_line_tells_fractions_from_numbers_of_blocks(text, given, number):
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_argument("--backbone", type=SplitViT)
    tiny = {k: v for k, v in tiny_backbone().arguments.items() if k != "layer"}
    options = ["--config", yaml.safe_dump({"backbone": tiny})]
    parsed = parser.parse_args([*options, "--backbone.layer", text])
    again = parser.parse_args(["--config", parser.dump(parsed)])  # as a checkpoint records it
    for config in (parsed, again):
        value = config.backbone.init_args.layer
        assert value == given
        assert type(value) is type(given)
    assert SplitViT(**again.backbone.init_args.as_dict()).layer == number


@pytest.mark.parametrize("channels", [4, 12, 32])
@pytest.mark.parametrize("grid", [(1, 1), (14, 14), (3, 5)])
def test_sincos_position_equals_written_out_loop(grid, channels):
    position = sincos_position(grid, channels)
    assert position.dtype == torch.float32
    # float32 angles of up to 13: measured 6e-7
    torch.testing.assert_close(
        position.double(), position_oracle(*grid, channels), rtol=0, atol=3e-6
    )


@pytest.mark.parametrize("cls_layer", [0, 1])
def test_sincos_embedding_is_frozen_with_a_zero_entry_for_cls_at_the_input(cls_layer):
    position = tiny_backbone(cls_layer=cls_layer, position_embedding="sincos").vit.pos_embed
    assert isinstance(position, torch.nn.Parameter)
    assert not position.requires_grad
    patches = position
    if cls_layer == 0:
        assert not position[:, 0].any()
        patches = position[:, 1:]
    assert torch.equal(patches, sincos_position((4, 4), 32))
    assert tiny_backbone(cls_layer=cls_layer).vit.pos_embed.requires_grad


@pytest.mark.parametrize("cls_layer", [0, 1])
def test_sincos_backbone_trains_all_but_its_two_fixed_embeddings(cls_layer):
    model = tiny_backbone(cls_layer=cls_layer, position_embedding="sincos")
    (model(images()) ** 3).sum().backward()
    fixed = {"vit.pos_embed", "vit.patch_embed.proj.weight", "vit.patch_embed.proj.bias"}
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (name in fixed), name


def test_sincos_embedding_is_resampled_for_another_grid():
    model = tiny_backbone(layer=0, position_embedding="sincos")
    x = images(24)
    patches = model.vit.patch_embed(x).permute(0, 3, 1, 2)
    position = resample_abs_pos_embed(
        sincos_position((4, 4), 32), [6, 6], [4, 4], num_prefix_tokens=0, antialias=False
    )
    expected = patches + position.mT.unflatten(2, (6, 6))
    torch.testing.assert_close(model.prefixes(x)[0].tokens, expected)


@pytest.mark.parametrize("cls_layer", [0, 1])
def test_sincos_backbone_survives_export_and_plain_timm(tmp_path, cls_layer):
    model = tiny_backbone(cls_layer=cls_layer, layer=0.25, position_embedding="sincos")
    model.export_safetensors(tmp_path / "b.safetensors")
    again = SplitViT.from_safetensors(tmp_path / "b.safetensors")
    assert again.arguments == model.arguments
    assert type(again.arguments["layer"]) is float
    assert not again.vit.pos_embed.requires_grad
    assert torch.equal(again(images()), model(images()))
    sizes = {"img_size": 16, "patch_size": 4, **model.arguments["vit_options"]}
    plain = timm.create_model("vit_tiny_patch16_224", num_classes=0, **sizes)
    plain.load_state_dict(model.timm_state_dict())
    assert torch.equal(plain.pos_embed[:, 1:], sincos_position((4, 4), 32))
    torch.save(plain.state_dict(), tmp_path / "vit.pt")
    back = SplitViT(**model.arguments, weights=str(tmp_path / "vit.pt"))
    assert torch.equal(back(images()), model(images()))


def test_sincos_backbone_is_rebuilt_from_a_checkpoint(tmp_path):
    model = tiny_backbone(layer=0.5, position_embedding="sincos")
    config = {"model": {"init_args": {"backbone": {"init_args": model.arguments}}}}
    state = {f"backbone.{key}": value for key, value in model.state_dict().items()}
    record = {"config": yaml.safe_dump(config)}
    torch.save({"state_dict": state, "ser_lightning": record}, tmp_path / "last.ckpt")
    again = SplitViT.from_checkpoint(tmp_path / "last.ckpt")
    assert again.layer == 2
    assert not again.vit.pos_embed.requires_grad
    assert torch.equal(again(images()), model(images()))


def test_file_of_a_learned_embedding_replaces_the_fixed_one_and_stays_frozen(tmp_path):
    learned = tiny_backbone()
    safetensors.torch.save_file(learned.vit.state_dict(), tmp_path / "vit.safetensors")
    model = tiny_backbone(position_embedding="sincos", weights=str(tmp_path / "vit.safetensors"))
    assert torch.equal(model.vit.pos_embed, learned.vit.pos_embed)
    assert not model.vit.pos_embed.requires_grad


def test_momentum_update_leaves_the_fixed_embedding_alone():
    online = tiny_backbone(position_embedding="sincos")
    momentum = momentum_copy(online)
    before = copy.deepcopy(momentum.vit.pos_embed)
    with torch.no_grad():
        for parameter in online.parameters():
            parameter.add_(1)
    update_momentum(online, momentum, 0.5)
    assert torch.equal(momentum.vit.pos_embed, before)
    assert not torch.equal(momentum.vit.blocks[0].norm1.weight, torch.ones(32))


@pytest.mark.parametrize(
    ("name", "num_trainable"),
    # the paper's counts without the position embedding: 197 entries, 196 where [CLS] joins late
    [
        ("moco_official", 42_890_752 - 197 * 384),
        ("moco_ser_official", 43_349_888 - 196 * 384),
    ],
)
def test_official_flavour_has_its_heads_embedding_and_parameter_count(name, num_trainable):
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    arguments = config["model"]["init_args"]
    backbone = on_meta(**arguments["backbone"])
    assert {block.attn.num_heads for block in backbone.vit.blocks} == {12}
    assert not backbone.vit.pos_embed.requires_grad
    assert not any(p.requires_grad for p in backbone.vit.patch_embed.parameters())
    regularizer = arguments["regularizer"]
    with torch.device("meta"):
        objective = MoCoV3(
            backbone, regularizer=regularizer and SERRegularizer(**regularizer["init_args"])
        )
    assert sum(p.numel() for p in objective.trainable_parameters()) == num_trainable
    peak = float(arguments["base_learning_rate"]) * config["data"]["global_batch_size"] / 256
    assert peak == pytest.approx(2.4e-3)


@pytest.mark.parametrize(
    ("name", "patch_size", "side", "split", "width"),
    [
        ("vit_tiny_patch16_224", None, 14, 3, 192),
        ("vit_tiny_patch16_224", 8, 28, 3, 192),
        ("vit_tiny_patch16_224", 14, 16, 3, 192),
        ("vit_small_patch8_224", None, 28, 3, 384),
        ("vit_small_patch14_dinov2", None, 16, 3, 384),  # timm's own image size is 518
        ("vit_small_patch16_384", None, 14, 3, 384),
        ("vit_base_patch8_224", None, 28, 3, 768),
        ("vit_base_patch14_dinov2", None, 16, 3, 768),
        ("vit_base_patch16_224", None, 14, 3, 768),
        ("vit_large_patch16_224", 8, 28, 6, 1024),
        ("vit_large_patch14_224", None, 16, 6, 1024),
        ("vit_large_patch14_clip_224", None, 16, 6, 1024),
        ("vit_large_patch16_224", None, 14, 6, 1024),
    ],
)
@pytest.mark.parametrize("position_embedding", ["learned", "sincos"])
def test_other_vits_are_split_at_a_quarter_of_their_depth(
    name, patch_size, side, split, width, position_embedding
):
    model = on_meta(name, patch_size=patch_size, layer=0.25, position_embedding=position_embedding)
    assert model.grid == (side, side)
    assert (model.layer, model.cls_layer, model.width) == (split, split, width)
    assert model.vit.pos_embed.shape == (1, side * side, width)


def test_patch_of_14_pixels_runs_forward_on_its_own_grid():
    torch.manual_seed(0)
    options = {"embed_dim": 24, "depth": 4, "num_heads": 3}
    model = SplitViT("vit_small_patch14_dinov2", 56, layer=0.25, vit_options=options)
    ((prefixes, embedding),) = model.encode([images(56)])
    assert model.patch_size == 14
    assert prefixes[0].tokens.shape == (2, 24, 4, 4)
    assert embedding.shape == (2, 24)
    assert model.prefixes(images(70))[0].tokens.shape == (2, 24, 5, 5)
    with pytest.raises(ValueError, match=r"image_size 225 is not a multiple .* 14; use 224"):
        on_meta("vit_small_patch14_dinov2", 225)
