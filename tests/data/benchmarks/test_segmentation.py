"""Batches of images with masks: whole, in squares, flipped together; a test's masks as they are."""

import pytest
import torch

from mask_tree import COLOURS, write_own, write_voc
from ser_lightning.data import Shapes
from ser_lightning.data.benchmarks.segmentation import (
    SegmentationDataModule,
    squared,
    squared_mask,
)
from ser_lightning.data.plan import BatchKey
from ser_lightning.sources.mask_folder import MaskFolder
from ser_lightning.sources.masks import class_counts


def module(root, **options):
    plain = {"mean": (0, 0, 0), "std": (1, 1, 1), "num_workers": 0, "side": 32, "image_size": 16}
    data = SegmentationDataModule(
        MaskFolder(str(root)), **{"global_batch_size": 4, **plain, **options}
    )
    data.setup("fit")
    return data


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_own(tmp_path_factory.mktemp("masks"))


def agreement(pixels, mask):
    """The share of an image's pixels whose colour is that of their class, of those that count."""
    expected = torch.tensor(COLOURS)[mask.long().clamp(max=3)].permute(2, 0, 1) / 255
    near = (pixels - expected).abs().amax(0) < 0.25
    return near[mask != 255].float().mean().item()


def test_image_and_mask_stay_together(root):
    data = module(root)
    dataset, sides = data.train_dataset(), []
    for step in range(3):
        batch = dataset[BatchKey(0, step)]
        assert batch.pixels.shape == (4, 3, 32, 32)
        for pixels, mask in zip(batch.pixels, batch.masks, strict=True):
            assert mask.shape == (32, 32)
            assert mask.dtype == torch.uint8
            assert agreement(pixels, mask) > 0.85  # edges are blurred; measured: 0.90
        for index, mask in zip(batch.indices.tolist(), batch.masks, strict=True):
            plain = squared_mask(data.images("train").images.mask(index), 32)
            sides.append(torch.equal(mask, plain))
            assert sides[-1] or torch.equal(mask, plain.flip(-1))
    assert 0 < sum(sides) < len(sides)  # half of them are mirrored


def test_nothing_is_mirrored_with_probability_0(root):
    batch = module(root, p_flip=0.0).train_dataset()[BatchKey(1, 0)]
    train = MaskFolder(str(root)).train()
    for index, mask in zip(batch.indices.tolist(), batch.masks, strict=True):
        assert torch.equal(mask, squared_mask(train.mask(index), 32))


def test_batch_is_a_function_of_seed_epoch_and_step(root):
    first, again = (module(root).train_dataset()[BatchKey(1, 2)] for _ in range(2))
    other = module(root, seed=1).train_dataset()[BatchKey(1, 2)]
    assert torch.equal(first.pixels, again.pixels)
    assert not torch.equal(first.pixels, other.pixels)


def test_mask_in_a_square_is_that_of_the_nearest_pixel():
    mask = torch.arange(6, dtype=torch.uint8).reshape(2, 3)
    found = squared_mask(mask, 12)
    for y in range(12):
        for x in range(12):
            assert found[y, x] == mask[y * 2 // 12, x * 3 // 12]
    image = torch.full((3, 5, 9), 77, dtype=torch.uint8)
    assert torch.equal(squared(image, 4), torch.full((3, 4, 4), 77, dtype=torch.uint8))


def test_test_shows_each_image_once_with_its_whole_mask(root):
    data = module(root, evaluation_batch_size=2)
    batches = list(data.test_dataloader())
    assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(5))
    test = MaskFolder(str(root)).evaluation()
    masks = [mask for batch in batches for mask in batch.masks]
    assert all(torch.equal(mask, test.mask(index)) for index, mask in enumerate(masks))
    counts = class_counts(data.images("test"))
    assert counts.sum() == sum(int((mask != 255).sum()) for mask in masks)


def test_nothing_is_held_out_and_the_square_is_the_backbones_by_default(root):
    data = module(root, side=None, holdout_fraction=0.3)
    assert (len(data.images("train")), len(data.images("holdout"))) == (12, 0)
    assert data.side == 16
    assert data.describe()["side"] == 16


def test_parts_are_measured_as_parts(root):
    data = module(root, num_train=5, num_test=2)
    assert (len(data.images("train")), len(data.images("test"))) == (5, 2)
    masks = [data.images("test").images.mask(int(i)) for i in data.images("test").positions]
    counts = class_counts(data.images("test"))
    assert counts.sum() == sum(int((mask != 255).sum()) for mask in masks)
    assert "measured on a part of the images" in data.reasons()


def test_own_folders_and_sets_of_another_size_are_not_official(root, tmp_path):
    assert any("folder of one's own" in reason for reason in module(root).reasons())
    with pytest.warns(UserWarning, match="the validation split has 3 files, the released set has"):
        data = module(write_voc(tmp_path))
    assert any("1,449" in reason for reason in data.reasons())


@pytest.mark.filterwarnings("ignore:.*it is skipped")
def test_unreadable_image_is_replaced_with_its_mask_and_left_out_of_the_test(tmp_path):
    write_own(tmp_path)
    for name in ("train/images/train3.jpg", "val/images/val1.jpg"):
        (tmp_path / name).write_bytes(b"")  # the sixth by name, and the second
    data = module(tmp_path, on_bad_image="skip", max_bad_share=1.0)
    dataset = data.train_dataset()
    batches = [dataset[BatchKey(0, step)] for step in range(3)]
    tested = list(data.test_dataloader())
    assert torch.cat([batch.unreadable for batch in batches]).tolist() == [5]
    for batch in batches:
        for pixels, mask in zip(batch.pixels, batch.masks, strict=True):
            assert agreement(pixels, mask) > 0.85
    assert torch.cat([batch.indices for batch in tested]).tolist() == [0, 2, 3, 4]


def test_source_without_masks_is_refused():
    with pytest.raises(ValueError, match=r"Shapes has no masks; use --data.source MaskFolder"):
        SegmentationDataModule(Shapes(num_train=8, num_evaluation=8))
