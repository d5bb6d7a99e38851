"""Corrupted images: the right pixels of the right files, each once."""

import numpy as np
import pytest
import torch
from PIL import Image

from benchmark_trees import pixels, write_imagenet_c, write_images
from ser_lightning.corruptions import CORRUPTIONS, corrupt
from ser_lightning.corruptions.digital import jpeg_compression
from ser_lightning.data import ImageFolder, Shapes, loaders
from ser_lightning.data.benchmarks import ImageNetCDataModule
from ser_lightning.data.render import normalise
from ser_lightning.sources import opening, released

CLASSES = ("n01440764", "n01514668")
SOURCE = Shapes(num_train=24, num_evaluation=13, image_size=16)
UNIT = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "num_workers": 0}


def reasons_of(data):
    """Why the numbers of its conditions may not be compared, each reason once."""
    return "; ".join(dict.fromkeys(reason for c in data.conditions for reason in c.reasons))


def module(source=SOURCE, **options):
    options = {"image_size": 16, "evaluation_batch_size": 6, **UNIT, **options}
    return ImageNetCDataModule(source, **options)


def opened(**options):
    data = module(**options)
    with pytest.warns(UserWarning, match="the released set has"):
        data.setup("test")
    return data


def samples(data):
    """Pixels by condition: the images in order, (N, 3, H, W) in [0, 1]."""
    batches = list(data.test_dataloader())
    condition = torch.cat([batch.condition for batch in batches])
    values = torch.cat([batch.pixels for batch in batches])
    return [values[condition == number] for number in range(len(data.conditions))]


def test_released_files_are_shown_as_they_are(tmp_path):
    write_imagenet_c(tmp_path, CLASSES)
    data = opened(root=str(tmp_path))
    names = [(c.name, c.severity) for c in data.conditions]
    assert names == [(name, severity) for name in CORRUPTIONS for severity in range(1, 6)]
    found = samples(data)
    for number, folder in ((0, "noise/gaussian_noise/1"), (74, "digital/jpeg_compression/5")):
        files = sorted((tmp_path / folder).rglob("*.JPEG"))
        expected = np.stack([np.array(Image.open(file)) for file in files])
        expected = torch.from_numpy(expected).permute(0, 3, 1, 2) / 255
        torch.testing.assert_close(found[number], expected, rtol=0, atol=0)
    assert reasons_of(data) == (
        "gaussian_noise/1 has 2, gaussian_noise/2 has 2, gaussian_noise/3 has 2 files "
        "(and 72 more like it), the released set has 50,000; 2 of 1,000 classes only; "
        "images of 16 x 16 pixels, the released set has 224 x 224"
    )


def test_what_was_found_is_printed(tmp_path, monkeypatch):
    printed = []
    monkeypatch.setattr(opening, "rank_zero_info", printed.append)
    write_imagenet_c(tmp_path / "c", CLASSES)
    (tmp_path / "c" / "weather" / "fog" / "1" / "list.txt").touch()
    for split in ("train", "val"):
        write_images(tmp_path / "imagenet" / split, CLASSES, per_class=2, size=20)
    opened(source=ImageFolder(str(tmp_path / "imagenet")), root=str(tmp_path / "c"))
    lines = printed[0].split("\n")
    assert len(printed) == 1
    assert lines[0].startswith(f"data: imagenet_c in {tmp_path}/c, 1,000 classes (n01440764, ")
    assert lines[1:3] == [
        "data: clean: 4 to evaluate on",
        "data: gaussian_noise/1 to jpeg_compression/5, 75 conditions: 2 to evaluate on each",
    ]
    assert f"{tmp_path}/imagenet/val for evaluation" in lines[-2]
    assert lines[-1] == "data: left out: files .txt: 1"
    module(**GENERATED).setup("test")
    assert "data: clean images of shapes_" in printed[1]


