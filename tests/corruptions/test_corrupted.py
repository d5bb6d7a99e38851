"""Tests of the generated corruptions against measured statistics and against naive loops."""

import ast
import colorsys
import csv
import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ser_lightning.corruptions as package
from ser_lightning.corruptions import (
    CORRUPTIONS,
    EXTRA_CORRUPTIONS,
    FROST_FILES,
    FROST_PROCEDURAL,
    blur,
    corrupt,
    corruption_names,
    digital,
    filters,
    noise,
    spatter,
    weather,
)
from ser_lightning.corruptions.tables import NATIVE_SIZES, TABLES, native_size, parameters

NAMES = (*corruption_names(extra=True),)  # frost_procedural in frost's place
DRAWS = {  # the others are functions of the image alone
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "glass_blur",
    "motion_blur",
    "snow",
    "fog",
    "elastic_transform",
    "speckle_noise",
    "spatter",
    FROST_PROCEDURAL,
}
GOLDEN = Path(__file__).with_name("golden.csv")
GOLDEN_SEEDS = 4
# over seeds, where a mean or a deviation varies more than the file's mad_std_over_seeds
OTHER_STD = {"fog": 15.0}


def closed_form_image():
    """The image on which the statistics were measured: waves, a ramp, a disk and dark cells."""
    y, x = np.mgrid[:224, :224].astype(np.float64)
    red = 127.5 + 100 * np.sin(2 * np.pi * x / 56) * np.cos(2 * np.pi * y / 37)
    green = 127.5 + 100 * np.sin(2 * np.pi * (x + y) / 23)
    pixels = np.stack([red, green, (x + y) / 446 * 255])
    disk = (x - 150) ** 2 + (y - 80) ** 2 < 40**2
    pixels[:, disk] = np.array([[220], [40], [60]])
    pixels[:, (x // 16 + y // 16) % 7 == 0] = 30
    return torch.from_numpy(np.clip(np.floor(pixels), 0, 255).astype(np.uint8))


def picture(height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 5, 6, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0]
    return (300 * smooth - 20).clamp(0, 255).to(torch.uint8)


def golden_rows():
    with GOLDEN.open() as file:
        return [row for row in csv.DictReader(file) if row["corruption"] != "frost"]


def test_closed_form_image_is_the_measured_one():
    image = closed_form_image().double()
    assert image.mean().item() == pytest.approx(111.198, abs=5e-4)
    assert image.std(unbiased=False).item() == pytest.approx(66.232, abs=5e-4)


@pytest.mark.parametrize("row", golden_rows(), ids=lambda r: f"{r['corruption']}-{r['severity']}")
def test_statistics_agree_with_the_official_code(row):
    """Frost has no row here: its statistics belong to photographs that are not shipped."""
    name, severity = row["corruption"], int(row["severity"])
    image = closed_form_image()
    num_seeds = GOLDEN_SEEDS if name in DRAWS else 1
    results = [corrupt(image, name, severity, i, 0) for i in range(num_seeds)]
    levels = torch.stack(results).double()
    std = float(row["mad_std_over_seeds"])
    spread = max(std, OTHER_STD.get(name, 0.0))
    # measured: at most 0.06 where nothing is drawn
    slack = 0.5 if name in DRAWS else 0.2
    scale = 3 / math.sqrt(GOLDEN_SEEDS)
    mad = (levels - image.double()).abs().mean().item()
    assert mad == pytest.approx(float(row["mad_from_clean"]), abs=scale * std + slack)
    mean, out_std = levels.mean().item(), levels.flatten(1).std(1, unbiased=False).mean().item()
    assert mean == pytest.approx(float(row["out_mean"]), abs=scale * spread + slack)
    assert out_std == pytest.approx(float(row["out_std"]), abs=scale * spread + slack)


@pytest.mark.parametrize("name", NAMES)
def test_keeps_shape_and_dtype(name):
    for shape, severity in (((28, 28), 1), ((32, 32), 5), ((64, 64), 2), ((40, 56), 4)):
        image = picture(*shape)
        before = image.clone()
        result = corrupt(image, name, severity, 0, 0)
        assert result.shape == image.shape
        assert result.dtype == torch.uint8
        assert result.is_contiguous()
        assert torch.equal(image, before)
    assert not torch.equal(result, image)


@pytest.mark.parametrize("name", NAMES)
def test_even_gray_image_works(name):
    for level in (0, 128, 255):
        image = torch.full((3, 28, 28), level, dtype=torch.uint8)
        for severity in (1, 5):
            assert corrupt(image, name, severity, 0, 0).shape == image.shape


@pytest.mark.parametrize("name", ["gaussian_blur", "zoom_blur", "glass_blur", "motion_blur"])
def test_blur_leaves_an_even_area_alone(name):
    """Truncation would take a level wherever weights add up to slightly less than 1."""
    image = torch.arange(3, dtype=torch.uint8)[:, None, None].mul(80).add(15).repeat(1, 64, 64)
    for severity in range(1, 6):
        assert torch.equal(corrupt(image, name, severity, 0, 0), image)


@pytest.mark.parametrize("name", NAMES)
def test_is_a_function_of_index_and_seed(name):
    image = picture(64, 64)
    result = corrupt(image, name, 3, 5, 7)
    assert torch.equal(result, corrupt(image.clone(), name, 3, 5, 7))
    assert torch.equal(result, corrupt(image.permute(1, 2, 0).contiguous().permute(2, 0, 1),
                                       name, 3, 5, 7))  # fmt: skip
    others = [corrupt(image, name, 3, 6, 7), corrupt(image, name, 3, 5, 8)]
    assert [torch.equal(result, other) for other in others] == [name not in DRAWS] * 2


def test_corruptions_and_severities_draw_independently():
    flat = torch.full((3, 32, 32), 128, dtype=torch.uint8)
    first = corrupt(flat, "gaussian_noise", 1, 0, 0).float() - 128
    for name, severity in (("gaussian_noise", 2), ("speckle_noise", 1)):
        second = corrupt(flat, name, severity, 0, 0).float() - 128
        both = torch.stack([first.flatten(), second.flatten()])
        assert torch.corrcoef(both)[0, 1].abs() < 0.1  # measured: at most 0.03, 0.018 by chance


@pytest.mark.parametrize("name", NAMES)
def test_does_not_depend_on_the_number_of_threads(name):
    image = closed_form_image()
    num_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        single = corrupt(image, name, 4, 0, 0)
        torch.set_num_threads(2)
        assert torch.equal(corrupt(image, name, 4, 0, 0), single)
    finally:
        torch.set_num_threads(num_threads)


@pytest.mark.parametrize(
    ("shape", "size"),
    [((28, 28), 32), ((45, 45), 32), ((46, 46), 64), ((64, 300), 64), ((119, 119), 64),
     ((120, 120), 224), ((384, 384), 224)],
)  # fmt: skip
def test_parameters_belong_to_the_nearest_native_size(shape, size):
    assert native_size(*shape) == size


def test_every_table_is_complete():
    assert set(TABLES) == {*CORRUPTIONS, *EXTRA_CORRUPTIONS}
    for sizes in TABLES.values():
        assert set(sizes) == set(NATIVE_SIZES)
        for severities in sizes.values():
            assert len(severities) == 5
            assert len({len(values) for values in severities}) == 1
    assert parameters(FROST_PROCEDURAL, 2, 64) == (0.9, 0.4)


def test_small_images_get_weaker_parameters():
    large, small = picture(224, 224), picture(32, 32)
    for name in ("gaussian_noise", "impulse_noise", "speckle_noise"):
        change = [
            (corrupt(image, name, 5, 0, 0).float() - image.float()).abs().mean()
            for image in (small, large)
        ]
        assert change[0] < 0.6 * change[1]


def test_names_are_official_and_frost_needs_its_photographs():
    assert len(CORRUPTIONS) == 15
    assert len(EXTRA_CORRUPTIONS) == 4
    assert corruption_names("folder") == CORRUPTIONS
    assert corruption_names("folder", extra=True) == CORRUPTIONS + EXTRA_CORRUPTIONS
    without = corruption_names()
    assert without.index(FROST_PROCEDURAL) == CORRUPTIONS.index("frost")
    assert [name for name in without if name not in TABLES] == [FROST_PROCEDURAL]
    with pytest.raises(ValueError, match="frost_procedural"):
        corrupt(picture(32, 32), "frost", 1, 0, 0)


def test_jpeg_quality_encodes_the_result_once_more():
    image = picture(64, 64)
    plain = corrupt(image, "gaussian_noise", 3, 0, 0)
    buffer = io.BytesIO()
    Image.fromarray(plain.permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=85)
    expected = torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1)
    assert torch.equal(corrupt(image, "gaussian_noise", 3, 0, 0, jpeg_quality=85), expected)
    assert not torch.equal(plain, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(3, 32, 32), "snow", 1, 0, 0), "float32"),
        ((torch.zeros(1, 32, 32, dtype=torch.uint8), "snow", 1, 0, 0), r"\(1, 32, 32\)"),
        ((torch.zeros(3, 8, 32, dtype=torch.uint8), "snow", 1, 0, 0), "8 x 32"),
        ((picture(32, 32), "rain", 1, 0, 0), "'rain' is unknown; use one of gaussian_noise"),
        ((picture(32, 32), "snow", 0, 0, 0), "severity 0 .* 1 to 5"),
        ((picture(32, 32), "snow", 6, 0, 0), "severity 6 .* 1 to 5"),
        ((picture(32, 32), "snow", 3.0, 0, 0), r"severity 3\.0 .* 1 to 5"),
        ((picture(32, 32), "snow", 1, -1, 0), "-1"),
    ],
)
def test_refuses_what_it_cannot_corrupt(arguments, message):
    with pytest.raises(ValueError, match=message):
        corrupt(*arguments)


