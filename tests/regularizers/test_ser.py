import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from ser_lightning.batch import BranchFeatures, PartitionedBatch, View, ViewFeatures
from ser_lightning.groups import GroupElement, act, relative
from ser_lightning.regularizers import SERRegularizer, token_info_nce

WORLD = 2
WIDTH, HIDDEN = 8, 12
GRIDS = ((3, 4), (4, 3))


def make_elements(num_images, seed=0, grids=GRIDS, parities=(0, 1)):
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        GroupElement(*(torch.rand(2, num_images, generator=generator) < 0.5), parity, grid)
        for grid, parity in zip(grids, parities, strict=True)
    )


def make_maps(elements, seed=1, width=WIDTH):
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(len(e.flip), width, *e.shape, generator=generator, dtype=torch.float64)
        for e in elements
    )


def make_regularizer(**options):
    torch.manual_seed(2)
    return SERRegularizer(width=WIDTH, hidden=HIDDEN, **options).double()


def oracle(regularizer, maps, elements, target_maps):
    """The loss of one process from its parts, image by image."""

    def project(view):
        mean, var = view.mean(1, keepdim=True), view.var(1, keepdim=True, correction=0)
        view = (view - mean) / (var + 1e-6).sqrt()
        view = view * regularizer.norm.weight[:, None, None] + regularizer.norm.bias[:, None, None]
        first, _, second = regularizer.projector
        return F.conv2d(F.gelu(F.conv2d(view, first.weight)), second.weight)

    def tokens(projected):
        return F.normalize(projected, dim=1).flatten(2).transpose(1, 2)

    losses = []
    for i, j in ((0, 1), (1, 0)):
        moved = []
        for b, projected in enumerate(project(target_maps[j])):
            e1, e2 = elements[j], elements[i]
            z = torch.rot90(projected, -int(e1.quarter_turns[b]), (1, 2))
            z = z.flip(2) if e1.flip[b] ^ e2.flip[b] else z
            if z.shape[1:] != e2.grid:
                z = F.interpolate(z[None], size=e2.grid, mode="bicubic", align_corners=False)[0]
            moved.append(torch.rot90(z, int(e2.quarter_turns[b]), (1, 2)))
        candidates = tokens(torch.stack(moved))
        losses.append(
            token_info_nce(tokens(project(maps[i])), candidates, 0, regularizer.temperature)
        )
    return sum(losses) / 2


@pytest.mark.parametrize("grids", [GRIDS, ((3, 5), (4, 4)), ((2, 2), (5, 3))])
@pytest.mark.parametrize("with_target", [True, False])
def test_loss_equals_the_formula_written_out(grids, with_target):
    elements = make_elements(3, grids=grids)
    maps, target = make_maps(elements), make_maps(elements, seed=5)
    regularizer = make_regularizer()
    loss = regularizer(maps, elements, target if with_target else None).loss
    expected = oracle(regularizer, maps, elements, target if with_target else maps)
    # Measured: at most 2e-16 on equal, 1e-15 on other grids.
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)


def test_parameters_at_width_384():
    regularizer = SERRegularizer()
    assert sum(p.numel() for p in regularizer.projector.parameters()) == 458_752
    assert sum(p.numel() for p in regularizer.norm.parameters()) == 768
    assert list(regularizer.state_dict()) == [
        "norm.weight",
        "norm.bias",
        "projector.0.weight",
        "projector.2.weight",
    ]


def test_gradient_reaches_online_maps_norm_and_projector_but_not_the_target():
    elements = make_elements(3)
    maps = [x.requires_grad_() for x in make_maps(elements)]
    target = [x.requires_grad_() for x in make_maps(elements, seed=5)]
    regularizer = make_regularizer()
    regularizer(maps, elements, target).loss.backward()
    for x in (*maps, *regularizer.parameters()):
        assert x.grad.abs().max() > 1e-6
    assert all(x.grad is None for x in target)


def test_target_side_adds_no_gradient_to_norm_and_projector():
    elements = make_elements(3)
    maps, target = make_maps(elements), make_maps(elements, seed=5)
    regularizer = make_regularizer()
    regularizer(maps, elements, target).loss.backward()
    frozen = make_regularizer()  # the same weights, on the target side only
    online = make_regularizer()
    losses = []
    for i, j in ((0, 1), (1, 0)):
        moved = act(relative(elements[j], elements[i]), frozen._project(target[j]).detach())
        pair = [F.normalize(x, dim=1).flatten(2).mT for x in (online._project(maps[i]), moved)]
        losses.append(token_info_nce(*pair, 0, online.temperature))
    (sum(losses) / 2).backward()
    for one, other in zip(regularizer.parameters(), online.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-10, atol=1e-14)


