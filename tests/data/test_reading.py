"""Reading: a few images at a time, unreadable ones replaced in training, left out of evaluation."""

import numpy as np
import pytest
import torch

from ser_lightning.data import reading
from ser_lightning.data.clean import Clean
from ser_lightning.data.datasets import Batches, CleanImages, TrainingViews
from ser_lightning.data.draws import Canvas
from ser_lightning.data.loaders import BatchLoader, SlotKeys
from ser_lightning.data.pipelines import CropViews, InvertibleViews
from ser_lightning.data.plan import BatchKey, Plan
from ser_lightning.data.reading import Reader, made
from ser_lightning.sources.base import ImageSet, Part, UnreadableImage

SKIPPED = pytest.mark.filterwarnings("ignore:.*it is skipped")


class Images(ImageSet):
    """Gray images whose brightness is their index; some of them are damaged."""

    folder = "/data/photographs"

    def __init__(self, count=200, bad=(), size=16):
        self.labels = torch.arange(count) % 4
        self.class_names = ("a", "b", "c", "d")
        self.bad, self.size = set(bad), size
        self.num_read = 0

    def read(self, index):
        self.num_read += 1
        if index in self.bad:
            raise UnreadableImage(f"image_{index}.jpg cannot be read")
        return torch.full((3, self.size, self.size), index % 256, dtype=torch.uint8)


def training(images, on_bad_image="skip", **options):
    plan = Plan(len(images), 40, 8, 0)
    pipelines = CropViews(), InvertibleViews(0.2)
    reader = Reader(images, on_bad_image, **options)
    return TrainingViews(reader, plan, *pipelines, Canvas(16, 4))


def test_unreadable_image_stops_the_run_with_its_name_and_the_option():
    with pytest.raises(UnreadableImage, match=r"image_\d+\.jpg .*: --data\.on_bad_image skip"):
        training(Images(bad=range(200)), "fail")(BatchKey(0, 0))


def test_unreadable_image_is_named_once_and_not_tried_again():
    images = Images(bad=[3])
    reader = Reader(images, "skip")
    with pytest.warns(UserWarning, match=r"image_3\.jpg cannot be read; it is skipped"):
        first = reader.replaced(3, seed=0, epoch=0)
    assert first[0][0, 0, 0] == first[1] != 3
    num_read = images.num_read
    assert reader.replaced(3, 0, 0)[1] == first[1]
    assert images.num_read == num_read + 1
    assert reader.bad == {3}


@SKIPPED
def test_replacement_is_a_function_of_seed_epoch_and_position():
    def chosen(seed, epoch, bad):
        return [Reader(Images(bad=bad), "skip").replaced(p, seed, epoch)[1] for p in range(8)]

    bad = range(8)
    assert chosen(0, 0, bad) == chosen(0, 0, bad)
    assert chosen(0, 0, bad) != chosen(1, 0, bad)
    assert chosen(0, 0, bad) != chosen(0, 1, bad)
    # another bad image moves nothing but its own rows
    other = next(p for p in chosen(0, 0, bad))
    before, after = chosen(0, 0, bad), chosen(0, 0, [*bad, other])
    assert [b == a for b, a in zip(before, after, strict=True)] == [b != other for b in before]


@SKIPPED
def test_replacements_of_neighbours_come_from_all_over_the_set():
    reader = Reader(Images(2000, bad=range(100, 120)), "skip", max_bad_share=1)
    others = {reader.replaced(p, 0, 0)[1] for p in range(100, 120)}
    assert len(others) >= 19
    assert max(others) - min(others) > 1000


@SKIPPED
def test_training_counts_unreadable_images_and_changes_no_other_row():
    key, clean = BatchKey(0, 1), training(Images())(BatchKey(0, 1))
    bad = [int(clean.indices[3]), int(clean.indices[35])]
    batch = training(Images(bad=bad))(key)
    assert batch.unreadable.tolist() == bad
    same = batch.indices == clean.indices
    assert same.logical_not().nonzero().flatten().tolist() == [3, 35]
    assert torch.equal(batch.label, batch.indices % 4)
    for view, other in zip(batch.crop, clean.crop, strict=True):
        assert torch.equal(view.pixels[same[:32]], other.pixels[same[:32]])
        for field, without in zip(view.record, other.record, strict=True):
            assert np.array_equal(field, without)  # draws are those of the place


