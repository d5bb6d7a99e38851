"""What a run costs, counted as the paper counts it: parameters, multiply-accumulates per image."""

import pytest
import yaml

from ser_lightning.commands.cost import UnknownCost, cost, run_cost
from ser_lightning.objectives.moco_v3 import MoCoV3
from ser_lightning.regularizers import SERRegularizer
from support import TINY_VIT, WIDTH, tiny_backbone

TINY = {"name": "vit_tiny_patch16_224", "image_size": 16, "patch_size": 4, "vit_options": TINY_VIT}


def config(regularizer=None, backbone=None, objective="moco_v3.MoCoV3", data=None, **arguments):
    """What fit.yaml holds of a run."""
    package = "ser_lightning"
    vit = {"class_path": f"{package}.backbones.SplitViT", "init_args": backbone or {}}
    model = {"backbone": vit, "regularizer": regularizer, **arguments}
    path = f"{package}.objectives.{objective}"
    return {"model": {"class_path": path, "init_args": model}, "data": data or {}}


def addon(name, **arguments):
    return {"class_path": f"ser_lightning.regularizers.{name}", "init_args": arguments}


def tiny(regularizer=None, layer=2, cls_layer=None, data=None, hidden=48, projection=16):
    backbone = {**TINY, "layer": layer, "cls_layer": cls_layer}
    return run_cost(config(regularizer, backbone, data=data, hidden=hidden, projection=projection))


def vit_macs(num_patches, num_tokens, depth=4):
    """Of the tiny ViT: patch embedding, then attention (scores and values) and MLP by block."""
    linear = 12 * WIDTH * WIDTH * num_tokens
    return num_patches * 48 * WIDTH + depth * (linear + 2 * num_tokens**2 * WIDTH)


PROJECTOR = WIDTH * 48 + 48 * 48 + 48 * 16
PREDICTOR = 16 * 48 + 48 * 16
MOCO = 4 * vit_macs(16, 17) + 4 * PROJECTOR + 2 * PREDICTOR


@pytest.mark.parametrize(
    ("regularizer", "backbone", "parameters", "gmacs"),
    [
        (None, {"layer": 12}, 42_890_752, 18.476),
        (addon("SERRegularizer"), {"layer": 3}, 43_349_888, 18.631),
    ],
)
def test_moco_and_ser_cost_what_the_paper_says(regularizer, backbone, parameters, gmacs):
    cost = run_cost(config(regularizer, backbone))
    assert cost.num_parameters == parameters
    assert cost.macs_per_image / 1e9 == pytest.approx(gmacs, abs=5e-4)


def test_cost_is_that_of_the_layers_written_out():
    assert tiny(layer=4).macs_per_image == MOCO


def test_parameters_are_the_trainable_ones_of_the_model():
    model = MoCoV3(tiny_backbone(), regularizer=SERRegularizer(WIDTH), hidden=48, projection=16)
    expected = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert tiny(addon("SERRegularizer", width=WIDTH)).num_parameters == expected


def test_add_on_counts_once_per_view_for_every_image():
    ser = tiny(addon("SERRegularizer", width=WIDTH, hidden=24), cls_layer=0)
    assert ser.macs_per_image == MOCO + 2 * 16 * (WIDTH * 24 + 24 * 24)


@pytest.mark.parametrize("ratio", [0.03, 0.5, 1.0])
@pytest.mark.parametrize("per_layer", [False, True])
def test_comparison_of_crops_counts_for_every_image_whatever_its_ratio(ratio, per_layer):
    overlap = addon("overlap.OverlapRegularizer", width=WIDTH, hidden=24, ratio=ratio)
    found = tiny(addon("PerLayer", regularizers=[overlap]) if per_layer else overlap, cls_layer=0)
    carried = 2 * 16 * 16 * 24  # both directions, from every token to every token
    # where the tokens lie in the source, and in the other view
    places = 2 * 2 * 16 * 2 * 2
    projected = 2 * 16 * (WIDTH * 24 + 24 * 24)
    assert found.macs_per_image == MOCO + projected + carried + places