def test_released_files_of_another_size_are_resized_and_marked(tmp_path):
    write_imagenet_c(tmp_path, CLASSES, grouped=False, size=24)
    data = opened(root=str(tmp_path), corruptions=["fog"], severities=[2])
    assert samples(data)[0].shape == (2, 3, 16, 16)
    reason = reasons_of(data)
    assert reason.startswith("severities [2] only; ")
    assert reason.endswith("images of 24 x 24 pixels resized to 16")


def test_clean_images_of_the_source_are_measured_too(tmp_path):
    write_imagenet_c(tmp_path / "c", CLASSES)
    for split in ("train", "val"):
        write_images(tmp_path / "imagenet" / split, CLASSES, per_class=2, size=20)
    source = ImageFolder(str(tmp_path / "imagenet"))
    data = opened(source=source, root=str(tmp_path / "c"), corruptions=["fog"])
    first = data.conditions[0]
    assert (first.name, len(first.images), first.crop_fraction) == ("clean", 4, 224 / 256)
    assert first.reasons == ("clean has 4 files, the released set has 50,000",)


def test_clean_images_that_were_held_out_of_training_are_marked(tmp_path):
    write_imagenet_c(tmp_path / "c", CLASSES)
    write_images(tmp_path / "imagenet", CLASSES, per_class=20, size=20)
    source = ImageFolder(str(tmp_path / "imagenet"))
    data = opened(source=source, root=str(tmp_path / "c"), corruptions=["fog"])
    assert data.conditions[0].reasons[0].startswith("tested on every 20th training image")
    assert "training image" in reasons_of(data)


def test_generated_corruptions_are_imagenets_only_where_the_classes_are(monkeypatch):
    data = module(**GENERATED)
    data.setup("test")
    assert not data.is_imagenet
    monkeypatch.setattr(released, "imagenet_synsets", lambda: SOURCE.evaluation().class_names)
    assert data.is_imagenet


def test_missing_folders_show_the_layout(tmp_path):
    write_images(tmp_path / "noise" / "shot_noise" / "3", CLASSES)
    message = r"lacks 74 of 75 folders, such as gaussian_noise/1(.|\n)*<wnid>/\*.JPEG(.|\n)*"
    with pytest.raises(FileNotFoundError, match=message + "--data.corruptions"):
        module(root=str(tmp_path)).setup("test")
    with pytest.raises(FileNotFoundError, match="is no folder; expected"):
        module(root=str(tmp_path / "none")).setup("test")


def test_options_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"--data.root DIR(.|\n)*--data.generated true"):
        module()
    with pytest.raises(ValueError, match="jpeg_quality 85 have no effect"):
        module(root=str(tmp_path), jpeg_quality=85)
    with pytest.raises(ValueError, match=r"severities \[0, 6\]"):
        module(generated=True, severities=[0, 6])


def test_cifar_severities_are_blocks_of_a_file(tmp_path):
    rng = np.random.default_rng(0)
    images = pixels(rng, 5 * 4, 16, 16)
    labels = np.tile(np.array([3, 1, 9, 0], dtype=np.int32), 5)
    np.save(tmp_path / "fog.npy", images)
    np.save(tmp_path / "labels.npy", labels)
    crop = {"evaluation_crop_fraction": 1.0}
    data = opened(root=str(tmp_path), corruptions=["fog"], severities=[1, 4], **crop)
    assert data.benchmark_name == "cifar10_c"
    assert [c.images.labels.tolist() for c in data.conditions] == [[3, 1, 9, 0]] * 2
    expected = torch.from_numpy(images[12:16]).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(samples(data)[1], expected, rtol=0, atol=0)
    with pytest.raises(FileNotFoundError, match=r"snow.npy is missing(.|\n)*labels.npy"):
        module(root=str(tmp_path), corruptions=["snow"]).setup("test")
    np.save(tmp_path / "snow.npy", images[:7])
    with pytest.raises(ValueError, match="for 20 labels; it must be uint8"):
        module(root=str(tmp_path), corruptions=["snow"]).setup("test")