def test_refuses_an_impossible_jpeg_quality():
    with pytest.raises(ValueError, match="jpeg_quality 0"):
        corrupt(picture(32, 32), "snow", 1, 0, 0, jpeg_quality=0)


# frost


@pytest.fixture
def frost_dir(tmp_path):
    """Photographs of one colour each, exact in both formats but for a level in JPEG."""
    for number, name in enumerate(FROST_FILES):
        colour = (20 + 40 * number,) * 3
        Image.new("RGB", (250, 240), colour).save(tmp_path / name)
    return tmp_path


def test_frost_adds_a_random_photograph(frost_dir):
    image = picture(224, 224)
    shares = parameters("frost", 3, 224)
    found = set()
    for index in range(40):
        result = corrupt(image, "frost", 3, index, 0, frost_dir=frost_dir).float()
        differences = []
        for number in range(len(FROST_FILES)):
            expected = image.float() * shares[0] + (20 + 40 * number) * shares[1]
            differences.append((result - expected.clamp(max=255)).abs().max().item())
        found.add(int(np.argmin(differences)))
        assert min(differences) <= 2  # truncation and JPEG
    assert found == set(range(len(FROST_FILES)))


def test_frost_crops_a_random_part_of_a_reduced_photograph(frost_dir):
    ramp = np.tile(np.arange(250, dtype=np.uint8), (240, 1))
    for name in FROST_FILES[:3]:
        Image.fromarray(np.stack([ramp] * 3, -1)).save(frost_dir / name)
    black = torch.zeros(3, 32, 32, dtype=torch.uint8)
    starts = set()
    for index in range(30):
        row = corrupt(black, "frost", 5, index, 0, frost_dir=frost_dir)[0, 0].float()
        slope = (row[1:] - row[:-1]).mean().item()
        if abs(slope) > 0.1:  # a ramp: 5 levels per reduced pixel, times the share of 0.45
            assert slope == pytest.approx(5 * 0.45, abs=0.05)
            starts.add(row[0].item())
    assert len(starts) > 3


