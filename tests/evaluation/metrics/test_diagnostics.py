"""Diagnostics against closed forms."""

import math

import pytest
import torch

from ser_lightning.evaluation.metrics.diagnostics import (
    alignment,
    feature_std,
    lidar,
    rankme,
    spatial_moments,
    spatial_variance_ratio,
    uniformity,
)


def spatial_variance(maps):
    return spatial_variance_ratio(*spatial_moments(maps))


def test_rankme_of_orthonormal_rows_is_their_number():
    assert rankme(torch.eye(12)) == pytest.approx(12, rel=1e-4)  # eps 1e-7 shifts it by 1e-5


def test_rankme_of_one_direction_is_one():
    features = torch.randn(50, 1) @ torch.randn(1, 16)
    assert rankme(features) == pytest.approx(1, abs=1e-4)


def test_rankme_of_two_singular_values():
    p = torch.tensor([0.75, 0.25])
    expected = math.exp(-(p * p.log()).sum())
    assert rankme(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(expected, rel=1e-5)


def test_rankme_ignores_scale_and_rotation():
    features = torch.randn(64, 8)
    rotation = torch.linalg.qr(torch.randn(8, 8))[0]
    assert rankme(7 * features @ rotation) == pytest.approx(rankme(features), rel=1e-4)


def test_feature_std_of_opposite_axes_is_one_over_sqrt_channels():
    features = 3 * torch.cat([torch.eye(16), -torch.eye(16)])
    assert feature_std(features) == pytest.approx(1 / 4, rel=1e-6)


def test_feature_std_of_collapsed_features_is_zero():
    direction = torch.randn(8)
    assert feature_std(torch.stack([direction, 2 * direction, 5 * direction])) < 1e-6


def test_spatial_variance_equals_the_ratio_of_pooled_tokens():
    maps = torch.randn(10, 4, 3, 5) + torch.randn(10, 4, 1, 1)
    tokens = maps.permute(1, 0, 2, 3).double()
    within = tokens.flatten(2).var(dim=2, correction=0).mean(1).sum()
    total = tokens.flatten(1).var(dim=1, correction=0).sum()
    assert spatial_variance(maps) == pytest.approx(float(within / total), rel=1e-5)


def test_spatial_variance_of_constant_maps_is_zero():
    assert spatial_variance(torch.randn(6, 4, 1, 1).expand(6, 4, 3, 3)) < 1e-10


def test_spatial_variance_of_one_map_repeated_is_one():
    assert spatial_variance(torch.randn(1, 4, 3, 3).repeat(5, 1, 1, 1)) == pytest.approx(1)


@pytest.mark.parametrize("num_images", [0, 1])
def test_too_few_images_give_nan(num_images):
    assert math.isnan(rankme(torch.randn(num_images, 4)))
    assert math.isnan(feature_std(torch.randn(num_images, 4)))
    assert math.isnan(spatial_variance(torch.randn(num_images, 4, 2, 2)))


def test_rankme_of_broken_features_is_nan():
    assert math.isnan(rankme(torch.full((4, 4), float("nan"))))


def naive_lidar(views, delta=1e-4, eps=1e-8):
    """The definition, scatter matrix by scatter matrix."""
    num_images, num_views, width = views.shape
    views = views.double()
    mu = views.mean((0, 1))
    between = torch.zeros(width, width, dtype=torch.float64)
    within = torch.zeros(width, width, dtype=torch.float64)
    for image in views:
        centre = image.mean(0)
        between += torch.outer(centre - mu, centre - mu) / (num_images - 1)
        for z in image:
            within += torch.outer(z - centre, z - centre) / (num_images * (num_views - 1))
    within += delta * torch.eye(width)
    values, vectors = torch.linalg.eigh(within)
    root = vectors @ torch.diag(values**-0.5) @ vectors.T
    eigenvalues = torch.linalg.eigvalsh(root @ between @ root).clamp_min(0)
    p = eigenvalues / eigenvalues.sum() + eps
    return torch.exp(-(p * p.log()).sum()).item()


@pytest.mark.parametrize("num_images", [6, 40])  # fewer and more than channels
def test_lidar_equals_its_definition(num_images):
    rng = torch.Generator().manual_seed(0)
    spread = torch.logspace(0, -2, 12)
    views = torch.randn(num_images, 1, 12, generator=rng) * spread
    views = views + 0.3 * torch.randn(num_images, 5, 12, generator=rng)
    assert lidar(views) == pytest.approx(naive_lidar(views), rel=1e-6)


def test_lidar_of_images_in_all_directions_is_one_less_than_their_number():
    # means at the corners of a regular simplex; equal noise in all directions
    means = torch.eye(8)[:, None]
    noise = 0.1 * torch.cat([torch.eye(8), -torch.eye(8)])[None]
    assert lidar(means + noise) == pytest.approx(7, rel=1e-4)


def test_lidar_of_images_on_a_line_is_one():
    means = torch.linspace(-1, 1, 9)[:, None, None] * torch.ones(6)
    noise = 0.1 * torch.cat([torch.eye(6), -torch.eye(6)])[None]
    assert lidar(means + noise) == pytest.approx(1, abs=1e-4)


def test_lidar_discounts_directions_in_which_views_of_one_image_differ():
    rng = torch.Generator().manual_seed(1)
    means = torch.randn(200, 1, 2, generator=rng)
    noise = torch.randn(200, 10, 2, generator=rng)
    uneven = noise * torch.tensor([3.0, 0.01])
    assert lidar(means + uneven) < 1.1 < 1.9 < lidar(means + 0.01 * noise)


def test_uniformity_of_an_orthogonal_frame():
    # every two rows are sqrt(2) apart: log exp(-2 * 2)
    assert uniformity(5 * torch.eye(10)) == pytest.approx(-4, abs=1e-12)
    assert uniformity(torch.eye(10), t=3) == pytest.approx(-6, abs=1e-12)


def test_uniformity_equals_a_loop_over_pairs():
    features = torch.randn(15, 6, generator=torch.Generator().manual_seed(2))
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    kernel = [
        math.exp(-2 * float((unit[i] - unit[j]).square().sum()))
        for i in range(15)
        for j in range(15)
        if i != j
    ]
    expected = math.log(sum(kernel) / len(kernel))
    assert uniformity(features) == pytest.approx(expected, abs=1e-10)


def test_uniformity_of_collapsed_and_of_opposite_features():
    assert uniformity(torch.ones(5, 3)) == pytest.approx(0, abs=1e-6)
    assert uniformity(torch.tensor([[1.0, 0.0], [-2.0, 0.0]])) == pytest.approx(-8, abs=1e-6)


def test_alignment_of_known_angles():
    first = torch.eye(3)
    assert alignment(first, 4 * first) == pytest.approx(0, abs=1e-12)
    assert alignment(first, first.roll(1, 0)) == pytest.approx(2)
    assert alignment(first, -first) == pytest.approx(4)
    assert alignment(first, -first, alpha=1) == pytest.approx(2)


def test_too_few_images_or_views_give_nan():
    assert math.isnan(lidar(torch.randn(1, 5, 4)))
    assert math.isnan(lidar(torch.randn(5, 1, 4)))
    assert math.isnan(lidar(torch.full((4, 3, 2), math.nan)))
    assert math.isnan(uniformity(torch.randn(1, 4)))
    assert math.isnan(alignment(torch.randn(1, 4), torch.randn(1, 4)))
