"""Files and names that are no plain ViT's: refused with the layout, the first keys and a remedy."""

import argparse
import json
import re
from collections import defaultdict

import pytest
import safetensors.torch
import timm
import torch
from torch import nn

import foreign_layouts as files
from foreign_layouts import DINOV2, PLAIN, vit
from ser_lightning.backbones import SplitViT, open_backbone
from ser_lightning.backbones.opening import name_of, preparation_of
from support import tiny_backbone


def refusal(path, **options):
    with pytest.raises(ValueError) as error:
        open_backbone(path, **options)
    return str(error.value)


def changed(path, make, model=None, **changes):
    """A file of a layout with some tensors of its ViT changed, or removed for None."""
    content = make(model or vit(), vit(seed=1))
    flat = content
    for key in ("state_dict", "model", "teacher"):
        flat = flat.get(key, flat)
    for suffix, value in changes.items():
        (name, *_) = [name for name in flat if name.endswith(suffix)] or [suffix]
        if value is None:
            del flat[name]
        else:
            flat[name] = value
    torch.save(content, path)
    return path


LAYOUTS = [
    (files.timm_file, "timm", "vit_small_patch16_224, for example"),
    (files.deit, "DeiT, MAE's encoder", "vit_small_patch16_224, for example"),
    (files.dino, "DINO", "vit_small_patch16_224, for example"),
    (files.moco_v3, "MoCo-v3", "with 12, 12, 16 and 16 heads"),
    (files.mae, "MAE", "vit_huge_patch14_224"),
    (files.solo_learn, "solo-learn", "vit_small_patch16_224, for example"),
]


@pytest.mark.parametrize(("make", "layout", "remedy"), LAYOUTS, ids=lambda value: str(value)[:20])
def test_keys_that_do_not_fit_are_named_with_layout_and_remedy(make, layout, remedy, tmp_path):
    path = changed(tmp_path / "a.pth", make, **{"blocks.1.norm2.weight": None})
    said = refusal(path)
    assert f"in the layout of {layout}, do not fit" in said
    assert "missing: blocks.1.norm2.weight; unexpected: none" in said
    assert remedy in said
    assert "--model.timm_name" in said
    with pytest.raises(ValueError, match=r"missing: blocks\.1\.norm2.*--model\.backbone\.name"):
        SplitViT(**arguments(), weights=str(path))


def arguments():
    sizes = {"embed_dim": 128, "depth": 3, "num_heads": 2}
    return {"name": "vit_base_patch16_224", "image_size": 32, "patch_size": 8, "layer": 1,
            "cls_layer": 0, "vit_options": sizes}  # fmt: skip


def test_tensor_of_another_shape_is_named_with_both(tmp_path):
    path = changed(tmp_path / "a.pth", files.deit, **{"blocks.2.attn.proj.bias": torch.ones(7)})
    assert "of another shape: blocks.2.attn.proj.bias (7,) for (128,)" in refusal(path)
    path = changed(tmp_path / "a.pth", files.deit, pos_embed=torch.ones(1, 4, 4, 128))
    with pytest.raises(ValueError, match=r"pos_embed \(1, 4, 4, 128\) for \(1, 17, 128\)"):
        SplitViT(**arguments(), weights=str(path))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"cls_token": None}, "no class token"),
        ({"pos_embed": None}, "no position embedding"),
        ({"dist_token": torch.ones(1, 1, 128)}, "a distillation token"),
        ({"fc_norm.weight": torch.ones(128)}, "a norm after pooling"),
        ({"blocks.0.attn.relative_position_bias_table": torch.ones(4)}, "relative positions"),
        ({"rope.periods": torch.ones(4)}, "rotary positions"),
        ({"layers.0.blocks.0.norm1.weight": torch.ones(4)}, "attention in windows"),
        ({"pos_embed": torch.ones(1, 18, 128)}, "18 position entries are no square"),
        ({"pos_embed": torch.ones(1, 4, 4, 128)}, "has pos_embed of shape (1, 4, 4, 128), and"),
        ({"cls_token": torch.ones(128)}, "has cls_token of shape (128,), and is not"),
        ({"patch_embed.proj.weight": torch.ones(128, 192)}, "patch_embed.proj.weight of shape"),
    ],
)
def test_weights_of_another_kind_of_network_are_refused_in_a_sentence(changes, reason, tmp_path):
    said = refusal(changed(tmp_path / "a.pth", files.timm_file, **changes))
    assert reason in said
    assert str(tmp_path / "a.pth") in said


