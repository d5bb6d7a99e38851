"""Tests of the batched photometric augmentation against torchvision, image by image."""

import math

import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from ser_lightning.data import photometric
from ser_lightning.data.crops import whole
from ser_lightning.data.photometric import (
    MOCO_VIEW_1,
    MOCO_VIEW_2,
    NUM_UNIFORMS,
    PhotometricRecipe,
    apply,
    draw,
)
from ser_lightning.randomness import Stream, uniforms

# measured: at most 1.3e-6, from the order of additions in blur and the formula of hue
TOLERANCE = 5e-6
JITTER = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)


def pictures(count, height=20, width=26, seed=0):
    """Smooth random colour images with a good part of saturated and black pixels."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    return (1.6 * smooth - 0.3).clamp(0, 1)


def identity(count):
    """What was drawn for images that jitter leaves as they are."""
    return untouched(count)._replace(jitter=np.ones(count, dtype=bool))


def untouched(count):
    return whole([torch.zeros(3, 4, 4)] * count)


def blur_reference(image, sigma):
    radius = min(math.ceil(3 * sigma), min(image.shape[-2:]) - 1)
    return F.gaussian_blur(image, [2 * radius + 1] * 2, [sigma] * 2)


def chain_reference(record, row, image):
    """torchvision's operations on one image, in the drawn order."""
    factors = (record.brightness, record.contrast, record.saturation, record.hue)
    if record.jitter[row]:
        for number in record.order[row]:
            image = JITTER[number](image, float(factors[number][row]))
    if record.gray[row]:
        image = F.rgb_to_grayscale(image, num_output_channels=3)
    if record.blur_sigma[row] > 0:
        image = blur_reference(image, float(record.blur_sigma[row]))
    if record.solarize[row]:
        image = F.solarize(image, 128 / 255)
    return image


def draws(recipe, count, view=0):
    numbers = uniforms(3, Stream.AUGMENT, 0, np.arange(count), view, NUM_UNIFORMS)
    return draw(recipe, numbers, untouched(count))


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_each_jitter_operation_equals_torchvisions(name):
    pixels = pictures(12)
    low, high = (-0.5, 0.5) if name == "hue" else (0.0, 2.0)
    factors = np.linspace(low, high, len(pixels))
    result = apply(identity(len(pixels))._replace(**{name: factors}), pixels)
    operation = getattr(F, f"adjust_{name}")
    expected = [operation(x, f) for x, f in zip(pixels, factors.tolist(), strict=True)]
    torch.testing.assert_close(result, torch.stack(expected), rtol=0, atol=TOLERANCE)


def test_hue_of_gray_and_primary_colours_equals_torchvisions():
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 0.5, 1.0])] * 3)
    pixels = corners.T.reshape(1, 3, 3, 9).repeat(5, 1, 1, 1)
    shifts = np.array([-0.5, -1 / 6, 0.1, 1 / 3, 0.5])
    result = apply(identity(5)._replace(hue=shifts), pixels)
    expected = [F.adjust_hue(x, s) for x, s in zip(pixels, shifts.tolist(), strict=True)]
    torch.testing.assert_close(result, torch.stack(expected), rtol=0, atol=TOLERANCE)


def test_grayscale_equals_torchvisions():
    pixels = pictures(3)
    result = apply(identity(3)._replace(gray=np.array([True, False, True])), pixels)
    expected = F.rgb_to_grayscale(pixels, num_output_channels=3)
    torch.testing.assert_close(result[::2], expected[::2], rtol=0, atol=1e-7)
    assert torch.equal(result[1], pixels[1])


def test_solarize_is_bit_equal_to_torchvisions():
    levels = torch.arange(256, dtype=torch.float32) / 255
    pixels = torch.cat([levels, torch.rand(3 * 256 - 256)]).reshape(1, 3, 16, 16)
    result = apply(identity(1)._replace(solarize=np.array([True])), pixels)
    assert torch.equal(result, F.solarize(pixels, 128 / 255))
    on_uint8 = F.solarize((levels * 255).round().to(torch.uint8), 128)
    assert torch.equal((result[0, 0] * 255).round().to(torch.uint8).flatten(), on_uint8)


