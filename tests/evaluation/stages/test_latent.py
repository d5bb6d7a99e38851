"""The latent stage: which images it shows, its plane, its record, and several checkpoints."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ser_lightning.backbones import SplitViT
from ser_lightning.cli import main
from ser_lightning.commands.evaluate import evaluate
from ser_lightning.commands.latent import _names
from ser_lightning.evaluation.metrics.purity import neighbour_purity
from ser_lightning.evaluation.stages.latent import LatentStage, choose_images, to_plane
from ser_lightning.results.points import points_path, read_points, write_points
from ser_lightning.results.record import read_record
from tiny_names import SHAPES

CONFIG = str(Path(__file__).parents[3] / "configs" / "eval" / "latent.yaml")
CPU = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--data.num_workers", "0"]

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*isinstance.*treespec.*"),
]


def run_stage(checkpoint, folder, *options):
    args = ["--config", CONFIG, "--checkpoint", str(checkpoint), "--run_dir", str(folder)]
    (path,) = evaluate([*args, *CPU, *options])
    return read_record(path), path


def test_missing_package_is_named_before_anything_is_read(checkpoint, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'ser-lightning\[latent\]'"):
        LatentStage(str(checkpoint))


def test_images_are_some_of_random_classes_by_the_seed():
    label = torch.arange(100) % 10
    label[label == 3] = 4  # a class that is not there
    places = choose_images(label, 4, 5, 0)
    assert np.array_equal(places, choose_images(label, 4, 5, 0))
    assert not np.array_equal(places, choose_images(label, 4, 5, 1))
    assert (np.diff(places) > 0).all()
    assert label[places].unique(return_counts=True)[1].tolist() == [5] * 4
    assert len(choose_images(label, 20, 50, 0)) == 100
    chosen = {tuple(label[choose_images(label, 4, 5, s)].unique().tolist()) for s in range(20)}
    assert len(chosen) > 5


def test_classes_of_one_image_are_left_out():
    label = torch.tensor([0, 0, 1, 2, 2])
    assert set(label[choose_images(label, 3, 9, 0)].tolist()) == {0, 2}
    with pytest.raises(ValueError, match="1 classes have two images or more"):
        choose_images(torch.tensor([0, 0, 1, 2]), 3, 9, 0)


def test_plane_depends_on_the_seed_alone_and_keeps_classes_apart():
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(60) % 3
    embeddings = 3 * torch.eye(8)[label] + 0.1 * torch.randn(60, 8, generator=generator)
    plane = to_plane(embeddings, 0)
    assert plane.shape == (60, 2)
    assert torch.equal(plane, to_plane(embeddings, 0))
    centres = torch.stack([plane[label == each].mean(0) for each in range(3)])
    assert torch.cdist(plane, centres).argmin(1).eq(label).all()


def test_record_has_the_purity_of_each_class_and_a_figure(checkpoint, tmp_path):
    record, path = run_stage(checkpoint, tmp_path, "--model.num_classes", "5")
    points = read_points(path)
    assert len(points.class_names) == 5
    assert set(record.metrics) == {
        "purity", "purity_chance", "random_init/purity",
        *(f"purity/{name}" for name in points.class_names),
    }  # fmt: skip
    mean = np.mean([record.metrics[f"purity/{name}"] for name in points.class_names])
    assert record.metrics["purity"] == pytest.approx(mean)
    assert record.protocol["neighbours"] == 1  # of a class with two images
    assert points.plane.shape == (record.num_samples, 2) == (10, 2)
    assert "5 of 12 classes, 10 of 24 images" in record.unofficial_reasons
    assert path.with_suffix(".png").stat().st_size > 10_000


@pytest.mark.filterwarnings("ignore:.*it is skipped")
def test_class_of_which_one_image_could_be_read_is_left_out(checkpoint, tmp_path):
    rng = np.random.default_rng(0)
    for number in range(9):
        for split in ("train", "test"):
            path = tmp_path / "photos" / split / "abc"[number % 3] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (16, 16, 3)).astype(np.uint8)).save(path)
    for number in (0, 3):
        (tmp_path / f"photos/test/a/{number}.png").write_bytes(b"damaged")
    skip = ["--images", str(tmp_path / "photos"), "--data.on_bad_image", "skip"]
    record, path = run_stage(checkpoint, tmp_path, *skip)
    assert read_points(path).class_names == ("b", "c")
    assert record.num_samples == 6
    assert record.protocol["neighbours"] == 2
    assert "2 of 3 classes, 6 of 9 images" in record.unofficial_reasons


def test_purity_is_that_of_the_embeddings(checkpoint, tmp_path, monkeypatch):
    seen = []

    def noting(embeddings, label, k):
        seen.append((embeddings, label, k))
        return neighbour_purity(embeddings, label, k)

    monkeypatch.setattr("ser_lightning.evaluation.stages.latent.neighbour_purity", noting)
    record, _ = run_stage(checkpoint, tmp_path)
    (embeddings, label, k), (fresh, *_) = seen
    assert embeddings.shape == fresh.shape == (24, SplitViT.from_checkpoint(checkpoint).width)
    assert not torch.equal(embeddings, fresh)
    by_class = [neighbour_purity(embeddings, label, k)[label == each].mean() for each in range(12)]
    assert record.metrics["purity"] == pytest.approx(100 * torch.stack(by_class).mean().item())
    assert record.official


def test_points_of_a_record_come_back_and_damage_is_noticed(checkpoint, tmp_path):
    _, path = run_stage(checkpoint, tmp_path)
    points = read_points(path)
    write_points(tmp_path / "other.json", points)
    again = read_points(tmp_path / "other.json")
    assert torch.equal(again.plane, points.plane)
    assert again.class_names == points.class_names
    file = points_path(path)
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(ValueError, match="run the evaluation again"):
        read_points(path)
    with pytest.raises(ValueError, match=r"missing\.points\.safetensors does not exist"):
        read_points(tmp_path / "missing.json")


@pytest.mark.slow
def test_checkpoints_stand_side_by_side(checkpoint, tmp_path, capsys):
    other = checkpoint.with_name("other.ckpt")
    other.write_bytes(checkpoint.read_bytes())
    output = tmp_path / "latent.png"
    main(["latent", str(checkpoint), str(other), "--output", str(output), *CPU])
    assert f"Written: {output}" in capsys.readouterr().out
    assert output.stat().st_size > 20_000
    assert (checkpoint.parents[1] / "results" / f"latent-{SHAPES}.json").is_file()


def test_every_panel_has_a_name_of_its_own(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    timm = [Path("vit_tiny_patch16_224"), Path("vit_small_patch16_224")]
    assert list(_names([*timm, checkpoint], False).values()) == [
        "vit_tiny_patch16_224-random", "vit_small_patch16_224-random",
        checkpoint.parents[1].name,
    ]  # fmt: skip
    runs = [tmp_path / name / "moco" for name in "ab"]
    copies = [shutil.copytree(checkpoint.parents[1], run) / "checkpoints/last.ckpt" for run in runs]
    assert list(_names(copies, False).values()) == [str(path) for path in copies]


def test_one_folder_for_several_checkpoints_is_refused(checkpoint, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["latent", str(checkpoint), "--run_dir", str(tmp_path)])
    assert "--run_dir is one folder for all" in capsys.readouterr().err
