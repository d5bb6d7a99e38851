"""Images with masks: each layout, what a mask's values mean, and trees that do not fit."""

import os
import unicodedata

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from mask_tree import IGNORED, pair, save, sizes, write_ade, write_own, write_voc
from ser_lightning.sources.base import Part, UnreadableImage
from ser_lightning.sources.mask_folder import MaskFolder
from ser_lightning.sources.mask_layouts import VOC_CLASSES
from ser_lightning.sources.masks import class_counts, mask_of, read_mask
from written_files import write_png, write_tiff


def opened(root, **options):
    source = MaskFolder(str(root), **options)
    return source.train(), source.evaluation()


def test_voc_has_the_listed_images_and_the_palettes_numbers(tmp_path):
    source = MaskFolder(str(write_voc(tmp_path)))
    train, test = source.train(), source.evaluation()
    assert (len(train), len(test)) == (6, 3)  # not the images of other tasks
    assert train.class_names == VOC_CLASSES
    assert source.dataset_name == "voc2012"
    base = tmp_path / "VOCdevkit" / "VOC2012"
    with Image.open(base / "SegmentationClass" / "2007_train1.png") as picture:
        assert picture.mode == "P"
        expected = np.asarray(picture)
    assert np.array_equal(train.mask(1), expected)
    assert set(np.unique(expected)) <= {0, 1, 2, 20, IGNORED}
    assert train.read(1).shape[1:] == expected.shape == sizes(1)
    for root in (base, base.parent):  # the folder itself will do
        assert len(opened(root)[0]) == 6


def test_ade20k_counts_from_one_and_ignores_everything_else(tmp_path):
    source = MaskFolder(str(write_ade(tmp_path)))
    train, test = source.train(), source.evaluation()
    assert (len(train), len(test), len(train.class_names)) == (6, 3, 150)
    assert train.class_names[149] == "thing 150, thing"
    assert source.dataset_name == "ade20k"
    raw = read_mask(train.mask_path(0)).astype(int)
    assert np.array_equal(train.mask(0), np.where(raw == 0, IGNORED, raw - 1))
    (tmp_path / "ADEChallengeData2016" / "objectInfo150.txt").unlink()
    assert opened(tmp_path / "ADEChallengeData2016")[0].class_names[149] == "class 150"


@pytest.mark.parametrize("layout", ["{split}/{kind}", "{kind}/{split}"])
def test_own_folders_have_splits_above_or_below(tmp_path, layout):
    train, test = opened(write_own(tmp_path, layout))
    assert (len(train), len(test)) == (12, 5)
    assert train.class_names == ("class 0", "class 1", "class 2", "class 3")
    for images in (train, test):
        for index in range(len(images)):
            assert images.read(index).shape[1:] == images.mask(index).shape


def test_without_splits_every_twentieth_image_is_held_out(tmp_path):
    train, test = opened(write_own(tmp_path, "{kind}", (("a", 40),)))
    assert isinstance(test, Part)
    assert (len(train), len(test)) == (38, 2)
    whole = train.images
    assert torch.equal(mask_of(test, 1), whole.mask(int(test.positions[1])))


def test_counts_are_those_of_the_pixels(tmp_path):
    train, _ = opened(write_own(tmp_path))
    part = Part(train, np.array([7, 2]))
    masks = torch.cat([train.mask(index).flatten() for index in (7, 2)])
    assert class_counts(part).tolist() == [int((masks == number).sum()) for number in range(4)]


def test_names_and_number_of_classes_may_be_given(tmp_path):
    write_own(tmp_path)
    (tmp_path / "classes.txt").write_text("\ufeffback\none\ntwo\nthree\nfour\n", "utf-8")
    assert opened(tmp_path)[0].class_names == ("back", "one", "two", "three", "four")
    with pytest.raises(ValueError, match=r"classes.txt has 5 names, 5 of them different, for 4"):
        opened(tmp_path, num_classes=4)


def test_values_of_two_classes_may_be_black_and_white(tmp_path):
    for number in range(6):
        image, mask = pair(np.random.default_rng(number), 12, 16, num_classes=2)
        mask[:] = np.where(mask == 1, 255, 0)
        save(tmp_path, image, mask, f"images/{number}.jpg", f"masks/{number}.png")
    with pytest.raises(ValueError, match=r"1 classes beside the ignored values \[255\]"):
        opened(tmp_path)
    train, _ = opened(tmp_path, values=(0, 255), ignored=())
    assert set(train.images.mask(0).unique().tolist()) == {0, 1}
    with pytest.raises(ValueError, match=r"\[255\] are values of classes and ignored"):
        MaskFolder(str(tmp_path), values=(0, 255))


@pytest.mark.parametrize("values", [(), (7,)])
def test_fewer_values_than_two_are_refused(tmp_path, values):
    with pytest.raises(ValueError, match=f"have {len(values)} classes beside .*; there are 2 to"):
        opened(write_own(tmp_path), values=values)


