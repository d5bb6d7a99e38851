"""Tiny trees with the true on-disk layouts of the benchmarks, and a head for ImageNet's classes."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ser_lightning.cli import main
from ser_lightning.evaluation.linear_head import HeadOrigin, LinearClassifier
from ser_lightning.files import file_sha256
from ser_lightning.sources.released import imagenet_synsets

ROOT = Path(__file__).parents[1]
SMALL = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--data.num_workers", "0"]
SMALL += ["--trainer.enable_progress_bar", "false"]
LAYERS = [2]
GROUPS = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}


def tiny_checkpoint(tmp_path_factory):
    """The checkpoint of a run of one epoch: a ViT of 2 blocks for 16 px, on 12 shapes.

    All tests of a session share it; copy it into a run folder of your own.
    """
    folder = tmp_path_factory.getbasetemp() / "benchmark_run"
    if folder.is_dir():
        return folder / "checkpoints" / "last.ckpt"
    config = str(ROOT / "tests" / "tiny.yaml")
    short = ["--trainer.max_epochs", "1", "--model.init_args.warmup_epochs", "0"]
    main(["fit", "--config", config, "--run_dir", str(folder), *short])
    return folder / "checkpoints" / "last.ckpt"


def head_origin(folder, *reasons, **changes):
    """As if the linear stage had trained a head on the checkpoint of a run."""
    checkpoint = f"{file_sha256(folder / 'checkpoints' / 'last.ckpt')}-online"
    selected = {"base_learning_rate": 3.0, "epoch": 47}
    return HeadOrigin(checkpoint, {"epochs": 50}, selected, 0, reasons)._replace(**changes)


def write_head(path, class_names, seed=0, origin=None):
    """A head that nobody trained; its hits are few, but not the same for all images."""
    torch.manual_seed(seed)
    head = LinearClassifier(LAYERS, 32, class_names)
    head.linear.weight.data *= 20
    head.origin = origin
    head.save(path)
    return head.requires_grad_(False).eval()


def imagenet_head(folder):
    """The head where the linear stage would have put it."""
    path = folder / "results" / "linear-imagenet1k.safetensors"
    return write_head(path, imagenet_synsets(), origin=head_origin(folder))


def pixels(rng, *shape):
    """Random blotches, (..., H, W, 3) uint8."""
    *lead, height, width = shape
    coarse = rng.integers(0, 256, (*lead, height // 4, width // 4, 3), dtype=np.uint8)
    return coarse.repeat(4, axis=-3).repeat(4, axis=-2)


def write_images(folder, classes, per_class=1, size=16, suffix=".JPEG", seed=0):
    """Images `<folder>/<class>/ILSVRC2012_val_<number><suffix>`."""
    rng = np.random.default_rng(seed)
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            path = folder / name / f"ILSVRC2012_val_{number * per_class + i:08d}{suffix}"
            Image.fromarray(pixels(rng, size, size)).save(path)


def write_imagenet_c(root, classes, grouped=True, size=16):
    """All 15 corruptions in 5 severities, an image per class."""
    for group, names in GROUPS.items():
        for number, name in enumerate(names):
            folder = root / group / name if grouped else root / name
            for severity in range(1, 6):
                seed = 100 * len(group) + 10 * number + severity
                write_images(folder / str(severity), classes, size=size, seed=seed)


def write_video(path, frames):
    """An H.264 file of (T, H, W, 3) uint8 frames, one a second, as in ImageNet-P."""
    import av  # noqa: PLC0415 - not always installed

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=1)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        stream.options = {"crf": "20"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
