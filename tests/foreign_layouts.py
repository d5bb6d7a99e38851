"""Files as public projects lay them out, made from a timm ViT with random weights."""

import argparse

import numpy as np
import timm
import torch
from torch import nn

PLAIN = {"img_size": 32, "patch_size": 8, "embed_dim": 128, "depth": 3, "num_heads": 2}
DINOV2 = {"init_values": 1e-5}
REGISTERS = {**DINOV2, "reg_tokens": 4, "no_embed_class": True}


def vit(seed=0, **options):
    """A small plain ViT of timm, every weight of which is drawn and counts."""
    torch.manual_seed(seed)
    model = timm.create_model("vit_base_patch16_224", num_classes=5, **{**PLAIN, **options})
    for name, parameter in model.named_parameters():
        around = 1.0 if "norm" in name or "gamma" in name else 0.0
        parameter.data.normal_(around, 0.2)
    return model.eval()


def below(prefix, state):
    return {f"{prefix}{name}": value for name, value in state.items()}


def body(model):
    return {n: v for n, v in model.state_dict().items() if not n.startswith("head.")}


def heads():
    return {"head.mlp.0.weight": torch.ones(3, 128), "head.last_layer.weight_g": torch.ones(7, 1)}


ARGS = argparse.Namespace(arch="vit_small", lr=1e-3)


def timm_file(model, other):
    return model.state_dict()


def deit(model, other):
    return {"model": model.state_dict(), "args": ARGS, "epoch": 299}


def deit3(model, other):
    return {"model": {n.replace(".ls1.gamma", ".gamma_1").replace(".ls2.gamma", ".gamma_2"): v
                      for n, v in model.state_dict().items()}}  # fmt: skip


def timm_ema(model, other):
    """As timm's train.py saves it."""
    return {"state_dict": other.state_dict(), "state_dict_ema": model.state_dict(), "epoch": 299}


def deit_ema(model, other):
    return {**deit(other, None), "model_ema": model.state_dict()}


def dino(model, other):
    """Student in DDP, teacher without; both behind the wrapper of several crops."""
    student = below("module.backbone.", body(other)) | below("module.", heads())
    teacher = below("backbone.", body(model)) | heads()
    return {"student": student, "teacher": teacher, "args": ARGS, "epoch": 100,
            "dino_loss": {"center": torch.zeros(1, 7)}}  # fmt: skip


def dino_student(model, other):
    return dino(other, model)


def moco_v3(model, other):
    state = below("module.base_encoder.", body(model))
    state |= below("module.momentum_encoder.", body(other))
    for encoder in ("base", "momentum"):
        state[f"module.{encoder}_encoder.head.0.weight"] = torch.ones(4, 128)
        state[f"module.{encoder}_encoder.head.1.running_mean"] = torch.ones(4)
    state["module.predictor.0.weight"] = torch.ones(4, 4)
    return {"epoch": 300, "arch": "vit_small", "state_dict": state, "scaler": {"scale": 1.0}}


def moco_v3_momentum(model, other):
    return moco_v3(other, model)


def mae(model, other):
    """Encoder and decoder, as pretraining saves them."""
    decoder = {"mask_token": torch.ones(1, 1, 64), "decoder_pos_embed": torch.ones(1, 17, 64),
               "decoder_embed.weight": torch.ones(64, 128), "decoder_pred.bias": torch.ones(9),
               "decoder_blocks.0.norm1.weight": torch.ones(64)}  # fmt: skip
    return {"model": {**body(model), **decoder}, "args": ARGS, "optimizer": {"state": {}}}


def mae_below(model, other):
    return {"state_dict": below("mae.", mae(model, other)["model"])}


def mae_in_ddp(model, other):
    return below("module.", mae(model, other)["model"])


def dino_in_lightning(model, other):
    student, teacher = below("student.", body(other)), below("teacher.", body(model))
    return {"state_dict": student | teacher}


def ibot_student(model, other):
    """As iBOT's script extracts it."""
    return {**body(model), "masked_embed": torch.ones(1, 128)}