def test_frost_names_a_missing_photograph(frost_dir):
    for name in FROST_FILES:
        (frost_dir / name).unlink()
    with pytest.raises(ValueError, match=r"frost\d\.\w+ is missing; frost_dir must hold"):
        corrupt(picture(224, 224), "frost", 1, 0, 0, frost_dir=frost_dir)


def test_frost_names_a_damaged_photograph(frost_dir):
    for name in FROST_FILES:
        (frost_dir / name).write_bytes((frost_dir / name).read_bytes()[:200])
    with pytest.raises(ValueError, match=r"frost\d\.\w+ cannot be read .*; fetch the photograph"):
        corrupt(picture(224, 224), "frost", 1, 0, 0, frost_dir=frost_dir)


def test_frost_refuses_photographs_smaller_than_the_image(frost_dir):
    with pytest.raises(ValueError, match=r"240 x 250 .* 260 x 230"):
        corrupt(picture(260, 230), "frost", 1, 0, 0, frost_dir=frost_dir)


def test_procedural_frost_is_pale_and_textured():
    image = closed_form_image()
    previous = image.float().std()
    for severity in range(1, 6):
        result = corrupt(image, FROST_PROCEDURAL, severity, 0, 0).float()
        assert 160 < result.mean() < 205  # the photographs: 173 to 191
        assert result.std() < previous + 1  # contrast falls
        previous = result.std()
    ice = corrupt(torch.zeros_like(image), FROST_PROCEDURAL, 5, 0, 0).float()
    assert ice.std() > 5
    assert ice[2].mean() > ice[0].mean()


