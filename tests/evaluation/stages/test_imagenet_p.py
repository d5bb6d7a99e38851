"""The perturbation stage end to end, on videos and on generated sequences."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmark_trees import (
    SMALL,
    head_origin,
    imagenet_head,
    pixels,
    tiny_checkpoint,
    write_head,
    write_video,
)
from ser_lightning.backbones import SplitViT
from ser_lightning.commands.evaluate import evaluate
from ser_lightning.corruptions import PERTURBATIONS, perturb
from ser_lightning.data import Shapes
from ser_lightning.data.benchmarks.imagenet_p import ALL_PERTURBATIONS
from ser_lightning.data.benchmarks.videos import read_video
from ser_lightning.data.datasets import balanced_subset
from ser_lightning.data.render import IMAGENET_MEAN, IMAGENET_STD, normalise
from ser_lightning.evaluation.stages import imagenet_p
from ser_lightning.results.record import read_record
from ser_lightning.sources.released import imagenet_synsets
from tiny_names import SHAPES

ROOT = Path(__file__).parents[3]
CONFIG = str(ROOT / "configs" / "eval" / "imagenet-p.yaml")
CLASSES = ("n01440764", "n01514668")
GENERATED = ["--data.generated", "true", "--data.num_test", "6", "--data.frame_stride", "5"]
NOISES = ("gaussian_noise", "shot_noise", "speckle_noise")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*isinstance.*treespec.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*the released set has.*"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny run with heads for ImageNet's classes, and for the shapes it was trained on."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "checkpoints").mkdir()
    shutil.copy(tiny_checkpoint(tmp_path_factory), folder / "checkpoints")
    imagenet_head(folder)
    shapes_head(folder)
    return folder


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """ImageNet-P with two videos of each perturbation."""
    pytest.importorskip("av")
    root = tmp_path_factory.mktemp("p")
    rng = np.random.default_rng(0)
    for name in ALL_PERTURBATIONS:
        for number, wnid in enumerate(CLASSES):
            frames = pixels(rng, 41 if name == "translate" else 31, 16, 16)
            write_video(root / name / wnid / f"ILSVRC2012_val_{number:08d}.mp4", frames)
    return root


def shapes_head(run):
    path = run / "results" / f"linear-{SHAPES}.safetensors"
    return write_head(path, shapes().class_names, origin=head_origin(run))


def shapes():
    return Shapes(num_train=96, num_evaluation=24, image_size=16).evaluation()


def perturbation(run, *options, dataset="imagenet_p"):
    args = ["--config", CONFIG, *SMALL, *options]
    evaluate([*args, "--checkpoint", str(run / "checkpoints" / "last.ckpt")])
    return read_record(run / "results" / f"imagenet-p-{dataset}.json")


def distance(before, after):
    """The top-5 distance of two rankings of all classes, as it is defined."""
    total = 0
    for i in range(1, 6):
        j = after.index(before[i - 1]) + 1
        total += sum(1 <= k - 1 <= 5 for k in range(min(i, j) + 1, max(i, j) + 1))
    return total


def naive(backbone, network, videos, labels, name, stride=1):
    """Metrics of one perturbation, frame after frame."""
    flips, distances, hits, hits5, right = [], [], [], [], []
    for video, label in zip(videos, labels, strict=True):
        frames = normalise(video[::stride] / 255, IMAGENET_MEAN, IMAGENET_STD)
        with torch.no_grad():
            ranks = [
                network(backbone, f[None])[0].argsort(descending=True).tolist() for f in frames
            ]
        pairs = [(ranks[0 if name in NOISES else j - 1], ranks[j]) for j in range(1, len(ranks))]
        flips.append(np.mean([a[0] != b[0] for a, b in pairs]))
        distances.append(np.mean([distance(a, b) for a, b in pairs]))
        hits += [rank[0] == label for rank in ranks]
        hits5 += [label in rank[:5] for rank in ranks]
        right.append(all(rank[0] == label for rank in ranks))
    return {
        f"top1/{name}": 100 * np.mean(hits),
        f"top5/{name}": 100 * np.mean(hits5),
        f"all_frames_right/{name}": 100 * np.mean(right),
        f"flip_probability/{name}": 100 * np.mean(flips),
        f"top5_distance/{name}": np.mean(distances),
    }


def test_videos_give_the_numbers_of_a_plain_loop(run, tree):
    record = perturbation(run, "--data.root", str(tree))
    backbone = SplitViT.from_checkpoint(run / "checkpoints" / "last.ckpt").eval()
    head = imagenet_head(run)
    labels = [imagenet_synsets().index(wnid) for wnid in CLASSES]
    for name in ("gaussian_noise", "translate"):
        videos = [read_video(str(file)) for file in sorted((tree / name).glob("*/*.mp4"))]
        expected = naive(backbone, head, videos, labels, name)
        assert expected[f"flip_probability/{name}"] > 0
        assert {key: record.metrics[key] for key in expected} == pytest.approx(expected)
    accuracies = [record.metrics[f"top5/{name}"] for name in ALL_PERTURBATIONS]
    assert record.metrics["top5/avg"] == pytest.approx(np.mean(accuracies))
    flips = [record.metrics[f"flip_probability/{name}"] for name in PERTURBATIONS]
    assert record.metrics["flip_probability/avg"] == pytest.approx(np.mean(flips))
    assert "mfr" not in record.metrics
    assert record.num_samples == 28
    assert record.counts["frames/translate"] == 82
    assert "the released set has 50,000" in "; ".join(record.unofficial_reasons)
    assert record.data_root == str(tree)


def test_frames_and_videos_may_be_left_out(run, tree):
    options = ["--data.perturbations", "[snow, tilt]", "--data.frame_stride", "3"]
    options += ["--data.videos_per_class", "1"]
    record = perturbation(run, "--data.root", str(tree), *options)
    assert record.counts["frames/snow"] == 2 * 11
    assert "every 3. frame only; 1 videos per class only" in "; ".join(record.unofficial_reasons)
    assert "top1/avg" not in record.metrics


@pytest.mark.slow
def test_generated_sequences_give_the_numbers_of_a_plain_loop(run):
    options = ["--data.perturbations", "[shot_noise, brightness]"]
    record = perturbation(run, *GENERATED, *options, dataset=SHAPES)
    backbone = SplitViT.from_checkpoint(run / "checkpoints" / "last.ckpt").eval()
    head = shapes_head(run)
    for name in ("shot_noise", "brightness"):
        expected = naive(backbone, head, *videos_of(name), name, stride=5)
        assert expected[f"flip_probability/{name}"] + expected[f"top5_distance/{name}"] > 0
        assert {key: record.metrics[key] for key in expected} == pytest.approx(expected)
    assert record.counts["videos/shot_noise"] == 6
    assert "; ".join(record.unofficial_reasons) == (
        "perturbations are generated; every 5. frame only; measured on a part of the images"
    )


class Stand(nn.Module):
    """Stands in for AlexNet, which needs larger images: flips at the smallest change."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.linear = nn.Linear(3 * 16 * 16, 9)

    def forward(self, pixels):
        return torch.sin(100 * self.linear(pixels.flatten(1)))


