import itertools
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ser_lightning.groups import GroupSampler, relative

GRID = (14, 14)


def draw(seed, num_images=4, grid=GRID, **options):
    rng = np.random.default_rng(seed)
    uniforms = rng.random((num_images, 2, 2))
    return GroupSampler(**options).sample(num_images, grid, rng, uniforms)


def codes(element):
    """0..7: the flip and the quarter turns of each element."""
    return (element.flip.long() * 4 + element.quarter_turns).tolist()


def chi_square(counts):
    expected = counts.sum() / counts.size
    return ((counts - expected) ** 2 / expected).sum()


def joint_counts(num_steps=4000, **options):
    """How often each (view 1, view 2) pair of D4 elements occurs for the first image."""
    counts = np.zeros((8, 8))
    for seed in range(num_steps):
        first, second = draw(seed, num_images=1, **options)
        counts[codes(first)[0], codes(second)[0]] += 1
    return counts


def test_views_are_uniform_and_independent():
    counts = joint_counts()
    # 0.999 quantiles of chi-square with 7 and 63 degrees of freedom: 24.3 and 103.4.
    assert chi_square(counts.sum(1)) < 24.3
    assert chi_square(counts.sum(0)) < 24.3
    assert chi_square(counts) < 103.4


def test_images_of_a_batch_differ():
    first, _ = draw(0, num_images=64)
    assert len(set(codes(first))) == 4  # one parity, so 4 of 8


def test_relative_element_reaches_all_eight():
    reached = set(itertools.chain(*(codes(relative(*draw(seed))) for seed in range(100))))
    assert reached == set(range(8))


def test_complementary_relative_element_is_each_reflection_equally_often():
    counts = np.zeros(8)
    for seed in range(2000):
        counts[codes(relative(*draw(seed, num_images=1, pairing="complementary")))[0]] += 1
    assert counts[:4].sum() == 0
    assert chi_square(counts[4:]) < 16.3  # 0.999 quantile, 3 degrees of freedom


def test_complementary_negates_flip_and_half_turn_up_to_a_turn_of_the_whole_view():
    for seed in range(50):
        first, second = draw(seed, num_images=16, pairing="complementary")
        assert (first.flip ^ second.flip).all()
        differs = first.half_turn ^ second.half_turn
        assert differs.all() or not differs.any()


def test_complementary_marginals_are_uniform():
    counts = joint_counts(2000, pairing="complementary")
    assert chi_square(counts.sum(1)) < 24.3
    assert chi_square(counts.sum(0)) < 24.3


def test_grids_of_224_pixels_have_sides_10_to_18_and_130_to_270_tokens():
    grids = [view.grid for seed in range(3000) for view in draw(seed, num_images=1)]
    sides = set(itertools.chain(*grids))
    tokens = [h * w for h, w in grids]
    assert sides == set(range(10, 19))
    assert min(tokens) >= 130
    assert max(tokens) <= 270
    assert np.mean(tokens) == pytest.approx(196, abs=3)
    assert np.mean([h > w for h, w in grids]) == pytest.approx(
        np.mean([h < w for h, w in grids]), abs=0.03
    )


def test_grids_of_96_pixels_have_sides_4_to_8_and_24_to_49_tokens():
    grids = [view.grid for seed in range(3000) for view in draw(seed, num_images=1, grid=(6, 6))]
    assert set(itertools.chain(*grids)) == set(range(4, 9))
    assert min(h * w for h, w in grids) >= 24
    assert max(h * w for h, w in grids) <= 49


@settings(deadline=None, derandomize=True)
@given(st.integers(0, 2**32), st.tuples(st.integers(1, 7), st.integers(1, 7)))
def test_small_base_grids_give_whole_sides_of_at_least_one(seed, grid):
    for view in draw(seed, grid=grid):
        assert all(isinstance(side, int) and side >= 1 for side in view.grid)


def test_rotation_off_gives_no_turns_and_keeps_the_rest():
    for seed in range(20):
        for off, on in zip(draw(seed, rotation=False), draw(seed), strict=True):
            assert off.quarter_turns.tolist() == [0] * 4
            assert off.grid == on.grid
            assert off.flip.tolist() == on.flip.tolist()


def test_flip_off_gives_no_flips_and_keeps_the_rest():
    for seed in range(20):
        for off, on in zip(draw(seed, flip=False), draw(seed), strict=True):
            assert not off.flip.any()
            assert off.quarter_turns.tolist() == on.quarter_turns.tolist()
            assert off.grid == on.grid


def test_scale_off_gives_the_base_grid():
    assert all(view.grid == GRID for seed in range(20) for view in draw(seed, scale=False))


def test_rotation_and_flip_off_leave_every_view_upright():
    for view in draw(3, rotation=False, flip=False):
        assert codes(view) == [0] * 4


