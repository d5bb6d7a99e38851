"""What was drawn for a view travels with it, and makes the same view again."""

import numpy as np
import pytest
import torch

from ser_lightning.batch import ViewRecord
from ser_lightning.data.crops import whole
from ser_lightning.data.draws import Canvas, Draws
from ser_lightning.data.extra_views import LocalCrops
from ser_lightning.data.photometric import PhotometricRecipe
from ser_lightning.data.pipelines import CropViews, InvertibleViews
from ser_lightning.data.plan import BatchKey
from ser_lightning.data.render import HostBatch, render, replay, to_device
from ser_lightning.groups import GroupSampler, act

SIZE, PATCH, LOCAL_SIZE = 32, 4, 16
CANVAS = Canvas(SIZE, PATCH)
INDICES = np.arange(24)
KEY = BatchKey(1, 5)
TOLERANCE = 1e-5  # measured: 7e-7, from the float32 rounding of the factors


def pictures():
    """Smooth colour images of different sizes."""
    rng = torch.Generator().manual_seed(0)
    made = []
    for index in INDICES:
        coarse = torch.rand(1, 3, 5, 5, generator=rng)
        smooth = torch.nn.functional.interpolate(coarse, (40 + index, 60 - index), mode="bicubic")
        made.append((255 * smooth[0]).clamp(0, 255).to(torch.uint8))
    return made


def batch(crop="none", solarize=0.0):
    """A rendered batch in which both pipelines show all images, not normalised."""
    recipe = PhotometricRecipe(p_blur=0.5, p_solarize=solarize)
    local = LocalCrops(num=2, size=LOCAL_SIZE, view=recipe)
    images, nothing = pictures(), torch.zeros(0)
    invertible = InvertibleViews(
        crop=crop, view_1=recipe, view_2=recipe, group=GroupSampler(scale=False)
    )
    crops, draws = CropViews(recipe, recipe, local=local), Draws(7, KEY, INDICES)
    host = HostBatch(
        crops.make(images, draws, CANVAS),
        invertible.make(images, draws, CANVAS, crops),
        *[nothing] * 2,
    )
    return images, render(host, PATCH, (0, 0, 0), (1, 1, 1))


@pytest.mark.parametrize("crop", ["none", "shared"])
def test_every_view_is_made_again_from_its_record(crop):
    images, rendered = batch(crop)
    for number, view in enumerate((*rendered.crop, *rendered.invertible)):
        size = SIZE if number % 4 < 2 else LOCAL_SIZE
        made = replay(view.record, images, size)
        if view.element is not None:
            made = act(view.element, made, PATCH)
        torch.testing.assert_close(made, view.pixels, rtol=0, atol=TOLERANCE)


def test_solarized_views_are_made_again_off_the_threshold():
    images, rendered = batch(solarize=0.5)
    view = rendered.crop[0]
    assert 0 < view.record.solarize.sum() < len(images)
    close = (replay(view.record, images, SIZE) - view.pixels).abs() < TOLERANCE
    assert close.float().mean() > 0.9999  # rounding may put a pixel on the other side


def test_some_rows_of_a_record_make_those_images():
    images, rendered = batch()
    view, rows = rendered.crop[1], [7, 2]
    record = ViewRecord(*(field[rows] for field in view.record))
    made = replay(record, [images[row] for row in rows], SIZE)
    torch.testing.assert_close(made, view.pixels[rows], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    "change", [{"flip": 1.0}, {"box": 1.0}, {"brightness": 0.1}, {"blur_sigma": 1.0}]
)
def test_another_record_makes_another_view(change):
    images, rendered = batch()
    (name, step), view = *change.items(), rendered.crop[0]
    value = getattr(view.record, name)
    other = 1 - value if name == "flip" else value + step
    if name == "box":
        other = (value - step).clamp_min(0)
    made = replay(view.record._replace(jitter=torch.ones(24), **{name: other}), images, SIZE)
    assert ((made - view.pixels).abs().amax((1, 2, 3)) > 0.01).sum() > 10


def test_images_of_other_sizes_are_refused():
    images, rendered = batch()
    record = ViewRecord(*(field[:1] for field in rendered.crop[0].record))
    message = r"\[\[41, 59\]\] for a record of images of sizes \[\[40, 60\]\]; give the images"
    with pytest.raises(ValueError, match=message):
        replay(record, images[1:2], SIZE)
    with pytest.raises(ValueError, match="for a record of images of sizes"):
        replay(record, images[:2], SIZE)


def test_fields_are_columns_of_one_tensor():
    _, rendered = batch()
    for view in (*rendered.crop, *rendered.invertible):
        storages = {field.untyped_storage().data_ptr() for field in view.record}
        assert len(storages) == 1
        assert all(field.dtype == torch.float32 for field in view.record)
        assert [field.dim() for field in view.record] == [2, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 1, 1]


def test_fields_are_the_same_beside_the_pixels():
    images = [torch.zeros(3, 5, 7, dtype=torch.uint8)] * 2
    colours = {
        "jitter": np.array([True, False]),
        "order": np.array([[2, 0, 1, 3], [3, 2, 1, 0]]),
        "brightness": np.array([1.1, 1.2]),
        "contrast": np.array([1.3, 1.4]),
        "saturation": np.array([1.5, 1.6]),
        "hue": np.array([0.1, -0.2]),
        "gray": np.array([False, True]),
        "blur_sigma": np.array([0.0, 1.7]),
        "solarize": np.array([True, False]),
    }
    record = to_device(whole(images)._replace(flip=np.array([False, True]), **colours))
    assert record.source_size.tolist() == [[5, 7]] * 2
    assert record.box.tolist() == [[0, 0, 5, 7]] * 2
    assert record.flip.tolist() == [0, 1]
    for name, values in colours.items():
        np.testing.assert_allclose(getattr(record, name).numpy(), values, rtol=1e-6)


def test_whole_and_shared_boxes_of_invertible_views_are_those_cut():
    images, squashed = batch("none")
    sizes = torch.tensor([image.shape[-2:] for image in images]).float()
    for view in squashed.invertible[:2]:
        assert torch.equal(view.record.source_size, sizes)
        assert torch.equal(view.record.box, torch.cat([torch.zeros(24, 2), sizes], 1))
        assert not view.record.flip.any()
    _, shared = batch("shared")
    for first, second in zip(shared.invertible[::2], shared.invertible[1::2], strict=True):
        assert torch.equal(first.record.box, second.record.box)
        assert torch.equal(first.record.flip, second.record.flip)
        assert not torch.equal(first.record.brightness, second.record.brightness)
        assert 0 < first.record.flip.sum() < 24


def test_draws_of_a_run_stay_as_they_are():
    """Two images in two views, as drawn before records travelled with the batch."""
    images = [torch.zeros(3, 40, 48, dtype=torch.uint8)] * 2
    local = LocalCrops(num=1, size=16)
    views = CropViews(local=local).make(images, Draws(7, KEY, np.array([4, 9])), CANVAS)
    factors = [(1.160651, 0.610454, 0.878672, 0.054572), (0.721008, 1.086057, 0.852282, -0.066591)]
    golden = [
        (40, 48, 0, 0, 37, 44, 0, 0, 2, 0, 1, 3, *factors[0], 0, 1.137104, 0, 0),
        (40, 48, 17, 2, 10, 11, 1, 1, 2, 0, 1, 3, *factors[1], 1, 0.406639, 0, 0),
    ]
    for view, expected in zip((views[0], views[2]), golden, strict=True):
        drawn = [number for field in to_device(view.record.take([1])) for number in field.flatten()]
        assert drawn == pytest.approx(expected, abs=2e-6)