@pytest.mark.parametrize("shape", [(), (0,), (128,), (1, 128)])
@pytest.mark.parametrize("make", [files.hugging_face, files.torchvision], ids=["HF", "torchvision"])
def test_class_tokens_of_odd_shapes_are_refused_in_a_sentence(make, shape, tmp_path):
    name = "cls_token" if make is files.hugging_face else "class_token"
    path = changed(tmp_path / "a.pth", make, **{name: torch.ones(shape)})
    assert f"has cls_token of shape {shape}, and is not" in refusal(path)
    assert "do not fit this ViT" in refusal(path, name="vit_tiny_patch16_224")


def test_queries_without_an_axis_are_refused_in_a_sentence(tmp_path):
    place = "vit.encoder.layer.0.attention.attention.query.weight"
    path = changed(tmp_path / "a.pth", files.hugging_face, **{place: torch.ones(())})
    assert "unexpected: blocks.0.attn.key.weight, blocks.0.attn.query.weight" in refusal(path)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("swin_tiny_patch4_window7_224", "attention in windows"),
        ("vit_base_patch16_siglip_224", "no class token"),
        ("vit_medium_patch16_gap_240", "no class token"),
        ("vit_base_r50_s16_224", "a convolutional stem"),
        ("vit_small_patch16_rope_224", "other positions"),
        ("deit_tiny_distilled_patch16_224", "a distillation token"),
        ("resnet18", "is not a plain ViT|windows"),
        ("vit_tiny_patch16_224.nonsense", "Invalid pretrained tag"),
    ],
)
def test_names_of_other_networks_are_refused_in_a_sentence(name, reason):
    assert re.search(reason, refusal(name))


def test_norm_before_the_blocks_is_read_by_timms_name_alone(tmp_path):
    model = vit(pre_norm=True)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-5  # as CLIP's
    path = changed(tmp_path / "a.pth", files.timm_file, model)
    assert "no shape tells; give timm's name of it by --model.timm_name NAME" in refusal(path)
    (tmp_path / "config.json").write_text(
        json.dumps({"architecture": "vit_base_patch16_clip_224", "model_args": {**PLAIN}})
    )
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = open_backbone(path).backbone.eval()(x)
        assert float((found - model.forward_features(x)[:, 0]).abs().max()) < 1e-5


def test_branch_that_a_file_lacks_is_refused(tmp_path):
    path = changed(tmp_path / "a.pth", files.deit)
    assert "has no momentum branch; take its online one" in refusal(path, branch="momentum")
    path = changed(tmp_path / "b.pth", files.dinov2_training, vit(**DINOV2))
    assert "has no online branch; take its momentum one" in refusal(path, branch="online")


def test_file_without_a_vit_or_with_several_is_refused(tmp_path):
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "a.pth")
    assert "no patch embedding of a plain ViT" in refusal(tmp_path / "a.pth")
    two = files.below("left.", vit().state_dict()) | files.below("right.", vit().state_dict())
    torch.save(two, tmp_path / "b.pth")
    assert "has ViTs below left and right" in refusal(tmp_path / "b.pth")
    one = files.below("trunk.", vit().state_dict())
    torch.save(one, tmp_path / "c.pth")
    assert open_backbone(tmp_path / "c.pth").layout == "timm below trunk"


def test_wrong_number_of_heads_or_name_is_refused(tmp_path):
    path = changed(tmp_path / "a.pth", files.deit)
    assert "num_heads 3 does not divide the width 128" in refusal(path, num_heads=3)
    assert "of another shape: blocks.0" in refusal(path, name="vit_tiny_patch16_224")
    odd = changed(tmp_path / "b.pth", files.timm_file, vit(embed_dim=100))
    assert "give --model.num_heads N" in refusal(odd)
    assert open_backbone(odd, num_heads=2).backbone.width == 100