def test_gradient_without_target_reaches_both_sides():
    elements = make_elements(3)
    maps = [x.requires_grad_() for x in make_maps(elements)]
    regularizer = make_regularizer()
    regularizer(maps, elements).loss.backward()
    both_sides = maps[0].grad.clone()
    maps[0].grad = None
    regularizer(maps, elements, [x.detach() for x in maps]).loss.backward()
    assert maps[0].grad.abs().max() > 1e-6
    assert not torch.allclose(maps[0].grad, both_sides)


def test_single_image_gives_exactly_zero():
    elements = make_elements(1)
    assert make_regularizer()(make_maps(elements), elements).loss.item() == 0


@pytest.mark.parametrize("parities", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_equivariant_maps_have_positive_similarity_one_for_all_of_d4(parities):
    """Patch means as the encoder; 16 images take all 4 x 4 pairs that share these parities."""
    codes = torch.arange(16)
    elements = tuple(
        GroupElement((codes // a) % 2 == 1, (codes // b) % 2 == 1, parity, (4, 4))
        for (a, b), parity in zip(((1, 2), (4, 8)), parities, strict=True)
    )
    torch.manual_seed(0)
    images = torch.randn(16, WIDTH, 16, 16, dtype=torch.float64)
    maps = [F.avg_pool2d(act(e, images, cell=4), 4) for e in elements]
    regularizer = make_regularizer(temperature=0.001)
    projected = [regularizer._project(x) for x in maps]
    moved = act(relative(elements[1], elements[0]), projected[1])
    similarity = F.cosine_similarity(projected[0], moved, dim=1)
    # Measured: within 4e-16 of 1.
    torch.testing.assert_close(similarity, torch.ones_like(similarity), rtol=0, atol=1e-12)
    exact = regularizer(maps, elements, maps).loss
    wrong = regularizer(maps, (elements[1], elements[1]), maps).loss
    assert exact < 0.2 < wrong


def test_chance_level_is_the_loss_of_equal_features():
    elements = make_elements(3, grids=((3, 4), (2, 5)))
    maps = [torch.ones_like(x) for x in make_maps(elements)]
    regularizer = make_regularizer()
    torch.nn.init.ones_(regularizer.norm.bias)
    output = regularizer(maps, elements)
    expected = (math.log(1 + 2 * 12) + math.log(1 + 2 * 10)) / 2
    assert output.logs["loss/equivariance_chance"].item() == pytest.approx(expected)
    assert output.loss.item() == pytest.approx(expected)
    assert not output.logs["loss/equivariance_chance"].requires_grad


@pytest.mark.parametrize("with_target", [True, False])
def test_bfloat16_autocast_is_close_to_float32(with_target):
    elements = make_elements(4)
    maps = [x.float().requires_grad_() for x in make_maps(elements)]
    target = [x.detach() for x in maps] if with_target else None
    regularizer = make_regularizer().float()
    grads = []
    losses = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = regularizer(maps, elements, target).loss
        assert loss.dtype == torch.float32
        losses.append(loss.item())
        grads.append(torch.autograd.grad(loss, [*maps, *regularizer.parameters()]))
    # Measured: 1.1e-3 in the loss, 8e-3 relative in the gradients.
    assert losses[1] == pytest.approx(losses[0], abs=5e-3)
    for exact, rounded in zip(*grads, strict=True):
        assert (exact - rounded).norm() <= 2e-2 * exact.norm()


def test_ten_lines_in_a_plain_loop_lower_the_loss():
    torch.manual_seed(0)
    encoder = torch.nn.Conv2d(3, WIDTH, 4, stride=4)
    regularizer = SERRegularizer(width=WIDTH, hidden=HIDDEN)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *regularizer.parameters()], lr=1e-2)
    images = torch.randn(4, 3, 16, 16)
    elements = make_elements(4, grids=((4, 4), (4, 4)))
    losses = []
    for _ in range(20):
        maps = tuple(encoder(act(element, images, cell=4)) for element in elements)
        loss = regularizer(maps, elements).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def features_and_batch(num_views=2, with_elements=True):
    elements = make_elements(3)
    views = tuple(
        ViewFeatures(x.requires_grad_(), torch.zeros(3, WIDTH)) for x in make_maps(elements)
    )[:num_views]
    pixels = torch.zeros(3, 3, 1, 1)
    invertible = tuple(View(pixels, e if with_elements else None) for e in elements)[:num_views]
    empty = torch.zeros(0)
    return BranchFeatures((), views), PartitionedBatch((), invertible, empty, empty, empty)


@pytest.mark.parametrize("with_target", [True, False])
def test_regularize_is_forward_on_the_invertible_views(with_target):
    online, batch = features_and_batch()
    regularizer = make_regularizer(weight=0.5)
    maps = tuple(view.tokens for view in online.invertible)
    elements = tuple(view.element for view in batch.invertible)
    target = online if with_target else None
    expected = regularizer(maps, elements, maps if with_target else None).loss
    assert torch.equal(regularizer.regularize(online, target, batch).loss, expected)


@pytest.mark.parametrize("wrong", [{"num_views": 1}, {"with_elements": False}])
def test_regularize_without_two_invertible_views_raises(wrong):
    online, batch = features_and_batch(**wrong)
    with pytest.raises(ValueError, match="exactly 2"):
        make_regularizer().regularize(online, None, batch)


@pytest.mark.parametrize("target", [False, True])
def test_map_of_another_shape_than_its_element_raises(target):
    elements = make_elements(3)
    maps = make_maps(elements)
    swapped = (maps[0].mT, maps[1])
    with pytest.raises(ValueError, match="target_maps of" if target else "^maps of"):
        make_regularizer()(*((maps, elements, swapped) if target else (swapped, elements)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": -1.0}, "weight -1.0"),
        ({"temperature": 0.0}, "temperature 0.0"),
        ({"width": 0}, "at least 1"),
        ({"hidden": 0}, "at least 1"),
    ],
)
def test_bad_options_raise(options, message):
    with pytest.raises(ValueError, match=message):
        SERRegularizer(**options)


def loss_and_gradients(first, last, with_target):
    """Loss and gradients of the images first..last of a fixed global batch."""
    elements = make_elements(4)
    local = tuple(
        e._replace(flip=e.flip[first:last], half_turn=e.half_turn[first:last]) for e in elements
    )
    maps, target = (
        [x[first:last].clone().requires_grad_() for x in make_maps(elements, seed)]
        for seed in (1, 5)
    )
    regularizer = make_regularizer()
    loss = regularizer(maps, local, target if with_target else None).loss
    loss.backward()
    return loss.detach(), [x.grad for x in maps], [p.grad for p in regularizer.parameters()]


def test_two_processes_equal_one_process_with_all_images(tmp_path):
    command = [sys.executable, __file__, str(tmp_path)]
    processes = [subprocess.Popen([*command, str(rank)]) for rank in range(WORLD)]
    assert [process.wait(timeout=120) for process in processes] == [0] * WORLD
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(WORLD)]
    for case, with_target in enumerate((True, False)):
        loss, map_grads, parameter_grads = loss_and_gradients(0, 4, with_target)
        losses, rank_map_grads, rank_parameter_grads = zip(*(r[case] for r in ranks), strict=True)
        # DDP averages over ranks what each rank has computed.
        torch.testing.assert_close(torch.stack(losses).mean(), loss, rtol=1e-12, atol=0)
        for whole, *parts in zip(map_grads, *rank_map_grads, strict=True):
            torch.testing.assert_close(torch.cat(parts) / WORLD, whole, rtol=1e-9, atol=1e-14)
        for whole, *parts in zip(parameter_grads, *rank_parameter_grads, strict=True):
            torch.testing.assert_close(sum(parts) / WORLD, whole, rtol=1e-9, atol=1e-14)


def _worker(folder, rank):
    init = f"file://{Path(folder) / 'init'}"
    dist.init_process_group("gloo", init_method=init, rank=rank, world_size=WORLD)
    result = [loss_and_gradients(2 * rank, 2 * rank + 2, target) for target in (True, False)]
    torch.save(result, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    _worker(sys.argv[1], int(sys.argv[2]))
