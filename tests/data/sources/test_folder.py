"""Tests of images in folders."""

import numpy as np
import pytest
import torch
from PIL import Image

from ser_lightning.data.sources.base import UnreadableImage
from ser_lightning.data.sources.folder import ImageFolder, read_image


def save(path, value=(200, 30, 60), size=(12, 8), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)


@pytest.fixture
def imagenet(tmp_path):
    for split, names in (("train", ("ant", "bee", "cat")), ("val", ("cat", "ant"))):
        for name in names:
            for number in (2, 1):
                save(tmp_path / split / name / f"{number}.png")
    return tmp_path


def test_imagenet_layout_has_two_splits_with_the_same_class_ids(imagenet):
    source = ImageFolder(str(imagenet))
    train, evaluation = source.train(), source.evaluation()
    assert train.class_names == evaluation.class_names == ("ant", "bee", "cat")
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert evaluation.labels.tolist() == [0, 0, 2, 2]
    assert train.labels.dtype == torch.int64
    assert train.path(3) == str(imagenet / "train" / "bee" / "2.png")
    assert train.read(3).shape == (3, 8, 12)


def test_images_in_deeper_folders_belong_to_the_first_one(imagenet):
    save(imagenet / "train" / "bee" / "more" / "deep.JPEG")
    train = ImageFolder(str(imagenet)).train()
    assert train.labels.tolist() == [0, 0, 1, 1, 1, 2, 2]


def test_class_folders_without_split_hold_every_twentieth_image_out(tmp_path):
    for name in ("a", "b"):
        for number in range(20):
            save(tmp_path / name / f"{number:02d}.png")
    source = ImageFolder(str(tmp_path))
    assert len(source.train()) == 38
    assert source.evaluation().labels.tolist() == [0, 1]
    assert source.evaluation().num_classes == 2


def test_train_folder_without_evaluation_folder_is_held_out_from(tmp_path):
    for number in range(40):
        save(tmp_path / "train" / "ab"[number % 2] / f"{number:02d}.png")
    source = ImageFolder(str(tmp_path))
    assert len(source.train()) == 38
    assert len(source.evaluation()) == 2


@pytest.mark.parametrize("folder", ["", "only", "one/two"])
def test_images_without_class_folders_have_no_labels(tmp_path, folder):
    for number in range(3):
        save(tmp_path / folder / f"{number}.png")
    images = ImageFolder(str(tmp_path)).train()
    assert images.labels.tolist() == [-1] * 3
    assert images.num_classes == 0


def test_images_beside_class_folders_mean_that_there_are_no_labels(tmp_path):
    for name in ("x.png", "a/y.png", "b/z.png"):
        save(tmp_path / name)
    assert ImageFolder(str(tmp_path)).train().labels.tolist() == [-1] * 3


def test_other_files_and_hidden_files_are_left_out(tmp_path):
    save(tmp_path / "a.png")
    save(tmp_path / "._a.png")
    (tmp_path / "notes.txt").write_text("no image")
    assert len(ImageFolder(str(tmp_path)).train()) == 1


def test_names_beyond_ascii_are_read(tmp_path):
    save(tmp_path / "stra\u00dfe" / "\u5716.png")
    images = ImageFolder(str(tmp_path)).train()
    assert images.read(0).shape == (3, 8, 12)


def test_missing_folder_says_what_is_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere is no folder; expected\n.*<class>"):
        ImageFolder(str(tmp_path / "nowhere")).train()


def test_empty_folder_says_what_is_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no image \(\.jpg .*expected\n.*<class>"):
        ImageFolder(str(tmp_path)).train()


def test_unknown_evaluation_class_is_named(imagenet):
    save(imagenet / "val" / "dog" / "1.png")
    with pytest.raises(ValueError, match=r"has classes that .* has not: dog"):
        ImageFolder(str(imagenet)).train()


def test_unsorted_evaluation_folder_is_refused(imagenet):
    save(imagenet / "val" / "loose.png")
    with pytest.raises(ValueError, match="images outside of class folders"):
        ImageFolder(str(imagenet)).evaluation()


@pytest.mark.parametrize(
    "extension", ["jpg", "JPEG", "png", "webp", "bmp", "tif", "tiff", "gif", "ppm"]
)
def test_every_format_is_read_as_colour(tmp_path, extension):
    path = tmp_path / f"image.{extension}"
    save(path)
    image = read_image(str(path))
    assert image.dtype == torch.uint8
    assert image.shape == (3, 8, 12)
    expected = torch.tensor([200, 30, 60])[:, None, None]
    assert (image.int() - expected).abs().max() <= 4  # JPEG and WebP are lossy


@pytest.mark.parametrize(
    ("mode", "value"), [("L", 90), ("LA", (90, 10)), ("RGBA", (90, 90, 90, 7)), ("P", 0)]
)
def test_other_colour_modes_are_read_as_colour(tmp_path, mode, value):
    save(tmp_path / "image.png", value, mode=mode)
    image = read_image(str(tmp_path / "image.png"))
    assert image.shape == (3, 8, 12)
    assert mode == "P" or (image == 90).all()


def test_cmyk_jpeg_is_read_as_colour(tmp_path):
    save(tmp_path / "image.jpg", (0, 255, 255, 0), mode="CMYK")
    red, green, blue = read_image(str(tmp_path / "image.jpg")).float().mean((1, 2)).tolist()
    assert red > 200
    assert max(green, blue) < 80


@pytest.mark.parametrize("extension", ["png", "tif"])
def test_16_bit_images_keep_their_upper_half(tmp_path, extension):
    levels = np.arange(96, dtype=np.uint16).reshape(8, 12) * 600
    path = tmp_path / f"image.{extension}"
    Image.fromarray(levels).save(path)
    image = read_image(str(path))
    assert np.array_equal(image.numpy(), np.broadcast_to(levels >> 8, (3, 8, 12)))


def test_floating_point_image_is_refused(tmp_path):
    Image.fromarray(np.zeros((8, 12), np.float32)).save(tmp_path / "image.tif")
    with pytest.raises(UnreadableImage, match=r"image\.tif: floating-point pixels"):
        read_image(str(tmp_path / "image.tif"))


def test_palette_image_with_transparency_is_read_without_a_warning(tmp_path):
    image = Image.new("P", (12, 8), 1)
    image.putpalette([0, 0, 0, 200, 30, 60])
    image.save(tmp_path / "image.png", transparency=b"\xff\x10")
    assert read_image(str(tmp_path / "image.png"))[:, 0, 0].tolist() == [200, 30, 60]


def test_wrong_extension_is_read_all_the_same(tmp_path):
    save(tmp_path / "image.bmp")
    (tmp_path / "image.bmp").rename(tmp_path / "image.jpg")
    assert read_image(str(tmp_path / "image.jpg")).shape == (3, 8, 12)


@pytest.mark.parametrize("extension", ["jpg", "png", "tif", "gif"])
def test_truncated_file_is_named_with_the_reason(tmp_path, extension):
    path = tmp_path / f"torn.{extension}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UnreadableImage, match=rf"torn\.{extension}: .+"):
        read_image(str(path))


@pytest.mark.parametrize("content", [b"", b"this is no image"])
def test_damaged_file_is_named_when_it_is_read_from_the_folder(tmp_path, content):
    save(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_bytes(content)
    images = ImageFolder(str(tmp_path)).train()
    assert images.read(0).shape == (3, 8, 12)
    with pytest.raises(UnreadableImage, match=r"b\.jpg: "):
        images.read(1)
