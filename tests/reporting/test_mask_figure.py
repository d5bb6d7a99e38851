"""The picture of segmentations: shades told apart in grey, and what is drawn at all."""

import numpy as np
import pytest
import torch
from PIL import Image

from ser_lightning.reporting.mask_figure import (
    MAX_SHADES,
    _shades,
    coloured,
    mask_figure,
    mean_overlap,
)
from ser_lightning.results.shown import MaskPicture, MaskPictures


def shown(num_classes=3, count=2):
    rng = torch.Generator().manual_seed(0)
    pictures = []
    for number in range(count):
        size = (30 + 6 * number, 40)
        image = torch.randint(256, (3, *size), generator=rng, dtype=torch.uint8)
        truth = torch.randint(num_classes, size, generator=rng).to(torch.uint8)
        truth[0] = 255
        found = torch.randint(num_classes, size, generator=rng)
        pictures.append(MaskPicture(image, truth, {"trained, last block": found}))
    return MaskPictures(tuple(pictures), tuple(f"class {n}" for n in range(num_classes)))


def test_picture_is_written_with_a_row_per_image(tmp_path):
    mask_figure(tmp_path / "few.png", shown(count=1), "A run")
    mask_figure(tmp_path / "more.png", shown(count=3), "A run")
    sizes = []
    for name in ("few.png", "more.png"):
        with Image.open(tmp_path / name) as picture:
            sizes.append(picture.size)
    assert sizes[0][0] == sizes[1][0]
    assert sizes[1][1] > 1.5 * sizes[0][1]


def test_shades_of_classes_differ_in_grey():
    shades = _shades(shown(num_classes=30))
    assert len(shades) == MAX_SHADES
    grey = sorted(0.299 * r + 0.587 * g + 0.114 * b for r, g, b in shades.values())
    assert min(np.diff(grey)) > 0.08  # measured: 0.10


def test_commonest_classes_have_the_shades():
    pictures = shown(num_classes=30)
    pictures.pictures[0].truth[5:] = 29
    assert 29 in _shades(pictures)


def test_ignored_pixels_are_white_and_other_classes_dotted():
    mask = torch.tensor([[255, 0], [0, 7]], dtype=torch.uint8).repeat_interleave(20, 0)
    mask = mask.repeat_interleave(20, 1)
    picture = coloured(mask, {0: (0.0, 0.1, 0.2)})
    assert (picture[:20, :20] == 1).all()
    assert (picture[:20, 20:] == (0.0, 0.1, 0.2)).all()
    dots = picture[20:, 20:, 0]
    assert set(dots.flatten().tolist()) == {0.55, 1.0}
    assert 0.3 < (dots == 1).mean() < 0.7


def test_overlap_of_an_image_is_that_of_its_own_classes():
    truth = torch.tensor([[0, 0, 1, 255]], dtype=torch.uint8)
    assert mean_overlap(torch.tensor([[0, 1, 1, 2]]), truth) == pytest.approx((0.5 + 0.5) / 2)
    assert mean_overlap(truth.long(), truth) == 1


def test_no_image_makes_no_file(tmp_path):
    mask_figure(tmp_path / "none.png", MaskPictures((), ()))
    assert not (tmp_path / "none.png").exists()