def test_masks_without_a_pixel_that_counts_are_refused(tmp_path):
    write_own(tmp_path)
    with pytest.raises(ValueError, match=r"1 classes beside the ignored values \[0, 1, 2\]"):
        opened(tmp_path, num_classes=4, ignored=(0, 1, 2))
    train, _ = opened(tmp_path, values=(5, 6), ignored=(0, 1, 2, 3, 255))
    with pytest.raises(ValueError, match=r"12 masks below .* values \[0, 1, 2, 3, 255\]; give"):
        class_counts(train)


def test_other_options_and_folders_are_another_data_set(tmp_path):
    write_own(tmp_path / "a")
    names = {
        MaskFolder(str(tmp_path / "a")).dataset_name,
        MaskFolder(str(tmp_path / "a"), num_classes=7).dataset_name,
        MaskFolder(str(tmp_path / "a"), ignored=(0, 255)).dataset_name,
    }
    assert len(names) == 3
    assert not MaskFolder(str(tmp_path / "a")).is_released
    one, other = (opened(tmp_path / "a", ignored=i)[0].listing() for i in ((255,), (0, 255)))
    assert one != other


def test_missing_mask_is_named(tmp_path):
    write_own(tmp_path)
    (tmp_path / "train" / "masks" / "train3.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 12 images .* have no mask .* train3.jpg"):
        opened(tmp_path)


def test_images_may_share_a_mask_by_links(tmp_path):
    for number in range(4):
        save(tmp_path, *pair(np.random.default_rng(0), 12, 16), f"images/{number}.jpg", "blank.png")
    (tmp_path / "masks").mkdir()
    for number, link in enumerate([os.link, os.link, os.symlink, os.symlink]):
        link(tmp_path / "blank.png", tmp_path / "masks" / f"{number}.png")
    train, test = opened(tmp_path)
    assert len(train) + len(test) == 4


def test_split_without_masks_is_named(tmp_path):
    write_own(tmp_path)
    (tmp_path / "val" / "masks").rename(tmp_path / "elsewhere")
    assert "folders without masks val: 1" in MaskFolder(str(tmp_path)).summary()
    (tmp_path / "elsewhere").rename(tmp_path / "val" / "masks")
    (tmp_path / "train" / "masks").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"train/masks does not exist; expected one of"):
        opened(tmp_path)


def test_spare_masks_are_counted(tmp_path):
    write_own(tmp_path)
    (tmp_path / "train" / "images" / "train3.jpg").unlink()
    assert "masks without an image: 1" in MaskFolder(str(tmp_path)).summary()


def test_mask_of_another_size_is_refused(tmp_path):
    write_own(tmp_path)
    Image.new("L", (9, 7)).save(tmp_path / "train" / "masks" / "train3.png")
    with pytest.raises(ValueError, match=r"train3.png has 9 x 7 pixels and its image .* 28 x 24"):
        class_counts(opened(tmp_path, num_classes=4)[0])


def test_value_beyond_the_classes_is_refused(tmp_path):
    write_own(tmp_path)
    with pytest.raises(ValueError, match=r"png has the value 3, .* none of the 3 classes \(0 to 2"):
        class_counts(opened(tmp_path, num_classes=3)[0])


def test_mask_in_colour_or_damaged_is_refused(tmp_path):
    write_own(tmp_path)
    file = tmp_path / "train" / "masks" / "train0.png"
    Image.new("RGB", (32, 24)).save(file)
    with pytest.raises(ValueError, match=r"train0.png is a picture of mode RGB; a mask has one"):
        opened(tmp_path)
    file.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"train0.png: .*; repair the mask"):
        opened(tmp_path)


def test_mask_of_16_bits_counts_up_to_255(tmp_path):
    file = tmp_path / "deep.png"
    Image.fromarray(np.array([[0, 7]], np.uint16)).save(file)
    assert read_mask(file).tolist() == [[0, 7]]
    Image.fromarray(np.array([[0, 700]], np.uint16)).save(file)
    with pytest.raises(ValueError, match="values from 0 to 700; a mask has 0 to 255"):
        read_mask(file)


def test_two_images_with_one_mask_are_refused(tmp_path):
    write_own(tmp_path)
    Image.new("RGB", (32, 24)).save(tmp_path / "train" / "images" / "train0.png")
    with pytest.raises(ValueError, match="13 files of 12 names, which differ by the extension"):
        opened(tmp_path)


