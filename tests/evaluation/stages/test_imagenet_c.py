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
    head_origin,
    imagenet_head,
    pixels,
    tiny_checkpoint,
    write_head,
    write_imagenet_c,
    write_images,
)
from ser_lightning.backbones import SplitViT
from ser_lightning.commands.evaluate import evaluate
from ser_lightning.corruptions import CORRUPTIONS, corrupt
from ser_lightning.data import Shapes
from ser_lightning.data.render import IMAGENET_MEAN, IMAGENET_STD, normalise
from ser_lightning.evaluation.stages.imagenet_c import accuracy_metrics
from ser_lightning.files import file_sha256
from ser_lightning.results.record import class_map_sha256, read_record
from ser_lightning.sources.decode import read_image
from ser_lightning.sources.released import CIFAR_CLASSES, imagenet_synsets
from tiny_names import SHAPES

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
    shapes_head(folder, shapes.train().class_names)
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


def shapes_head(run, class_names, **origin):
    path = run / "results" / f"linear-{SHAPES}.safetensors"
    return write_head(path, class_names, origin=head_origin(run, **origin))


def copy_of(run, folder):
    """The same run once more, for tests that change its head."""
    return Path(shutil.copytree(run, folder, ignore=shutil.ignore_patterns("*.json")))


def parts(run):
    return SplitViT.from_checkpoint(run / "checkpoints" / "last.ckpt").eval(), imagenet_head(run)


def corruption(run, *options, dataset="imagenet_c"):
    args = ["--config", CONFIG, *SMALL, *options]
    evaluate([*args, "--checkpoint", str(run / "checkpoints" / "last.ckpt")])
    return read_record(run / "results" / f"imagenet-c-{dataset}.json")


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
    record = corruption(run, "--data.root", str(tree))
    errors = naive_errors(run, tree)
    assert 0 < np.mean(list(errors[1].values())) < 1  # neither all wrong nor all right
    for k in (1, 5):
        for name in CORRUPTIONS:
            accuracy = 100 * (1 - sum(errors[k][name]) / 5)
            assert record.metrics[f"top{k}/{name}"] == pytest.approx(accuracy)
        average = 100 - 100 * np.mean(list(errors[k].values()))
        assert record.metrics[f"top{k}/avg"] == pytest.approx(average)
    for name in CORRUPTIONS:
        hits = [record.counts[f"hits/{name}/{severity}"] for severity in SEVERITIES]
        hits5 = [record.counts[f"hits5/{name}/{severity}"] for severity in SEVERITIES]
        assert [1 - number / 3 for number in hits] == pytest.approx(errors[1][name])
        assert [1 - number / 3 for number in hits5] == pytest.approx(errors[5][name])
    assert record.num_samples == 75 * 3
    assert record.counts["samples/fog/5"] == 3
    assert record.data_root == str(tree)
    assert record.transform["resize"] is None
    assert "the released set has 50,000" in "; ".join(record.unofficial_reasons)
    assert record.protocol["severities"] == [1, 2, 3, 4, 5]
    assert not record.protocol["generated"]
    assert "mce" not in record.metrics  # divided when a report is made
    classes = {name: number for number, name in enumerate(imagenet_synsets())}
    assert record.class_map_sha256 == class_map_sha256(classes)


def test_record_says_which_head_was_tested_and_how_it_was_trained(run, tmp_path):
    options = ["--data.generated", "true", "--data.corruptions", "[contrast]"]
    record = corruption(run, *options, dataset=SHAPES)
    head = run / "results" / f"linear-{SHAPES}.safetensors"
    assert record.selected["head"] == head.name  # beside the record
    assert record.selected["head_sha256"] == file_sha256(head)
    assert record.selected["head_seed"] == 0
    assert (record.selected["base_learning_rate"], record.selected["epoch"]) == (3.0, 47)
    assert record.protocol["head"] == {"epochs": 50}
    names = Shapes(num_train=96, num_evaluation=24, image_size=16).train().class_names
    assert record.class_map_sha256 == class_map_sha256(names)