# the parts, against loops


def test_to_uint8_truncates_and_clamps():
    levels = torch.tensor([-3.0, 0.0, 7.9, 7.99999, 254.5, 255.0, 300.0])
    assert filters.to_uint8(levels).tolist() == [0, 0, 7, 8, 254, 255, 255]


@pytest.mark.parametrize(("sigma", "truncate"), [(0.3, 4.0), (1.0, 4.0), (2.5, 3.0), (9.0, 6.0)])
def test_smooth_equals_the_naive_loop(sigma, truncate):
    image = picture(17, 21).double()
    radius = int(truncate * sigma + 0.5)
    weights = [math.exp(-0.5 * (t / sigma) ** 2) for t in range(-radius, radius + 1)]
    expected = image
    for dim in (1, 2):
        side = image.shape[dim]
        total = torch.zeros_like(image)
        for tap, weight in zip(range(-radius, radius + 1), weights, strict=True):
            places = (torch.arange(side) + tap).clamp(0, side - 1)
            total += weight / sum(weights) * expected.index_select(dim, places)
        expected = total
    result = filters.smooth(image.float(), sigma, truncate)
    assert torch.allclose(result.double(), expected, atol=1e-3)  # measured: 6e-5


@pytest.mark.parametrize("sigma", [0.7, 5.0, 40.0])
def test_smooth_mirrored_equals_the_naive_loop(sigma):
    field = np.random.default_rng(0).random((1, 11, 14))
    radius = int(3 * sigma + 0.5)
    taps = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (taps / sigma) ** 2)
    expected = field[0]
    for _ in range(2):  # along the rows, then, transposed, along the columns
        padded = np.pad(expected, ((0, 0), (radius, radius)), mode="symmetric")
        lines = [np.convolve(line, weights / weights.sum(), mode="valid") for line in padded]
        expected = np.array(lines).T
    assert np.allclose(filters.smooth_mirrored(field, sigma)[0], expected, atol=1e-12)


