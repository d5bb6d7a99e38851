"""Every layout of a file of weights: the features of the model that the file is of.

Largest differences, measured in float32 on features of about 5: 1e-6, and 1.5e-5 for DINOv2 with
registers, whose [CLS] and its position are added before they are stored.
"""

import copy
import json

import pytest
import safetensors.torch
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import VisionTransformer

import foreign_layouts as files
from foreign_layouts import DINOV2, REGISTERS, vit
from ser_lightning.backbones import SplitViT, open_backbone
from support import tiny_backbone

TOLERANCE = 3e-5
LAYOUTS = {  # what makes the file, options of its ViT, and how it is called
    "timm": (files.timm_file, {}, "timm"),
    "timm, LayerScale": (files.timm_file, DINOV2, "timm"),
    "timm, registers": (files.timm_file, REGISTERS, "timm"),
    "timm, registers with positions": (files.timm_file, {"reg_tokens": 3}, "timm"),
    "timm, no position of [CLS]": (files.timm_file, {"no_embed_class": True}, "timm"),
    "timm, no bias": (files.timm_file, {"qkv_bias": False}, "timm"),
    "timm, narrow MLP": (files.timm_file, {"mlp_ratio": 2.5}, "timm"),
    "deit": (files.deit, {}, "DeiT, MAE's encoder"),
    "deit3": (files.deit3, {"no_embed_class": True, **DINOV2}, "DeiT, MAE's encoder"),
    "timm, EMA": (files.timm_ema, {}, "timm"),
    "deit, EMA": (files.deit_ema, {}, "DeiT, MAE's encoder"),
    "dino": (files.dino, {}, "DINO"),
    "dino, student": (files.dino_student, {}, "DINO"),
    "moco-v3": (files.moco_v3, {}, "MoCo-v3"),
    "moco-v3, momentum": (files.moco_v3_momentum, {}, "MoCo-v3"),
    "moco-v3, compiled": (files.moco_v3_compiled, {}, "MoCo-v3"),
    "mae": (files.mae, {}, "MAE"),
    "mae, below a name": (files.mae_below, {}, "MAE below state_dict.mae"),
    "mae, DDP": (files.mae_in_ddp, {}, "MAE"),
    "dino, in Lightning": (files.dino_in_lightning, {}, "DINO"),
    "solo-learn": (files.solo_learn, {}, "solo-learn"),
    "solo-learn, MAE": (files.solo_learn_mae, {}, "solo-learn, MAE or MoCo-v3"),
    "solo-learn, MoCo-v3": (files.solo_learn_moco_v3, {}, "solo-learn, MAE or MoCo-v3"),
    "ibot, student": (files.ibot_student, {}, "timm"),
    "msn": (files.msn, {}, "MSN, I-JEPA"),
    "lightly": (files.lightly, {}, "lightly"),
    "lightly, DINO": (files.lightly_dino, {}, "lightly, DINO"),
    "lightly, MAE": (files.lightly_mae, {}, "lightly, or ser-lightning without its record"),
    "dinov2": (files.dinov2, DINOV2, "DINOv2"),
    "dinov2, registers": (files.dinov2, REGISTERS, "DINOv2"),
    "dinov2, training": (files.dinov2_training, REGISTERS, "DINOv2"),
    "dinov2, in Lightning": (files.dinov2_in_lightning, REGISTERS, "DINOv2"),
    "dinov2, below a name": (files.dinov2_below, REGISTERS, "DINOv2 below pretrained"),
    "hugging face": (files.hugging_face, {}, "Hugging Face ViT"),
    "hugging face, modules": (files.hugging_face_modules, {}, "Hugging Face ViT"),
    "hugging face dinov2": (files.hugging_face_dinov2, DINOV2, "Hugging Face DINOv2"),
    "hugging face dinov2, below a name": (
        files.hugging_face_dinov2_below,
        DINOV2,
        "Hugging Face DINOv2 below state_dict.encoder",
    ),
    "mmpretrain": (files.mmpretrain, {}, "mmpretrain"),
    "mmsegmentation": (files.mmsegmentation, {}, "mmpretrain"),
    "mmpretrain, LayerScale": (files.mmpretrain, DINOV2, "mmpretrain"),
    "mmpretrain, MoCo-v3": (files.mmpretrain_moco_v3, {}, "mmpretrain, MoCo-v3"),
    "torchvision": (files.torchvision, {}, "torchvision"),
    "torchvision, averaged weights": (files.torchvision_ema, {}, "torchvision"),
    "torchvision, older": (files.torchvision_older, {}, "torchvision"),
    "torchvision, below a name": (
        files.torchvision_in_lightning,
        {},
        "torchvision below state_dict.encoder.vit",
    ),
}
BRANCHES = {"dino": "momentum", "dino, student": "online", "moco-v3, momentum": "momentum",
            "dinov2, training": "momentum", "lightly, DINO": "momentum", "timm, EMA": "momentum",
            "deit, EMA": "momentum", "dino, in Lightning": "momentum",
            "msn": "momentum"}  # fmt: skip
