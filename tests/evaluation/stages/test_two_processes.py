"""The stages that measure images themselves give the same numbers on one and on two processes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mask_tree import write_own
from object_tree import write_bench
from ser_lightning.cli import main
from tiny_names import SHAPES

ROOT = Path(__file__).parents[3]
OPTIONS = {
    "equivariance": ["--model.num_images", "23"],
    "lee": ["--model.num_images", "13", "--model.transformations", "[rotation, scale]"],
    "latent": ["--model.num_classes", "9"],
    "diagnostics": ["--model.num_images", "13", "--model.num_views", "4"],
    "transformation": ["--model.hidden", "16", "--model.batch_size", "16"],
    "knn": ["--model.k", "[1, 20]", "--data.num_test", "23"],
    "segmentation": [
        *("--data.side", "32", "--data.global_batch_size", "4", "--model.warmup_steps", "1"),
        *("--trainer.max_steps", "6", "--data.evaluation_batch_size", "2"),
    ],
    "3diebench-regression": ["--model.batch_size", "12", "--trainer.max_epochs", "5"],
    "imagenet-p": [
        "--data.generated",
        "true",
        "--data.videos_per_class",
        "1",
        "--data.frame_stride",
        "15",
    ],
}
IMAGES = {"segmentation": write_own, "3diebench-regression": write_bench}
NEEDS_HEAD = {"imagenet-p"}
SMALL = ["--trainer.accelerator", "cpu", "--data.num_workers", "0"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*the released set has.*"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*isinstance.*treespec.*"),
]


def config_of(stage):
    return ["--config", str(ROOT / "configs" / "eval" / f"{stage}.yaml")]


@pytest.fixture(scope="module")
def head(checkpoint, tmp_path_factory):
    """A linear head for the checkpoint."""
    folder = tmp_path_factory.mktemp("head")
    args = ["--checkpoint", str(checkpoint), "--run_dir", str(folder), "--trainer.max_epochs", "1"]
    args += ["--data.global_batch_size", "16"]
    main(["evaluate", *config_of("linear"), *args, *SMALL])
    return folder / "results" / f"linear-{SHAPES}.safetensors"


def test_an_unreadable_image_of_one_process_counts_on_both(checkpoint, tmp_path):
    images = tmp_path / "images"
    rng = np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 5)):
        for name in ("a", "b"):
            (images / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(images / part / name / f"{number}.png")
    (images / "val" / "a" / "2.png").write_bytes(b"no image")
    args = ["evaluate", *config_of("equivariance"), "--checkpoint", str(checkpoint), *SMALL]
    args += ["--images", str(images), "--data.on_bad_image", "skip", "--run_dir", str(tmp_path)]
    args += ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    subprocess.run([sys.executable, "-m", "ser_lightning", *args], check=True)
    record = json.loads(next((tmp_path / "results").glob("*.json")).read_text())
    assert record["num_samples"] == 9
    reasons = [reason for reason in record["unofficial_reasons"] if "could not be read" in reason]
    assert reasons == ["1 test images could not be read and were skipped"]


@pytest.mark.parametrize("stage", ["segmentation", "linear", "finetune"])
def test_fewer_test_images_than_processes(stage, checkpoint, tmp_path):
    args = ["evaluate", *config_of(stage), "--checkpoint", str(checkpoint), *SMALL]
    if stage == "segmentation":
        args += [*OPTIONS[stage], "--images", str(write_own(tmp_path / "images"))]
    else:
        args += ["--trainer.max_epochs", "1", "--data.global_batch_size", "16"]
    if stage == "finetune":
        args += ["--model.warmup_epochs", "0"]
    args += ["--data.num_test", "1", "--run_dir", str(tmp_path)]
    args += ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    subprocess.run([sys.executable, "-m", "ser_lightning", *args], check=True)
    record = json.loads(next((tmp_path / "results").glob("*.json")).read_text())
    assert record["num_samples"] == 1


@pytest.mark.parametrize("stage", OPTIONS)
def test_numbers_do_not_depend_on_the_number_of_processes(stage, checkpoint, head, tmp_path):
    args = ["evaluate", *config_of(stage), "--checkpoint", str(checkpoint), *OPTIONS[stage], *SMALL]
    args += ["--model.head", str(head)] if stage in NEEDS_HEAD else []
    if stage in IMAGES:
        args += ["--images", str(IMAGES[stage](tmp_path / "images"))]
    main([*args, "--trainer.devices", "1", "--run_dir", str(tmp_path / "1")])
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--run_dir", str(tmp_path / "2")]
    subprocess.run([sys.executable, "-m", "ser_lightning", *args, *two], check=True)
    first, second = (
        json.loads(next((tmp_path / str(n) / "results").glob("*.json")).read_text()) for n in (1, 2)
    )
    # float32 sums of other batches; 60 steps of Adam amplify them: single predictions may flip
    tolerance = 3.0 if stage == "transformation" else 1e-4
    assert first["metrics"] == pytest.approx(second["metrics"], abs=tolerance, rel=1e-4)
    assert first["num_samples"] == second["num_samples"]