@pytest.mark.parametrize("angle", [0, 30, 90, -45, -135, 200])
def test_smear_equals_the_naive_loop(angle):
    image, radius, sigma = picture(15, 12).double(), 6, 2.5
    weights = [math.exp(-0.5 * (t / sigma) ** 2) for t in range(2 * radius + 1)]
    expected = torch.zeros_like(image)
    for t, weight in enumerate(weights):
        dy = math.ceil(t * math.sin(math.radians(angle)) - 0.5)
        dx = math.ceil(t * math.cos(math.radians(angle)) - 0.5)
        rows, columns = (torch.arange(15) + dy).clamp(0, 14), (torch.arange(12) + dx).clamp(0, 11)
        expected += weight / sum(weights) * image[:, rows][:, :, columns]
    assert torch.allclose(filters.smear(image.float(), radius, sigma, angle).double(), expected,
                          atol=1e-3)  # fmt: skip


def test_zoom_equals_the_naive_loop():
    image, factor = picture(20, 20).double(), 1.3
    crop = math.ceil(20 / factor)
    start, large = (20 - crop) // 2, round(crop * factor)
    trim = (large - 20) // 2
    expected = torch.empty_like(image)
    for y in range(20):
        for x in range(20):
            place = [(v + trim) * (crop - 1) / (large - 1) for v in (y, x)]
            (i, j), (u, v) = ([int(p) for p in place], [p - int(p) for p in place])
            corner = image[:, start : start + crop, start : start + crop]
            i1, j1 = min(i + 1, crop - 1), min(j + 1, crop - 1)
            top = corner[:, i, j] * (1 - v) + corner[:, i, j1] * v
            bottom = corner[:, i1, j] * (1 - v) + corner[:, i1, j1] * v
            expected[:, y, x] = top * (1 - u) + bottom * u
    assert torch.allclose(filters.zoom(image.float(), factor).double(), expected, atol=1e-3)


@pytest.mark.parametrize(("radius", "alias"), [(0.5, 0.6), (3, 0.1), (8, 0.5), (10, 0.5)])
def test_defocus_equals_the_naive_loop(radius, alias):
    image = picture(30, 26)
    kernel = blur._disk(radius, alias).astype(np.float64)
    reach = len(kernel) // 2
    padded = np.pad(image.numpy(), ((0, 0), (reach, reach), (reach, reach)), mode="reflect")
    expected = np.zeros(image.shape)
    for dy in range(2 * reach + 1):
        for dx in range(2 * reach + 1):
            expected += kernel[dy, dx] * padded[:, dy : dy + 30, dx : dx + 26]
    result = blur.defocus_blur(image, None, radius, alias).numpy().astype(np.float64)
    assert np.abs(result - np.floor(np.clip(expected, 0, 255) + 1e-3)).max() <= 1
    assert np.mean(result != np.floor(np.clip(expected, 0, 255) + 1e-3)) < 0.01


def test_disk_of_radius_8_gains_weight_at_its_border():
    assert blur._disk(6, 0.5).sum() == pytest.approx(1, abs=1e-6)
    assert 1.01 < blur._disk(8, 0.5).sum() < 1.02
    assert blur._disk(0.3, 0.4).shape == (3, 3)


@pytest.mark.parametrize(("reach", "shape"), [(1, (20, 20)), (3, (24, 17)), (4, (30, 30))])
def test_glass_copies_equal_the_sequential_loop(reach, shape):
    height, width = shape
    rng = np.random.default_rng(reach)
    result = blur._copies(height, width, reach, rng)
    rng = np.random.default_rng(reach)
    rows = range(height - reach, reach, -1)
    columns = range(width - reach, reach, -1)
    moves = rng.integers(-reach, reach, size=(len(rows), len(columns), 2), dtype=np.int8)
    image = np.arange(height * width).reshape(shape)
    for i, h in enumerate(rows):
        for j, w in enumerate(columns):
            dx, dy = moves[i, j]
            image[h, w] = image[h + dy, w + dx]
    assert np.array_equal(result, image.ravel())
    assert len(np.unique(result)) < height * width  # copies, no swaps


