import math

import numpy as np
import pytest
import torch

from objectives.tiny_run import assert_equal_trees, tiny_fit
from ser_lightning.batch import spaced_rows
from ser_lightning.data import CropViews, LocalCrops, PartitionedDataModule, Shapes
from ser_lightning.data.extra_views import TurnedCrops
from ser_lightning.groups import Frame, transport
from ser_lightning.objectives.encode import encode
from ser_lightning.objectives.moco_v3 import MoCoV3
from ser_lightning.regularizers import token_info_nce
from ser_lightning.regularizers.overlap import OverlapRegularizer
from support import (
    PATCH,
    WIDTH,
    objective_classes,
    tiny_backbone,
    tiny_batch,
    tiny_with_add_on,
    turned,
    with_needs,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*isinstance.*treespec.*"),
]


def batch_of(num_local=0, dtype=torch.float64):
    batch = tiny_batch(8, 0, dtype=dtype, num_local=num_local)
    return with_needs(batch, OverlapRegularizer.needs)


def make_regularizer(**options):
    torch.manual_seed(2)
    return OverlapRegularizer(WIDTH, hidden=24, **{"ratio": 0.5} | options).double()


def features(num_local=0, seed=1):
    torch.manual_seed(seed)
    return encode(tiny_backbone().double(), batch_of(num_local))


