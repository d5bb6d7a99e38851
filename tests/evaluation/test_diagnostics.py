"""Diagnostics against closed forms."""

import math

import pytest
import torch

from ser_lightning.evaluation import feature_std, rankme, token_spatial_variance


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
    assert token_spatial_variance(maps) == pytest.approx(float(within / total), rel=1e-5)


def test_spatial_variance_of_constant_maps_is_zero():
    assert token_spatial_variance(torch.randn(6, 4, 1, 1).expand(6, 4, 3, 3)) < 1e-10


def test_spatial_variance_of_one_map_repeated_is_one():
    assert token_spatial_variance(torch.randn(1, 4, 3, 3).repeat(5, 1, 1, 1)) == pytest.approx(1)


@pytest.mark.parametrize("num_images", [0, 1])
def test_too_few_images_give_nan(num_images):
    assert math.isnan(rankme(torch.randn(num_images, 4)))
    assert math.isnan(feature_std(torch.randn(num_images, 4)))
    assert math.isnan(token_spatial_variance(torch.randn(num_images, 4, 2, 2)))


def test_rankme_of_broken_features_is_nan():
    assert math.isnan(rankme(torch.full((4, 4), float("nan"))))
