"""3DIEBench: official lists, whole objects in a split, one random view per epoch."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from object_tree import NUM_VIEWS, SYNSETS, shade, write_bench
from ser_lightning.data import CropViews, Shapes
from ser_lightning.data.benchmarks import threediebench
from ser_lightning.data.benchmarks.threediebench import ThreeDIEBenchDataModule, drawn_views
from ser_lightning.data.plan import BatchKey
from ser_lightning.sources import opening
from ser_lightning.sources.threediebench import ThreeDIEBench


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return write_bench(tmp_path_factory.mktemp("bench"), num_train=4, num_val=1)


@pytest.fixture
def copy(bench, tmp_path):
    """The lists alone, to be changed."""
    for file in bench.glob("*.npy"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def module(bench, **options):
    crop = CropViews(scale=(1, 1), ratio=(1, 1), p_flip=0)
    defaults = {"global_batch_size": 3, "holdout_fraction": 0.25, "num_workers": 0}
    sizes = {"image_size": 8, "evaluation_crop_fraction": 1.0, "mean": (0, 0, 0), "std": (1, 1, 1)}
    source = ThreeDIEBench(str(bench))
    data = ThreeDIEBenchDataModule(source, crop=crop, **{**defaults, **sizes, **options})
    with pytest.warns(UserWarning, match="the test split has 150 files"):
        data.setup("fit")
    return data


def views_of(pixels):
    """Which view each image shows, by its shade; JPEG moves it by less than a step."""
    return (255 * pixels[:, 1].mean((1, 2)) / shade(1)).round().int().tolist()


def test_lists_name_fifty_views_of_each_object(bench):
    source = ThreeDIEBench(str(bench))
    train, test = source.train(), source.evaluation()
    assert len(train) == 12 * NUM_VIEWS
    assert len(test) == 3 * NUM_VIEWS
    assert train.class_names == test.class_names == SYNSETS
    assert train.labels[:NUM_VIEWS].tolist() == [0] * NUM_VIEWS
    assert train.labels[NUM_VIEWS].item() == 1
    assert train.path(4 * NUM_VIEWS + 7) == str(bench / SYNSETS[1] / "train1" / "image_7.jpg")
    assert views_of(test.read(2 * NUM_VIEWS + 41)[None] / 255) == [41]


def test_lists_may_lie_elsewhere(bench, copy):
    source = ThreeDIEBench(str(bench), splits=str(copy))
    assert source.train().path(0) == str(bench / SYNSETS[0] / "train0" / "image_0.jpg")


def test_splits_have_whole_objects_and_do_not_overlap(bench):
    data = module(bench)
    train, holdout, test = (data.images(split) for split in ("train", "holdout", "test"))
    assert (len(train), len(holdout), len(test)) == (9, 3 * NUM_VIEWS, 3 * NUM_VIEWS)
    held_out = {Path(holdout.path(i)).parent for i in range(len(holdout))}
    trained = {Path(train.images.path(i * NUM_VIEWS)).parent for i in range(len(train))}
    assert len(held_out) == 3
    assert len(held_out | trained) == 12
    assert sorted(holdout.object_labels.tolist()) == [0, 1, 2]
    assert all("val" in Path(test.path(i)).parent.name for i in range(len(test)))


def test_epoch_shows_every_object_once_from_a_side_of_its_own(bench):
    data, seen = module(bench), []
    dataset, num_steps = data.train_dataset(), data.plan().steps_per_epoch
    for epoch in range(3):
        batches = [dataset[BatchKey(epoch, step)] for step in range(num_steps)]
        indices = torch.cat([batch.indices for batch in batches])
        assert sorted(indices.tolist()) == list(range(9))
        views = views_of(torch.cat([batch.pixels for batch in batches]))
        seen.append([view for _, view in sorted(zip(indices.tolist(), views, strict=True))])
    assert len({tuple(views) for views in seen}) == 3
    assert len({view for views in seen for view in views}) > 9


def test_view_is_a_function_of_seed_epoch_and_object(bench):
    def batch(seed, key, before=()):
        dataset = module(bench, seed=seed).train_dataset()
        for earlier in before:
            dataset[earlier]
        return dataset[key]

    first = batch(0, BatchKey(1, 2))
    again = batch(0, BatchKey(1, 2), before=[BatchKey(0, 0), BatchKey(4, 1)])
    assert torch.equal(first.pixels, again.pixels)
    views = drawn_views(3, 1, np.arange(9))
    assert views.tolist() == [drawn_views(3, 1, np.array([i])).item() for i in range(9)]
    assert views.tolist() != drawn_views(4, 1, np.arange(9)).tolist()


def test_views_of_many_epochs_are_uniform():
    views = [drawn_views(0, epoch, np.array([5])).item() - 5 * NUM_VIEWS for epoch in range(2000)]
    counts = np.bincount(views, minlength=NUM_VIEWS)
    assert len(counts) == NUM_VIEWS
    assert ((counts - 40) ** 2 / 40).sum() < 86  # chi-squared, 49 degrees, p = 0.001


def test_test_split_has_all_views_in_order(bench):
    batches = list(module(bench, evaluation_batch_size=NUM_VIEWS).test_dataloader())
    assert [views_of(batch.pixels) for batch in batches] == [list(range(NUM_VIEWS))] * 3


def test_clean_training_images_do_not_depend_on_the_seed(bench):
    first, other = (module(bench, seed=seed).images("train") for seed in (0, 1))
    assert all(torch.equal(first.read(i), other.read(i)) for i in range(9))


@pytest.fixture
def damaged(bench, tmp_path):
    """Views 0 to 48 of a training object and three of a test object cannot be read."""
    root = tmp_path / "damaged"
    shutil.copytree(bench, root)
    for view in range(49):
        (root / SYNSETS[0] / "train0" / f"image_{view}.jpg").write_bytes(b"")
    for view in range(3):
        (root / SYNSETS[0] / "val0" / f"image_{view}.jpg").unlink()
    return root


@pytest.mark.filterwarnings("ignore:.*it is skipped")
def test_bad_view_is_replaced_by_another_view_of_its_object_and_counted(damaged):
    options = {"holdout_fraction": 0.0, "on_bad_image": "skip", "max_bad_share": 1.0}
    data = module(damaged, **options)
    dataset = data.train_dataset()
    batches = {
        key: dataset[key]
        for key in (BatchKey(epoch, step) for epoch in range(3) for step in range(4))
    }
    for epoch in range(3):
        indices = torch.cat([b.indices for key, b in batches.items() if key.epoch == epoch])
        assert sorted(indices.tolist()) == list(range(12))  # every object, each epoch
    shown = [
        view
        for batch in batches.values()
        for view, index in zip(views_of(batch.pixels), batch.indices.tolist(), strict=True)
        if index == 0
    ]
    assert shown == [49] * 3  # all that can be used of it
    bad = {int(i) for batch in batches.values() for i in batch.unreadable}
    assert bad == dataset.make.reader.bad  # files, not objects
    assert 3 < len(bad) <= len(bad & set(range(49)))
    again = module(damaged, **options).train_dataset()
    key = BatchKey(2, 1)
    assert torch.equal(again[key].pixels, batches[key].pixels)  # whatever was read before


@pytest.mark.filterwarnings("ignore:.*it is skipped")
def test_bad_views_of_the_test_are_left_out_one_by_one(damaged):
    data = module(damaged, on_bad_image="skip", max_bad_share=1.0)
    batches = list(data.test_dataloader())
    assert sum(len(batch.pixels) for batch in batches) == 3 * NUM_VIEWS - 3
    assert data.unreadable["test"] == {0, 1, 2}


def test_what_was_found_is_printed(bench, monkeypatch):
    printed = []
    monkeypatch.setattr(opening, "rank_zero_info", printed.append)
    module(bench)
    (text,) = printed
    assert "3diebench, 600 images to train on, 3 classes (02691156, 02747177, 04554684)" in text
    assert "150 images to evaluate on" in text
    assert f"50 views of each of 12 and 3 objects in {bench}, by the lists of {bench}" in text


def test_parts_count_objects_and_images(bench):
    data = module(bench, num_train=6, num_test=12, holdout_fraction=0.0)
    assert data.images("train").labels.bincount().tolist() == [2, 2, 2]
    assert data.images("test").labels.bincount().tolist() == [4, 4, 4]
    assert not data.is_whole()
    assert data.dataset_name == "3diebench"


def test_another_number_of_test_images_is_marked(bench, monkeypatch):
    reason = "the test split has 150 files, the released set has 527,600"
    assert module(bench).reasons() == (reason,)
    assert len(module(bench, num_test=12).reasons()) == 2
    monkeypatch.setattr(threediebench, "BENCH3D_VAL", 3 * NUM_VIEWS)
    data = ThreeDIEBenchDataModule(ThreeDIEBench(str(bench)), num_workers=0)
    data.setup("fit")
    assert data.reasons() == ()


def test_missing_list_is_refused_with_the_expected_layout(bench, copy):
    (copy / "val_labels.npy").unlink()
    with pytest.raises(FileNotFoundError) as error:
        ThreeDIEBench(str(bench), str(copy)).train()
    assert f"{copy / 'val_labels.npy'} does not exist" in str(error.value)
    assert f"{bench}/<synset>/<object>/image_0.jpg" in str(error.value)


def test_folder_without_the_views_is_refused_with_the_expected_layout(copy):
    message = r"train0 does not exist, one of 12 missing folders of 12 objects; expected"
    with pytest.raises(FileNotFoundError, match=message):
        ThreeDIEBench(str(copy)).evaluation()


def test_objects_that_were_not_unpacked_are_refused(tmp_path):
    root = write_bench(tmp_path, num_train=1, num_val=2)
    for path in (root / SYNSETS[2]).glob("val*"):
        path.rename(tmp_path / path.name)
    message = r"val0 does not exist, one of 2 missing folders of 6 objects; expected"
    with pytest.raises(FileNotFoundError, match=message):
        ThreeDIEBench(str(root)).train()


def test_lists_that_do_not_belong_together_are_refused(bench, copy):
    np.save(copy / "val_labels.npy", np.array([0, 1]))
    with pytest.raises(ValueError, match=r"shape \(3,\) and val_labels.npy \(2,\), .*; take both"):
        ThreeDIEBench(str(bench), str(copy)).train()
    np.save(copy / "val_labels.npy", np.eye(3))
    with pytest.raises(ValueError, match=r"and val_labels.npy \(3, 3\), not one folder and one"):
        ThreeDIEBench(str(bench), str(copy)).train()
    np.save(copy / "val_labels.npy", np.array([0, 2, 1]))
    with pytest.raises(ValueError, match=r"label 2 belongs to .* and to .*; take all four"):
        ThreeDIEBench(str(bench), str(copy)).train()


def test_lists_of_bytes_are_read(bench, copy):
    expected = ThreeDIEBench(str(bench)).train().folders
    file = copy / "train_images.npy"
    np.save(file, np.load(file).astype(np.bytes_))
    assert np.array_equal(ThreeDIEBench(str(bench), str(copy)).train().folders, expected)


def test_source_without_objects_is_refused():
    with pytest.raises(ValueError, match=r"Shapes has no views of objects; use --data.source"):
        ThreeDIEBenchDataModule(Shapes(num_train=8, num_evaluation=4, image_size=16))