@pytest.mark.slow
def test_head_of_other_weights_is_refused_and_its_reason_passed_on(run, tmp_path):
    own, options = copy_of(run, tmp_path / "own"), ["--data.generated", "true"]
    options += ["--data.corruptions", "[contrast]", "--data.severities", "[1]"]
    names = Shapes(num_train=96, num_evaluation=24, image_size=16).train().class_names
    shapes_head(own, names, unofficial_reasons=("trained on clean images, without crops",))
    reason = corruption(own, *options, dataset=SHAPES).unofficial_reasons
    assert "head: trained on clean images, without crops" in reason
    write_head(own / "results" / f"linear-{SHAPES}.safetensors", names)
    reason = corruption(own, *options, dataset=SHAPES).unofficial_reasons
    assert "the head does not say what it was trained on" in reason
    momentum = head_origin(run).checkpoint.replace("-online", "-momentum")
    for checkpoint in ("0" * 64 + "-online", momentum):
        shapes_head(own, names, checkpoint=checkpoint)
        with pytest.raises(ValueError, match=f"{checkpoint}, not.*run the linear stage on this"):
            corruption(own, *options, dataset=SHAPES)


def test_head_of_the_linear_stage_brings_what_was_chosen(run, tmp_path):
    own, options = copy_of(run, tmp_path / "own"), ["--seed_everything", "1"]
    args = ["--config", str(ROOT / "configs" / "eval" / "linear.yaml"), *SMALL, *options]
    args += ["--model.cache_features", "true", "--trainer.max_epochs", "2"]
    args += ["--data.global_batch_size", "16", "--data.holdout_fraction", "0.25"]
    evaluate([*args, "--checkpoint", str(own / "checkpoints" / "last.ckpt")])
    linear = read_record(own / "results" / f"linear-{SHAPES}-seed1.json")
    assert (own / "results" / f"linear-{SHAPES}-seed1.hits.safetensors").is_file()
    options += ["--data.generated", "true", "--data.corruptions", "[contrast]"]
    record = corruption(own, *options, dataset=f"{SHAPES}-seed1")
    assert record.selected["head"] == f"linear-{SHAPES}-seed1.safetensors"
    assert record.selected["head_seed"] == 1
    assert {key: record.selected[key] for key in linear.selected} == linear.selected
    assert record.protocol["head"] == linear.protocol
    assert {f"head: {reason}" for reason in linear.unofficial_reasons} < set(
        record.unofficial_reasons
    )
    assert record.class_map_sha256 == linear.class_map_sha256
    assert record.counts["hits/clean"] == linear.counts["hits"]


@pytest.mark.slow
def test_seed_and_branch_have_a_head_and_a_record_of_their_own(run, tmp_path):
    own, options = copy_of(run, tmp_path / "own"), ["--data.generated", "true"]
    options += ["--data.corruptions", "[contrast]", "--data.severities", "[1]"]
    first = corruption(own, *options, dataset=SHAPES)
    options += ["--seed_everything", "1", "--model.branch", "momentum"]
    with pytest.raises(
        ValueError, match=rf"linear-{SHAPES}-momentum_seed1.safetensors does not exist"
    ):
        corruption(own, *options, dataset=SHAPES)
    names = Shapes(num_train=96, num_evaluation=24, image_size=16).train().class_names
    checkpoint = head_origin(own).checkpoint.replace("-online", "-momentum")
    path = own / "results" / f"linear-{SHAPES}-momentum_seed1.safetensors"
    write_head(path, names, origin=head_origin(own, checkpoint=checkpoint, seed=1))
    second = corruption(own, *options, dataset=f"{SHAPES}-momentum_seed1")
    assert (second.seed, second.weights_key) == (1, "momentum")
    assert second.selected["head_seed"] == 1
    assert read_record(own / "results" / f"imagenet-c-{SHAPES}.json") == first


