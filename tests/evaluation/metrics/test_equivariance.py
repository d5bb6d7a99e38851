"""The equivariance score: exact encoders, a loop as oracle, and its elements."""

import pytest
import torch
import torch.nn.functional as F

from ser_lightning.batch import TapFeatures
from ser_lightning.evaluation.metrics.equivariance import (
    FAMILIES,
    NUM_SCALES,
    ROWS,
    Reference,
    companion_scores,
    family_elements,
    other_image,
    reference_positions,
    scale_grids,
    token_cosine,
)
from ser_lightning.groups import act

GRID = (4, 4)


class Encoder(torch.nn.Module):
    """Makes token maps of one group of images, and with that of several."""

    grid = GRID
    patch_size = 4

    def walk(self, images, layers):
        maps = [self.token_maps(group, layers) for group in images]
        return [tuple(TapFeatures(tokens, None) for tokens in group) for group in maps]


class PatchMean(Encoder):
    """Averages every patch: commutes with flips and turns exactly."""

    def token_maps(self, images, layers):
        maps = F.avg_pool2d(images, self.patch_size)
        return tuple(maps * layer for layer in layers)


class Positional(PatchMean):
    """Adds a map that depends on the position alone: not equivariant."""

    def token_maps(self, images, layers):
        maps = F.avg_pool2d(images, self.patch_size)
        ramp = torch.linspace(0, 1, maps.shape[-1]).expand(maps.shape[-2], -1)
        return tuple(maps + layer * ramp for layer in layers)


