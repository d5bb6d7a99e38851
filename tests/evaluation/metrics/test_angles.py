"""The score over angles: exact at quarter turns, 1 for what follows, over the tokens inside."""

import pytest
import torch

from ser_lightning.batch import TapFeatures
from ser_lightning.evaluation.metrics.angles import angle_name, angle_scores
from ser_lightning.evaluation.metrics.equivariance import (
    ROWS,
    Reference,
    other_image,
    row_scores,
    token_cosine,
)
from ser_lightning.groups import GroupElement, act
from ser_lightning.groups.turning import stays_inside, turn
from support import tiny_backbone

IMAGES = torch.randn(4, 3, 16, 16)


class Pixels:
    """An encoder that follows everything: tokens are pixels."""

    grid, patch_size = (16, 16), 1

    def walk(self, images, layers, /):
        return [tuple(TapFeatures(group + 0, None) for _ in layers) for group in images]


def reference(backbone, layers):
    maps = tuple(each.detach() for each in backbone.token_maps(torch.randn(3, 3, 16, 16), layers))
    return Reference(tuple(each.mean((0, 2, 3)) for each in maps), torch.arange(3), maps)


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_quarter_turns_are_scored_as_the_exact_ones(quarters):
    backbone = tiny_backbone().eval()
    position, known = torch.arange(4), reference(backbone, [2, 4])
    turned = angle_scores(backbone, IMAGES, [2, 4], position, known, [90.0 * quarters])
    element = GroupElement.from_turns(
        torch.zeros(4, dtype=torch.bool), torch.full((4,), quarters), (4, 4)
    )
    with torch.no_grad():
        before = backbone.token_maps(IMAGES, [2, 4])
        after = backbone.token_maps(act(element, IMAGES, 4), [2, 4])
    for i, layer in enumerate((2, 4)):
        others = act(element, known.maps[i][other_image(position, known.positions)])
        expected = row_scores(after[i], before[i], act(element, before[i]), others, known, i)
        for row in ROWS:
            found = turned[row][angle_name(90.0 * quarters)][layer]
            # images and maps are equal bit by bit, sums over them in another memory layout are not
            torch.testing.assert_close(found, expected[row], atol=1e-6, rtol=0)


def test_encoder_that_follows_scores_1_and_others_less():
    scores = angle_scores(Pixels(), IMAGES, [0], torch.arange(4), None, [20, 45, 130])["score"]
    for found in scores.values():
        torch.testing.assert_close(found[0], torch.ones(4))
    backbone = tiny_backbone().eval()
    scores = angle_scores(backbone, IMAGES, [2], torch.arange(4), None, [20, 45])["score"]
    assert all((found[2] < 0.99).all() for found in scores.values())


def test_only_tokens_inside_count():
    backbone = tiny_backbone().eval()
    found = angle_scores(backbone, IMAGES, [2], torch.arange(4), None, [30])
    with torch.no_grad():
        (before,) = backbone.token_maps(IMAGES, [2])
        (after,) = backbone.token_maps(turn(IMAGES, 30), [2])
    expected = turn(before, 30)
    cells = stays_inside(30, 4).nonzero().tolist()
    assert 0 < len(cells) < 16
    values = [
        torch.cosine_similarity(after[:, :, y, x], expected[:, :, y, x], dim=1) for y, x in cells
    ]
    torch.testing.assert_close(found["score"]["turn30"][2], torch.stack(values).mean(0))
    assert all(found[row]["turn30"][2].isnan().all() for row in ROWS if row != "score")


def test_no_token_inside_leaves_the_score_undefined():
    backbone = tiny_backbone(image_size=8).eval()  # a grid of 2 x 2
    found = angle_scores(backbone, IMAGES[..., :8, :8], [2], torch.arange(4), None, [45])
    assert found["score"]["turn45"][2].isnan().all()
    assert token_cosine(IMAGES, IMAGES, torch.zeros(16, 16, dtype=torch.bool)).isnan().all()


def test_angles_are_named_by_their_degrees():
    assert [angle_name(each) for each in (45.0, 22.5)] == ["turn45", "turn22.5"]