@pytest.mark.parametrize("photons", [3, 60, 700])
def test_shot_noise_inverts_the_poisson_distribution(photons):
    image = torch.arange(256, dtype=torch.uint8).repeat(3, 8, 1).contiguous()
    result = noise.shot_noise(image, np.random.default_rng(0), photons)
    u = np.random.default_rng(0).random(image.numel(), dtype=np.float32).astype(np.float64)
    for place in range(0, image.numel(), 7):
        mean = image.flatten()[place].item() / 255 * photons
        count, term = 0, math.exp(-mean)
        total = term
        while u[place] >= total:
            count += 1
            term *= mean / count
            total += term
        expected = int(min(count / photons, 1) * 255)
        assert result.flatten()[place].item() == expected


def test_impulse_noise_sets_channels_one_by_one_to_both_ends():
    image = torch.full((3, 100, 100), 99, dtype=torch.uint8)
    result = noise.impulse_noise(image, np.random.default_rng(0), 0.2)
    for level in (0, 255):
        assert (result == level).float().mean().item() == pytest.approx(0.1, abs=0.01)
    assert (result == 99).float().mean().item() == pytest.approx(0.8, abs=0.01)
    assert (result[0] != result[1]).any()


def hsv_reference(image, change):
    result = torch.empty_like(image)
    for y in range(image.shape[1]):
        for x in range(image.shape[2]):
            hue, saturation, value = colorsys.rgb_to_hsv(*(image[:, y, x] / 255).tolist())
            rgb = colorsys.hsv_to_rgb(*change(hue, saturation, value))
            result[:, y, x] = torch.tensor([int(255 * c + 1e-3) for c in rgb])
    return result


def colours():
    """A small picture with black, white, gray and pure colours."""
    image = picture(20, 20)
    patches = [[0] * 3, [255] * 3, [90] * 3, [200, 0, 0], [0, 180, 180], [10, 10, 250]]
    image[:, 0, : len(patches)] = torch.tensor(patches, dtype=torch.uint8).T
    return image