def test_clean_error_is_measured_where_the_source_has_the_images(run, tree, tmp_path):
    classes = favourites(run, 3)
    for split in ("train", "val"):
        write_images(tmp_path / split, classes, per_class=4, size=16, seed=4)
    source = ["--data.source", "ImageFolder", "--data.source.root", str(tmp_path)]
    record = corruption(run, "--data.root", str(tree), *source)
    assert record.counts["samples/clean"] == 12
    accuracy = record.metrics["top1/clean"]
    assert accuracy == pytest.approx(100 * record.counts["hits/clean"] / 12)


def test_without_clean_images_there_is_no_number_of_them(run, tree):
    record = corruption(run, "--data.root", str(tree))
    assert "top1/clean" not in record.metrics
    assert "samples/clean" not in record.counts


def test_some_corruptions_have_no_average(run, tree):
    record = corruption(run, "--data.root", str(tree), "--data.corruptions", "[fog, snow]")
    assert set(record.metrics) == {f"top{k}/{name}" for k in (1, 5) for name in ("fog", "snow")}


def test_generated_corruptions_of_the_runs_own_images(run):
    options = ["--data.generated", "true", "--data.severities", "[1, 5]", "--data.num_test", "12"]
    record = corruption(run, *options, dataset=SHAPES)
    assert "top1/frost_procedural" in record.metrics
    assert "top1/avg" not in record.metrics
    names = [name for name in CORRUPTIONS if name != "frost"]
    average = np.mean([record.metrics[f"top1/{name}"] for name in names])
    assert record.metrics["top1/avg_without_frost"] == pytest.approx(average)
    assert record.num_samples == 12 * (1 + 15 * 2)
    assert record.protocol["frost"] == "procedural"
    assert not record.official
    assert "generated" in "; ".join(record.unofficial_reasons)


def test_generated_corruptions_give_the_numbers_of_a_plain_loop(run):
    record = corruption(
        run, "--data.generated", "true", "--data.corruptions", "[contrast]", dataset=SHAPES
    )
    backbone = SplitViT.from_checkpoint(run / "checkpoints" / "last.ckpt").eval()
    images = Shapes(num_train=96, num_evaluation=24, image_size=16).evaluation()
    head = shapes_head(run, images.class_names)
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


@pytest.mark.slow
def test_cifar_arrays(run, tmp_path):
    rng = np.random.default_rng(0)
    for name in ("fog", "snow"):
        np.save(tmp_path / f"{name}.npy", pixels(rng, 50, 16, 16))
    np.save(tmp_path / "labels.npy", np.tile(np.arange(10), 5))
    options = ["--data.root", str(tmp_path), "--data.corruptions", "[fog, snow]"]
    with pytest.raises(ValueError, match=r"images of class airplane, for which .* has no logit"):
        corruption(run, *options)  # the head is of other classes
    names = CIFAR_CLASSES[10]
    for number, order in enumerate((names, names[::-1])):
        head = tmp_path / f"{number}.safetensors"
        write_head(head, order, origin=head_origin(run))
        record = corruption(run, *options, "--model.head", str(head), dataset="cifar10_c")
        assert record.num_samples == 100
        assert set(record.counts) >= {"hits/fog/1", "hits/snow/5"}
        assert record.class_map_sha256 == class_map_sha256(order)


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


@pytest.mark.slow
def test_two_processes_count_every_image_once(run, tree, tmp_path):
    one = corruption(run, "--data.root", str(tree))
    folder = tmp_path / "two"
    args = ["--config", CONFIG, "--checkpoint", str(run / "checkpoints" / "last.ckpt"), *SMALL]
    head = run / "results" / "linear-imagenet1k.safetensors"
    args += ["--run_dir", str(folder), "--data.root", str(tree), "--model.head", str(head)]
    subprocess.run(
        [
            *(sys.executable, "-m", "ser_lightning", "evaluate"),
            *(*args, "--trainer.devices", "2", "--trainer.strategy", "ddp"),
        ],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=280,
    )
    two = read_record(folder / "results" / "imagenet-c-imagenet_c.json")
    assert two.counts == one.counts
    assert two.metrics == one.metrics