def test_blur_equals_torchvisions_with_a_radius_of_three_sigma():
    pixels = pictures(9)
    sigmas = np.array([1.3, 0.1, 2.0, 0.0, 0.34, 0.9, 0.67, 12.0, 0.5])  # 12: more than the side
    result = apply(identity(9)._replace(blur_sigma=sigmas), pixels)
    expected = [blur_reference(x, s) if s else x for x, s in zip(pixels, sigmas, strict=True)]
    torch.testing.assert_close(result, torch.stack(expected), rtol=0, atol=TOLERANCE)


def test_blur_is_close_to_23_taps():
    pixels = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    sigmas = np.linspace(0.1, 2.0, 8)
    result = apply(identity(8)._replace(blur_sigma=sigmas), pixels)
    expected = [F.gaussian_blur(x, [23, 23], [s] * 2) for x, s in zip(pixels, sigmas, strict=True)]
    # measured on noise, the worst case: 2.3e-3
    torch.testing.assert_close(result, torch.stack(expected), rtol=0, atol=5e-3)


@pytest.mark.parametrize("recipe", [MOCO_VIEW_1, MOCO_VIEW_2])
def test_whole_chain_equals_torchvisions_in_the_drawn_order(recipe):
    pixels = pictures(64)
    record = draws(recipe, 64)._replace(solarize=np.zeros(64, dtype=bool))
    expected = [chain_reference(record, row, image) for row, image in enumerate(pixels)]
    torch.testing.assert_close(apply(record, pixels), torch.stack(expected), rtol=0, atol=TOLERANCE)


def test_whole_chain_with_solarize_equals_torchvisions_off_the_threshold():
    pixels = pictures(64)
    record = draws(PhotometricRecipe(p_solarize=1.0), 64)
    expected = torch.stack([chain_reference(record, row, x) for row, x in enumerate(pixels)])
    close = (apply(record, pixels) - expected).abs() < TOLERANCE
    # a rounding error may put a pixel on the other side of the threshold
    assert close.float().mean() > 0.9999


def test_chain_depends_on_the_order():
    pixels = pictures(2)
    record = identity(2)._replace(
        brightness=np.full(2, 1.4),
        contrast=np.full(2, 0.6),
        order=np.array([[0, 1, 2, 3], [1, 0, 2, 3]]),
    )
    record = record._replace(order=np.array([[0, 1, 2, 3], [1, 0, 2, 3]]))
    result = apply(record, pixels[:1].expand(2, -1, -1, -1))
    assert (result[0] - result[1]).abs().max() > 0.05


@pytest.mark.parametrize("record", [identity(5), untouched(5)])
def test_identity_record_returns_the_input_exactly(record):
    pixels = pictures(5)
    result = apply(record, pixels)
    assert torch.equal(result, pixels)
    assert result.data_ptr() != pixels.data_ptr()


def test_input_is_left_as_it_is():
    pixels = pictures(16)
    before = pixels.clone()
    apply(draws(MOCO_VIEW_2, 16), pixels)
    assert torch.equal(pixels, before)


def test_result_stays_within_zero_and_one():
    strong = PhotometricRecipe(
        brightness=2, contrast=2, saturation=2, hue=0.5, p_jitter=1, p_solarize=0.5
    )
    result = apply(draws(strong, 64), pictures(64))
    assert result.min() >= -1e-6
    assert result.max() <= 1 + 1e-6


@pytest.mark.parametrize("chunk", [1, 5000, 2**30])
def test_result_of_an_image_does_not_depend_on_its_neighbours(monkeypatch, chunk):
    monkeypatch.setattr(photometric, "_CHUNK_ELEMENTS", chunk)
    pixels = pictures(40)
    record = draws(MOCO_VIEW_2, 40)._replace(blur_sigma=np.linspace(0, 2, 40))
    alone = [apply(record.take(slice(i, i + 1)), pixels[i : i + 1])[0] for i in range(40)]
    assert torch.equal(apply(record, pixels), torch.stack(alone))