@pytest.mark.parametrize("shift", [0.1, 0.5, -0.3])
def test_brightness_shifts_the_value_of_hsv(shift):
    image = colours()
    expected = hsv_reference(image, lambda h, s, v: (h, s, min(max(v + shift, 0), 1)))
    difference = (digital.brightness(image, None, shift).int() - expected.int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 0.01


@pytest.mark.parametrize(("factor", "shift"), [(0.3, 0), (2, 0), (5, 0.1), (20, 0.2)])
def test_saturate_maps_the_saturation_of_hsv(factor, shift):
    image = colours()
    expected = hsv_reference(image, lambda h, s, v: (h, min(s * factor + shift, 1), v))
    difference = (digital.saturate(image, None, factor, shift).int() - expected.int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 0.01


def test_contrast_equals_the_formula_bit_for_bit():
    image = picture(33, 47)
    x = image.numpy().transpose(1, 2, 0) / 255.0
    mean = x.mean((0, 1), keepdims=True)
    expected = np.uint8(np.clip((x - mean) * 0.3 + mean, 0, 1) * 255)
    assert np.array_equal(digital.contrast(image, None, 0.3).numpy(), expected.transpose(2, 0, 1))


def test_elastic_without_movement_is_the_identity():
    image = picture(40, 56)
    result = digital.elastic_transform(image, np.random.default_rng(0), 1e-9, 0.05, 0.0)
    assert (result.int() - image.int()).abs().max() <= 1


def test_affine_places_take_moved_corners_back():
    rng = np.random.default_rng(3)
    y, x = digital._affine_places(60, 60, rng, 5.0)
    moved = np.array([[50, 50], [50, 10], [10, 10]])
    moved = moved + np.random.default_rng(3).uniform(-5, 5, (3, 2))
    slope_y = np.array([y[1, 0] - y[0, 0], y[0, 1] - y[0, 0]])
    slope_x = np.array([x[1, 0] - x[0, 0], x[0, 1] - x[0, 0]])
    for (px, py), corner in zip(moved, [[50, 50], [50, 10], [10, 10]], strict=True):
        assert x[0, 0] + slope_x @ [py, px] == pytest.approx(corner[0])
        assert y[0, 0] + slope_y @ [py, px] == pytest.approx(corner[1])


def test_sample_mirrors_as_asked():
    row = torch.arange(10.0).expand(3, 10, 10)
    y = np.zeros((1, 4))
    x = np.array([[-1.0, -2.0, 9.5, 11.0]])
    with_edge = digital._sample(row, y, x, mirror_edge=True)[0, 0]
    assert with_edge.tolist() == pytest.approx([0, 1, 9, 8], abs=1e-4)
    without = digital._sample(row, y, x, mirror_edge=False)[0, 0]
    assert without.tolist() == pytest.approx([1, 2, 8.5, 7], abs=1e-4)


def test_plasma_is_smoother_with_a_higher_decay():
    rough, fine = (weather.plasma(100, decay, np.random.default_rng(0)) for decay in (1.2, 3.0))
    assert rough.shape == (128, 128)
    for field in (rough, fine):
        assert field.min() == 0
        assert field.max() == 1
    assert np.abs(np.diff(rough)).mean() > 5 * np.abs(np.diff(fine)).mean()


def test_distance_equals_the_brute_force():
    edges = np.random.default_rng(0).random((30, 40)) > 0.995
    points = np.argwhere(edges)
    places = np.argwhere(np.ones_like(edges))
    nearest = np.sqrt(((places[:, None] - points) ** 2).sum(-1)).min(1).reshape(edges.shape)
    assert np.allclose(spatter._distance(edges), np.minimum(nearest, 20), atol=1e-5)
    assert (spatter._distance(np.zeros((25, 25), dtype=bool)) == 20).all()


def test_canny_finds_the_outline_of_a_disk_once():
    y, x = np.mgrid[:60, :60]
    radius = np.hypot(x - 30, y - 30)
    edges = spatter._canny(np.clip(40 * (20 - radius) + 100, 0, 200).astype(np.int32))
    assert (np.abs(radius[edges] - 20) < 4).all()
    per_row = edges[15:45].sum(1)
    assert ((per_row >= 2) & (per_row <= 6)).all()


def test_canny_keeps_weak_edges_only_next_to_strong_ones():
    levels = np.zeros((30, 60), dtype=np.int32)
    levels[10:, :30] = 100  # a strong edge whose height falls to the right
    levels[10:, 30:] = np.linspace(100, 20, 30).astype(np.int32)
    weak_alone = np.zeros((30, 60), dtype=np.int32)
    weak_alone[10:] = 20
    assert spatter._canny(levels)[9:11, 5:55].any(0).all()
    assert not spatter._canny(weak_alone).any()


def test_equalized_spreads_the_histogram():
    levels = np.array([[10, 10, 20], [20, 30, 40]], dtype=np.uint8)
    assert spatter._equalized(levels).tolist() == [[0, 0, 128], [128, 191, 255]]
    flat = np.full((3, 3), 7, dtype=np.uint8)
    assert spatter._equalized(flat).tolist() == flat.tolist()


def test_needs_no_other_image_library():
    allowed = {"torch", "numpy", "scipy", "PIL", "ser_lightning"}
    standard = {"collections", "functools", "io", "math", "numbers", "pathlib", "typing"}
    for file in Path(package.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.module.split(".")[0] in allowed | standard
            elif isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= allowed | standard