EPS = {"hugging face": 1e-12, "hugging face, modules": 1e-12}


def images(side=32):
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


def origin_of(name):
    _, options, _ = LAYOUTS[name]
    model = vit(**options)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = EPS.get(name, 1e-6)
    return model


def write(name, model, path):
    make, options, _ = LAYOUTS[name]
    torch.save(make(model, vit(seed=1, **options)), path)


@torch.no_grad()
def difference(backbone, model, x):
    """The largest one of [CLS] and the patch tokens, last and after the first block."""
    expected = model.forward_features(x)
    first = model.forward_intermediates(x, [0], intermediates_only=True)[0]
    maps = backbone.token_maps(x, [1, backbone.depth])
    pairs = [(backbone(x), expected[:, 0]), (maps[0], first)]
    pairs.append((maps[1].flatten(2).mT, expected[:, model.num_prefix_tokens :]))
    return max(float((ours - theirs).abs().max()) for ours, theirs in pairs)


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout_gives_the_features_of_its_model(name, tmp_path):
    model = origin_of(name)
    write(name, model, tmp_path / "vit.pth")
    branch = "online" if name == "dino, student" else BRANCHES.get(name)
    opened = open_backbone(tmp_path / "vit.pth", branch)
    assert opened.layout == LAYOUTS[name][2]
    assert opened.branch == BRANCHES.get(name, "online")
    assert not opened.is_own
    assert difference(opened.backbone.eval(), model, images()) < TOLERANCE


@pytest.mark.parametrize("name", LAYOUTS)
def test_pretraining_starts_from_the_same_weights(name, tmp_path):
    model = origin_of(name)
    write(name, model, tmp_path / "vit.pth")
    opened = open_backbone(tmp_path / "vit.pth", BRANCHES.get(name))
    if BRANCHES.get(name) not in (None, opened.default_branch):
        pytest.skip("a run starts from the branch that the project evaluates")
    again = SplitViT(**opened.backbone.arguments, weights=str(tmp_path / "vit.pth")).eval()
    assert torch.equal(again(images()), opened.backbone.eval()(images()))


def test_ser_layout_lets_cls_join_late_without_a_position(tmp_path):
    model, other = vit(no_embed_class=True), vit(seed=1, no_embed_class=True)
    torch.save(files.ser(model, other), tmp_path / "ser.pth")
    for branch, origin in (("online", model), ("momentum", other)):
        opened = open_backbone(tmp_path / "ser.pth", branch)
        assert (opened.layout, opened.backbone.cls_layer) == ("SER's public code", 2)
        with torch.no_grad():
            tokens = origin.patch_embed(images()) + origin.pos_embed
            for number, block in enumerate(origin.blocks):
                if number == 2:
                    tokens = torch.cat([origin.cls_token.expand(2, -1, -1), tokens], dim=1)
                tokens = block(tokens)
            expected = origin.norm(tokens)[:, 0]
            found = opened.backbone.eval()(images())
        assert float((found - expected).abs().max()) < TOLERANCE