def test_options_without_effect_are_refused(tmp_path):
    path = changed(tmp_path / "a.pth", files.deit)
    tiny_backbone().export_safetensors(tmp_path / "own.safetensors")
    own = tmp_path / "own.safetensors"
    assert "--model.pretrained True has no effect" in refusal(path, pretrained=True)
    assert "--model.timm_name x has no effect" in refusal(own, name="x")
    assert "--model.num_heads 2 has no effect" in refusal(own, num_heads=2)
    assert "--model.num_heads 2 has no effect" in refusal("vit_tiny_patch16_224", num_heads=2)


class Foreign:
    """A class that no list allows."""


def test_objects_beside_weights_are_passed_over_or_refused_with_one_command(tmp_path):
    content = files.deit(vit(), None)
    of_omegaconf = defaultdict(dict, {"resolved": {}})
    torch.save({**content, "args": argparse.Namespace(x=1), "d": of_omegaconf}, tmp_path / "a.pth")
    assert open_backbone(tmp_path / "a.pth").backbone.width == 128


@pytest.mark.parametrize("is_archive", [True, False])
@pytest.mark.parametrize(
    ("make", "layout"),
    [
        (lambda model: {**files.deit(model, None), "e": Foreign()}, "DeiT, MAE's encoder"),
        (lambda model: {"net": {"encoder": model.state_dict()}, "e": [Foreign()]},
         "timm below net.encoder"),
        (lambda model: model, "timm"),
        (lambda model: {"teacher": model, "epoch": 3}, "DINO"),
    ],
    ids=["beside", "nested", "a module", "a module below"],
)  # fmt: skip
def test_command_for_those_who_trust_a_file_keeps_its_weights(make, layout, is_archive, tmp_path):
    content = make(vit())
    torch.save(content, tmp_path / "b.pth", _use_new_zipfile_serialization=is_archive)
    said = refusal(tmp_path / "b.pth")
    command = re.search(r'python -c "(.*)"', said)[1].replace("weights.pth", f"{tmp_path}/w.pth")
    exec(command, {})
    assert open_backbone(tmp_path / "w.pth").layout == layout


def test_index_of_several_files_is_refused_with_the_way_to_one(tmp_path):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text('{"weight_map": {"vit.layernorm.bias": "model-00001-of-00002.safetensors"}}')
    assert "index of a model in several files; save the model as one" in refusal(path)


def test_failed_download_is_a_sentence(monkeypatch):
    def no_network(name, pretrained=False, **options):
        if pretrained:
            raise OSError("no route to host")
        return create(name, **options)

    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", no_network)
    said = refusal("vit_tiny_patch16_224", pretrained=True)
    assert "timm cannot fetch weights of vit_tiny_patch16_224 (no route to host)" in said
    assert "--checkpoint FILE --model.timm_name vit_tiny_patch16_224" in said


def test_own_files_keep_their_arguments_and_take_another_image_size(tmp_path):
    model = tiny_backbone(cls_layer=1)
    model.export_safetensors(tmp_path / "own.safetensors")
    opened = open_backbone(tmp_path / "own.safetensors")
    assert opened.is_own
    assert opened.backbone.arguments == model.arguments
    larger = open_backbone(tmp_path / "own.safetensors", image_size=24)
    assert larger.backbone.grid == (6, 6)
    assert larger.given == ("24px",)


