"""The data module: what it emits, and what it refuses before training."""

import lightning as L
import pytest
import torch
from jsonargparse import ArgumentParser
from PIL import Image

from ser_lightning.batch import PartitionedBatch, ViewNeeds
from ser_lightning.data import (
    BatchKey,
    CropViews,
    ImageFolder,
    InvertibleViews,
    LocalCrops,
    PartitionedDataModule,
    RotatedCrops,
    Shapes,
)
from ser_lightning.data.render import HostBatch


def module(**options):
    defaults = {
        "source": Shapes(num_train=64, num_evaluation=16, image_size=16),
        "global_batch_size": 16,
        "invertible": InvertibleViews(0.25),
        "image_size": 16,
        "patch_size": 4,
        "num_workers": 0,
    }
    return PartitionedDataModule(**{**defaults, **options})


def with_trainer(data, **options):
    data.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, **options)
    return data


def test_emits_partitioned_batches_after_transfer():
    data = module()
    data.setup("fit")
    host = next(iter(data.train_dataloader()))
    assert isinstance(host, HostBatch)
    batch = data.on_after_batch_transfer(host, 0)
    assert isinstance(batch, PartitionedBatch)
    assert [len(view.pixels) for view in (*batch.crop, *batch.invertible)] == [12, 12, 4, 4]
    assert all(view.pixels.dtype == torch.float32 for view in batch.crop)


def test_emits_plain_batches_without_an_invertible_pipeline():
    data = module(invertible=None)
    data.setup("fit")
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert batch.invertible == ()
    assert len(batch.crop[0].pixels) == 16


def test_local_crops_give_both_sub_batches_as_many_views():
    data = module(crop=CropViews(local=LocalCrops(num=4, size=8)))
    data.setup("fit")
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert [len(view.pixels) for view in batch.crop] == [12] * 6
    assert [len(view.pixels) for view in batch.invertible] == [4] * 6


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_do_not_depend_on_workers(num_workers):
    data = module(num_workers=num_workers)
    data.setup("fit")
    by_loader = list(data.train_dataloader())
    by_key = [data.train_dataset()[BatchKey(0, step)] for step in range(4)]
    for loaded, direct in zip(by_loader, by_key, strict=True):
        assert torch.equal(loaded.indices, direct.indices)
        assert torch.equal(loaded.crop[1].pixels, direct.crop[1].pixels)
        assert torch.equal(loaded.invertible[0].element.flip, direct.invertible[0].element.flip)


def test_bank_is_a_balanced_subset_and_queries_are_the_evaluation_split():
    data = with_trainer(module(bank_size=20, evaluation_crop_fraction=1.0))
    data.setup("fit")
    data.trainer.state.fn = "fit"
    bank, queries = data.val_dataloader()
    labels = torch.cat([batch.label for batch in bank])
    assert len(labels) == 20
    assert torch.bincount(labels).max() <= 2
    assert sum(len(batch.label) for batch in queries) == 16


def test_batch_that_does_not_divide_by_devices_is_refused_before_training():
    data = with_trainer(module(global_batch_size=15), accumulate_grad_batches=2)
    with pytest.raises(ValueError, match="15 does not divide by 1 devices x 2 accumulation"):
        data.setup("fit")


def test_partition_below_two_images_is_refused_before_training():
    with pytest.raises(ValueError, match="at least 2 are needed"):
        module(invertible=InvertibleViews(0.01)).setup("fit")


def test_batch_larger_than_the_data_set_is_refused_before_training():
    with pytest.raises(ValueError, match="64 images, fewer than one global batch of 128"):
        module(global_batch_size=128).setup("fit")


def test_image_size_that_is_no_multiple_of_the_patch_is_refused():
    with pytest.raises(ValueError, match="image size 18 is not a multiple of the patch size 4"):
        module(image_size=18)


@pytest.mark.parametrize(("size", "nearest"), [(97, 96), (1, 4)])
def test_local_crop_size_that_is_no_multiple_of_the_patch_is_refused(size, nearest):
    message = f"local crop size {size} is not a multiple of the patch size 4; use {nearest}"
    with pytest.raises(ValueError, match=message):
        module(crop=CropViews(local=LocalCrops(size=size)))


def test_odd_local_crops_are_refused_with_an_invertible_sub_batch_only():
    crop = CropViews(local=LocalCrops(num=3, size=8))
    with pytest.raises(ValueError, match=r"3 local crops do not form pairs, .*; use 4, or set"):
        module(crop=crop)
    assert module(crop=crop, invertible=None).crop.local.num == 3


def test_another_number_of_local_crops_is_refused_at_resume():
    data = with_trainer(module())
    data.trainer.state.fn = "fit"
    data.setup("fit")
    with pytest.raises(ValueError, match="num_local was 4, is 0"):
        data.load_state_dict(data.state_dict() | {"num_local": 4})


def test_state_of_another_batch_size_is_refused_at_resume():
    data = with_trainer(module())
    data.trainer.state.fn = "fit"
    data.setup("fit")
    saved = data.state_dict() | {"batch_size": 32}
    with pytest.raises(ValueError, match="batch_size was 32, is 16"):
        data.load_state_dict(saved)


def test_another_partition_ratio_is_refused_at_resume():
    data = with_trainer(module())
    data.trainer.state.fn = "fit"
    data.setup("fit")
    with pytest.raises(ValueError, match=r"partition_ratio was 0\.5, is 0\.25"):
        data.load_state_dict(data.state_dict() | {"partition_ratio": 0.5})