def test_branches_that_projects_evaluate_are_the_default(tmp_path):
    model, other = vit(), vit(seed=1)
    for make, branch in ((files.timm_ema, "momentum"), (files.deit_ema, "online"),
                         (files.lightly_dino, "momentum"), (files.lightly, "online")):  # fmt: skip
        torch.save(make(model, other), tmp_path / "vit.pth")
        assert open_backbone(tmp_path / "vit.pth").branch == branch


def test_our_weights_without_their_record_let_cls_join_late_and_say_so(tmp_path):
    backbone = tiny_backbone(layer=3)
    for prefix in ("", "backbone."):
        torch.save(files.below(prefix, backbone.state_dict()), tmp_path / "vit.pth")
        opened = open_backbone(tmp_path / "vit.pth", num_heads=2)
        assert opened.assumed == ("[CLS] joins after block 3, SER's default",)
        assert (opened.is_own, opened.backbone.cls_layer) == (False, 3)
        x = images(16)
        assert torch.equal(opened.backbone.eval()(x), backbone.eval()(x))


def written_out(state, x, heads, eps, prefix="vit."):
    """The [CLS] feature of a Hugging Face ViT by its separate queries, keys and values."""

    def linear(name, tokens):
        return F.linear(tokens, state[f"{prefix}{name}.weight"], state[f"{prefix}{name}.bias"])

    def norm(name, tokens):
        weight, bias = state[f"{prefix}{name}.weight"], state[f"{prefix}{name}.bias"]
        return F.layer_norm(tokens, weight.shape, weight, bias, eps)

    projection = f"{prefix}embeddings.patch_embeddings.projection"
    patches = F.conv2d(x, state[f"{projection}.weight"], state[f"{projection}.bias"], stride=8)
    cls = state[f"{prefix}embeddings.cls_token"].expand(len(x), -1, -1)
    tokens = torch.cat([cls, patches.flatten(2).mT], dim=1)
    tokens = tokens + state[f"{prefix}embeddings.position_embeddings"]
    for number in range(3):
        layer = f"encoder.layer.{number}"
        normed = norm(f"{layer}.layernorm_before", tokens)
        query, key, value = (
            linear(f"{layer}.attention.attention.{part}", normed).unflatten(2, (heads, -1))
            for part in ("query", "key", "value")
        )
        scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / query.shape[-1] ** 0.5
        mixed = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), value).flatten(2)
        tokens = tokens + linear(f"{layer}.attention.output.dense", mixed)
        normed = norm(f"{layer}.layernorm_after", tokens)
        hidden = F.gelu(linear(f"{layer}.intermediate.dense", normed))
        tokens = tokens + linear(f"{layer}.output.dense", hidden)
    return norm("layernorm", tokens)[:, 0]


def test_hugging_face_equals_its_own_computation_written_out(tmp_path):
    state = files.hugging_face(vit(), vit())
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    content = {"hidden_size": 128, "num_attention_heads": 4, "layer_norm_eps": 1e-3}
    (tmp_path / "config.json").write_text(json.dumps(content))
    opened = open_backbone(tmp_path / "model.safetensors")
    assert opened.name == tmp_path.name  # "model" says nothing
    assert opened.assumed == ()
    expected = written_out(state, images(), heads=4, eps=1e-3)
    found = opened.backbone.eval()(images()).detach()
    assert float((found - expected).abs().max()) < TOLERANCE