def test_local_views_pass_the_online_branch_only():
    crop = {"class_path": "CropViews", "init_args": {"local": {"num": 4, "size": 8}}}
    cost = tiny(layer=4, data={"crop": crop})
    assert cost.macs_per_image == MOCO + 4 * (vit_macs(4, 5) + PROJECTOR + PREDICTOR)


def test_plain_view_counts_up_to_the_layer_that_reads_it():
    equimod = addon("equimod.EquiMod", width=WIDTH, projection=16)
    head = 2 * WIDTH * WIDTH + WIDTH * 16
    predict = 18 * 16 + 2 * 16 * 16
    for layer in (2, 4):
        cost = tiny(equimod, layer, 0)
        extra = vit_macs(16, 17, depth=layer) + 3 * head + 2 * predict
        assert cost.macs_per_image == MOCO + extra


@pytest.mark.parametrize("rotated", [None, {"size": 8}, {"init_args": {"size": 8}}])
def test_rotated_views_have_the_size_of_the_data(rotated):
    data = {} if rotated is None else {"rotated": rotated}
    side = 24 if rotated is None else 2
    essl = addon("essl.ESSL", width=WIDTH, hidden=16)
    head = 2 * WIDTH * WIDTH + WIDTH * 16 + 16 * 4
    cost = tiny(essl, 4, 0, data)
    assert cost.macs_per_image == MOCO + 4 * (vit_macs(side**2, side**2 + 1) + head)


@pytest.mark.parametrize("name", ["augself.AugSelf", "stl.STL"])
def test_other_add_ons_have_a_cost(name):
    assert tiny(addon(name, width=WIDTH), 4, 0).macs_per_image > MOCO


def test_add_ons_at_several_layers_add_up():
    ser = addon("SERRegularizer", width=WIDTH, hidden=24)
    both = tiny(addon("PerLayer", regularizers=[ser, ser]), [1, 2], 0)
    one = tiny(ser, 2, 0)
    assert both.macs_per_image - MOCO == 2 * (one.macs_per_image - MOCO)


@pytest.mark.parametrize(
    "objective", ["dino.DINO", "barlow_twins.BarlowTwins", "vicreg.VICReg", "simclr.SimCLR",
                  "byol.BYOL", "simsiam.SimSiam"],
)  # fmt: skip
def test_every_objective_has_a_cost(objective):
    heads = {"hidden": 48, "projection": 16}
    ser = addon("SERRegularizer", width=WIDTH, hidden=24)
    backbone = {**TINY, "layer": 2, "cls_layer": 0}
    cost = run_cost(config(ser, backbone, objective, **heads))
    passes = 4 if objective in ("dino.DINO", "byol.BYOL") else 2
    assert passes * vit_macs(16, 17) < cost.macs_per_image < 1.2 * passes * vit_macs(16, 17)


def test_weights_to_start_from_need_not_be_there():
    backbone = {**TINY, "weights": "nowhere.safetensors"}
    assert run_cost(config(None, backbone)) == run_cost(config(None, TINY))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (config(objective="moco_v3.Nothing"), "Nothing"),
        (config(addon("SERRegularizer", width=7)), "width 7"),
        (config(addon("SERRegularizer"), temprature=1), "temprature"),
        ({"model": {}, "data": {}}, "backbone"),
        (config(backbone={**TINY, "layer": 4}, data={"crop": {"local": {"num": 2, "size": 9}}}),
         "9 x 9"),
    ],
)  # fmt: skip
def test_model_that_cannot_be_counted_says_why(changed, message):
    with pytest.raises(UnknownCost, match=message):
        run_cost(changed)


def test_command_prints_a_line_for_each_run(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        content = yaml.safe_dump(config(None, {**TINY, "layer": 4}, hidden=48, projection=16))
        (tmp_path / name / "fit.yaml").write_text(content)
    cost([str(tmp_path / "a"), str(tmp_path / "b")])
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{tmp_path / 'a'}: ")
    assert first.endswith(f" trainable parameters, {MOCO / 1e9:.5g} GMAC per image")
    assert second == first.replace(f"{tmp_path / 'a'}", f"{tmp_path / 'b'}")
    with pytest.raises(ValueError, match=r"has no fit\.yaml; give the folder of a run"):
        cost([str(tmp_path)])
