"""The study on CIFAR-10: what SER does to a small ViT on real colour photographs.

Run by `python -m studies.cifar10.run [options]`; README.md beside it says what is asked, how it is
decided, and what was chosen before.
"""

from pathlib import Path

from studies.claims import CORRUPTED, KNN, LINEAR, Claim, Measure
from studies.page import Page
from studies.study import Row, Study, main

BLOCK = Measure("equivariance", "equivariance/mean_centred/rotation_block2")
FINAL = Measure("equivariance", "equivariance/mean_centred/rotation_final")
TURNED = Measure("turned", "top1/avg")
TOLD = Measure("transformation", "rotation_layer6")


def _at(layer: int) -> tuple[str, ...]:
    return ("--model.backbone.layer", str(layer))


_CONTROL = ("--model.regularizer.weight", "0")
_LIGHT = ("--model.regularizer.weight", "0.3")
_LATE = ("--model.backbone.cls_layer", "2")
_NO_TURNS = ("--data.invertible.group.rotation", "false")
_RATIO = ("--data.invertible.ratio", "0.0625")
_LONG = ("--trainer.max_epochs", "10")
_NO_PIPELINE = ("--data.invertible", "null")
_TURNED = (*_NO_PIPELINE, "--data.crop.turned.ratio", "0.03")
_DINO = ("--config", "configs/fashion_mnist/dino.yaml")
_BARLOW = ("--config", "configs/fashion_mnist/barlow.yaml")

_ROWS = (
    Row("moco", "MoCo-v3", "moco", seeds=5),
    Row("ser_weight_0", "+ SER @2, weight 0", "moco_ser", _CONTROL, "control", seeds=5),
    Row("ser", "+ SER @2", "moco_ser", (), "SER", 2, 5),
    Row("ser_weight_0.3", "+ SER @2, weight 0.3", "moco_ser", _LIGHT, "lighter", 2),
    Row("late_cls", "MoCo-v3, [CLS] after block 2", "moco", _LATE, "control"),
    Row("overlap", "+ between crops @2", "moco_overlap", _NO_PIPELINE, "between crops", 2),
    Row("overlap_turns", "+ between turned crops @2", "moco_overlap", _TURNED, "between crops", 2),
    Row(
        "overlap_turns_weight_0",
        "+ between turned crops @2, weight 0",
        "moco_overlap",
        (*_TURNED, *_CONTROL),
        "control",
    ),
    Row("ser_6", "+ SER @6", "moco_ser", _at(6), "SER", 6),
    Row("ser_no_turns", "+ SER @2, no turns", "moco_ser", _NO_TURNS, "no turns", 2),
    Row("ser_6_percent", "+ SER @2, 6 % of the batch", "moco_ser", _RATIO, "6 %", 2),
    Row("moco_10_epochs", "MoCo-v3, 10 epochs", "moco", _LONG, "longer", seeds=2),
    Row("ser_10_epochs", "+ SER @2, 10 epochs", "moco_ser", _LONG, "longer", 2, 2),
    Row("dino", "DINO", "dino", _DINO, "another base"),
    Row("dino_ser", "DINO + SER @2", "dino_ser", _DINO, "another base", 2),
    Row("barlow", "Barlow Twins", "barlow", _BARLOW, "another base"),
    Row("barlow_ser", "Barlow Twins + SER @2", "barlow_ser", _BARLOW, "another base", 2),
    Row("augself", "+ AugSelf @6", "moco_augself", _at(6), "AugSelf", 6, 2),
    Row("augself_2", "+ AugSelf @2", "moco_augself", _at(2), "AugSelf", 2, 2),
    Row("equimod", "+ EquiMod @6", "moco_equimod", _at(6), "EquiMod", 6, 2),
    Row("equimod_2", "+ EquiMod @2", "moco_equimod", _at(2), "EquiMod", 2, 2),
)

_NOTES = """\
Every run pretrains a ViT (128 wide, 6 deep, 8x8 tokens of 4 pixels) on the 50,000 training images
of CIFAR-10, as JPEG files again, for five epochs in batches of 256 (975 steps), in bf16 on one CPU
core. "@2" is the block that the add-on reads; rivals read [CLS], SER the token map, and with SER
[CLS] joins after that block. "Between crops" is SER's loss between the two crops of 3 % of the
images; its control is MoCo-v3 with [CLS] after block 2, which at weight 0 it is but for the draw of
the heads' first weights. SER has 8 of 256 images in the invertible pipeline, 3 % instead of the
paper's 1 %, which would be 3 images and too few negatives. Rows of one base have the same crops and
colours; weights are the defaults, untuned, but for 0 and 0.3 where a row says so.
Linear: [CLS] of the last four blocks on cached features
of all training images, rate and epoch chosen on 500 held out; turned: the same probe on the test
images turned by 90, 180 and 270 degrees. 20-NN: all training images, all 10,000 test images. -C:
the 14 generated corruptions other than frost at five severities, 500 test images. Turns:
equivariance to quarter turns without the mean token, on 2,000 test images. Told turns: probes
trained on 4,000 images, 2,000 test images.
[What was decided before](../studies/cifar10/README.md), and what each line can see."""