def test_hugging_faces_own_models_come_back(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
             "image_size": 32, "patch_size": 8, "attn_implementation": "eager"}  # fmt: skip
    for kind in ("ViT", "Dinov2", "Dinov2WithRegisters"):
        torch.manual_seed(0)
        options = {**sizes, **({"intermediate_size": 256} if kind == "ViT" else {})}
        model = getattr(transformers, f"{kind}Model")(
            getattr(transformers, f"{kind}Config")(**options)
        )
        for parameter in model.parameters():
            parameter.data.normal_(0, 0.2)
        model.eval().save_pretrained(tmp_path / kind)
        opened = open_backbone(tmp_path / kind / "model.safetensors")
        with torch.no_grad():
            tokens = model(images()).last_hidden_state
            (patches,) = opened.backbone.eval().token_maps(images(), [2])
            found = torch.cat([opened.backbone(images())[:, None], patches.flatten(2).mT], 1)
        registers = opened.backbone.num_registers
        expected = torch.cat([tokens[:, :1], tokens[:, 1 + registers :]], 1)
        assert float((found - expected).abs().max()) < TOLERANCE, kind


def test_torchvisions_own_model_comes_back(tmp_path):
    torch.manual_seed(0)
    model = VisionTransformer(32, 8, 2, 2, 128, 256, num_classes=5).eval()
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.2)
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    opened = open_backbone(tmp_path / "vit.pth")
    with torch.no_grad():
        found = model.heads(opened.backbone.eval()(images()))
        assert float((found - model(images())).abs().max()) < TOLERANCE
    assert (opened.layout, opened.backbone.vit.norm.eps) == ("torchvision", 1e-6)


CLIP = "vit_xsmall_patch16_clip_224"