@pytest.mark.parametrize("num_local", [0, 4])
@pytest.mark.parametrize("with_target", [True, False])
@pytest.mark.parametrize(
    ("options", "limit"),
    [({}, 0.0), ({}, 180.0), ({"ratio": 1.0}, 0.0), ({"max_scale": 3.0}, 0.0)],
    ids=["plain", "turned", "all", "scales"],
)
def test_loss_and_gradients_equal_the_parts_written_out(num_local, with_target, options, limit):
    regularizer, batch = make_regularizer(**options), turned(batch_of(num_local), limit)
    online, target = features(num_local), features(seed=5) if with_target else None
    rows = [*range(8)] if options.get("ratio") == 1 else [0, 2, 4, 6]
    maps = [view.taps[0].tokens[rows] for view in online.crop]
    others = maps if target is None else [view.taps[0].tokens[rows] for view in target.crop]

    def project(view):
        normed = regularizer.norm(view.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return regularizer.projector(normed)

    def tokens(view):
        return torch.nn.functional.normalize(view, dim=1).flatten(2).mT

    def direction(anchor, other):
        frames = [
            Frame.of_crop(batch.crop[place].record.take(rows), tuple(maps[place].shape[-2:]))
            for place in (other, anchor)
        ]
        candidate = project(others[other])
        moved, valid = transport(
            candidate if target is None else candidate.detach(),
            *frames,
            options.get("max_scale", 2.0),
        )
        assert valid.any()
        assert not valid.all()
        return token_info_nce(
            tokens(project(maps[anchor])), tokens(moved), 0, 0.3, valid=valid.flatten(1)
        )

    expected = (direction(0, 1) + direction(1, 0)) / 2
    for view in range(2, 2 + num_local):
        expected = expected + direction(view, view % 2) / 2
    output = regularizer.regularize(online, target, batch)
    torch.testing.assert_close(output.loss, expected, rtol=1e-12, atol=0)
    leaves = list(regularizer.parameters())
    for one, two in zip(
        torch.autograd.grad(output.loss, leaves, retain_graph=True),
        torch.autograd.grad(expected, leaves, retain_graph=True),
        strict=True,
    ):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("cls", objective_classes(), ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("layer", [2, 4], ids=["inner", "final"])
def test_the_online_branch_alone_receives_its_gradient(cls, layer):
    module = tiny_with_add_on(cls, OverlapRegularizer, layer)
    batch = batch_of(dtype=torch.float32)
    terms, logs = module.losses(batch)
    module.zero_grad()
    terms["loss/equivariance"].backward()
    reached = {name for name, p in module.named_parameters() if p.grad is not None and p.grad.any()}
    assert any(name.startswith("regularizer.projector") for name in reached)
    assert any(name.startswith("backbone.vit.blocks.0") for name in reached)
    assert not any(name.startswith(("momentum", "projector", "predictor")) for name in reached)
    assert any(name.startswith("backbone.vit.blocks.3") for name in reached) == (layer == 4)
    assert 0 < logs["valid_tokens"] < 16


def test_weight_zero_leaves_the_invariance_loss_alone():
    batch = batch_of(dtype=torch.float32)
    module = tiny_with_add_on(MoCoV3, OverlapRegularizer)
    module.regularizer.weight = 0.0
    plain = tiny_with_add_on(MoCoV3, OverlapRegularizer)
    plain.regularizer = None
    assert torch.equal(module.losses(batch)[0]["loss"], plain.losses(batch)[0]["loss"])


@pytest.mark.parametrize("num_local", [0, 4])
def test_features_all_alike_give_the_logged_chance(num_local):
    regularizer, batch = make_regularizer(temperature=100.0), batch_of(num_local)
    online = features(num_local)
    output = regularizer.regularize(online, None, batch)
    chance = output.logs["loss/equivariance_chance"].item()
    assert 0 < chance < (1 + num_local / 2) * math.log1p(3 * 16)
    assert output.loss.item() == pytest.approx(chance, abs=5e-3)  # measured: 1e-3


@pytest.mark.parametrize(("ratio", "ranks"), [(0.25, 1), (0.25, 2), (0.5, 4), (0.01, 2), (1.0, 2)])
def test_ranks_choose_the_images_of_one_process(ratio, ranks):
    whole = spaced_rows(24, ratio).tolist()
    share = 24 // ranks
    parts = [
        rank * share + row
        for rank in range(ranks)
        for row in spaced_rows(share, ratio, ranks).tolist()
    ]
    assert parts == whole


def test_crops_without_a_record_are_refused():
    with pytest.raises(ValueError, match="no record of where they lie"):
        make_regularizer().regularize(features(), None, tiny_batch(8, 0, dtype=torch.float64))


@pytest.mark.parametrize("num_crops", [0, 1])
def test_batch_without_two_crops_is_refused(num_crops):
    batch = batch_of()
    with pytest.raises(ValueError, match=f"has {num_crops} global crops, OverlapRegularizer"):
        make_regularizer().regularize(features(), None, batch._replace(crop=batch.crop[:num_crops]))


def test_aligned_features_reach_a_lower_loss_than_those_of_other_places():
    """Tokens that name their place in the source agree between crops; those of a frame do not."""
    batch = batch_of()
    rows = spaced_rows(8, 0.5)
    frames = [Frame.of_crop(view.record.take(rows), (4, 4)) for view in batch.crop]
    torch.manual_seed(0)
    waves = torch.randn(WIDTH, 2, dtype=torch.float64)
    codes = torch.randn(8, WIDTH, 1, 1, dtype=torch.float64)

    def place_maps(grid):
        line = (torch.arange(4).double() + 0.5) / 4 - 0.5
        v = torch.cartesian_prod(line, line)
        seen = [v @ f.axes.mT + f.centre[:, None] if grid else v.expand(4, 16, 2) for f in frames]
        return [(6 * u @ waves.T).cos().mT.unflatten(2, (4, 4)) + codes[rows] for u in seen]

    losses = []
    for in_source in (True, False):
        regularizer = make_regularizer(ratio=1.0)
        maps = place_maps(in_source)
        outputs = regularizer.contrast(
            tuple(maps), None, lambda o, a, x: transport(x, frames[o], frames[a]), ((0, 1), (1, 0))
        )
        losses.append(torch.stack([output.loss for output in outputs]).mean().item())
    assert losses[0] < losses[1]


def turned_data(angle, num_local=0):
    data = PartitionedDataModule(
        Shapes(num_train=64, num_evaluation=12, image_size=16),
        global_batch_size=16,
        crop=CropViews(
            turned=TurnedCrops(0.5, angle), local=LocalCrops(num_local, 8) if num_local else None
        ),
        image_size=16,
        patch_size=PATCH,
        num_workers=0,
    )
    data.setup("fit")
    return data


@pytest.mark.parametrize("angle", [None, 30.0])
def test_data_turn_the_chosen_share_and_say_so(angle):
    data = turned_data(angle, num_local=2)
    upright = turned_data(angle, num_local=2)
    upright.crop.turned = None
    batch, plain = (
        d.on_after_batch_transfer(next(iter(d.train_dataloader())), 0) for d in (data, upright)
    )
    rows = spaced_rows(16, 0.5)
    others = [row for row in range(16) if row not in rows.tolist()]
    for view, before in zip(batch.crop[:2], plain.crop[:2], strict=True):
        turn = view.record.turn
        assert (turn[others] == 0).all()
        assert len(set(turn[rows].tolist())) > 2
        assert torch.equal(view.pixels[others], before.pixels[others])
        assert not torch.equal(view.pixels[rows], before.pixels[rows])
        if angle is None:
            assert set(turn.tolist()) <= {0.0, 90.0, 180.0, 270.0}
        else:
            assert turn.abs().max() <= 30
            assert turn.min() < 0 < turn.max()
    assert not torch.equal(batch.crop[0].record.turn, batch.crop[1].record.turn)
    for view, before in zip(batch.crop[2:], plain.crop[2:], strict=True):
        assert torch.equal(view.pixels, before.pixels)
        assert not view.record.turn.any()


def test_crops_are_turned_either_way_alike():
    uniforms = np.array([0.0, 0.25, 0.5, 0.75])
    assert TurnedCrops(0.5, 40.0).degrees(uniforms).tolist() == [-40.0, -20.0, 0.0, 20.0]
    assert TurnedCrops(0.5).degrees(uniforms).tolist() == [0.0, 90.0, 180.0, 270.0]


def test_interrupted_run_with_turned_crops_ends_bit_identical_to_the_unbroken_one(tmp_path):
    path = tmp_path / "stopped.ckpt"
    options = {"add_on": OverlapRegularizer, "crop": CropViews(turned=TurnedCrops(0.25, 45.0))}
    whole = tiny_fit(MoCoV3, save_after=8, save_to=path, **options)
    resumed = tiny_fit(MoCoV3, resume_from=path, **options)
    assert resumed.losses == whole.losses[8:]
    assert_equal_trees(resumed.module.state_dict(), whole.module.state_dict())