_CLAIMS = (
    Claim("SER raises linear accuracy (Table 1: 68.44 to 69.28)", "ser", "moco", LINEAR),
    Claim("its views and late [CLS] raise linear accuracy (Table 5: 68.82)", "ser_weight_0",
          "moco", LINEAR),
    Claim("its loss adds to that (Table 5: 68.82 to 69.28)", "ser", "ser_weight_0", LINEAR),
    Claim("SER raises 20-NN accuracy (Table 3: 61.56 to 61.64)", "ser", "moco", KNN),
    Claim("its loss alone raises 20-NN accuracy", "ser", "ser_weight_0", KNN),
    Claim("[CLS] after block 2 alone raises 20-NN accuracy", "late_cls", "moco", KNN),
    Claim("SER raises corrupted accuracy (Table 12: 39.47 to 40.58)", "ser", "moco",
          CORRUPTED),
    Claim("SER raises accuracy on turned images", "ser", "moco", TURNED),
    Claim("SER's map follows turns where it is trained to", "ser", "ser_weight_0", BLOCK),
    Claim("... and follows them after the last block (Table 4: .804 to .840)", "ser",
          "ser_weight_0", FINAL),
    Claim("between crops, it follows turns that no crop had", "overlap", "late_cls", BLOCK),
    Claim("between turned crops, it follows turns", "overlap_turns", "overlap_turns_weight_0",
          BLOCK),
    Claim("between crops raises linear accuracy", "overlap", "late_cls",
          LINEAR),
    Claim("between turned crops raises linear accuracy", "overlap_turns",
          "overlap_turns_weight_0", LINEAR),
    Claim("between crops is ahead of SER in 20-NN", "overlap", "ser", KNN),
    Claim("SER at the last block follows further there (Table 4: .924)", "ser_6", "ser", FINAL),
    Claim("an early block keeps accuracy that the last one costs (Table 4)", "ser", "ser_6", KNN),
    Claim("turns told from frozen features better (Table 7)", "ser", "ser_weight_0", TOLD),
    Claim("without turns in the group, accuracy is higher", "ser_no_turns", "ser", KNN),
    Claim("a third of the weight costs less linear accuracy (explored afterwards)",
          "ser_weight_0.3", "ser", LINEAR),
    Claim("a third of the weight costs less 20-NN accuracy", "ser_weight_0.3", "ser", KNN),
    Claim("with a third of the weight it follows turns too", "ser_weight_0.3",
          "ser_weight_0", BLOCK),
    Claim("twice the invertible images cost accuracy", "ser", "ser_6_percent", KNN),
    Claim("SER raises 20-NN accuracy in a run twice as long", "ser_10_epochs", "moco_10_epochs",
          KNN),
    Claim("SER raises DINO's linear accuracy (Table 1)", "dino_ser", "dino", LINEAR),
    Claim("SER raises Barlow Twins' linear accuracy (Table 1)", "barlow_ser", "barlow", LINEAR),
    Claim("SER is ahead of AugSelf (Table 1: 67.55)", "ser", "augself", LINEAR),
    Claim("SER is ahead of EquiMod, which has a third view (Table 1: 68.95)", "ser", "equimod",
          LINEAR),
    Claim("AugSelf gains at an early block (Table 6: 67.55 to 68.23)", "augself_2", "augself",
          LINEAR),
    Claim("EquiMod gains at an early block (Table 6: 68.95 to 69.51)", "equimod_2", "equimod",
          LINEAR),
)  # fmt: skip

STUDY = Study(
    name="cifar10_study",
    rows=_ROWS,
    overlays=("small_photos", "cifar10", "cifar10/study"),
    stages={
        "knn": (),
        "linear": ("--config", "configs/eval/small/linear.yaml"),
        "turned": (),
        "equivariance": ("--model.num_images", "2000"),
        "transformation": ("--config", "configs/eval/small/transformation.yaml",
                           "--model.layers", "[2,6]", "--model.num_train", "4000",
                           "--data.num_test", "2000"),
        "imagenet-c": ("--data.generated", "true", "--data.num_test", "500"),
    },
    page=Page(
        title="Study: SER on CIFAR-10",
        path=Path("docs/cifar10.md"),
        notes=_NOTES,
        claims=_CLAIMS,
        panels={
            LINEAR: "Linear top-1, %",
            KNN: "20-NN top-1, %",
            BLOCK: "Turns, block 2, centred",
            FINAL: "Turns, final, centred",
        },
        gains={
            "knn_top1": "20-NN while training (bank of 10,000)",
            "equivariance/mean_centred/rotation_block2": "turns, block 2, centred",
            "equivariance/mean_centred/rotation_final": "turns, final, centred",
        },
        by_block=(
            "equivariance/mean_centred/rotation",
            "equivariance/random_init_mean_centred/rotation",
        ),
    ),
    kept=Path("studies/cifar10/results"),
)  # fmt: skip

if __name__ == "__main__":
    main(STUDY)