def msn(model, other):
    """I-JEPA's have the same places, and no class token."""
    head = {"module.fc.fc1.weight": torch.ones(3, 128), "module.pred.fc1.weight": torch.ones(3, 3)}
    return {"encoder": below("module.", body(other)) | head, "prototypes": torch.ones(4, 3),
            "target_encoder": below("module.", body(model)) | head, "epoch": 800}  # fmt: skip


def solo_learn_mae(model, other):
    decoder = {"decoder.mask_token": torch.ones(1, 1, 64), "decoder.decoder_embed.bias":
               torch.ones(64)}  # fmt: skip
    return {"state_dict": below("backbone.", body(model)) | decoder}


def solo_learn_moco_v3(model, other):
    content = solo_learn(model, other)
    content["state_dict"]["predictor.4.running_mean"] = torch.ones(4)
    return content


def solo_learn(model, other):
    state = below("backbone.", body(model)) | below("momentum_backbone.", body(other))
    state["projector.0.weight"] = torch.ones(4, 128)
    return {"state_dict": state, "hyper_parameters": {"name": "x"}, "epoch": 3}


def lightly(model, other):
    state = below("backbone.vit.", body(model)) | below("backbone_momentum.vit.", body(other))
    return {"state_dict": state | {"projection_head.layers.0.weight": torch.ones(4, 128)}}


def lightly_dino(model, other):
    state = below("student_backbone.vit.", body(other)) | below(
        "teacher_backbone.vit.", body(model)
    )
    return {"state_dict": {**state, "teacher_backbone.mask_token": torch.ones(1, 1, 128)}}


def lightly_mae(model, other):
    state = below("backbone.vit.", body(model)) | {"decoder.decoder_embed.weight": torch.ones(2, 2)}
    return {"state_dict": state}


def moco_v3_compiled(model, other):
    """Compiled in DDP, blocks in what computes them again."""
    content = moco_v3(model, other)
    names = {n: n.replace("blocks.1.", "blocks.1._checkpoint_wrapped_module.") for n in
             content["state_dict"]}  # fmt: skip
    content["state_dict"] = {f"_orig_mod.{names[n]}": v for n, v in content["state_dict"].items()}
    return content


def dinov2(model, other):
    return {**dinov2_names(model), "mask_token": torch.zeros(1, 128)}


def dinov2_in_lightning(model, other):
    return {"state_dict": below("backbone.", dinov2(model, other))}


def dinov2_below(model, other):
    """As Depth Anything has it."""
    return {**below("pretrained.", dinov2(model, other)), "depth_head.bias": torch.ones(3)}


def dinov2_names(model):
    """DINOv2's own: registers have their name, [CLS] its position entry."""
    state = body(model)
    if "reg_token" in state:
        state["register_tokens"] = state.pop("reg_token")
        entry = torch.full((1, 1, 128), 0.25)
        state["cls_token"] = state["cls_token"] - entry
        state["pos_embed"] = torch.cat([entry, state["pos_embed"]], dim=1)
    return state