def test_cifars_clean_images_are_those_of_its_classes(tmp_path):
    np.save(tmp_path / "fog.npy", np.zeros((5, 16, 16, 3), dtype=np.uint8))
    np.save(tmp_path / "labels.npy", np.full(5, 9))
    known = [*released.CIFAR_CLASSES[10]]
    for names, is_clean in ((known, True), ([*"0123456789"], True), ([*"abcdefghij"], False)):
        root = tmp_path / names[0]
        for split in ("train", "val"):
            write_images(root / split, names)
        data = opened(source=ImageFolder(str(root)), root=str(tmp_path), corruptions=["fog"])
        assert (data.conditions[0].title == "clean") is is_clean


@pytest.mark.parametrize("labels", [np.zeros((10, 1), int), np.zeros(()), np.zeros(12, int), -1])
def test_cifar_labels_that_are_no_list_of_severities_are_refused(tmp_path, labels):
    np.save(tmp_path / "labels.npy", np.full(10, labels) if isinstance(labels, int) else labels)
    with pytest.raises(ValueError, match=r"labels.npy holds .*; it must be class ids from 0 on"):
        module(root=str(tmp_path), corruptions=["fog"]).setup("test")


def test_options_given_twice_count_once(tmp_path):
    write_images(tmp_path / "fog" / "1", CLASSES)
    data = opened(root=str(tmp_path), corruptions=["fog", "fog"], severities=[1, 1])
    assert [condition.title for condition in data.conditions] == ["fog/1"]


GENERATED = {"generated": True, "corruptions": ["gaussian_noise", "fog"], "severities": [1, 5]}


def test_generated_images_are_those_of_corrupt_at_native_size():
    data = module(**GENERATED, evaluation_crop_fraction=1.0, seed=3)
    data.setup("test")
    images = SOURCE.evaluation()
    found = samples(data)
    assert [(c.name, c.severity) for c in data.conditions[:2]] == [
        ("clean", 0),
        ("gaussian_noise", 1),
    ]
    for number, condition in enumerate(data.conditions):
        for index in (0, 12):
            image = images.read(index)
            if condition.severity:
                image = corrupt(image, condition.name, condition.severity, index, 3)
            torch.testing.assert_close(found[number][index], image / 255, rtol=0, atol=0)
    assert all(len(values) == 13 for values in found)


@pytest.mark.parametrize("name", ["foo", "frost"])
def test_corruption_that_cannot_be_generated_is_refused_at_once(name):
    with pytest.raises(ValueError, match=rf"corruptions {name} cannot be generated; use some of "):
        module(generated=True, corruptions=["snow", name])


def test_generated_images_depend_on_their_place_not_on_the_rest():
    whole = module(**GENERATED, seed=3)
    part = module(**GENERATED, seed=3, num_test=4, evaluation_batch_size=50)
    for data in (whole, part):
        data.setup("test")
    images = part.conditions[0].images
    assert images.positions[1] > 1  # not simply the first ones
    for ours, all_of_them in zip(samples(part), samples(whole), strict=True):
        torch.testing.assert_close(ours, all_of_them[images.positions], rtol=0, atol=0)


def test_every_rank_has_its_own_images(monkeypatch):
    seen = []
    for rank in range(2):
        data = module(**GENERATED)
        data.setup("test")
        with monkeypatch.context() as patch:
            patch.setattr(loaders, "world_size", lambda: 2)
            patch.setattr(loaders, "rank", lambda rank=rank: rank)
            seen.append(samples(data))
    alone = module(**GENERATED)
    alone.setup("test")
    for number, values in enumerate(samples(alone)):
        assert torch.equal(seen[0][number], values[::2])
        assert torch.equal(seen[1][number], values[1::2])