@pytest.mark.slow
def test_alexnet_is_a_result_of_its_own(run, monkeypatch):
    monkeypatch.setattr(imagenet_p, "load_alexnet", lambda path: Stand())
    pick = ["--data.perturbations", "[" + ", ".join(PERTURBATIONS) + "]"]
    first = perturbation(run, *GENERATED, *pick, "--model.alexnet", "true", dataset=SHAPES)
    alexnet = read_record(run / "results" / f"imagenet-p-{SHAPES}-alexnet.json")
    assert (alexnet.network, alexnet.checkpoint, alexnet.layer) == ("alexnet", None, None)
    assert (alexnet.stage, alexnet.dataset) == (first.stage, first.dataset)
    assert not any(key.startswith("top1/") for key in alexnet.metrics)  # needs no labels
    stand = naive(None, lambda _, x: Stand()(x), *videos_of("tilt"), "tilt", stride=5)
    for metric in ("flip_probability/tilt", "top5_distance/tilt"):
        assert alexnet.metrics[metric] == pytest.approx(stand[metric])
    flips = [alexnet.metrics[f"flip_probability/{name}"] for name in PERTURBATIONS]
    assert alexnet.metrics["flip_probability/avg"] == pytest.approx(np.mean(flips))
    videos = {name: n for name, n in first.counts.items() if name.startswith(("videos", "frames"))}
    assert alexnet.counts == videos
    assert alexnet.protocol["frame_stride"] == first.protocol["frame_stride"] == 5
    assert "alexnet" not in first.protocol  # seeds measured with and without it are averaged
    assert alexnet.unofficial_reasons == (
        "perturbations are generated",
        "every 5. frame only",
        "measured on a part of the images",
    )
    assert first.network is None
    assert first.selected["base_learning_rate"] == 3.0
    assert not any(name.startswith(("mfr", "mt5d")) for name in first.metrics)


def videos_of(name):
    """The 6 images of the subset that the stage takes, perturbed."""
    images = shapes()
    chosen = balanced_subset(images.labels, 6, 2)
    videos = [perturb(images.read(int(i)), name, int(i), 0) for i in chosen]
    return videos, images.labels[chosen].tolist()


@pytest.mark.slow
def test_difficulty_compares_frames_further_apart(run):
    options = ["--data.perturbations", "[brightness, gaussian_noise]", *GENERATED]
    easy = perturbation(run, *options, dataset=SHAPES)
    hard = perturbation(run, *options, "--model.difficulty", "3", dataset=SHAPES)
    key = "top5_distance/brightness"
    assert hard.metrics[key] > easy.metrics[key]
    key = "top5_distance/gaussian_noise"  # compared with the first frame, whatever the difficulty
    assert hard.metrics[key] == easy.metrics[key]
    assert "difficulty 3" in "; ".join(hard.unofficial_reasons)


def test_alexnet_needs_its_weights(run, tmp_path):
    with pytest.raises(ValueError, match=r"alexnet\.pth does not exist; fetch"):
        perturbation(
            run, *GENERATED, "--model.alexnet", "true",
            "--model.alexnet_weights", str(tmp_path / "alexnet.pth"),
        )  # fmt: skip


def test_weights_of_an_alexnet_that_is_not_measured_are_refused(run):
    with pytest.raises(ValueError, match=r"alexnet_weights a.pth has no effect .*alexnet true"):
        perturbation(run, *GENERATED, "--model.alexnet_weights", "a.pth")


@pytest.mark.slow
def test_wrong_layout_shows_the_right_one(run, tmp_path):
    pytest.importorskip("av")
    with pytest.raises(FileNotFoundError, match=r"<perturbation>/<wnid>/\*.mp4"):
        perturbation(run, "--data.root", str(tmp_path))
    with pytest.raises(ValueError, match=r"--data.root DIR(.|\n)*--data.generated true"):
        perturbation(run)