def dinov2_training(model, other):
    """The teacher alone, its blocks in chunks, beside its heads."""
    state = {}
    for name, value in dinov2(model, other).items():
        parts = name.split(".")
        chunk = [str(int(parts[1]) // 2)] if parts[0] == "blocks" else []
        state["backbone." + ".".join([*parts[:1], *chunk, *parts[1:]])] = value
    return {"teacher": {**state, "dino_head.mlp.0.weight": torch.ones(3, 128)}}


def ser(model, other):
    """MoCo-v3 with SER: student and teacher bare, heads as modules, losses as arrays."""
    head = nn.Sequential(nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4), nn.ReLU(inplace=True))
    extra = {"norm_equiv.weight": torch.ones(128), "norm_equiv.bias": torch.ones(128)}
    return {"epoch": 100, "args": argparse.Namespace(equiv_layer=2), "student_head": head,
            "student": {**body(model), **extra}, "teacher": {**body(other), **extra},
            "projector_equiv": {"0.weight": torch.ones(5, 128, 1, 1)},
            "loss_list_inv": np.array([1.0, 2.0])}  # fmt: skip


def hugging_face(model, other, prefix="vit.", has_scale=False, modules=False):
    """Names of Hugging Face's files, or with `modules` of its modules since version 5."""
    places = {
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "pos_embed": "embeddings.position_embeddings",
        "norm": "layernorm",
        "cls_token": "embeddings.cls_token",
        "reg_token": "embeddings.register_tokens",
    }
    layer = "layers" if modules and not has_scale else "encoder.layer"
    inner = {"norm1": "norm1" if has_scale else "layernorm_before",
             "norm2": "norm2" if has_scale else "layernorm_after",
             "attn.proj": "attention.o_proj" if modules else "attention.output.dense",
             "mlp.fc1": "mlp.fc1" if has_scale or modules else "intermediate.dense",
             "mlp.fc2": "mlp.fc2" if has_scale or modules else "output.dense",
             "ls1.gamma": "layer_scale1.lambda1", "ls2.gamma": "layer_scale2.lambda1"}  # fmt: skip
    parts = ("q_proj", "k_proj", "v_proj") if modules else (
        "attention.query", "attention.key", "attention.value")  # fmt: skip
    state = {}
    for name, value in body(model).items():
        if name.startswith("blocks."):
            _, number, rest = name.split(".", 2)
            stem, dot, kind = rest.rpartition(".")
            if stem == "attn.qkv":
                for part, third in zip(parts, value.chunk(3), strict=True):
                    state[f"{prefix}{layer}.{number}.attention.{part}.{kind}"] = third.clone()
                continue
            found = inner[rest] if rest in inner else inner[stem] + dot + kind
            state[f"{prefix}{layer}.{number}.{found}"] = value
        else:
            stem = next(stem for stem in places if name.startswith(stem))
            state[prefix + name.replace(stem, places[stem], 1)] = value
    if has_scale:
        state[f"{prefix}embeddings.mask_token"] = torch.zeros(1, 128)
    return {**state, "classifier.weight": torch.ones(5, 128)}


def hugging_face_modules(model, other):
    return hugging_face(model, other, prefix="", modules=True)


def hugging_face_dinov2(model, other):
    return hugging_face(model, other, prefix="dinov2.", has_scale=True)


def hugging_face_dinov2_below(model, other):
    return {"state_dict": hugging_face(model, other, prefix="encoder.", has_scale=True)}


def torchvision(model, other, older=False):
    """Torchvision's names, of its MLPs those before 0.13 if `older`."""
    hidden, out = ("mlp.linear_1", "mlp.linear_2") if older else ("mlp.0", "mlp.3")
    places = {"patch_embed.proj": "conv_proj", "pos_embed": "encoder.pos_embedding",
              "cls_token": "class_token", "head.": "heads.head."}  # fmt: skip
    inner = {"norm1": "ln_1", "norm2": "ln_2", "attn.proj": "self_attention.out_proj",
             "attn.qkv.": "self_attention.in_proj_", "mlp.fc1": hidden, "mlp.fc2": out}  # fmt: skip
    block = "encoder.layers.encoder_layer_"
    return renamed(model.state_dict(), {**places, "norm.": "encoder.ln."}, block, inner)


def torchvision_older(model, other):
    return torchvision(model, other, older=True)


def torchvision_ema(model, other):
    """As its training script saves it, with averaged weights."""
    averaged = below("module.", torchvision(other, None))
    return {"model": torchvision(model, None),
            "model_ema": {**averaged, "n_averaged": torch.tensor(7)}}  # fmt: skip


def torchvision_in_lightning(model, other):
    return {"state_dict": below("encoder.vit.", torchvision(model, other))}


def mmpretrain(model, other):
    """As its trainings save it: the model alone, with its head."""
    places = {"patch_embed.proj": "patch_embed.projection", "pos_embed": "pos_embed",
              "cls_token": "cls_token", "norm.": "ln1."}  # fmt: skip
    inner = {"norm": "ln", "attn": "attn", "mlp.fc1": "ffn.layers.0.0", "mlp.fc2": "ffn.layers.1",
             "ls1.gamma": "attn.gamma1.weight", "ls2.gamma": "ffn.gamma2.weight"}  # fmt: skip
    state = below("backbone.", renamed(body(model), places, "layers.", inner))
    return {"state_dict": {**state, "head.layers.head.weight": torch.ones(5, 128)}, "meta": {}}


def mmsegmentation(model, other):
    """The same, whose attention is torch's."""
    state = mmpretrain(model, other)["state_dict"]
    for name in [name for name in state if ".attn." in name]:
        value = state.pop(name)
        new = name.replace("attn.qkv.", "attn.attn.in_proj_").replace(
            "attn.proj", "attn.attn.out_proj"
        )
        state[new] = value
    return {"state_dict": state}


def mmpretrain_moco_v3(model, other):
    state, momentum = (mmpretrain(each, None)["state_dict"] for each in (model, other))
    prefix = "momentum_encoder.module.0."
    state |= {n.replace("backbone.", prefix): v for n, v in momentum.items() if "backbone" in n}
    return {"state_dict": state | {"momentum_encoder.steps": torch.tensor(3)}}


def renamed(state, places, block, inner):
    """A state dict whose names of blocks and of the rest start otherwise."""
    found = {}
    for whole, value in state.items():
        table, name, prefix = places, whole, ""
        if whole.startswith("blocks."):
            _, number, name = whole.split(".", 2)
            table, prefix = inner, f"{block}{number}."
        stem = next(stem for stem in table if name.startswith(stem))
        found[prefix + name.replace(stem, table[stem], 1)] = value
    return found


def clip(model, other, prefix="visual."):
    """CLIP's visual tower beside one for texts; class token and positions have no first axis."""
    places = {
        "patch_embed.proj": "conv1", "pos_embed": "positional_embedding", "norm_pre": "ln_pre",
        "cls_token": "class_embedding", "norm.": "ln_post.",
    }  # fmt: skip
    inner = {
        "norm1": "ln_1", "norm2": "ln_2", "attn.proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc",
        "attn.qkv.": "attn.in_proj_", "mlp.fc2": "mlp.c_proj",
    }  # fmt: skip
    state = renamed(body(model), places, "transformer.resblocks.", inner)
    state["class_embedding"] = state["class_embedding"][0, 0]
    state["positional_embedding"] = state["positional_embedding"][0]
    text = {"transformer.resblocks.0.ln_1.weight": torch.ones(7), "logit_scale": torch.ones(()),
            "positional_embedding": torch.ones(5, 7), "ln_final.weight": torch.ones(7)}  # fmt: skip
    return below(prefix, {**state, "proj": torch.ones(256, 7)}) | text


def clip_of_openai(model, other):
    """With the numbers that its files have beside the weights."""
    return {**clip(model, other), "input_resolution": torch.tensor(224),
            "context_length": torch.tensor(77), "vocab_size": torch.tensor(49408)}  # fmt: skip


def hugging_face_clip(model, other):
    """The same in transformers' names, with the positions' numbers of its older files."""
    places = {"patch_embed.proj": "embeddings.patch_embedding", "norm_pre": "pre_layrnorm",
              "pos_embed": "embeddings.position_embedding.weight", "norm.": "post_layernorm.",
              "cls_token": "embeddings.class_embedding"}  # fmt: skip
    inner = {"norm1": "layer_norm1", "norm2": "layer_norm2", "attn.proj": "self_attn.out_proj",
             "mlp": "mlp", "attn.qkv": "self_attn.qkv"}  # fmt: skip
    state = renamed(body(model), places, "encoder.layers.", inner)
    for name in [name for name in state if ".qkv." in name]:
        for part, third in zip("qkv", state.pop(name).chunk(3), strict=True):
            state[name.replace(".qkv.", f".{part}_proj.")] = third.clone()
    for name in ("embeddings.class_embedding", "embeddings.position_embedding.weight"):
        state[name] = state[name].flatten(0, 1)
    state["embeddings.class_embedding"] = state["embeddings.class_embedding"][0]
    state["embeddings.position_ids"] = torch.arange(5)[None]
    text = {"text_model.final_layer_norm.weight": torch.ones(7), "logit_scale": torch.ones(())}
    return below("vision_model.", state) | text | {"visual_projection.weight": torch.ones(7, 256)}
