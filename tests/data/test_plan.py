"""Which images make up a step: the count rule, the ranks' slices, and divisibility."""

import numpy as np
import pytest

from ser_lightning.data.plan import BatchKey, Plan, count_invertible, per_device


@pytest.mark.parametrize(("ratio", "expected"), [(0.005, 10), (0.01, 20), (0.02, 41)])
def test_count_is_the_rounded_share_of_the_global_batch(ratio, expected):
    assert count_invertible(ratio, 2048) == expected


@pytest.mark.parametrize(("ratio", "expected"), [(0.005, 8), (0.01, 24), (0.02, 40)])
def test_count_is_rounded_to_equal_shares_of_the_ranks_as_in_the_public_code(ratio, expected):
    assert count_invertible(ratio, 2048, num_devices=8) == expected


@pytest.mark.parametrize("num_devices", [2, 8])
def test_every_rank_has_an_invertible_image(num_devices):
    assert count_invertible(2 / 256, 256, num_devices=num_devices) == num_devices


def test_count_of_accumulated_passes_adds_up_to_the_share_of_the_global_batch():
    assert count_invertible(0.01, 2048, accumulate=8) == 3
    assert count_invertible(0.01, 512, accumulate=8) == 2  # a pass needs two images


@pytest.mark.parametrize(("ratio", "batch"), [(0.001, 256), (0.01, 128)])
def test_count_below_two_is_refused_with_a_ratio_that_works(ratio, batch):
    with pytest.raises(ValueError, match="at least 2 are needed; use a ratio of at least") as error:
        count_invertible(ratio, batch)
    remedy = float(str(error.value).split("ratio of at least ")[1].split()[0])
    assert count_invertible(remedy, batch) == 2


@pytest.mark.parametrize("ratio", [0, -0.1, 1.5])
def test_ratio_outside_its_range_is_refused(ratio):
    with pytest.raises(ValueError, match=r"outside \(0, 1\]"):
        count_invertible(ratio, 256)


def test_per_device_divides_by_devices_and_accumulation():
    assert per_device(2048, 8, 2) == 128


def test_per_device_names_sizes_that_divide():
    with pytest.raises(ValueError, match="use 96 or 99, or 1 or 97 devices"):
        per_device(97, 3)


@pytest.mark.parametrize(
    ("size", "num_devices", "accumulate", "remedy"),
    [
        (2048, 6, 1, "use 2046 or 2052, or 4 or 8 devices"),
        (2048, 6, 2, "use 2040 or 2052, or 4 or 8 devices"),
        (16, 32, 1, "use 32 or 64, or 16 devices"),
        (15, 2, 2, "use 12 or 16$"),
    ],
)
def test_per_device_names_numbers_of_devices_that_work(size, num_devices, accumulate, remedy):
    with pytest.raises(ValueError, match=remedy):
        per_device(size, num_devices, accumulate)


def test_plan_covers_every_image_at_most_once_per_epoch():
    plan = Plan(num_images=103, batch_size=10, num_invertible=2, seed=3)
    seen = np.concatenate([np.concatenate(plan.indices(BatchKey(0, s))) for s in range(10)])
    assert plan.steps_per_epoch == 10
    assert len(set(seen)) == len(seen) == 100


def test_plan_with_accumulation_has_whole_groups_of_steps():
    assert (
        Plan(num_images=70, batch_size=10, num_invertible=2, seed=0, accumulate=4).steps_per_epoch
        == 4
    )


def test_plan_order_differs_between_epochs_and_seeds():
    orders = [
        np.concatenate(Plan(50, 50, 2, seed).indices(BatchKey(epoch, 0))).tolist()
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    assert orders[0] != orders[1]
    assert orders[0] != orders[2]


@pytest.mark.parametrize("world_size", [2, 4])
def test_plan_ranks_split_the_batch_of_one_process_in_order(world_size):
    key = BatchKey(2, 1)
    whole = Plan(100, 40, 8, seed=0).indices(key)
    ranks = [Plan(100, 40, 8, 0, rank, world_size).indices(key) for rank in range(world_size)]
    for part in range(2):
        assert np.array_equal(np.concatenate([rank[part] for rank in ranks]), whole[part])


def test_plan_refuses_a_batch_larger_than_the_data_set():
    with pytest.raises(ValueError, match="7 or less"):
        Plan(num_images=7, batch_size=8, num_invertible=0, seed=0)
    with pytest.raises(ValueError, match=r"0 images, .*; use more images"):
        Plan(num_images=0, batch_size=8, num_invertible=0, seed=0)


def test_plan_refuses_a_partition_that_ranks_cannot_share():
    with pytest.raises(ValueError, match=r"6 .* do not divide by 4 processes; go on with 2 "):
        Plan(100, 40, 6, seed=0, rank=0, world_size=4)


@pytest.mark.parametrize(
    ("world_size", "accumulate", "remedy"),
    [
        (1, 1, "use --data.global_batch_size 10 or less$"),
        (4, 1, "use --data.global_batch_size 8 or less$"),
        (2, 4, "use --data.global_batch_size 8 or less$"),
        (12, 1, "devices$"),
        (1, 12, "fewer accumulation steps or devices$"),
    ],
)
def test_too_large_batch_is_told_a_size_that_divides(world_size, accumulate, remedy):
    with pytest.raises(ValueError, match=remedy):
        Plan(10, 24 // accumulate, 0, 0, 0, world_size, accumulate)