def test_folder_without_masks_shows_the_layouts(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(FileNotFoundError, match=r"(?s)no images with masks; expected one.*VOC2012"):
        opened(tmp_path)


def test_list_of_files_that_are_not_there_is_refused(tmp_path):
    write_voc(tmp_path)
    base = tmp_path / "VOCdevkit" / "VOC2012"
    (base / "SegmentationClass" / "2007_val2.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"2007_val2.png does not exist, one of 1 files of"):
        opened(tmp_path)
    (base / "ImageSets" / "Segmentation" / "val.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"val.txt does not exist; expected"):
        opened(tmp_path)


def sideways(root):
    """Makes an image of the training split lie on its side, as a camera stores it."""
    path, exif = root / "train" / "images" / "train3.jpg", Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # to be turned clockwise
    with Image.open(path) as image:
        image.transpose(Image.Transpose.ROTATE_90).save(path, quality=95, exif=exif)


def test_masks_that_were_drawn_on_upright_images_need_these(tmp_path):
    write_own(tmp_path)
    whole = opened(tmp_path, num_classes=4)[0]
    row = next(n for n in range(len(whole)) if whole.path(n).endswith("train3.jpg"))
    before = whole.read(row).float()
    sideways(tmp_path)
    with pytest.raises(ValueError, match=r"24 x 28; .* --data\.source\.upright true"):
        class_counts(opened(tmp_path, num_classes=4)[0])
    images = opened(tmp_path, num_classes=4, upright=True)[0]
    class_counts(images)
    assert images.read(row).shape[1:] == mask_of(images, row).shape
    assert (images.read(row).float() - before).abs().mean() < 8  # it was compressed twice


def test_large_images_and_masks_are_read_where_they_are_allowed(tmp_path, monkeypatch):
    write_own(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UnreadableImage, match=r"--data\.source\.max_pixels"):
        opened(tmp_path, num_classes=4, max_pixels=100)[0].read(0)
    images = opened(tmp_path, num_classes=4)[0]
    class_counts(images)
    assert images.read(0).shape[1:] == mask_of(images, 0).shape


def test_mask_belongs_to_its_image_however_accents_are_written(tmp_path):
    write_own(tmp_path, "{kind}")
    for folder, form in (("images", "NFC"), ("masks", "NFD")):
        for path in (tmp_path / folder).iterdir():
            path.rename(path.with_name(unicodedata.normalize(form, f"é{path.name}")))
    images = MaskFolder(str(tmp_path)).train()
    assert class_counts(images).sum() > 0


@pytest.mark.parametrize(
    ("options", "listed", "names"),
    [
        ({"values": (0, 255), "ignored": ()}, None, ("class 0", "class 1")),
        ({"num_classes": 2}, None, ("class 0", "class 1")),
        ({"num_classes": 2}, "ground\ncrack\n", ("ground", "crack")),
        ({}, "ground\ncrack\n", ("ground", "crack")),
    ],
)
@pytest.mark.parametrize("write", [write_voc, write_ade])
def test_ones_own_classes_in_a_released_layout_are_ones_own(
    tmp_path, write, options, listed, names
):
    below = "VOCdevkit/VOC2012" if write is write_voc else "ADEChallengeData2016"
    base = write(tmp_path) / below
    for path in base.glob("*/**/*.png"):
        mask = np.zeros(np.asarray(Image.open(path)).shape, np.uint8)
        mask[:5] = 255 if "values" in options else 1
        Image.fromarray(mask).save(path)
    if listed is not None:
        (base / "classes.txt").write_text(listed)
    source = MaskFolder(str(tmp_path), **options)
    train = source.train()
    assert train.class_names == names
    assert not source.is_released
    assert source.dataset_name.startswith("masks")
    assert class_counts(train).min() > 0


@pytest.mark.parametrize("layout", ["{split}/{kind}", "{kind}/{split}"])
def test_further_splits_are_counted(tmp_path, layout):
    write_own(tmp_path, layout, (("train", 4), ("val", 2), ("test", 3)))
    assert "images in test: 3" in MaskFolder(str(tmp_path)).summary()


def test_images_beside_the_splits_are_counted(tmp_path):
    write_own(tmp_path, "{kind}/{split}", (("train", 4), ("val", 2)))
    write_own(tmp_path, "{kind}", (("loose", 5),))
    source = MaskFolder(str(tmp_path))
    assert len(source.train()) == 4
    assert "images beside the folders: 5" in source.summary()


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_masks_of_few_bits_have_the_values_that_are_stored(tmp_path, depth):
    rows = [[level % (1 << depth)] * 8 for level in range(6)]
    write_png(tmp_path / "mask.png", rows, depth)
    assert read_mask(tmp_path / "mask.png").tolist() == rows
    for photometric in (0, 1):
        write_tiff(tmp_path / "mask.tif", rows, depth, photometric)
        assert read_mask(tmp_path / "mask.tif").tolist() == rows


def test_ades_own_ignored_values_leave_it_ade(tmp_path):
    source = MaskFolder(str(write_ade(tmp_path)), ignored=(0, IGNORED))
    assert len(source.train().class_names) == 150


def test_turned_tiff_lies_under_the_mask_of_its_shape(tmp_path):
    for split in ("train", "val"):
        for number in range(2):
            image, mask = pair(np.random.default_rng(number), 48, 24)
            files = f"{split}/images/{number}.png", f"{split}/masks/{number}.png"
            save(tmp_path, image, mask, *files)
            path, exif = tmp_path / split / "images" / f"{number}.tif", Image.Exif()
            exif[ExifTags.Base.Orientation] = 6
            Image.fromarray(np.rot90(image)).save(path, exif=exif)
            (tmp_path / files[0]).unlink()
    images = opened(tmp_path, num_classes=4, upright=True)[0]
    class_counts(images)
    assert images.read(0).shape[1:] == mask_of(images, 0).shape == (48, 24)
