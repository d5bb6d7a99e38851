"""The shift stage end to end, on trees as they are released."""

import shutil
from pathlib import Path

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from benchmark_trees import LAYERS, SMALL, imagenet_head, tiny_checkpoint, write_head, write_images
from ser_lightning.backbones import SplitViT
from ser_lightning.commands.evaluate import evaluate
from ser_lightning.data.render import IMAGENET_MEAN, IMAGENET_STD, normalise
from ser_lightning.results.record import class_map_sha256, read_record
from ser_lightning.sources.decode import read_image
from ser_lightning.sources.released import imagenet_r_synsets, imagenet_synsets

ROOT = Path(__file__).parents[3]

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*isinstance.*treespec.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny run with a head for ImageNet's classes where the linear stage would have put it."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "checkpoints").mkdir()
    shutil.copy(tiny_checkpoint(tmp_path_factory), folder / "checkpoints")
    imagenet_head(folder)
    return folder


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """The three sets: one image per class."""
    root = tmp_path_factory.mktemp("data")
    write_images(root / "v2", [str(n) for n in range(1000)], suffix=".jpeg")
    write_images(root / "r", imagenet_r_synsets(), suffix=".jpg")
    write_images(root / "sketch", imagenet_synsets(), size=20)
    return root


def shift(run, *options):
    args = ["--config", str(ROOT / "configs" / "eval" / "shift.yaml"), *SMALL, *options]
    evaluate([*args, "--checkpoint", str(run / "checkpoints" / "last.ckpt")])


def naive_logits(run, files):
    """Logits of files, all at once."""
    backbone = SplitViT.from_checkpoint(run / "checkpoints" / "last.ckpt").eval()
    head = imagenet_head(run)
    assert head.layers == LAYERS
    images = []
    for file in files:
        image = read_image(str(file))  # crop fraction 1: the shorter side is the crop's
        images.append(F.resize(image, [16], InterpolationMode.BICUBIC, antialias=True))
    pixels = normalise(torch.stack(images) / 255, IMAGENET_MEAN, IMAGENET_STD)
    with torch.no_grad():
        return head(backbone, pixels)


def percent(hits):
    return 100 * sum(map(bool, hits)) / len(hits)


@pytest.mark.filterwarnings("ignore:.*the released set has.*")
@pytest.mark.slow
def test_each_set_has_the_accuracy_of_a_plain_loop(run, trees):
    names = ("v2", "r", "sketch")
    shift(run, *(part for n in names for part in (f"--data.imagenet_{n}", str(trees / n))))
    synsets = imagenet_synsets()
    allowed = [synsets.index(name) for name in imagenet_r_synsets()]
    for name in names:
        record = read_record(run / "results" / f"shift-imagenet_{name}.json")
        files = sorted((trees / name).glob("*/*"))
        folders = [file.parent.name for file in files]
        label = [int(f) if name == "v2" else synsets.index(f) for f in folders]
        logits = naive_logits(run, files)
        order = logits.argsort(1, descending=True).tolist()
        expected = {
            "top1": percent([row[0] == y for row, y in zip(order, label, strict=True)]),
            "top5": percent([y in row[:5] for row, y in zip(order, label, strict=True)]),
        }
        if name == "r":
            among = logits[:, allowed].argsort(1, descending=True).tolist()
            own = [[allowed[place] for place in row] for row in among]
            expected = {f"{key}_1000way": value for key, value in expected.items()} | {
                "top1": percent([row[0] == y for row, y in zip(own, label, strict=True)]),
                "top5": percent([y in row[:5] for row, y in zip(own, label, strict=True)]),
            }
            assert expected["top5"] > expected["top5_1000way"]
        assert record.metrics == pytest.approx(expected)
        assert record.num_samples == len(files)
        assert record.data_root == ", ".join(str(trees / n) for n in names)
        reasons = "; ".join(record.unofficial_reasons)  # of this set, not of the others
        assert f"imagenet_{name} has" in reasons
        assert reasons.count("the released set has") == 1
        classes = imagenet_r_synsets() if name == "r" else synsets
        logits_of = {wnid: synsets.index(wnid) for wnid in classes}
        assert record.class_map_sha256 == class_map_sha256(logits_of)
        assert record.selected["epoch"] == 47
        assert record.protocol["head"] == {"epochs": 50}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*the released set has.*")
def test_class_map_does_not_depend_on_the_other_sets(run, trees):
    path, found = run / "results" / "shift-imagenet_r.json", []
    for names in (["r"], ["v2", "r"]):
        shift(run, *(part for n in names for part in (f"--data.imagenet_{n}", str(trees / n))))
        found.append(read_record(path).class_map_sha256)
    assert found[0] == found[1]


def test_a_wrong_number_of_images_is_warned_of(run, trees):
    with pytest.warns(UserWarning, match="imagenet_r has 200 files, the released set has 30,000"):
        shift(run, "--data.imagenet_r", str(trees / "r"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*the released set has.*")
def test_head_that_is_missing_or_of_other_classes_is_refused(run, trees, tmp_path):
    options = ["--data.imagenet_r", str(trees / "r"), "--model.head"]
    with pytest.raises(ValueError, match="run the linear stage first"):
        shift(run, *options, str(tmp_path / "none.safetensors"))
    write_head(tmp_path / "shapes.safetensors", ["circle", "square"])
    with pytest.raises(ValueError, match=r"class n01443537, for which .*shapes.safetensors has no"):
        shift(run, *options, str(tmp_path / "shapes.safetensors"))