def test_larger_images_are_reduced_before_they_are_corrupted():
    large = Shapes(num_train=24, num_evaluation=12, image_size=40)
    data = module(large, generated=True, corruptions=["gaussian_noise"], severities=[5])
    data.setup("test")
    clean, noisy = samples(data)
    assert clean.shape == (12, 3, 16, 16)
    image = (clean[3] * 255).round().to(torch.uint8)
    expected = corrupt(image, "gaussian_noise", 5, 3, 0) / 255
    torch.testing.assert_close(noisy[3], expected, rtol=0, atol=0)


def test_without_photographs_frost_has_another_name():
    data = module(generated=True, severities=[1])
    data.setup("test")
    names = [c.name for c in data.conditions]
    assert "frost_procedural" in names
    assert "frost" not in names
    assert reasons_of(data) == (
        "corruptions are generated; severities [1] only; frost is procedural"
    )


def test_generated_images_may_be_encoded_again():
    options = {**GENERATED, "corruptions": ["gaussian_noise"], "severities": [1]}
    data = module(**options, jpeg_quality=85, evaluation_crop_fraction=1.0)
    data.setup("test")
    image = corrupt(SOURCE.evaluation().read(2), "gaussian_noise", 1, 2, 0)
    assert torch.equal(samples(data)[1][2], jpeg_compression(image, None, 85) / 255)


def test_pixels_are_normalised():
    statistics = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7)}
    data = module(**GENERATED, evaluation_crop_fraction=1.0, **statistics)
    data.setup("test")
    expected = normalise(SOURCE.evaluation().read(1)[None] / 255, *statistics.values())
    torch.testing.assert_close(samples(data)[0][1:2], expected)


def released_with(tmp_path, monkeypatch, source):
    """ImageNet-C's fog beside a source, and what is printed at the start."""
    printed = []
    monkeypatch.setattr(opening, "rank_zero_info", printed.append)
    write_imagenet_c(tmp_path / "c", CLASSES)
    return opened(source=source, root=str(tmp_path / "c"), corruptions=["fog"]), printed[0]


def test_images_without_classes_are_no_clean_images(tmp_path, monkeypatch):
    for split in ("train", "val"):
        write_images(tmp_path / "photos" / split, ("",), per_class=2, size=20)
    source = ImageFolder(str(tmp_path / "photos"))
    data, printed = released_with(tmp_path, monkeypatch, source)
    assert [c.name for c in data.conditions] == ["fog"] * 5
    assert "data: no clean images: those of folder_photos_" in printed


def test_source_that_cannot_be_opened_is_told(tmp_path, monkeypatch):
    data, printed = released_with(tmp_path, monkeypatch, ImageFolder(str(tmp_path / "none")))
    assert len(data.conditions) == 5
    assert f"data: no clean images: {tmp_path}/none is no folder" in printed


def test_cifar_c_is_measured_without_clean_images(tmp_path):
    np.save(tmp_path / "fog.npy", np.zeros((5, 16, 16, 3), dtype=np.uint8))
    np.save(tmp_path / "labels.npy", np.full(5, 9))
    source = ImageFolder(str(tmp_path / "none"))
    data = opened(source=source, root=str(tmp_path), corruptions=["fog"])
    assert len(data.conditions) == 5


@pytest.mark.filterwarnings("ignore:.*it is skipped")
def test_damaged_first_image_is_skipped_where_asked(tmp_path):
    write_imagenet_c(tmp_path / "c", CLASSES)
    next((tmp_path / "c" / "weather" / "fog" / "1" / CLASSES[0]).iterdir()).write_bytes(b"none")
    options = {"corruptions": ["fog"], "severities": [1]}
    data = opened(root=str(tmp_path / "c"), on_bad_image="skip", **options)
    assert "resized" not in reasons_of(data)
    for split in ("train", "val"):
        write_images(tmp_path / "own" / split, ("a", "b"), per_class=2)
    min((tmp_path / "own" / "val" / "a").iterdir()).write_bytes(b"none")
    source = ImageFolder(str(tmp_path / "own"))
    data = module(source, generated=True, on_bad_image="skip", **options)
    data.setup("test")
    assert [len(values) for values in samples(data)] == [3, 3]