def test_draw_of_an_image_does_not_depend_on_its_neighbours():
    rows = np.array([7, 3])
    record = draws(MOCO_VIEW_2, 20)
    block = uniforms(3, Stream.AUGMENT, 0, rows, 0, NUM_UNIFORMS)
    for some, every in zip(draw(MOCO_VIEW_2, block, untouched(len(block))), record, strict=True):
        assert np.array_equal(some, every[rows])


def test_draw_covers_the_ranges_and_probabilities_of_the_recipe():
    record = draws(MOCO_VIEW_2, 4000)
    # standard error of a share over 4000 draws: at most 0.008
    assert record.jitter.mean() == pytest.approx(0.8, abs=0.025)
    assert record.gray.mean() == pytest.approx(0.2, abs=0.025)
    assert (record.blur_sigma > 0).mean() == pytest.approx(0.1, abs=0.025)
    assert record.solarize.mean() == pytest.approx(0.2, abs=0.025)
    for values, low, high in (
        (record.brightness, 0.6, 1.4),
        (record.saturation, 0.8, 1.2),
        (record.hue, -0.1, 0.1),
        (record.blur_sigma[record.blur_sigma > 0], 0.1, 2.0),
    ):
        assert low <= values.min() < low + 0.02 * (high - low)
        assert high - 0.02 * (high - low) < values.max() <= high
    orders, counts = np.unique(record.order, axis=0, return_counts=True)
    assert len(orders) == 24
    assert counts.min() > 110  # expected 167, standard deviation 13


def test_draw_with_probability_one_and_zero_is_certain():
    record = draws(PhotometricRecipe(p_jitter=1.0, p_gray=0.0, p_blur=0.0), 500)
    assert record.jitter.all()
    assert not record.gray.any()
    assert not record.blur_sigma.any()


@pytest.mark.parametrize("recipe", [MOCO_VIEW_1, MOCO_VIEW_2])
def test_statistics_are_those_of_torchvisions_pipeline(recipe):
    count = 400
    pixels = pictures(count, 16, 16)
    steps = [
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
        v2.RandomGrayscale(0.2),
        v2.RandomApply([v2.GaussianBlur(23, (0.1, 2.0))], p=recipe.p_blur),
        v2.RandomSolarize(128 / 255, p=recipe.p_solarize),
    ]
    torch.manual_seed(0)
    theirs = torch.stack([v2.Compose(steps)(image) for image in pixels])
    ours = apply(draws(recipe, count), pixels)
    for name, first, second in zip(
        ("luma", "contrast", "saturation"), statistics(ours), statistics(theirs), strict=True
    ):  # 1 % critical value for 400 against 400: 0.115
        assert ks_distance(first, second) < 0.115, name


def statistics(pixels):
    luma = pixels.mean(1)
    saturation = (pixels.amax(1) - pixels.amin(1)).mean((1, 2))
    return luma.mean((1, 2)), luma.std((1, 2)), saturation


def ks_distance(first, second):
    points = np.sort(np.concatenate([first, second]))
    shares = [np.searchsorted(np.sort(x), points, side="right") / len(x) for x in (first, second)]
    return np.abs(shares[0] - shares[1]).max()


def test_apply_works_in_half_precision_and_on_an_empty_batch():
    assert apply(draws(MOCO_VIEW_1, 4), pictures(4).bfloat16()).dtype == torch.bfloat16
    assert apply(draws(MOCO_VIEW_1, 0), pictures(1)[:0]).shape == (0, 3, 20, 26)


def test_apply_with_a_record_of_another_batch_is_refused():
    with pytest.raises(ValueError, match="a record of 3 images for 4 images"):
        apply(identity(3), pictures(4))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("p_gray", 1.5),
        ("p_jitter", -0.1),
        ("hue", 0.6),
        ("contrast", -1.0),
        ("blur_sigma", (0.0, 1.0)),
        ("blur_sigma", (2.0, 1.0)),
    ],
)
def test_recipe_with_an_impossible_value_names_it(field, value):
    with pytest.raises(ValueError, match=field):
        PhotometricRecipe(**{field: value})
