"""The study on Fashion-MNIST: the paper's questions at small scale, on real grey images.

Run by `make study`, or `python -m studies.fashion_mnist.run [options]`.
"""

from pathlib import Path

from studies.claims import CORRUPTED, KNN, LINEAR, Claim, Measure
from studies.page import Page
from studies.study import Row, Study, main

ROTATION = Measure("equivariance", "equivariance/rotation_final")


def _at(layer: int) -> tuple[str, ...]:
    return ("--model.backbone.layer", str(layer))


_CONTROL = ("--model.regularizer.weight", "0")
_EVERY_LAYER = (
    "--config", "configs/overlay/layers_all.yaml", "--model.backbone.layer", "[1,2,3,4,5,6]",
    "--model.backbone.cls_layer", "2", "--model.regularizer.weight", "0.1667",
)  # fmt: skip

_ROWS = (
    Row("moco", "MoCo-v3", "moco"),
    Row("ser_weight_0", "+ SER @2, weight 0", "moco_ser", _CONTROL, "control"),
    Row("ser", "+ SER @2", "moco_ser", (), "SER", 2),
    Row("augself", "+ AugSelf @6", "moco_augself", _at(6), "AugSelf", 6),
    Row("augself_2", "+ AugSelf @2", "moco_augself", _at(2), "AugSelf", 2, 2),
    Row("equimod", "+ EquiMod @6", "moco_equimod", _at(6), "EquiMod", 6),
    Row("equimod_2", "+ EquiMod @2", "moco_equimod", _at(2), "EquiMod", 2, 2),
    Row("stl", "+ STL @6", "moco_stl", _at(6), "STL", 6),
    Row("essl", "+ E-SSL @6", "moco_essl", _at(6), "E-SSL", 6),
    Row("ser_1", "+ SER @1", "moco_ser", _at(1), "SER", 1, 1),
    Row("ser_6", "+ SER @6", "moco_ser", _at(6), "SER", 6, 1),
    Row("ser_all", "+ SER at all", "moco_ser", _EVERY_LAYER, "all", None, 1),
)

_NOTES = """\
Every run pretrains a ViT (64 wide, 6 deep, 7x7 tokens) on the 60,000 images of Fashion-MNIST for
one epoch in batches of 128 (468 steps), in bf16 on one CPU core. "@2" is the block that the add-on
reads; rivals read [CLS], SER the token map, and with SER [CLS] joins after that block. SER has 13
of 128 images in the invertible pipeline, 10 % instead of the paper's 1 %, which would be one image
here and have no negatives. All rows have MoCo-v3's recipe of colours and the same crops; weights
are the defaults, untuned. Linear: [CLS] of the last four blocks on cached features of all training
images, rate and epoch chosen on 600 held out. -C: the 14 generated corruptions other than frost at
five severities, 300 test images. Turns, flip, scale: equivariance scores after the last block on
1,000 test images. `make study` computes what is missing and writes this page."""

_CLAIMS = (
    Claim("SER raises linear accuracy (Table 1: 68.44 to 69.28)", "ser", "moco", LINEAR),
    Claim(
        "SER's views and late [CLS] alone raise it (Table 5: 68.82)", "ser_weight_0", "moco", LINEAR
    ),
    Claim("its loss adds to that (Table 5: 69.28)", "ser", "ser_weight_0", LINEAR),
    Claim("SER is ahead of AugSelf (Table 1: 67.55)", "ser", "augself", LINEAR),
    Claim("SER is ahead of STL (Table 1: 65.49)", "ser", "stl", LINEAR),
    Claim(
        "SER is ahead of EquiMod, which has a third view (Table 1: 68.95)", "ser", "equimod", LINEAR
    ),
    Claim(
        "E-SSL, with four small views more, is ahead of MoCo-v3 (Table 1: 70.60)",
        "essl",
        "moco",
        LINEAR,
    ),
    Claim(
        "AugSelf gains at an early block (Table 6: 67.55 to 68.23)", "augself_2", "augself", LINEAR
    ),
    Claim(
        "EquiMod gains at an early block (Table 6: 68.95 to 69.51)", "equimod_2", "equimod", LINEAR
    ),
    Claim(
        "SER at an early block is ahead of SER at the last (Table 4: 68.18)", "ser", "ser_6", LINEAR
    ),
    Claim("SER keeps 20-NN accuracy or raises it (Table 3: 61.56 to 61.64)", "ser", "moco", KNN),
    Claim(
        "SER raises accuracy on corruptions (Table 12: 39.47 to 40.58)",
        "ser",
        "moco",
        CORRUPTED,
    ),
    Claim(
        "SER raises final equivariance to turns (Table 4: .804 to .840)", "ser", "moco", ROTATION
    ),
    Claim("SER at the last block raises it further (Table 4: .924)", "ser_6", "ser", ROTATION),
)

STUDY = Study(
    name="study",
    rows=_ROWS,
    overlays=("fashion_mnist", "fashion_mnist/study"),
    stages={
        "knn": (),
        "linear": ("--config", "configs/eval/small/linear.yaml"),
        "equivariance": ("--model.num_images", "1000"),
        "imagenet-c": ("--data.generated", "true", "--data.num_test", "300"),
    },
    page=Page(
        title="Study: the paper's questions at small scale",
        path=Path("docs/study.md"),
        notes=_NOTES,
        claims=_CLAIMS,
        panels={
            LINEAR: "Linear top-1, %",
            KNN: "20-NN top-1, %",
            CORRUPTED: "Corrupted top-1, %",
            ROTATION: "Equivariance to turns, final",
        },
    ),
)

if __name__ == "__main__":
    main(STUDY)