def test_resume_keeps_the_partition_of_the_checkpoint():
    data = with_trainer(module())
    data.trainer.state.fn = "fit"
    data.setup("fit")
    data.load_state_dict(data.state_dict() | {"num_invertible": 6})
    assert data.train_dataset().make.plan.num_invertible == 6


@pytest.mark.parametrize("paired", [False, True])
def test_resume_with_or_without_pairs_is_refused(paired):
    data = with_trainer(module(needs=ViewNeeds(paired=paired)))
    data.trainer.state.fn = "fit"
    data.setup("fit")
    data.load_state_dict(data.state_dict())
    with pytest.raises(ValueError, match=f"paired was {not paired}, is {paired}"):
        data.load_state_dict(data.state_dict() | {"paired": not paired})


def test_checkpoint_that_does_not_mention_pairs_had_none():
    for paired in (False, True):
        data = with_trainer(module(needs=ViewNeeds(paired=paired)))
        data.trainer.state.fn = "fit"
        data.setup("fit")
        later = ("paired", "accumulate")
        saved = {name: value for name, value in data.state_dict().items() if name not in later}
        if paired:
            with pytest.raises(ValueError, match="paired was False, is True"):
                data.load_state_dict(saved)
        else:
            data.load_state_dict(saved)


def test_extra_views_may_change_at_resume():
    saved = []
    for needs in (ViewNeeds(), ViewNeeds(plain=True, rotated=True)):
        data = with_trainer(module(needs=needs, rotated=RotatedCrops(size=8)))
        data.trainer.state.fn = "fit"
        data.setup("fit")
        saved.append(data.state_dict())
    assert saved[0] == saved[1]


def test_needs_and_rotated_crops_are_set_from_a_configuration():
    parser = ArgumentParser()
    parser.add_class_arguments(PartitionedDataModule, "data")
    source = {"class_path": "ser_lightning.data.Shapes", "init_args": {"num_train": 64}}
    given = {"data": {"source": source, "rotated": {"size": 8}, "needs": {"paired": True}}}
    config = parser.parse_object(given)
    assert parser.parse_string(parser.dump(config)) == config
    data = parser.instantiate(config).data
    assert data.rotated == RotatedCrops(size=8)
    assert data.needs == ViewNeeds(paired=True)


def test_without_an_evaluation_split_nothing_is_compared_with_itself(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (32, 32)).save(tmp_path / name / "1.png")
    data = PartitionedDataModule(ImageFolder(str(tmp_path)), 2, num_workers=0)
    data.setup("validate")
    assert data.val_dataloader() == []


def test_what_was_found_is_printed_at_the_start_once(tmp_path, monkeypatch):
    printed = []
    monkeypatch.setattr("ser_lightning.sources.opening.rank_zero_info", printed.append)
    data = PartitionedDataModule(Shapes(24, 12), 8, num_workers=0)
    for stage in ("validate", "test"):
        data.setup(stage)
    (text,) = printed
    assert text.startswith(
        "data: shapes_num_evaluation_12_num_train_24, 24 images to train on, 12 classes ("
    )


@pytest.mark.parametrize(
    "options",
    [
        {"mean": (123.7, 116.3, 103.5)},
        {"std": (0.2, 0.0, 0.2)},
        {"std": (58.4, 57.1, 57.4)},
        {"image_size": 0},
        {"global_batch_size": -16},
        {"num_workers": -1},
        {"max_bad_share": 1.5},
        {"evaluation_crop_fraction": 1.2},
        {"evaluation_crop_fraction": 0.0001},
        {"bank_size": 0},
        {"patch_size": 0},
    ],
)
def test_numbers_out_of_their_ranges_are_refused(options):
    with pytest.raises(ValueError, match=f"DataModule: {next(iter(options))} .* must be"):
        module(**options)


def resumed(world_size, saved, **options):
    """Goes on with a checkpoint's batches on a number of processes."""
    strategy = {"devices": world_size, "strategy": "ddp" if world_size > 1 else "auto"}
    trainer = {name: options.pop(name) for name in ("accumulate_grad_batches",) if name in options}
    data = with_trainer(module(**options), **strategy, **trainer)
    data.trainer.state.fn = "fit"
    data.setup("fit")
    data.load_state_dict(data.state_dict() | saved)
    return data


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_number_of_processes_that_shares_both_sub_batches_goes_on_with_the_same_batches(world_size):
    plan = resumed(world_size, {"num_invertible": 4}).plan()
    assert (plan.batch_size, plan.num_invertible, plan.world_size) == (16, 4, world_size)


@pytest.mark.parametrize(
    ("world_size", "saved", "options", "message"),
    [
        (3, {}, {}, "16 does not divide by 3 devices .* or 2 or 4 devices"),
        (4, {"num_invertible": 6}, {}, "6 invertible .* by 4 processes; go on with 2 processes"),
        (8, {"num_invertible": 4}, {}, "4 invertible .* by 8 processes; go on with 4 processes"),
        (
            1,
            {"batch_size": 16},
            {"accumulate_grad_batches": 2},
            r"batch_size was 16, is 8.*global_batch_size` / `trainer.accumulate_grad_batches`",
        ),
        (
            4,
            {"num_invertible": 4},
            {"needs": ViewNeeds(paired=True)},
            "3 images, which do not form the pairs .* or number of processes",
        ),
    ],
    ids=["batch", "sub-batch", "sub-batch of 8", "accumulation", "pairs"],
)
def test_number_of_processes_that_cannot_share_a_batch_is_refused_with_one_that_can(
    world_size, saved, options, message
):
    with pytest.raises(ValueError, match=message):
        resumed(world_size, saved, **options)
