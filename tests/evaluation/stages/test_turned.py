"""The turned stage end to end: the head of the linear stage on turned test images."""

from pathlib import Path

import pytest
import torch

from ser_lightning.backbones import SplitViT
from ser_lightning.commands.evaluate import evaluate
from ser_lightning.data import Shapes
from ser_lightning.data.render import IMAGENET_MEAN, IMAGENET_STD, normalise
from ser_lightning.evaluation.linear_head import LinearClassifier, head_path
from ser_lightning.results.record import read_record
from tiny_names import SHAPES

ROOT = Path(__file__).parents[3]

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*isinstance.*treespec.*"),
]


def run(checkpoint, *options):
    args = ["--config", str(ROOT / "configs" / "eval" / "turned.yaml")]
    args += ["--checkpoint", str(checkpoint), "--trainer.accelerator", "cpu"]
    evaluate([*args, "--data.num_workers", "0", *options])


@pytest.mark.slow
def test_each_turn_is_what_the_head_says_of_the_turned_pixels(checkpoint):
    folder = checkpoint.parents[1]
    with pytest.raises(ValueError, match="run the linear stage first"):
        run(checkpoint)
    backbone = SplitViT.from_checkpoint(checkpoint).eval()
    test = Shapes(image_size=16, num_train=96, num_evaluation=24).evaluation()
    pixels = torch.stack([test.read(i) for i in range(24)])
    turned = [
        normalise(pixels.rot90(k, (-2, -1)) / 255, IMAGENET_MEAN, IMAGENET_STD) for k in range(4)
    ]
    classifier = LinearClassifier([2], backbone.width, test.class_names)
    with torch.no_grad():
        upright = backbone(turned[0])
        targets = torch.nn.functional.one_hot(test.labels, 12).float()
        classifier.linear.weight.copy_((torch.linalg.pinv(upright) @ targets).T)
        classifier.linear.bias.zero_()
        right = [(classifier(backbone, x).argmax(1) == test.labels).float().mean() for x in turned]
    classifier.save(head_path(folder, SHAPES))
    run(checkpoint)
    record = read_record(folder / "results" / f"turned-{SHAPES}.json")
    names = ("upright", "turn90", "turn180", "turn270")
    expected = {f"top1/{n}": 100 * r.item() for n, r in zip(names, right, strict=True)}
    expected["top1/avg"] = sum(expected[f"top1/{n}"] for n in names[1:]) / 3
    assert record.metrics == pytest.approx(expected)
    assert expected["top1/upright"] > expected["top1/avg"] + 20
    assert record.counts["hits/turn90"] == round(24 * right[1].item())
    assert record.num_samples == 24
    assert "no published protocol" in record.unofficial_reasons


@pytest.mark.parametrize(
    ("width", "weight", "words"),
    [
        (
            7,
            0.0,
            r"head\.safetensors reads 7 channels, \[CLS\] of 1 blocks of width \d+ has others",
        ),
        (
            None,
            float("nan"),
            r"weights of .*head\.safetensors: 1 are not finite, such as linear\.w",
        ),
    ],
)
def test_heads_that_measure_nothing_are_refused(width, weight, words, checkpoint, tmp_path):
    names = Shapes(image_size=16, num_train=96, num_evaluation=24).evaluation().class_names
    own = SplitViT.from_checkpoint(checkpoint).width
    classifier = LinearClassifier([2], width or own, names)
    classifier.linear.weight.data.fill_(weight)
    classifier.save(tmp_path / "head.safetensors")
    with pytest.raises(ValueError, match=words):
        run(checkpoint, "--model.head", str(tmp_path / "head.safetensors"))
