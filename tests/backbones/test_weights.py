"""Weights into and out of a backbone: round trips, foreign grids, refusals."""

import json
import os

import pytest
import safetensors
import safetensors.torch
import timm
import torch
from timm.layers import resample_abs_pos_embed

from ser_lightning import files
from ser_lightning.backbones import weights
from ser_lightning.backbones.split_vit import SplitViT
from ser_lightning.checkpoints import CHECKPOINT_KEY

OPTIONS = {"embed_dim": 12, "depth": 3, "num_heads": 3}


def make(seed=0, **kwargs):
    torch.manual_seed(seed)
    defaults = {"image_size": 32, "patch_size": 8, "layer": 1, "vit_options": OPTIONS}
    model = SplitViT("vit_tiny_patch16_224", **{**defaults, **kwargs})
    if "weights" not in kwargs:
        for parameter in model.parameters():
            parameter.data.normal_(std=0.1)
    return model


def plain(seed=0, **kwargs):
    torch.manual_seed(seed)
    options = {"img_size": 32, "patch_size": 8, "num_classes": 5, **OPTIONS, **kwargs}
    model = timm.create_model("vit_tiny_patch16_224", **options)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.1)
    return model


def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def assert_same(first, second):
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("wrap", [None, "state_dict", "model"])
def test_weights_of_plain_timm_load_and_come_back(tmp_path, suffix, wrap):
    foreign = plain()
    path = tmp_path / f"vit.{suffix}"
    if suffix == "safetensors":
        safetensors.torch.save_file(foreign.state_dict(), path)
    else:
        torch.save({wrap: foreign.state_dict()} if wrap else foreign.state_dict(), path)
    model = make(seed=1, cls_layer=0, weights=str(path))
    state = {k: v for k, v in foreign.state_dict().items() if not k.startswith("head.")}
    assert_same(model.timm_state_dict(), state)
    torch.testing.assert_close(model(images()), foreign.forward_head(
        foreign.forward_features(images()), pre_logits=True
    ))  # fmt: skip


@pytest.mark.parametrize("cls_layer", [0, 1, 2])
def test_timm_state_dict_loads_strictly_into_plain_timm_and_back(tmp_path, cls_layer):
    model = make(cls_layer=cls_layer)
    foreign = plain(num_classes=0)
    foreign.load_state_dict(model.timm_state_dict())
    same = torch.allclose(foreign(images()), model(images()), atol=1e-5)
    assert same == (cls_layer == 0)
    torch.save(foreign.state_dict(), tmp_path / "vit.pt")
    again = make(seed=1, cls_layer=cls_layer, weights=str(tmp_path / "vit.pt"))
    assert_same(again.state_dict(), model.state_dict())


def test_position_entry_of_the_class_token_is_added_to_it_when_cls_joins_late(tmp_path):
    foreign = plain()
    torch.save(foreign.state_dict(), tmp_path / "vit.pt")
    model = make(seed=1, weights=str(tmp_path / "vit.pt"))
    state = foreign.state_dict()
    assert torch.equal(model.vit.cls_token, state["cls_token"] + state["pos_embed"][:, :1])
    assert torch.equal(model.vit.pos_embed, state["pos_embed"][:, 1:])


def test_weights_without_position_entry_get_a_zero_one_for_cls_at_the_input(tmp_path):
    foreign = plain(no_embed_class=True)
    torch.save(foreign.state_dict(), tmp_path / "vit.pt")
    model = make(seed=1, cls_layer=0, weights=str(tmp_path / "vit.pt"))
    assert not model.vit.pos_embed[:, 0].any()
    expected = foreign.forward_features(images())[:, 0]
    torch.testing.assert_close(model(images()), expected)


@pytest.mark.parametrize("cls_layer", [0, 1])
def test_position_embedding_of_another_grid_is_resampled(tmp_path, cls_layer):
    foreign = plain(img_size=48)
    torch.save(foreign.state_dict(), tmp_path / "vit.pt")
    model = make(seed=1, cls_layer=cls_layer, weights=str(tmp_path / "vit.pt"))
    expected = resample_abs_pos_embed(foreign.pos_embed, [4, 4], [6, 6], 1, antialias=False)
    expected = expected if cls_layer == 0 else expected[:, 1:]
    torch.testing.assert_close(model.vit.pos_embed.detach(), expected.detach())


def test_checkpoint_of_an_objective_gives_its_online_backbone(tmp_path):
    online, momentum = make(0), make(1)
    state = {f"backbone.{k}": v for k, v in online.state_dict().items()}
    state |= {f"momentum_backbone.{k}": v for k, v in momentum.state_dict().items()}
    state |= {"projector.0.weight": torch.ones(2)}
    checkpoint = {"state_dict": state, "epoch": 3, "hyper_parameters": {"lr": 0.1}}
    torch.save(checkpoint, tmp_path / "last.ckpt")
    assert_same(make(2, weights=str(tmp_path / "last.ckpt")).state_dict(), online.state_dict())
    torch.save(online.state_dict(), tmp_path / "backbone.pt")
    assert_same(make(2, weights=str(tmp_path / "backbone.pt")).state_dict(), online.state_dict())


