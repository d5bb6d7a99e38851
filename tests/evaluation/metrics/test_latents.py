"""What two views differ by, against a rotation written out; R2 against its formula."""

import numpy as np
import pytest
import torch

from ser_lightning.evaluation.metrics.latents import joint_r2, relative_latents, target_widths


def matrix(angles):
    """Turns about the fixed axes x, then y, then z."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def matrix_of_quaternion(q):
    x, y, z, w = q
    return np.array([
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ])  # fmt: skip


def latents(num, seed, width=10):
    rng = np.random.default_rng(seed)
    return np.concatenate(
        [rng.uniform(-np.pi / 2, np.pi / 2, (num, 3)), rng.uniform(-0.5, 1, (num, width - 3))], 1
    )


def test_rotation_leads_from_the_first_view_to_the_second():
    first, second = latents(20, 0), latents(20, 1)
    found = relative_latents(first, second)["rotation"]
    assert found.dtype == np.float32
    for q, one, two in zip(found, first, second, strict=True):
        expected = matrix(one[:3]).T @ matrix(two[:3])
        assert np.abs(matrix_of_quaternion(q) - expected).max() < 1e-6  # measured: 2e-7
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_equal_views_differ_by_nothing():
    same = latents(3, 0)
    found = relative_latents(same, same)
    assert np.allclose(np.abs(found["rotation"]), [0, 0, 0, 1], atol=1e-7)
    assert all(not found[name].any() for name in found if name != "rotation")


def test_colours_and_translations_are_differences():
    first, second = latents(5, 0), latents(5, 1)
    found = relative_latents(first, second)
    assert np.allclose(found["colour"][:, 0], second[:, 3] - first[:, 3])
    assert np.allclose(found["colour"][:, 1], second[:, 6] - first[:, 6])
    assert np.allclose(found["translation_object"], second[:, 7:] - first[:, 7:])
    base = [
        matrix(two[:3]) @ two[7:] - matrix(one[:3]) @ one[7:]
        for one, two in zip(first, second, strict=True)
    ]
    assert np.abs(found["translation_base"] - np.array(base)).max() < 1e-6


def test_targets_follow_from_the_number_of_latents():
    assert target_widths(7) == {"rotation": 4, "colour": 2}
    translated = {"translation_object": 3, "translation_base": 3}
    assert target_widths(10) == {"rotation": 4, "colour": 2, **translated}
    assert set(relative_latents(latents(2, 0, 7), latents(2, 1, 7))) == set(target_widths(7))


def test_r2_has_one_mean_for_all_numbers():
    rng = torch.Generator().manual_seed(0)
    truth = torch.randn(30, 4, generator=rng) + torch.tensor([0.0, 1.0, 2.0, -3.0])
    predicted = truth + 0.5 * torch.randn(30, 4, generator=rng)
    numbers, told = truth.flatten().tolist(), predicted.flatten().tolist()
    mean = sum(numbers) / len(numbers)
    missed = sum((t - p) ** 2 for t, p in zip(numbers, told, strict=True))
    expected = 1 - missed / sum((t - mean) ** 2 for t in numbers)
    assert joint_r2(predicted, truth) == pytest.approx(expected, abs=1e-9)
    assert joint_r2(truth, truth) == 1
    assert joint_r2(torch.full_like(truth, mean), truth) == pytest.approx(0, abs=1e-6)