def test_images_are_prepared_by_timms_data_configuration():
    name = "vit_small_patch16_224.augreg_in1k"
    prepared = preparation_of(name, name)
    assert prepared.mean == prepared.std == (0.5, 0.5, 0.5)
    assert prepared.crop_fraction == 0.9
    assert preparation_of("file.pth", "vit_small_patch14_dinov2").crop_fraction == 1.0
    assert preparation_of("file.pth").crop_fraction == 0.875


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}, 0.875),
        ({"size": {"height": 224, "width": 224}, "do_center_crop": False}, 1.0),
        ({"size": 224}, 1.0),
        ({"size": 256, "crop_size": 224}, 0.875),
    ],
)
def test_images_are_prepared_by_transformers_configuration(content, expected, tmp_path):
    content |= {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.5, 0.5]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    prepared = preparation_of(tmp_path / "model.safetensors")
    assert (prepared.mean, prepared.std) == ((0.5, 0.5, 0.5), (0.25, 0.5, 0.5))
    assert (prepared.crop_fraction, prepared.assumed) == (expected, ())


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", bytes(range(256)), b'{"size": "x"}'])
def test_configuration_that_tells_nothing_leaves_all_assumed(content, tmp_path):
    (tmp_path / "preprocessor_config.json").write_bytes(content)
    assert preparation_of(tmp_path / "model.pth").assumed == ("mean", "std", "crop_fraction")


def test_values_that_cannot_be_are_refused(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text('{"image_std": [0, 0, 0]}')
    with pytest.raises(ValueError, match=r"preprocessor_config\.json: std \[0, 0, 0\] must be"):
        preparation_of(tmp_path / "model.pth")


def test_name_is_the_files_or_that_of_its_folder(tmp_path):
    assert name_of(tmp_path / "dino_vits16.pth") == "dino_vits16"
    assert name_of(tmp_path / "model.safetensors") == tmp_path.name


def test_random_weights_are_the_same_ones_and_leave_the_generator_alone():
    before = torch.get_rng_state()
    first, second = (open_backbone("vit_tiny_patch16_224") for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert (first.name, first.layout) == ("vit_tiny_patch16_224-random", "timm, random weights")
    assert first.sha256 == second.sha256
    tensors = (o.backbone.vit.blocks[0].mlp.fc1.weight for o in (first, second))
    assert torch.equal(*tensors)
    safetensors.torch.save(first.backbone.timm_state_dict())  # nothing is shared or strided


def test_config_of_another_model_beside_a_file_is_refused(tmp_path):
    path = changed(tmp_path / "a.pth", files.deit)
    for told in ({"hidden_size": 256, "num_attention_heads": 4},
                 {"architecture": "resnet50", "num_features": 2048}):  # fmt: skip
        (tmp_path / "config.json").write_text(json.dumps(told))
        assert "weights of width 128, and config.json beside it is of a model" in refusal(path)
        with pytest.raises(ValueError, match="put the file into a folder without it"):
            SplitViT(**arguments(), weights=str(path))


def test_one_of_several_files_is_refused(tmp_path):
    path = changed(tmp_path / "model-00001-of-00002.pth", files.timm_file)
    assert "is one of several files of a model; save the model as one" in refusal(path)
    assert open_backbone(changed(tmp_path / "a-00001-of-00001.pth", files.timm_file))


def test_weights_that_are_no_dense_floats_are_refused(tmp_path):
    for kind in (torch.int8, torch.complex64):
        value = torch.ones(128, dtype=kind)
        path = changed(tmp_path / "a.pth", files.timm_file, **{"blocks.1.norm1.weight": value})
        assert "no dense floating-point numbers: blocks.1.norm1.weight (torch." in refusal(path)


def test_missing_file_is_no_name_of_timm():
    with pytest.raises(FileNotFoundError, match=r"224\.pth does not exist; give another path"):
        open_backbone("vit_small_patch16_224.pth")


def test_missing_safetensors_or_a_folder_of_that_name_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist; give another path"):
        open_backbone(tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").mkdir()
    with pytest.raises(FileNotFoundError, match="is a folder; give a file"):
        open_backbone(tmp_path / "a.safetensors")


def test_checksum_of_something_else_in_a_file_of_elsewhere_is_no_damage(tmp_path):
    path = tmp_path / "vit.safetensors"
    safetensors.torch.save_file(vit().state_dict(), path, {"format": "pt", "sha256": "0" * 64})
    assert open_backbone(path).layout == "timm"