def test_grid_and_parity_depend_on_the_shared_generator_only():
    sampler = GroupSampler()
    views = [
        sampler.sample(n, GRID, np.random.default_rng(7), np.full((n, 2, 2), value))
        for n, value in ((2, 0.1), (5, 0.9))
    ]
    for one, other in zip(*views, strict=True):
        assert (one.grid, one.quarter_turn) == (other.grid, other.quarter_turn)


def test_one_image_does_not_depend_on_the_others():
    uniforms = np.random.default_rng(0).random((6, 2, 2))
    whole = GroupSampler().sample(6, GRID, np.random.default_rng(1), uniforms)
    part = GroupSampler().sample(3, GRID, np.random.default_rng(1), uniforms[3:])
    for one, other in zip(whole, part, strict=True):
        assert codes(one)[3:] == codes(other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"area": (0.0, 1.3)}, r"area \(0.0, 1.3\) must be"),
        ({"area": (1.3, 0.7)}, "area"),
        ({"area": (100, 200)}, r"area \(100, 200\) must be .* <= 16; the default is"),
        ({"aspect": (2.0, 1.0)}, "aspect"),
        ({"aspect": (1.0,)}, "aspect"),
        (
            {"pairing": "opposite"},
            "pairing 'opposite' must be one of 'independent', 'comple",
        ),
        (
            {"interpolation": "nearest"},
            "interpolation 'nearest' must be one of 'bicubic', 'bilinear'; the default",
        ),
        (
            {"rotation": False, "flip": False, "scale": False},
            "rotation, flip, scale and angle are all off.*switch one on",
        ),
    ],
)
def test_bad_options_raise(options, message):
    with pytest.raises(ValueError, match=message):
        GroupSampler(**options)


def test_both_views_have_the_samplers_kernel():
    assert {e.interpolation for e in draw(0, interpolation="bilinear")} == {"bilinear"}
    assert {e.interpolation for e in draw(0)} == {"bicubic"}


def test_uniforms_of_another_shape_raise():
    with pytest.raises(ValueError, match=r"\(3, 2, 2\)"):
        GroupSampler().sample(3, GRID, np.random.default_rng(0), np.zeros((2, 2, 2)))


@pytest.mark.parametrize("kind", [list, torch.tensor])
def test_uniforms_that_are_no_array_raise(kind):
    words = rf"uniforms are a {kind.__name__} of shape \(3, 2, 2\) .* a numpy array \(3, 2, 2\)"
    with pytest.raises(ValueError, match=f"(?i){words}"):
        GroupSampler().sample(3, GRID, np.random.default_rng(0), kind([[[0.1, 0.2]] * 2] * 3))


@pytest.mark.parametrize("rng", [torch.Generator(), random.Random(0), np.random.RandomState(0), 0])
def test_generators_of_another_kind_raise(rng):
    words = rf"rng_shared is a {type(rng).__name__}; .*numpy.random.default_rng"
    with pytest.raises(ValueError, match=words):
        GroupSampler().sample(1, GRID, rng, np.zeros((1, 2, 2)))


@pytest.mark.parametrize("grid", [(0, 14), 14, (14,), (7.5, 14)])
def test_base_grid_that_is_none_raises(grid):
    with pytest.raises(ValueError, match=r"base grid .* must be \(h, w\) .*at least 1 each"):
        GroupSampler().sample(1, grid, np.random.default_rng(0), np.zeros((1, 2, 2)))


def test_angles_are_uniform_either_way_and_leave_the_other_draws():
    uniforms = np.random.default_rng(0).random((400, 2, 2))
    angles = np.random.default_rng(1).random((400, 2))
    rng = np.random.default_rng
    turned = GroupSampler(angle=30.0).sample(400, GRID, rng(2), uniforms, angles)
    plain = GroupSampler().sample(400, GRID, rng(2), uniforms, angles)
    for view, (one, other) in enumerate(zip(turned, plain, strict=True)):
        assert other.angle is None
        assert torch.equal(one.flip, other.flip)
        assert torch.equal(one.half_turn, other.half_turn)
        assert (one.quarter_turn, one.grid) == (other.quarter_turn, other.grid)
        expected = torch.from_numpy(60 * angles[:, view] - 30).float()
        torch.testing.assert_close(one.angle, expected)


@pytest.mark.parametrize(
    "angles",
    [None, np.zeros((3, 1)), [[0.1, 0.2]] * 3, torch.zeros(3, 2)],
    ids=["none", "one view", "list", "tensor"],
)
def test_angle_without_angles_of_both_views_raises(angles):
    rng, uniforms = np.random.default_rng(0), np.zeros((3, 2, 2))
    with pytest.raises(ValueError, match=r"an angle of 30; give one for each of two views: \(3, 2"):
        GroupSampler(angle=30.0).sample(3, GRID, rng, uniforms, angles)


def test_angle_alone_is_a_group_and_out_of_range_is_refused():
    assert GroupSampler(rotation=False, flip=False, scale=False, angle=10.0).angle == 10
    with pytest.raises(ValueError, match="angle 181"):
        GroupSampler(angle=181.0)
