"""Tests of the generated perturbation sequences."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as TF
from torchvision.transforms.functional import InterpolationMode

from ser_lightning.corruptions import (
    EXTRA_PERTURBATIONS,
    PERTURBATIONS,
    REFERENCE,
    digital,
    filters,
    num_official_frames,
    perturb,
    warps,
)
from ser_lightning.corruptions.perturbed import _drifted
from ser_lightning.corruptions.tables import PERTURBATION_TABLES

NAMES = PERTURBATIONS + EXTRA_PERTURBATIONS
DRAWS = {"gaussian_noise", "shot_noise", "speckle_noise", "snow", "spatter"}
STARTS_CLEAN = {"gaussian_noise", "shot_noise", "speckle_noise", "zoom_blur"}


def picture(height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 5, 6, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0]
    return (300 * smooth - 20).clamp(0, 255).to(torch.uint8)


def test_names_are_the_official_ones_in_order():
    assert len(PERTURBATIONS) == 10
    assert PERTURBATIONS[4] == "snow"  # in the 32 px script spatter takes its place
    assert set(EXTRA_PERTURBATIONS) == {"speckle_noise", "gaussian_blur", "spatter", "shear"}
    assert set(PERTURBATION_TABLES) == set(NAMES)
    assert {name for name in NAMES if REFERENCE[name] == "first"} == {
        "gaussian_noise",
        "shot_noise",
        "speckle_noise",
    }


@pytest.mark.parametrize("name", NAMES)
def test_lengths_are_official(name):
    expected = {"translate": {32: 16, 64: 31, 224: 41}, "motion_blur": {32: 21, 64: 31, 224: 31}}
    for size in (32, 64, 224):
        assert num_official_frames(name, size) == expected.get(name, {}).get(size, 31)
    for shape in ((28, 28), (32, 36), (64, 64)):
        frames = perturb(picture(*shape), name, 0, 0)
        assert frames.shape == (num_official_frames(name, 64 if shape[0] == 64 else 32), 3, *shape)
        assert frames.dtype == torch.uint8


@pytest.mark.parametrize("name", NAMES)
def test_imagenet_frames_are_crops_of_224_pixels(name):
    frames = perturb(picture(256, 300), name, 0, 0, 3, crop=224)
    assert frames.shape == (3, 3, 224, 224)


@pytest.mark.parametrize("name", NAMES)
def test_is_a_function_of_index_and_seed(name):
    image = picture(40, 48)
    before = image.clone()
    frames = perturb(image, name, 3, 5, 4)
    assert torch.equal(frames, perturb(image, name, 3, 5, 4))
    assert torch.equal(image, before)
    others = [perturb(image, name, 4, 5, 4), perturb(image, name, 3, 6, 4)]
    assert [torch.equal(frames, other) for other in others] == [name not in DRAWS] * 2


@pytest.mark.parametrize("name", NAMES)
def test_a_short_sequence_is_the_start_of_a_long_one(name):
    image = picture(32, 32)
    assert torch.equal(perturb(image, name, 0, 0, 5), perturb(image, name, 0, 0)[:5])


@pytest.mark.parametrize("name", NAMES)
def test_first_frame_is_clean_where_it_is_the_reference(name):
    image = picture(64, 64)
    frames = perturb(image, name, 0, 0, 3)
    assert torch.equal(frames[0], image) == (name in STARTS_CLEAN)
    assert not torch.equal(frames[1], frames[0])
    assert not torch.equal(frames[2], frames[1])


@pytest.mark.parametrize("name", NAMES)
def test_even_image_works(name):
    for level in (0, 255):
        image = torch.full((3, 28, 28), level, dtype=torch.uint8)
        assert perturb(image, name, 0, 0, 4).shape == (4, 3, 28, 28)


@pytest.mark.parametrize("name", ["gaussian_noise", "shot_noise", "speckle_noise"])
def test_noise_has_the_official_strength(name):
    image = torch.full((3, 224, 224), 128, dtype=torch.uint8)
    x = 128 / 255
    std = {"gaussian_noise": 0.03, "shot_noise": (x / 300) ** 0.5, "speckle_noise": 0.05 * x}
    frames = perturb(image, name, 0, 0, 3).double()
    assert not torch.equal(frames[1], frames[2])
    # truncation to whole levels adds a variance of 1/12 and takes half a level
    expected = ((255 * std[name]) ** 2 + 1 / 12) ** 0.5
    assert frames[1].std().item() == pytest.approx(expected, rel=0.02)
    assert frames[1].mean().item() == pytest.approx(127.5, abs=0.1)


def test_translate_moves_one_pixel_a_frame():
    image = picture(64, 64)
    frames = perturb(image, "translate", 0, 0)
    assert torch.equal(frames[15], image)
    assert torch.equal(frames[18][:, :, 3:], image[:, :, :-3])
    assert not frames[18][:, :, :3].any()
    assert torch.equal(frames[10][:, :, :-5], image[:, :, 5:])


def test_crop_shows_what_lies_beside_the_frame():
    image = picture(80, 90)
    frames = perturb(image, "translate", 0, 0, crop=64)
    assert torch.equal(frames[15], image[:, 8:72, 13:77])
    assert torch.equal(frames[16], image[:, 8:72, 12:76])
    for name in ("snow", "gaussian_noise"):
        expected = perturb(image[:, 8:72, 13:77], name, 0, 0, 3)
        assert torch.equal(perturb(image, name, 0, 0, 3, crop=64), expected)


@pytest.mark.parametrize("crop", [None, 64])
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("rotate", lambda i: {"angle": i - 15.0, "scale": 1.0}),
        ("scale", lambda i: {"angle": 0.0, "scale": 0.4 + 0.025 * i}),
    ],
)
def test_affine_maps_agree_with_torchvision_on_pil(name, arguments, crop):
    image = picture(71, 84)
    picture_of_pil = Image.fromarray(image.permute(1, 2, 0).numpy())
    frames = perturb(image, name, 0, 0, crop=crop)
    for i in (0, 7, 15, 16, 30):
        moved = TF.affine(
            picture_of_pil,
            translate=[0, 0],
            shear=[0.0, 0.0],
            interpolation=InterpolationMode.BILINEAR,
            **arguments(i),
        )
        moved = moved if crop is None else TF.center_crop(moved, [crop, crop])
        expected = torch.from_numpy(np.array(moved)).permute(2, 0, 1)
        difference = (frames[i].int() - expected.int()).abs()
        assert difference.max() <= 1
        assert (difference > 0).float().mean() < 0.05  # measured: at most 0.02


def test_middle_frame_of_a_turn_is_the_image():
    image = picture(64, 64)
    for name in ("rotate", "shear", "brightness"):
        frame = perturb(image, name, 0, 0)[15]
        assert (frame.int() - image.int()).abs().max() <= (name == "brightness")


def test_shear_turns_the_vertical_axis_alone():
    matrix = warps.shearing(15)
    assert matrix @ [1, 0, 1] == pytest.approx([1, 0, 1])
    assert np.linalg.norm((matrix @ [0, 1, 1])[:2]) == pytest.approx(1)
    assert (matrix @ [0, 1, 1])[0] == pytest.approx(-np.sin(np.deg2rad(15)))


def test_tilt_brings_two_corners_nearer():
    matrix = warps.tilting(10, (60, 80))
    place = {}
    for x in (-40, 40):
        for y in (-30, 30):
            point = matrix @ [x, y, 1]
            place[x, y] = point[:2] / point[2]
    assert np.hypot(*place[-40, -30]) > np.hypot(40, 30) > np.hypot(*place[40, 30])
    # 100 pixels away the plane, one pixel farther off, is a hundredth smaller
    straight = warps.tilting(0, (60, 80)) @ [40, 30, 1]
    assert straight[:2] / straight[2] == pytest.approx([40 / 1.01, 30 / 1.01])


def test_warp_leaves_black_outside():
    white = torch.full((3, 40, 40), 255, dtype=torch.uint8)
    frame = warps.warp(white, (40, 40), [warps.scaling(0.5)])[0]
    assert (frame[:, 10:30, 10:30] == 255).all()
    frame[:, 10:30, 10:30] = 0
    assert not frame.any()


def test_zoom_blur_averages_all_frames_before():
    image = picture(48, 48)
    zoomed = [image] + [
        warps.warp(image, (48, 48), [warps.scaling(1 + 0.004 * i)])[0] for i in range(1, 31)
    ]
    frames = perturb(image, "zoom_blur", 0, 0)
    for i in (1, 2, 30):
        expected = torch.stack(zoomed[: i + 1]).int().sum(0) // (i + 1)
        assert torch.equal(frames[i].int(), expected)


def test_motion_blur_ends_horizontally():
    image = picture(64, 64)
    frames = perturb(image, "motion_blur", 0, 0)
    assert torch.equal(frames[30], filters.to_uint8(filters.smear(image.float(), 8, 2.4, 0.0)))
    assert torch.equal(frames[12], filters.to_uint8(filters.smear(image.float(), 8, 2.4, -90.0)))


def test_gaussian_blur_and_brightness_take_equal_steps():
    image = picture(64, 64)
    blurred = perturb(image, "gaussian_blur", 0, 0)
    expected = filters.smooth(image.float(), 0.35 + 0.014 * 20, 7)
    assert torch.equal(blurred[20], filters.to_uint8(expected))
    brighter = perturb(image, "brightness", 0, 0)
    assert torch.equal(brighter[20], digital.brightness(image, None, 0.1))


def test_snow_and_water_move_without_being_drawn_anew():
    def correlation(first, second):
        return torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1].item()

    black = torch.zeros(3, 64, 64, dtype=torch.uint8)
    for name in ("snow", "spatter"):
        frames = perturb(black, name, 0, 0, 8).float()
        other = perturb(black, name, 1, 0, 2).float()
        # measured: 0.42 and more, against at most 0.1
        assert correlation(frames[0], frames[1]) > 0.3 > abs(correlation(frames[0], other[0]))
        assert correlation(frames[0], frames[1]) > correlation(frames[0], frames[7])


@pytest.mark.parametrize("drift", [(0.2, 0.8), (0.05, 0.1, 0.15, 0.7)])
def test_drift_equals_a_convolution_of_the_columns(drift):
    liquid = torch.rand(1, 20, 9, generator=torch.Generator().manual_seed(0))
    columns = [np.convolve(column, drift, mode="same") for column in liquid[0].numpy().T]
    assert np.allclose(_drifted(liquid, drift)[0].numpy(), np.array(columns).T, atol=1e-6)


@pytest.mark.parametrize("name", ["rotate", "spatter", "motion_blur"])
def test_does_not_depend_on_the_number_of_threads(name):
    image = picture(224, 224)
    num_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        single = perturb(image, name, 0, 0, 3)
        torch.set_num_threads(2)
        assert torch.equal(perturb(image, name, 0, 0, 3), single)
    finally:
        torch.set_num_threads(num_threads)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((torch.zeros(3, 32, 32), "snow", 0, 0), {}, "float32"),
        ((picture(32, 32), "wind", 0, 0), {}, "'wind' is unknown; use one of gaussian_noise"),
        ((picture(32, 32), "snow", 0, 0, 1), {}, "num_frames 1 .* use 2 to 31"),
        ((picture(32, 32), "translate", 0, 0, 17), {}, "num_frames 17 .* use 2 to 16"),
        ((picture(32, 32), "snow", 0, 0), {"crop": 33}, "crop 33 .* 32 x 32"),
        ((picture(32, 32), "snow", 0, 0), {"crop": 8}, "8 x 8"),
        ((picture(32, 32), "rotate", 0, 0), {"crop": -5}, "crop -5 is no number of pixels"),
        ((picture(32, 32), "rotate", 0, 0), {"crop": 0}, "crop 0 is no number of pixels"),
    ],
)
def test_refuses_what_it_cannot_perturb(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        perturb(*arguments, **options)