def images(num_images, seed=0):
    return torch.randn(num_images, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def test_patch_mean_encoder_is_exactly_equivariant_to_flips_and_turns():
    scores = companion_scores(PatchMean(), images(7), [1, 2], torch.arange(7), None)["score"]
    for family in ("rotation", "flip"):
        for layer in (1, 2):
            # cosines of equal vectors, up to the order of the pooling sums: measured 1.2e-7
            torch.testing.assert_close(scores[family][layer], torch.ones(7), atol=1e-6, rtol=0)
    assert set(scores) == set(FAMILIES)
    # patches of noise, the hardest image, change with a resize, but not beyond recognition
    assert ((scores["scale"][1] > 0.5) & (scores["scale"][1] < 1)).all()


def test_scores_equal_a_loop_over_images_and_positions():
    encoder, pixels, position = Positional(), images(9), torch.arange(9) + 5
    scores = companion_scores(encoder, pixels, [3], position, None, seed=2)["score"]
    for family in FAMILIES:
        for rows, element in family_elements(family, position, GRID, seed=2):
            for i, row in enumerate(rows.tolist()):
                one = element._replace(
                    flip=element.flip[i : i + 1], half_turn=element.half_turn[i : i + 1]
                )
                x = pixels[row : row + 1]
                after = encoder.token_maps(act(one, x, 4), [3])[0][0]
                expected = act(one, encoder.token_maps(x, [3])[0])[0]
                cosines = [
                    float(a @ b / (a.norm() * b.norm()))
                    for a, b in zip(after.flatten(1).T, expected.flatten(1).T, strict=True)
                ]
                assert scores[family][3][row] == pytest.approx(
                    sum(cosines) / len(cosines), abs=1e-5
                )


def test_a_map_fixed_to_positions_is_not_equivariant():
    scores = companion_scores(Positional(), images(6), [5], torch.arange(6), None)["score"]
    assert scores["flip"][5].max() < 0.99
    assert scores["rotation"][5].max() < 0.99


def test_scores_do_not_depend_on_the_batch():
    pixels, position = images(12), torch.arange(12)
    whole = companion_scores(Positional(), pixels, [1], position, None)["score"]
    parts = [
        companion_scores(Positional(), pixels[rows], [1], position[rows], None)["score"]
        for rows in torch.arange(12).flip(0).split(5)
    ]
    for family in FAMILIES:
        merged = torch.cat([part[family][1] for part in parts]).flip(0)
        torch.testing.assert_close(merged, whole[family][1])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_image_gets_one_element_that_is_not_the_identity(family):
    groups = family_elements(family, torch.arange(50) + 3, GRID)
    assert torch.equal(torch.cat([rows for rows, _ in groups]).sort()[0], torch.arange(50))
    for _, element in groups:
        moved = element.flip | (element.quarter_turns != 0)
        assert bool(moved.all()) or element.grid != GRID


def test_rotations_are_balanced():
    groups = family_elements("rotation", torch.arange(9), GRID)
    counts = {int(element.quarter_turns[0]): len(rows) for rows, element in groups}
    assert counts == {1: 3, 2: 3, 3: 3}


def test_scale_grids_follow_the_seed_and_the_sampler():
    grids = scale_grids((14, 14), 0)
    assert len(grids) == NUM_SCALES
    assert grids == scale_grids((14, 14), 0)
    assert grids != scale_grids((14, 14), 1)
    assert all(10 <= side <= 18 for grid in grids for side in grid)
    with pytest.raises(ValueError, match="grid of 1x1 tokens"):
        scale_grids((1, 1))


def test_unknown_family_is_refused():
    with pytest.raises(ValueError, match="no transformation family 'shear'"):
        family_elements("shear", torch.arange(2), GRID)


def test_scores_are_float32_under_autocast_and_carry_no_gradient():
    class Convolution(PatchMean):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Conv2d(3, 8, 4, 4)

        def token_maps(self, images, layers):
            return (self.layer(images),)

    encoder = Convolution()
    expected = companion_scores(encoder, images(3), [1], torch.arange(3), None)["score"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = companion_scores(encoder, images(3), [1], torch.arange(3), None)["score"]
    for family in FAMILIES:
        assert scores[family][1].dtype == torch.float32
        assert not scores[family][1].requires_grad
        assert torch.equal(scores[family][1], expected[family][1])


def test_token_cosine_of_opposite_maps():
    maps = torch.randn(2, 8, 3, 3)
    torch.testing.assert_close(token_cosine(maps, -maps), -torch.ones(2))


def reference_of(encoder, pixels, layers):
    """The reference of a set that is held in one batch."""
    positions = reference_positions(len(pixels))
    maps = encoder.token_maps(pixels, layers)
    mean = tuple(m.mean((0, 2, 3)) for m in maps)
    return Reference(mean, positions, tuple(m[positions] for m in maps))


def naive_cosine(first, second):
    """Mean over positions of the cosine of two (C, h, w) maps."""
    return F.cosine_similarity(first.double(), second.double(), dim=0).mean().item()


def test_companions_equal_a_loop_over_images():
    encoder, pixels, position = Positional(), images(9), torch.arange(9)
    reference = reference_of(encoder, pixels, [1, 3])
    values = companion_scores(encoder, pixels, [1, 3], position, reference, seed=2)
    for family in FAMILIES:
        for rows, element in family_elements(family, position, GRID, seed=2):
            for i, row in enumerate(rows.tolist()):
                one = element._replace(
                    flip=element.flip[i : i + 1], half_turn=element.half_turn[i : i + 1]
                )
                other = (row + 1) % 9  # with 9 images, each of them is a reference
                f_x, f_y = (encoder.token_maps(pixels[j : j + 1], [3])[0] for j in (row, other))
                f_gx = encoder.token_maps(act(one, pixels[row : row + 1], 4), [3])[0]
                mean = reference.mean[1][:, None, None]
                g_f_x, g_f_y = act(one, f_x)[0], act(one, f_y)[0]
                expected = {
                    "score": naive_cosine(f_gx[0], g_f_x),
                    "chance": naive_cosine(f_gx[0], g_f_y),
                    "mean_centred": naive_cosine(f_gx[0] - mean, g_f_x - mean),
                }
                if family != "scale":
                    expected["no_action"] = naive_cosine(f_gx[0], f_x[0])
                for name, value in expected.items():
                    assert values[name][family][3][row] == pytest.approx(value, abs=1e-5), name
    assert values["no_action"]["scale"][3].isnan().all()


def test_score_among_companions_is_the_score():
    encoder, pixels, position = Positional(), images(7), torch.arange(7)
    reference = reference_of(encoder, pixels, [2])
    values = companion_scores(encoder, pixels, [2], position, reference)
    scores = companion_scores(encoder, pixels, [2], position, None)["score"]
    for family in FAMILIES:
        assert torch.equal(values["score"][family][2], scores[family][2])


def test_exact_encoder_keeps_its_score_when_centred_and_loses_it_without_action():
    pixels, position = images(8) + 3, torch.arange(8)  # +3: a mean that all tokens share
    reference = reference_of(PatchMean(), pixels, [1])
    values = companion_scores(PatchMean(), pixels, [1], position, reference)
    for family in ("rotation", "flip"):
        # differences of nearly equal numbers: measured 1e-6
        torch.testing.assert_close(
            values["mean_centred"][family][1], torch.ones(8), atol=1e-4, rtol=0
        )
        assert values["no_action"][family][1].mean() > 0.9  # the shared mean alone gives that
        assert values["chance"][family][1].mean() > 0.9


def test_companions_do_not_depend_on_the_batch():
    encoder, pixels, position = Positional(), images(20), torch.arange(20)
    reference = reference_of(encoder, pixels, [1])
    whole = companion_scores(encoder, pixels, [1], position, reference)
    rows = torch.arange(20).flip(0)
    parts = [
        companion_scores(encoder, pixels[r], [1], position[r], reference) for r in rows.split(7)
    ]
    for name in ROWS:
        for family in FAMILIES:
            merged = torch.cat([part[name][family][1] for part in parts]).flip(0)
            torch.testing.assert_close(merged, whole[name][family][1], equal_nan=True)


@pytest.mark.parametrize("num_images", [2, 3, 15, 16, 17, 100])
def test_other_image_is_never_the_image_itself(num_images):
    references, position = reference_positions(num_images), torch.arange(num_images)
    assert len(references) == min(16, num_images)
    assert bool((references < num_images).all())
    chosen = other_image(position, references)
    assert bool((references[chosen] != position).all())
    assert len(set(chosen.tolist())) == len(references)


def test_chance_needs_two_images():
    with pytest.raises(ValueError, match="1 images have no chance level"):
        reference_positions(1)
