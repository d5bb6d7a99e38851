"""The corruption stage end to end, on released files and on generated corruptions."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmark_trees import (
    SMALL,
    imagenet_head,
    pixels,
    tiny_checkpoint,
    write_head,
    write_imagenet_c,
    write_images,
)
from ser_lightning.backbones import SplitViT
from ser_lightning.data import Shapes
from ser_lightning.data.benchmarks.layouts import imagenet_synsets
from ser_lightning.data.corruptions import corrupt
from ser_lightning.data.folder import read_image
from ser_lightning.data.views import IMAGENET_MEAN, IMAGENET_STD, normalise
from ser_lightning.evaluate import evaluate
from ser_lightning.evaluation.alexnet import ALEXNET_CORRUPTION_ERRORS, ALEXNET_ERROR
from ser_lightning.evaluation.robustness import CORRUPTIONS
from ser_lightning.evaluation.stages.imagenet_c import Baseline, accuracy_metrics, compared
from ser_lightning.reporting.records import read_record

ROOT = Path(__file__).parents[3]
CONFIG = str(ROOT / "configs" / "eval" / "imagenet-c.yaml")
SEVERITIES = range(1, 6)

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
    shapes = Shapes(num_train=96, num_evaluation=24, image_size=16)
    write_head(folder / "results" / "linear-shapes.safetensors", shapes.train().class_names)
    return folder


@pytest.fixture(scope="module")
def tree(tmp_path_factory, run):
    """ImageNet-C with 3 images per severity, of classes that the head confuses least."""
    root = tmp_path_factory.mktemp("c")
    write_imagenet_c(root, favourites(run, 3))
    return root


def favourites(run, count):
    """Classes that the head likes to predict, so that some images are right."""
    backbone, head = parts(run)
    images = torch.from_numpy(pixels(np.random.default_rng(0), 200, 16, 16)).permute(0, 3, 1, 2)
    with torch.no_grad():
        best = head(backbone, normalise(images / 255, IMAGENET_MEAN, IMAGENET_STD)).argmax(1)
    order = best.bincount(minlength=1000).argsort(descending=True)
    return [imagenet_synsets()[number] for number in order[:count].tolist()]


def parts(run):
    return SplitViT.from_checkpoint(run / "checkpoints" / "last.ckpt").eval(), imagenet_head(run)


def corruption(run, *options, dataset="imagenet_c"):
    args = ["--config", CONFIG, *SMALL, *options]
    evaluate([*args, "--checkpoint", str(run / "checkpoints" / "last.ckpt")])
    return read_record(run / "results" / f"corruption-{dataset}.json")


def naive_errors(run, tree):
    """Top-1 and top-5 error rates by corruption, one image after the other."""
    backbone, head = parts(run)
    errors = {1: {}, 5: {}}
    for name in CORRUPTIONS:
        (folder,) = tree.rglob(name)
        rates = {1: [], 5: []}
        for severity in SEVERITIES:
            files = sorted((folder / str(severity)).glob("*/*"))
            wrong = {1: 0, 5: 0}
            for file in files:
                image = normalise(read_image(str(file))[None] / 255, IMAGENET_MEAN, IMAGENET_STD)
                with torch.no_grad():
                    order = head(backbone, image)[0].argsort(descending=True).tolist()
                place = order.index(imagenet_synsets().index(file.parent.name))
                for k in (1, 5):
                    wrong[k] += place >= k
            for k in (1, 5):
                rates[k].append(wrong[k] / len(files))
        for k in (1, 5):
            errors[k][name] = rates[k]
    return errors


def test_released_files_give_the_numbers_of_a_plain_loop(run, tree):
    record = corruption(run, "--data.root", str(tree), "--model.clean_error", "0.3")
    errors = naive_errors(run, tree)
    assert 0 < np.mean(list(errors[1].values())) < 1  # neither all wrong nor all right
    for k in (1, 5):
        for name in CORRUPTIONS:
            accuracy = 100 * (1 - sum(errors[k][name]) / 5)
            assert record.metrics[f"top{k}/{name}"] == pytest.approx(accuracy)
        average = 100 - 100 * np.mean(list(errors[k].values()))
        assert record.metrics[f"top{k}/avg"] == pytest.approx(average)
    ratios, relative = [], []
    for name in CORRUPTIONS:
        ours, theirs = sum(errors[1][name]), sum(ALEXNET_CORRUPTION_ERRORS[name])
        ratios.append(ours / theirs)
        relative.append((ours - 5 * 0.3) / (theirs - 5 * ALEXNET_ERROR))
    assert record.metrics["mce"] == pytest.approx(100 * np.mean(ratios))
    assert record.metrics["relative_mce"] == pytest.approx(100 * np.mean(relative))
    assert record.num_samples == 75 * 3
    assert record.counts["samples/fog/5"] == 3
    assert record.data_root == str(tree)
    assert record.transform["resize"] is None
    assert "the released set has 50,000" in record.unofficial_reason


def test_clean_error_is_measured_where_the_source_has_the_images(run, tree, tmp_path):
    classes = favourites(run, 3)
    for split in ("train", "val"):
        write_images(tmp_path / split, classes, per_class=4, size=16, seed=4)
    source = ["--data.source", "ImageFolder", "--data.source.root", str(tmp_path)]
    record = corruption(run, "--data.root", str(tree), *source)
    assert record.counts["samples/clean"] == 12
    accuracy = record.metrics["top1/clean"]
    assert accuracy == pytest.approx(100 * record.counts["hits/clean"] / 12)
    again = corruption(
        run, "--data.root", str(tree), "--model.clean_error", str(1 - accuracy / 100)
    )
    assert again.metrics["relative_mce"] == pytest.approx(record.metrics["relative_mce"])


def test_without_clean_images_relative_mce_is_left_out(run, tree):
    record = corruption(run, "--data.root", str(tree))
    assert "mce" in record.metrics
    assert "relative_mce" not in record.metrics
    assert "top1/clean" not in record.metrics


def test_some_corruptions_have_no_average(run, tree):
    record = corruption(run, "--data.root", str(tree), "--data.corruptions", "[fog, snow]")
    assert set(record.metrics) == {f"top{k}/{name}" for k in (1, 5) for name in ("fog", "snow")}


def test_generated_corruptions_of_the_runs_own_images(run):
    options = ["--data.generated", "true", "--data.severities", "[1, 5]", "--data.num_test", "12"]
    record = corruption(run, *options, dataset="shapes")
    assert "top1/frost_procedural" in record.metrics
    assert "top1/avg" not in record.metrics
    assert "mce" not in record.metrics  # AlexNet's errors are those of ImageNet
    names = [name for name in CORRUPTIONS if name != "frost"]
    average = np.mean([record.metrics[f"top1/{name}"] for name in names])
    assert record.metrics["top1/avg_without_frost"] == pytest.approx(average)
    assert record.num_samples == 12 * (1 + 15 * 2)
    assert record.protocol["frost"] == "procedural"
    assert not record.official
    assert "generated" in record.unofficial_reason


def test_generated_corruptions_give_the_numbers_of_a_plain_loop(run):
    record = corruption(
        run, "--data.generated", "true", "--data.corruptions", "[contrast]", dataset="shapes"
    )
    backbone = SplitViT.from_checkpoint(run / "checkpoints" / "last.ckpt").eval()
    images = Shapes(num_train=96, num_evaluation=24, image_size=16).evaluation()
    head = write_head(run / "results" / "linear-shapes.safetensors", images.class_names)
    for severity in range(6):
        hits = 0
        for index in range(24):
            image = images.read(index)
            if severity:
                image = corrupt(image, "contrast", severity, index, 0)
            value = normalise(image[None] / 255, IMAGENET_MEAN, IMAGENET_STD)
            with torch.no_grad():
                hits += int(head(backbone, value).argmax()) == int(images.labels[index])
        key = f"hits/contrast/{severity}" if severity else "hits/clean"
        assert record.counts[key] == hits


def test_another_run_may_be_the_baseline(run, tmp_path):
    options = ["--data.generated", "true", "--data.corruptions", "[fog]", "--data.num_test", "12"]
    corruption(run, *options, dataset="shapes")
    other = run / "results" / "corruption-shapes.json"
    record = corruption(run, *options, "--model.baseline", str(other), dataset="shapes")
    assert "mce" not in record.metrics  # of one corruption there is no mean
    with pytest.raises(ValueError, match="was measured with severities"):
        corruption(run, *options, "--model.baseline", str(other), "--data.severities", "[1]")


def test_cifar_arrays(run, tmp_path):
    rng = np.random.default_rng(0)
    for name in ("fog", "snow"):
        np.save(tmp_path / f"{name}.npy", pixels(rng, 50, 16, 16))
    np.save(tmp_path / "labels.npy", np.tile(np.arange(10), 5))
    options = ["--data.root", str(tmp_path), "--data.corruptions", "[fog, snow]"]
    record = corruption(run, *options, dataset="cifar10_c")
    assert record.num_samples == 100
    assert set(record.counts) >= {"hits/fog/1", "hits/snow/5"}


def test_wrong_layout_shows_the_right_one(run, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"lacks 75 of 75(.|\n)*/<1..5>/<wnid>/\*.JPEG"):
        corruption(run, "--data.root", str(tmp_path))
    with pytest.raises(ValueError, match=r"--data.root DIR(.|\n)*--data.generated true"):
        corruption(run)


def test_average_is_over_the_fifteen_and_nothing_else():
    errors = {name: [number / 20] for number, name in enumerate(CORRUPTIONS)}
    more = {**errors, "clean": [0.0], "spatter": [1.0]}
    for given in (errors, more):
        assert accuracy_metrics(given, given)["top1/avg"] == pytest.approx(100 - 5 * 7)
    procedural = {**errors, "frost_procedural": [1.0]}
    del procedural["frost"]
    metrics = accuracy_metrics(procedural, procedural)
    assert "top1/avg" not in metrics
    assert metrics["top1/avg_without_frost"] == pytest.approx(100 - 5 * (105 - 8) / 14)


def test_clean_images_are_no_corruption():
    errors = {name: [0.5] for name in CORRUPTIONS}
    baseline = Baseline({name: [0.8] for name in CORRUPTIONS}, 0.2)
    assert compared(errors, baseline, None) == {"mce": pytest.approx(62.5)}
    both = {"mce": pytest.approx(62.5), "relative_mce": pytest.approx(100 * 0.2 / 0.6)}
    assert compared({**errors, "clean": [0.3]}, baseline, None) == both
    assert compared(errors, baseline, 0.3) == both
    del errors["fog"]
    assert compared(errors, baseline, 0.3) == {}


@pytest.mark.slow
def test_two_processes_count_every_image_once(run, tree, tmp_path):
    one = corruption(run, "--data.root", str(tree))
    folder = tmp_path / "two"
    args = ["--config", CONFIG, "--checkpoint", str(run / "checkpoints" / "last.ckpt"), *SMALL]
    head = run / "results" / "linear-imagenet1k.safetensors"
    args += ["--run_dir", str(folder), "--data.root", str(tree), "--model.head", str(head)]
    subprocess.run(
        [
            *(sys.executable, "-m", "ser_lightning.cli", "evaluate"),
            *(*args, "--trainer.devices", "2", "--trainer.strategy", "ddp"),
        ],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=280,
    )
    two = read_record(folder / "results" / "corruption-imagenet_c.json")
    assert two.counts == one.counts
    assert two.metrics == one.metrics