def filled(name, **options):
    """A model of timm's name, every weight of which is drawn and counts."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0, **options).eval()
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.2)
    return model


@pytest.mark.parametrize(
    ("make", "layout"),
    [(files.clip, "OpenCLIP"), (files.hugging_face_clip, "Hugging Face CLIP")],
    ids=["OpenCLIP", "Hugging Face"],
)
def test_visual_tower_of_clip_comes_back_by_timms_name(make, layout, tmp_path):
    model = filled(CLIP)
    torch.save(make(model, None), tmp_path / "clip.pt")
    with pytest.raises(ValueError, match="has a norm before its blocks"):
        open_backbone(tmp_path / "clip.pt")
    opened = open_backbone(tmp_path / "clip.pt", name=CLIP)
    assert (opened.layout, opened.backbone.vit.norm.eps) == (layout, 1e-5)
    assert difference(opened.backbone.eval(), model, images(224)) < TOLERANCE


TYPE = {"model_type": "clip_vision_model"}
QUICK = {"img_size": 32, "patch_size": 8, "embed_dim": 256, "depth": 2, "num_heads": 4}


@pytest.mark.parametrize(
    ("make", "config", "told"),
    [
        (files.clip_of_openai, None, "quick_gelu"),
        (files.clip, None, None),
        (files.hugging_face_clip, None, None),
        (files.hugging_face_clip, {"hidden_size": 256, "hidden_act": "quick_gelu"}, "quick_gelu"),
        (files.hugging_face_clip, {"hidden_size": 256, "hidden_act": "relu"}, "relu"),
        (files.hugging_face_clip, TYPE, "quick_gelu"),
        (files.hugging_face_clip, {**TYPE, "hidden_act": "gelu"}, "gelu"),
        (files.hugging_face_clip, {"vision_config": TYPE}, "quick_gelu"),
        (files.hugging_face_clip, {"vision_config": {**TYPE, "hidden_act": "gelu"}}, "gelu"),
    ],
)  # fmt: skip
def test_activation_that_a_file_tells_must_be_that_of_the_vit(make, config, told, tmp_path):
    quick = "vit_base_patch32_clip_quickgelu_224"
    path = tmp_path / "pytorch_model.bin"
    torch.save(make(filled(quick, **QUICK), None), path)
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    sizes = {"embed_dim": 256, "depth": 2, "num_heads": 4, "norm_eps": 1e-5}
    arguments = {"image_size": 32, "patch_size": 8, "layer": 1, "vit_options": sizes}
    for name, own in ((quick, "quick_gelu"), (CLIP, "gelu")):
        if told in (None, own):
            SplitViT(name, **arguments, weights=str(path))
        else:
            words = rf"with the activation {told}, and this ViT has {own}; give timm's name"
            with pytest.raises(ValueError, match=words):
                SplitViT(name, **arguments, weights=str(path))
    if told not in (None, "gelu"):
        with pytest.raises(ValueError, match=f"with the activation {told}"):
            open_backbone(path, name=CLIP)


@pytest.mark.parametrize(
    "beside",
    ["decoder.conv_proj.weight", "text.ln_pre.weight", "decoder.patch_embed.projection.weight"],
)
def test_what_stands_beside_a_vit_without_a_class_token_is_no_vit(beside, tmp_path):
    model = vit()
    state = {**files.below("net.encoder.", files.body(model)), beside: torch.ones(4)}
    torch.save(state, tmp_path / "vit.pth")
    opened = open_backbone(tmp_path / "vit.pth")
    assert opened.layout == "timm below net.encoder"
    assert difference(opened.backbone.eval(), model, images()) < TOLERANCE


def test_number_of_heads_is_known_given_or_assumed_and_said(tmp_path):
    torch.save(files.timm_file(vit(num_heads=4), None), tmp_path / "a.pth")
    assert open_backbone(tmp_path / "a.pth").assumed == (
        "2 attention heads, as usual for a width of 128",
    )
    opened = open_backbone(tmp_path / "a.pth", num_heads=4)
    assert (opened.assumed, opened.given) == ((), ("4heads",))
    assert difference(opened.backbone.eval(), vit(num_heads=4), images()) < TOLERANCE


@pytest.mark.parametrize(
    "make",
    [files.moco_v3, files.solo_learn_moco_v3, files.solo_learn_mae, files.mmpretrain_moco_v3],
    ids=lambda f: f.__name__,
)
def test_twelve_heads_of_small_vits_are_known(make, tmp_path):
    small = vit(embed_dim=384, num_heads=12, depth=2)
    torch.save(make(small, copy.deepcopy(small)), tmp_path / "b.pth")
    beside = {"hidden_size": 384, "num_attention_heads": 6}  # of another small ViT's download
    (tmp_path / "config.json").write_text(json.dumps(beside))
    opened = open_backbone(tmp_path / "b.pth")
    assert opened.assumed == ()
    assert difference(opened.backbone.eval(), small, images()) < TOLERANCE


def test_pretraining_warns_where_the_layout_has_another_number_of_heads(tmp_path):
    small = vit(embed_dim=384, num_heads=12, depth=1)
    torch.save(files.moco_v3(small, copy.deepcopy(small)), tmp_path / "a.pth")
    options = {"embed_dim": 384, "depth": 1, "num_heads": 6}
    sizes = {"image_size": 32, "patch_size": 8, "layer": 0, "vit_options": options}
    with pytest.warns(UserWarning, match=r"\(MoCo-v3\) has 12 attention heads at a width"):
        SplitViT("vit_small_patch16_224", **sizes, weights=str(tmp_path / "a.pth"))


def test_wide_models_have_their_heads_and_odd_ones_their_mlp(tmp_path):
    wide = vit(embed_dim=1408, num_heads=16, depth=1, mlp_ratio=0.1)
    torch.save(files.timm_file(wide, None), tmp_path / "a.pth")
    assert open_backbone(tmp_path / "a.pth").assumed == (
        "16 attention heads, as usual for a width of 1408",
    )
    odd = vit(embed_dim=704, num_heads=11, depth=1, mlp_ratio=1.3636363636363638)
    assert odd.blocks[0].mlp.fc1.out_features == 960  # 960 / 704 * 704 is less
    torch.save(files.timm_file(odd, None), tmp_path / "b.pth")
    found = open_backbone(tmp_path / "b.pth").backbone.vit.state_dict()
    assert all(torch.equal(value, odd.state_dict()[name]) for name, value in found.items())
