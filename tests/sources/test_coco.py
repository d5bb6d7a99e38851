"""COCO's files: every box with its image, in raw ids, and errors that show the layout."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from coco_tree import CROWD, LINE, TALL, WIDE, write_coco, write_split
from ser_lightning.sources.base import UnreadableImage
from ser_lightning.sources.coco import CocoDetection


@pytest.fixture
def coco(tmp_path):
    return CocoDetection(str(write_coco(tmp_path)))


def test_boxes_belong_to_their_image_in_corners_and_raw_ids(coco):
    images = coco.train()
    assert len(images) == 8
    assert images.path(0).endswith("000000000100.png")
    boxes = images.boxes(0)
    order = boxes.labels.argsort()
    assert boxes.labels[order].tolist() == [1, 90]
    assert boxes.corners[order].tolist() == [[4, 6, 20, 26], [30, 2, 40, 14]]
    assert boxes.area[order].tolist() == [240, 90]
    assert images.boxes(1).labels.tolist() == [3]
    assert images.num_categories == 91
    for index, colour in ((0, [250, 20, 20]), (1, [20, 250, 20])):
        left, top, _, _ = images.boxes(index).corners[-1].int().tolist()
        assert images.read(index)[:, top, left].tolist() == colour


def test_image_without_annotations_has_no_box(coco):
    assert [len(values) for values in coco.train().boxes(3)] == [0, 0, 0, 0]
    assert coco.train().boxes(3).corners.shape == (0, 4)


def test_images_without_a_usable_box_are_not_trained_on(tmp_path):
    write_split(tmp_path, "train2017", [CROWD, WIDE, LINE, TALL])
    assert CocoDetection(str(tmp_path)).train().with_objects().tolist() == [1, 3]


def test_objects_are_boxes_of_single_things_with_an_area(coco):
    boxes = coco.train().boxes(4)
    assert sorted(boxes.crowd.tolist()) == [False, True]
    assert boxes.objects().corners.tolist() == [[2, 2, 22, 26]]
    assert len(coco.evaluation().boxes(4).corners) == 1  # measured, though not trained on
    assert len(coco.evaluation().boxes(4).objects().corners) == 0


def test_part_keeps_every_image_with_its_boxes(coco):
    whole = coco.train()
    part = whole.part(np.array([6, 0, 3]))
    assert len(part) == 3
    assert part.is_wide.tolist() == [False, True, True]
    for index, original in enumerate((6, 0, 3)):
        assert torch.equal(part.boxes(index).corners, whole.boxes(original).corners)
        assert torch.equal(part.read(index), whole.read(original))
    assert part.with_objects().tolist() == [0, 1]
    assert len(whole) == 8


@pytest.mark.parametrize("missing", ["train2017", "annotations/instances_train2017.json"])
def test_wrong_layout_is_refused_with_the_expected_one(tmp_path, missing):
    (write_coco(tmp_path) / missing).rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError) as error:
        CocoDetection(str(tmp_path)).train()
    assert f"{tmp_path / missing} does not exist" in str(error.value)
    assert f"{tmp_path}/annotations/instances_train2017.json" in str(error.value)


def test_images_missing_from_their_folder_are_noticed(tmp_path):
    write_coco(tmp_path)
    for number, path in enumerate(sorted((tmp_path / "val2017").iterdir(), reverse=True), 1):
        path.unlink()
        message = rf"{path.name} does not exist, one of {number} missing images of 5; expected"
        with pytest.raises(FileNotFoundError, match=message):
            CocoDetection(str(tmp_path)).evaluation()


def test_file_without_an_image_is_refused(tmp_path):
    source = rewritten(tmp_path, lambda c: (c["images"].clear(), c["annotations"].clear()))
    with pytest.raises(FileNotFoundError, match=r"train2017.json lists no image; expected"):
        source.train()


def rewritten(root, change, split="train2017"):
    """The tiny set, the content of one of whose files is changed by a function."""
    write_coco(root)
    file = root / "annotations" / f"instances_{split}.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    return CocoDetection(str(root))


def test_ids_may_be_texts(tmp_path, coco):
    def change(content):
        for image in content["images"]:
            image["id"] = f"{image['id']:012d}"
        for annotation in content["annotations"]:
            annotation["image_id"] = f"{annotation['image_id']:012d}"

    expected = [coco.train().boxes(index).corners for index in range(8)]
    images = rewritten(tmp_path / "texts", change).train()
    for index in range(8):
        assert torch.equal(images.boxes(index).corners, expected[index])


BACKGROUND = {"id": 0, "name": "things"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["images"].append(c["images"][0]), "image id 121 is listed twice; give each"),
        (lambda c: c["images"].pop(0), "1 image ids .* such as 121; list them, or remove"),
        (lambda c: c["categories"].append(c["categories"][0]), "category id 1 is listed twice"),
        (
            lambda c: c["categories"].append({"id": 899_999, "name": "hashed"}),
            "largest category id is 899,999, .*; number the 81 categories from 1 on",
        ),
        (lambda c: c["categories"].clear(), "3 category ids of .* such as 1; list them"),
        (lambda c: c["categories"].pop(0), "1 category ids .* such as 1; list them"),
        (
            lambda c: (
                c["categories"].append(BACKGROUND),
                c["annotations"][0].update(category_id=0),
            ),
            "category id below 1; count from 1, 0 is the background",
        ),
        (lambda c: [a["bbox"].append(0) for a in c["annotations"]], r"\(11, 5\).*; a box is left"),
        (lambda c: [a.update(bbox=[]) for a in c["annotations"]], r"\(11, 0\).*; a box is left"),
        (lambda c: c["annotations"][0]["bbox"].insert(0, None), "inhomogeneous"),
        (lambda c: c["annotations"][0].update(bbox=[None, 1, 1, 1]), "not finite; a box is left"),
        (
            lambda c: [
                a.update(bbox=[x, y, x + w, y + h])
                for a in c["annotations"]
                for x, y, w, h in [a["bbox"]]
            ],
            "55% of its boxes reach beyond .*; a box is left",
        ),
        (
            lambda c: [a.update(bbox=[side / 48 for side in a["bbox"]]) for a in c["annotations"]],
            "largest coordinate is .*, so that its boxes are shares .*; a box is left.*: mult",
        ),
        (lambda c: c["annotations"][0].pop("area"), "KeyError: 'area'"),
        (lambda c: c["images"][0].update(id=float("inf")), "OverflowError"),
    ],
)
def test_ids_and_boxes_that_do_not_fit_are_refused(tmp_path, change, message):
    source = rewritten(tmp_path, change)
    with pytest.raises(ValueError, match=rf"train2017.json holds no annotations .*{message}.*use"):
        source.train()


def test_category_without_a_box_may_be_zero(tmp_path):
    source = rewritten(tmp_path, lambda content: content["categories"].append(BACKGROUND))
    assert source.train().num_categories == 91


def test_categories_of_both_splits_are_the_same(tmp_path):
    def change(content):
        content["categories"][0]["name"] = "other"

    with pytest.raises(ValueError, match="category 1 is person in train2017 and other in val2017"):
        rewritten(tmp_path, change, "val2017").evaluation()


def test_other_categories_are_a_data_set_of_ones_own(tmp_path, coco):
    assert coco.dataset_name == "coco2017"
    own = rewritten(tmp_path / "own", lambda content: content["categories"][5].update(name="tram"))
    assert re.fullmatch("coco_own_[0-9a-f]{8}", own.dataset_name)


def test_image_of_another_size_than_annotated_is_refused(tmp_path):
    def change(content):
        content["images"][-1].update(width=480, height=320)

    with pytest.raises(UnreadableImage, match=r"0100\.png: it has 32 x 48 pixels.* for 320 x 480"):
        rewritten(tmp_path, change).train().read(0)


def test_boxes_of_upright_images_need_these(tmp_path):
    write_coco(tmp_path)
    path, exif = tmp_path / "train2017" / "000000000100.png", Image.Exif()
    with Image.open(path) as image:
        pixels = np.asarray(image)
        exif[ExifTags.Base.Orientation] = 6  # to be turned clockwise
        image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    with pytest.raises(UnreadableImage, match=r"48 x 32 pixels.*--data\.source\.upright true"):
        CocoDetection(str(tmp_path)).train().read(0)
    assert (
        CocoDetection(str(tmp_path), upright=True).train().read(0).numpy()
        == pixels.transpose(2, 0, 1)
    ).all()


def test_images_that_are_too_large_have_an_option(tmp_path):
    write_coco(tmp_path)
    with pytest.raises(UnreadableImage, match=r"--data\.source\.max_pixels"):
        CocoDetection(str(tmp_path), max_pixels=100).train().read(0)


def test_file_of_other_annotations_is_refused(tmp_path):
    write_coco(tmp_path)
    file = tmp_path / "annotations" / "instances_val2017.json"
    captions = {**json.loads(file.read_text()), "annotations": [{"image_id": 500, "caption": "a"}]}
    file.write_text(json.dumps(captions))
    with pytest.raises(ValueError, match=r"val2017.json holds no annotations of objects.*use"):
        CocoDetection(str(tmp_path)).evaluation()


def changed(root, split, change):
    """The source with a changed file of annotations."""
    file = write_coco(root) / "annotations" / f"instances_{split}.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    return CocoDetection(str(root))


def dragged_from_another_corner(annotation):
    left, top, width, height = annotation["bbox"]
    return {"bbox": [left + width, top + height, -width, -height]}


def crowd_as_a_text(annotation):
    return {"iscrowd": str(annotation.get("iscrowd", 0))}


@pytest.mark.parametrize("rewrite", [dragged_from_another_corner, crowd_as_a_text])
def test_annotations_written_otherwise_are_the_same_boxes(tmp_path, rewrite):
    def change(content):
        for each in content["annotations"]:
            each.update(rewrite(each))

    plain = CocoDetection(str(write_coco(tmp_path / "a"))).train()
    written = changed(tmp_path / "b", "train2017", change).train()
    for index in range(len(plain)):
        pairs = zip(written.boxes(index), plain.boxes(index), strict=True)
        assert all(torch.equal(found, expected) for found, expected in pairs)


def test_boxes_far_left_of_their_images_are_refused(tmp_path):
    def move(content):
        for each in content["annotations"]:
            each["bbox"][0] -= 500

    with pytest.raises(ValueError, match=r"100% of its boxes reach beyond their images"):
        changed(tmp_path, "train2017", move).train()


def test_file_that_is_listed_as_two_images_is_refused(tmp_path):
    def repeat(content):
        content["images"][1]["file_name"] = content["images"][0]["file_name"]

    with pytest.raises(ValueError, match=r"is listed as 2 images, each with a part of its boxes"):
        changed(tmp_path, "train2017", repeat).train()


def test_category_that_training_does_not_list_is_refused(tmp_path):
    def renumber(content):
        for each in content["categories"]:
            each["id"] += 1000
        for each in content["annotations"]:
            each["category_id"] += 1000

    with pytest.raises(ValueError, match=r"category 1001 is none in train2017 and .* in val2017"):
        changed(tmp_path, "val2017", renumber).evaluation()
