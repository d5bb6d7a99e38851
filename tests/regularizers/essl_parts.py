"""Inputs and an oracle for the tests of E-SSL."""

import torch
from torch import nn

from ser_lightning.batch import BranchFeatures, PartitionedBatch, Tap, TapFeatures
from ser_lightning.regularizers.essl import ESSL

WIDTH, HIDDEN, TURNS = 6, 5, 4
BATCH = PartitionedBatch((), (), *torch.zeros(3, 0))


def make_regularizer(is_final=False, **options):
    torch.manual_seed(2)
    regularizer = ESSL(WIDTH, hidden=HIDDEN, **options)
    regularizer.attach([Tap(4 if is_final else 2, True, is_final)], regularizer.width)
    for module in regularizer.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.normal_(module.weight, mean=1.0)
            nn.init.normal_(module.bias)
    return regularizer.double()


def make_classes(num_images=3, images=slice(None), num_views=TURNS):
    """[CLS] of each turn of some images of a fixed global batch."""
    generator = torch.Generator().manual_seed(3)
    classes = torch.randn(num_views, num_images, WIDTH, generator=generator, dtype=torch.float64)
    return [cls[images].clone().requires_grad_() for cls in classes]


def make_features(classes):
    """A branch whose extra views have these [CLS]; their maps ask for gradients too."""
    views = [
        (TapFeatures(torch.ones(len(cls), WIDTH, 2, 2, requires_grad=True), cls),)
        for cls in classes
    ]
    return BranchFeatures((), (), tuple(views))


def layer_norm(row, norm):
    mean, var = row.mean(), row.var(correction=0)
    return (row - mean) / (var + norm.eps).sqrt() * norm.weight + norm.bias


def oracle(regularizer, classes):
    """Loss and share of right answers, turn by turn and image by image."""
    first, norm1, _, second, norm2, _, third, norm3, last = regularizer.head
    terms, right = [], []
    for turn, view in enumerate(classes):
        for row in view:
            if isinstance(regularizer.norm, nn.LayerNorm):
                assert regularizer.norm.eps == 1e-6
                row = layer_norm(row, regularizer.norm)  # noqa: PLW2901
            x = layer_norm(first.weight @ row + first.bias, norm1).clamp_min(0)
            x = layer_norm(second.weight @ x + second.bias, norm2).clamp_min(0)
            x = layer_norm(third.weight @ x + third.bias, norm3)
            scores = last.weight @ x + last.bias
            terms.append(scores.exp().sum().log() - scores[turn])
            right.append(float(max(range(TURNS), key=lambda k, s=scores: s[k].item()) == turn))
    return sum(terms) / len(terms), sum(right) / len(right)
