"""Lie derivatives: against finite differences in float64, and encoders that are known to follow."""

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from sampled_action import central_difference, sampled
from ser_lightning.evaluation.metrics.lie_derivative import lie_derivatives, mean_square
from ser_lightning.groups.generators import GENERATORS, generate
from support import tiny_backbone

NAMES = list(GENERATORS)
LAYERS = (0, 2, 4)


def of(encode, images, names=NAMES):
    return {name: [each.lie for each in found] for name, found in lie_derivatives(
        encode, images, names)}  # fmt: skip


@pytest.mark.parametrize("cls_layer", [0, 2])
def test_vit_agrees_with_finite_differences_through_bilinear_sampling(cls_layer):
    backbone = tiny_backbone(cls_layer=cls_layer).eval().requires_grad_(False).double()
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)

    def encode(pixels):
        return *backbone.token_maps(pixels, LAYERS), backbone(pixels)

    def acted(name, t):
        with sdpa_kernel(SDPBackend.MATH):
            *maps, cls = encode(sampled(name, t, images))
        return torch.cat([*(sampled(name, -t, each).flatten() for each in maps), cls.flatten()])

    for name, derivatives in of(encode, images).items():
        expected = central_difference(lambda t, name=name: acted(name, t), 1e-6)
        found = torch.cat([each.flatten() for each in derivatives])
        # measured: at most 9e-4 of 47, and proportional to the step, as sampling has a kink at 0
        assert (found - expected).abs().max() < 1e-4 * expected.abs().max(), name


@pytest.mark.parametrize("name", NAMES)
def test_encoders_of_single_pixels_are_exactly_equivariant(name):
    images = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    (same,) = of(lambda x: [x], images, [name])[name]
    assert not same.any()
    weight = torch.randn(5, 3, 1, 1, dtype=torch.float64)
    (mixed,) = of(lambda x: [F.conv2d(x, weight)], images, [name])[name]
    assert mixed.abs().max() < 1e-12  # measured: 2e-14


def test_convolution_over_patches_follows_the_shift_of_a_slope():
    ramp = torch.arange(16, dtype=torch.float64).expand(1, 3, 16, 16)
    weight = torch.randn(4, 3, 4, 4, dtype=torch.float64)
    for name in ("translation_x", "translation_y"):
        (lie,) = of(lambda x: [F.conv2d(x, weight, stride=4)], ramp, [name])[name]
        assert lie.abs().max() < 1e-12  # measured: 2e-14
    # it does not follow what differs within patches
    ramp = ramp.remainder(4)
    (lie,) = of(lambda x: [F.conv2d(x, weight, stride=4)], ramp, ["translation_x"])["translation_x"]
    assert lie.abs().max() > 1


def test_constant_outputs_have_none_and_embeddings_are_not_acted_on():
    images = torch.randn(2, 3, 4, 4)
    constant = torch.randn(2, 5)

    def encode(x):
        return constant, torch.ones(2, 5, 4, 4), x.flatten(2).sum(2)

    for name, (nothing, flat, total) in of(encode, images).items():
        assert not nothing.any()
        assert not flat.any()
        torch.testing.assert_close(total, generate(name, images).flatten(2).sum(2))


def test_inference_mode_does_not_matter():
    backbone = tiny_backbone().eval().requires_grad_(False)
    images = torch.randn(2, 3, 16, 16)
    outside = of(lambda x: [backbone(x)], images, ["shear"])["shear"][0]
    with torch.inference_mode():
        within = of(lambda x: [backbone(x)], images.clone(), ["shear"])["shear"][0]
    assert torch.equal(outside, within)


def test_mean_square_is_the_squared_norm_by_the_dimension():
    values = torch.randn(3, 4, 2, 5)
    expected = [sum(v**2 for v in row.flatten().tolist()) / 40 for row in values]
    torch.testing.assert_close(mean_square(values), torch.tensor(expected))