@SKIPPED
def test_too_many_unreadable_images_stop_the_run_with_folder_and_cause():
    message = (
        r"^11 of \d+ images of /data/photographs cannot be read, more than the share of 0\.01; the "
        r"last one: image_\d+\.jpg cannot be read\. .* --data\.max_bad_share$"
    )
    make = training(Part(Images(bad=range(0, 200, 2)), np.arange(200)))
    with pytest.raises(UnreadableImage, match=message):
        make(BatchKey(0, 0))
    allowed = training(Images(bad=range(0, 200, 2)), max_bad_share=0.6)
    assert len(allowed(BatchKey(0, 0)).unreadable) > 11


@SKIPPED
def test_a_data_set_without_readable_images_is_refused():
    with pytest.raises(
        UnreadableImage, match=r"^none of the 3 images .* can be read; .*give this part of the set"
    ):
        Reader(Images(3, bad=range(3)), "skip").replaced(0, 0, 0)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, "read NoneType as image 3"),
        (torch.rand(3, 8, 8), r"read torch.float32 of shape \(3, 8, 8\) as image 3"),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), r"read torch.uint8 of shape \(8, 8, 3\)"),
        (torch.zeros(4, 8, 8, dtype=torch.uint8), r"read torch.uint8 of shape \(4, 8, 8\)"),
        (np.zeros((3, 8, 8), np.uint8), "read ndarray"),
    ],
    ids=["nothing", "floats", "channels last", "four channels", "array"],
)
@pytest.mark.parametrize("on_bad_image", ["skip", "fail"])
def test_what_is_no_image_is_refused_with_its_source(given, words, on_bad_image):
    images = Images()
    images.read = lambda index: given
    part = Part(images, np.array([7, 3]))
    with pytest.raises(ValueError, match=f"^Images {words}.* must return a torch.uint8 tensor"):
        Reader(part, on_bad_image).read(1)


def evaluated(images, **options):
    """The batches of an evaluation, and the slots that the loader says were left out."""
    positions = np.arange(0, len(images), 2)
    make = CleanImages(
        Reader(images, "skip", **options), Clean(16, mean=(0,) * 3, std=(1,) * 3), positions
    )
    dataset, left_out = Batches(make, len(positions)), set()
    loader = BatchLoader(dataset, SlotKeys(dataset, (len(positions), 4)), 0, left_out.update)
    batches = list(loader)
    assert loader.unreadable == left_out
    return batches, left_out


@SKIPPED
def test_evaluation_leaves_unreadable_images_out_and_counts_no_other_twice():
    batches, left_out = evaluated(Images(40, bad=[6, 7, 10, 32, 34, 36, 38]))
    assert left_out == {3, 5, 16, 17, 18, 19}  # the last batch has nothing left; 7 is not asked for
    slots = torch.cat([batch.indices for batch in batches])
    assert slots.tolist() == [s for s in range(16) if s not in left_out]
    shown = torch.cat([batch.pixels[:, 0, 0, 0] for batch in batches])
    assert (shown * 255).round().tolist() == (2 * slots).tolist()
    assert torch.cat([batch.label for batch in batches]).tolist() == (2 * slots % 4).tolist()


@SKIPPED
def test_evaluation_measures_the_share_of_the_whole_set():
    """Twenty bad files in a row are no reason to stop where the set is large."""
    _, left_out = evaluated(Images(2000, bad=range(40)))
    assert len(left_out) == 20
    with pytest.raises(UnreadableImage, match="of 200 images"):
        evaluated(Images(200, bad=range(40)))


@pytest.mark.parametrize("pairs", [False, True])
def test_images_are_dropped_before_the_next_ones_are_read(monkeypatch, pairs):
    monkeypatch.setattr(reading, "HANDFUL", 2 * 3 * 16 * 16)
    sizes = []
    images = Images(9 if not pairs else 10)
    batch, rows, positions = made(
        Reader(images).handfuls(np.arange(len(images)), (0, 0), pairs),
        lambda handful: sizes.append(images.num_read) or torch.stack(handful.images)[:, 0, 0, 0],
    )
    assert sizes == ([2, 4, 6, 8, 9] if not pairs else [2, 4, 6, 8, 10])
    assert batch.tolist() == rows.tolist() == positions.tolist() == list(range(len(images)))


def test_batches_do_not_depend_on_how_many_images_are_held(monkeypatch):
    whole = training(Images(), "fail")(BatchKey(1, 2))
    monkeypatch.setattr(reading, "HANDFUL", 1)
    single = training(Images(), "fail")(BatchKey(1, 2))
    for view, other in zip(
        whole.crop + whole.invertible, single.crop + single.invertible, strict=True
    ):
        assert torch.equal(view.pixels, other.pixels)
        assert all(map(np.array_equal, view.record, other.record))
        if view.element is not None:
            assert torch.equal(view.element.flip, other.element.flip)
            assert view.element[2:] == other.element[2:]
    assert torch.equal(whole.indices, single.indices)