def test_weights_that_do_not_fit_are_listed(tmp_path):
    state = plain().state_dict()
    del state["norm.weight"]
    state["fc_norm.weight"] = torch.ones(12)
    state["cls_token"] = torch.ones(1, 1, 13)
    state["pos_embed"] = torch.ones(1, 19, 12)  # no square grid
    torch.save(state, tmp_path / "vit.pt")
    with pytest.raises(ValueError, match="do not fit this ViT") as error:
        make(weights=str(tmp_path / "vit.pt"))
    assert "missing: norm.weight;" in str(error.value)
    assert "unexpected: fc_norm.weight;" in str(error.value)
    assert "cls_token (1, 1, 13) for (1, 1, 12), pos_embed (1, 19, 12)" in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, value, dtype):
    state = {name: tensor.to(dtype) for name, tensor in plain().state_dict().items()}
    state["blocks.1.norm1.weight"][3] = value
    torch.save(state, tmp_path / "vit.pt")
    with pytest.raises(ValueError, match=r"1 are not finite .*, first blocks\.1\.norm1\.weight"):
        make(weights=str(tmp_path / "vit.pt"))


class Malice:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_pickled_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": plain().state_dict(), "extra": Malice()}, "evil.pt")
    with pytest.raises(ValueError, match="holds more than tensors"):
        make(weights="evil.pt")
    assert not (tmp_path / "ran").exists()


def test_file_without_state_dict_is_refused(tmp_path):
    torch.save([torch.ones(2)], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds a list; a state dict is needed"):
        make(weights=str(tmp_path / "list.pt"))


@pytest.mark.parametrize(
    "kwargs",
    [
        {"cls_layer": 0},
        {"cls_layer": 2},
        {"layer": 3},
        {"cls_layer": 0, "vit_options": {**OPTIONS, "reg_tokens": 8}},  # 16 and 9 entries, or 25
    ],
)
def test_export_rebuilds_the_same_backbone(tmp_path, kwargs):
    model = make(freeze_patch_embed=False, weight_init="", **kwargs)
    model.export_safetensors(tmp_path / "backbone.safetensors")
    again = SplitViT.from_safetensors(tmp_path / "backbone.safetensors")
    assert_same(again.state_dict(), model.state_dict())
    assert again.arguments == model.arguments
    assert torch.equal(again(images()), model(images()))
    assert os.listdir(tmp_path) == ["backbone.safetensors"]


def test_export_keeps_timms_names_and_records_its_arguments(tmp_path):
    model = make()
    model.export_safetensors(tmp_path / "b.safetensors")
    assert_same(safetensors.torch.load_file(tmp_path / "b.safetensors"), model.vit.state_dict())
    with safetensors.safe_open(tmp_path / "b.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt"
    assert json.loads(metadata[weights.CHECKPOINT_KEY])["vit_options"] == OPTIONS


def test_failed_export_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "b.safetensors"
    make().export_safetensors(path)
    before = path.read_bytes()

    def disk_full(_):
        raise OSError("no space left on device")

    monkeypatch.setattr(files.os, "fsync", disk_full)
    with pytest.raises(OSError, match="no space"):
        make(1).export_safetensors(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["b.safetensors"]


def test_export_of_arguments_that_are_no_plain_values_is_refused(tmp_path):
    model = make(vit_options={**OPTIONS, "act_layer": torch.nn.ReLU})
    with pytest.raises(ValueError, match="use plain values in vit_options"):
        model.export_safetensors(tmp_path / "b.safetensors")


def test_safetensors_without_arguments_are_refused(tmp_path):
    safetensors.torch.save_file(plain().state_dict(), tmp_path / "vit.safetensors")
    with pytest.raises(ValueError, match="does not say how to rebuild its backbone"):
        SplitViT.from_safetensors(tmp_path / "vit.safetensors")
    (tmp_path / "text.safetensors").write_text("not tensors")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        SplitViT.from_safetensors(tmp_path / "text.safetensors")


def test_other_number_of_heads_than_the_files_is_told(tmp_path):
    make().export_safetensors(tmp_path / "a.safetensors")
    usual = {name: value for name, value in OPTIONS.items() if name != "num_heads"}
    make(vit_options=usual).export_safetensors(tmp_path / "b.safetensors")  # 3 by its name
    (tmp_path / "timm").mkdir()
    safetensors.torch.save_file(make().timm_state_dict(), tmp_path / "timm" / "c.safetensors")
    beside = {"architecture": "vit_tiny_patch16_224", "model_args": OPTIONS}
    (tmp_path / "timm" / "config.json").write_text(json.dumps(beside))
    for name in ("a", "b", "timm/c"):
        path = str(tmp_path / f"{name}.safetensors")
        with pytest.warns(UserWarning, match="has 3 attention heads at a width of 12, the backbo"):
            make(weights=path, vit_options={**OPTIONS, "num_heads": 4})
        make(weights=path)  # a warning would be an error


def test_backbone_of_another_class_is_told(tmp_path):
    arguments = make().arguments
    section = {"class_path": "mine.Turned", "init_args": arguments}
    config = {"model": {"init_args": {"backbone": section}}}
    record = {CHECKPOINT_KEY: {"config": json.dumps(config)}}
    state = {f"backbone.{name}": value for name, value in make().state_dict().items()}
    torch.save({"state_dict": state, **record}, tmp_path / "a.ckpt")
    with pytest.warns(UserWarning, match=r"its backbone is a mine\.Turned, and SplitViT is built"):
        SplitViT.from_checkpoint(tmp_path / "a.ckpt")

    class Turned(SplitViT):
        pass

    assert type(Turned.from_checkpoint(tmp_path / "a.ckpt")) is Turned


def test_positions_of_half_precision_are_added_and_resampled_in_single(tmp_path):
    half = {name: value.half() for name, value in plain().state_dict().items()}
    torch.save(half, tmp_path / "half.pth")
    torch.save({name: value.float() for name, value in half.items()}, tmp_path / "single.pth")
    first, second = (
        make(weights=str(tmp_path / name), cls_layer=1, image_size=48)
        for name in ("half.pth", "single.pth")
    )
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
