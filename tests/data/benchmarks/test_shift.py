"""ImageNet-V2, -R and -Sketch: right ids for right folders."""

import shutil

import pytest

from benchmark_trees import write_images
from ser_lightning.data import Shapes
from ser_lightning.data.benchmarks import ShiftDataModule
from ser_lightning.sources.released import imagenet_r_synsets, imagenet_synsets

SOURCE = Shapes(num_train=12, num_evaluation=12)


@pytest.fixture(scope="module")
def v2(tmp_path_factory):
    """ImageNet-V2 with one image per class; its folders are numbers."""
    root = tmp_path_factory.mktemp("v2")
    write_images(root, [str(number) for number in range(1000)], suffix=".jpeg", size=8)
    return root


def opened(**folders):
    data = ShiftDataModule(SOURCE, **{name: str(root) for name, root in folders.items()})
    with pytest.warns(UserWarning, match="the released set has"):
        data.setup("test")
    return data.conditions


def test_v2_folders_are_numbers_not_texts(v2):
    (condition,) = opened(imagenet_v2=v2)
    images = condition.images
    assert len(images) == 1000
    for index in range(0, 1000, 37):
        folder = images.path(index).split("/")[-2]
        assert images.class_names[images.labels[index]] == imagenet_synsets()[int(folder)]
    names = [images.path(index).split("/")[-2] for index in range(4)]
    assert names == ["0", "1", "10", "100"]  # the trap: in this order they are not 0 to 3
    assert images.labels[:4].tolist() == [0, 1, 10, 100]
    assert condition.reasons == ("imagenet_v2 has 1,000 files, the released set has 10,000",)


@pytest.mark.parametrize("kind", ["matched-frequency", "threshold0.7", "top-images"])
def test_v2s_other_sets_are_marked(v2, tmp_path, kind):
    root = tmp_path / f"imagenetv2-{kind}-format-val"
    shutil.copytree(v2, root)
    (tmp_path / "imagenet-v2").symlink_to(root)
    (condition,) = opened(imagenet_v2=tmp_path / "imagenet-v2")
    marked = f"{root.name} is another set than matched-frequency" in condition.reasons
    assert marked is (kind != "matched-frequency")


def test_v2_with_too_few_folders_is_refused(tmp_path):
    write_images(tmp_path, ["0", "7"])
    data = ShiftDataModule(SOURCE, imagenet_v2=str(tmp_path))
    with pytest.raises(ValueError, match=r"2 classes, not of 1000(.|\n)*999"):
        data.setup("test")


def test_v2_may_have_class_names_for_folders(tmp_path):
    write_images(tmp_path, imagenet_synsets(), size=8)
    (condition,) = opened(imagenet_v2=tmp_path)
    assert condition.images.labels.tolist() == list(range(1000))


def test_r_has_the_names_of_its_200_classes(tmp_path):
    write_images(tmp_path, imagenet_r_synsets())
    (condition,) = opened(imagenet_r=tmp_path)
    assert condition.images.num_classes == 200
    for index in (0, 99, 199):
        name = condition.images.path(index).split("/")[-2]
        assert condition.images.class_names[condition.images.labels[index]] == name


def test_class_that_r_does_not_have_is_refused(tmp_path):
    write_images(tmp_path, ["n01440764"])  # tench: in ImageNet, not in ImageNet-R
    data = ShiftDataModule(SOURCE, imagenet_r=str(tmp_path))
    with pytest.raises(ValueError, match=r"n01440764, which are no classes of this set(.|\n)*200"):
        data.setup("test")


def test_no_folder_names_the_options():
    with pytest.raises(ValueError, match=r"--data.imagenet_v2 DIR --data.imagenet_r DIR"):
        ShiftDataModule(SOURCE)
