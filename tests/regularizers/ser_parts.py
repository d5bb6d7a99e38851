"""Inputs and an oracle for the tests of SER, and one rank's loss and gradients."""

import torch
import torch.distributed as dist
import torch.nn.functional as F

from ser_lightning.batch import BranchFeatures, PartitionedBatch, TapFeatures, View, ViewFeatures
from ser_lightning.groups import GroupElement
from ser_lightning.regularizers import SERRegularizer, token_info_nce

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


def oracle(regularizer, maps, elements, target_maps, detach=False):
    """The loss of one process from its parts, image by image.

    With `detach` no gradient flows to the candidates, nor through them to the projector.
    """

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
        target = project(target_maps[j])
        for b, projected in enumerate(target.detach() if detach else target):
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


def features_of(maps):
    """Features of the invertible views alone."""
    return BranchFeatures(
        (), tuple(ViewFeatures((TapFeatures(x, None),), torch.zeros(len(x), WIDTH)) for x in maps)
    )


def batch_of(elements):
    """A batch of invertible views without pixels."""
    empty = torch.zeros(0)
    return PartitionedBatch((), tuple(View(empty, e) for e in elements), empty, empty, empty)


def pairs_and_batch(num_images=3, seed=1):
    """Features of a global and two local pairs, each with grids and elements of its own."""
    pair_grids = (GRIDS, ((2, 2), (3, 2)), ((1, 2), (2, 3)))
    pairs = [make_elements(num_images, number, grids) for number, grids in enumerate(pair_grids)]
    maps = [make_maps(pair, seed + 10 * number) for number, pair in enumerate(pairs)]
    views = [x.requires_grad_() for pair in maps for x in pair]
    return features_of(views), batch_of([element for pair in pairs for element in pair])


def momentum_features(num_images=3):
    """Other features of the global pair, as a momentum branch has them."""
    features, _ = pairs_and_batch(num_images, seed=5)
    return features._replace(invertible=features.invertible[:2])


def tokens_of(features):
    return [view.taps[0].tokens for view in features.invertible]


def loss_and_gradients(images, with_target):
    """Loss and gradients of some images of a fixed global batch with six views."""
    (online, batch), target = pairs_and_batch(4), momentum_features(4)
    maps, target_maps = (
        [x[images].detach().requires_grad_() for x in tokens_of(features)]
        for features in (online, target)
    )
    batch = batch._replace(
        invertible=tuple(
            view._replace(
                element=view.element._replace(
                    flip=view.element.flip[images], half_turn=view.element.half_turn[images]
                )
            )
            for view in batch.invertible
        )
    )
    regularizer = make_regularizer()
    output = regularizer.regularize(
        features_of(maps), features_of(target_maps) if with_target else None, batch
    )
    output.loss.backward()
    return output.loss.detach(), [x.grad for x in maps], [p.grad for p in regularizer.parameters()]


def rank_losses_and_gradients():
    """Loss and gradients of this rank's images, with a momentum branch and without."""
    share = 4 // dist.get_world_size()
    images = slice(dist.get_rank() * share, (dist.get_rank() + 1) * share)
    return [loss_and_gradients(images, with_target) for with_target in (True, False)]
