"""Perturbed images: videos of the right length, whole and in order."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from benchmark_trees import pixels, write_images, write_video
from ser_lightning.corruptions import num_official_frames, perturb
from ser_lightning.data import ImageFolder, Shapes, UnreadableImage
from ser_lightning.data.benchmarks import ImageNetPDataModule, generated, videos
from ser_lightning.data.benchmarks.videos import read_video

CLASSES = ("n01440764", "n01514668")
SOURCE = Shapes(num_train=24, num_evaluation=13, image_size=16)


def reasons_of(data):
    """Why the numbers of its conditions may not be compared, each reason once."""
    return "; ".join(dict.fromkeys(reason for c in data.conditions for reason in c.reasons))


def module(source=SOURCE, **options):
    unit = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "num_workers": 0}
    options = {"image_size": 16, "evaluation_batch_size": 64, **unit, **options}
    return ImageNetPDataModule(source, **options)


def frames_of(count, seed):
    return pixels(np.random.default_rng(seed), count, 16, 16)


def test_videos_are_decoded_whole_and_in_order(tmp_path):
    pytest.importorskip("av")
    shades = np.linspace(20, 230, 31).astype(np.uint8)
    frames = np.broadcast_to(shades[:, None, None, None], (31, 16, 16, 3))
    write_video(tmp_path / "a.mp4", np.ascontiguousarray(frames))
    decoded = read_video(str(tmp_path / "a.mp4"))
    assert decoded.shape == (31, 3, 16, 16)
    difference = decoded.float().mean((1, 2, 3)) - torch.from_numpy(shades)
    assert difference.abs().max() < 3  # the coder loses a little, a frame is 7 levels away
    (tmp_path / "b.mp4").write_bytes((tmp_path / "a.mp4").read_bytes()[:900])
    with pytest.raises(UnreadableImage, match=r"b\.mp4"):
        read_video(str(tmp_path / "b.mp4"))


def test_released_videos_are_found_and_checked(tmp_path):
    pytest.importorskip("av")
    for name, count in (("snow", 31), ("translate", 41)):
        for number, wnid in enumerate(CLASSES):
            write_video(tmp_path / name / wnid / f"v{number}.mp4", frames_of(count, number))
    data = module(root=str(tmp_path), perturbations=["snow", "translate"], frame_stride=2)
    with pytest.warns(UserWarning, match="snow has 2, translate has 2 files, the released set"):
        data.setup("test")
    batches = list(data.test_dataloader())
    assert [batch.condition[0].item() for batch in batches] == [0, 1]
    assert [batch.pixels.shape for batch in batches] == [(2, 16, 3, 16, 16), (2, 21, 3, 16, 16)]
    whole = read_video(str(tmp_path / "snow" / CLASSES[1] / "v1.mp4"))
    assert torch.equal(batches[0].pixels[1], whole[::2] / 255)
    assert data.conditions[0].reasons[-1] == "every 2. frame only"
    write_video(tmp_path / "snow" / CLASSES[0] / "v0.mp4", frames_of(30, 0))
    with pytest.raises(UnreadableImage, match="30 frames instead of 31"):
        data.conditions[0].images.read(0)


def test_missing_folders_show_the_layout(tmp_path):
    pytest.importorskip("av")
    (tmp_path / "snow" / CLASSES[0]).mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"lacks the folders gaussian_noise(.|\n)*\.mp4"):
        module(root=str(tmp_path)).setup("test")
    with pytest.raises(FileNotFoundError, match=r"\(\.mp4\); expected\n.*<wnid>/\*\.mp4"):
        module(root=str(tmp_path), perturbations=["snow"]).setup("test")


def test_missing_decoder_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match=r"pip install 'ser-lightning\[imagenet-p\]'"):
        module(root=str(tmp_path)).setup("test")


def test_generated_sequences_are_those_of_perturb():
    data = module(generated=True, perturbations=["shot_noise", "translate"], seed=5)
    data.setup("test")
    images = SOURCE.evaluation()
    for condition in data.conditions:
        assert len(condition.images) == 13
        frames = condition.images.read(7)
        assert torch.equal(frames, perturb(images.read(7), condition.name, 7, 5))
        assert len(frames) == num_official_frames(condition.name, 32)
    batches = list(data.test_dataloader())
    labels = torch.cat([batch.label for batch in batches])
    assert torch.equal(labels, images.labels.repeat(2))
    assert reasons_of(data) == "perturbations are generated"


def test_some_videos_per_class_are_the_same_for_all_perturbations():
    data = module(generated=True, perturbations=["snow", "tilt"], videos_per_class=1)
    data.setup("test")
    assert all(len(c.images) == 12 for c in data.conditions)
    first, second = (c.images for c in data.conditions)
    assert first.labels.unique().numel() == 12
    assert first.positions.tolist() == second.positions.tolist()
    assert "1 videos per class only" in reasons_of(data)
    fewer = module(generated=True, perturbations=["snow"], videos_per_class=1, num_test=3)
    fewer.setup("test")
    assert len(fewer.conditions[0].images) == 3


def test_larger_images_are_cut_after_they_were_moved():
    large = Shapes(num_train=24, num_evaluation=12, image_size=40)
    data = module(large, generated=True, perturbations=["translate"])
    data.setup("test")
    (batch, *_) = data.test_dataloader()
    assert batch.pixels.shape[1:] == (num_official_frames("translate", 32), 3, 16, 16)
    assert data.conditions[0].crop_fraction == 1.0


def test_reason_without_words_is_named_by_its_kind(monkeypatch):
    def broken(path):
        raise EOFError

    monkeypatch.setattr(videos, "load_av", lambda: SimpleNamespace(open=broken))
    with pytest.raises(UnreadableImage, match=r"a.mp4: EOFError"):
        read_video("a.mp4")


def test_perturbations_given_twice_count_once():
    assert module(generated=True, perturbations=["snow", "snow"]).perturbations == ("snow",)


def test_options_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"--data.root DIR(.|\n)*--data.generated true"):
        module()
    with pytest.raises(ValueError, match="perturbations fog are unknown"):
        module(generated=True, perturbations=["fog"])
    with pytest.raises(ValueError, match=r"frame_stride 40 must be int in \[1, 15\]"):
        module(generated=True, frame_stride=40)


def test_number_of_frames_is_known_without_a_sequence(monkeypatch):
    data = module(generated=True, perturbations=["snow", "translate"], frame_stride=3)
    data.setup("test")
    numbers = [len(c.images.read(0)) for c in data.conditions]
    monkeypatch.setattr(generated, "perturb", None)
    assert [data.num_frames(c) for c in data.conditions] == numbers == [11, 6]


def test_images_of_different_sizes_share_the_length_of_the_first(tmp_path):
    for split in ("train", "val"):
        write_images(tmp_path / split, ("a", "b"), size=36, suffix=".png")
    Image.new("RGB", (60, 60)).save(next((tmp_path / "val" / "b").iterdir()))
    options = {"generated": True, "perturbations": ["translate"], "image_size": 64}
    data = module(ImageFolder(str(tmp_path)), **options)
    data.setup("test")
    (batch,) = data.test_dataloader()
    assert batch.pixels.shape == (2, 16, 3, 64, 64)


@pytest.mark.filterwarnings("ignore:.*it is skipped")
def test_damaged_first_image_is_skipped_where_asked(tmp_path):
    for split in ("train", "val"):
        write_images(tmp_path / split, ("a", "b"), per_class=2)
    next(iter(sorted((tmp_path / "val" / "a").iterdir()))).write_bytes(b"none")
    options = {"generated": True, "perturbations": ["snow"], "on_bad_image": "skip"}
    data = module(ImageFolder(str(tmp_path)), **options)
    data.setup("test")
    assert sum(len(batch.label) for batch in data.test_dataloader()) == 3
