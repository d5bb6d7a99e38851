"""Inputs for the tests of EquiMod and STL."""

import torch
import torch.nn.functional as F
from torch import nn

from ser_lightning.batch import (
    BranchFeatures,
    PartitionedBatch,
    Tap,
    TapFeatures,
    View,
    ViewFeatures,
    ViewRecord,
)
from ser_lightning.regularizers.equimod import EquiMod
from ser_lightning.regularizers.stl import STL

WIDTH, NUM_IMAGES = 8, 8
OPTIONS = {EquiMod: {"projection": 6}, STL: {"hidden": 7, "projection": 6}}


def make_regularizer(cls, is_final=False, **options):
    torch.manual_seed(2)
    regularizer = cls(**{"width": WIDTH} | OPTIONS[cls] | options)
    regularizer.attach([Tap(3, True, is_final)], regularizer.width)
    for parameter in regularizer.parameters():  # norms differ from the identity
        if parameter.ndim == 1:
            parameter.data.add_(0.3 * torch.randn_like(parameter))
    return regularizer.double()


def make_cls(num_images=NUM_IMAGES, seed=1, width=WIDTH):
    """[CLS] of two views and of the plain view."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(num_images, width, generator=generator, dtype=torch.float64) for _ in range(3)
    ]


def make_record(num_images=NUM_IMAGES, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(*shape, generator=generator)

    def flag():
        return (uniform(num_images) < 0.5).float()

    return ViewRecord(
        source_size=100 + 50 * uniform(num_images, 2),
        box=10 + 60 * uniform(num_images, 4),
        flip=flag(),
        jitter=flag(),
        order=uniform(num_images, 4).argsort(1).float(),
        brightness=0.6 + 0.8 * uniform(num_images),
        contrast=0.6 + 0.8 * uniform(num_images),
        saturation=0.8 + 0.4 * uniform(num_images),
        hue=0.2 * uniform(num_images) - 0.1,
        gray=flag(),
        blur_sigma=flag() * uniform(num_images),
        solarize=torch.zeros(num_images),  # a constant column
        turn=torch.zeros(num_images),
    )


def features_of(cls):
    """Features of two views and of any extra ones, with tokens that can be given a gradient."""
    taps = [(TapFeatures(torch.zeros(len(x), 1, 1, 1, requires_grad=True), x),) for x in cls]
    return BranchFeatures(
        tuple(ViewFeatures(tap, torch.zeros(len(tap[0].cls), 1)) for tap in taps[:2]),
        (),
        tuple(taps[2:]),
    )


def batch_of(records):
    """A batch of crops without pixels."""
    empty = torch.zeros(0)
    return PartitionedBatch(
        tuple(View(empty, record=record) for record in records), (), empty, empty, empty
    )


def make_batch(num_images=NUM_IMAGES):
    return batch_of([make_record(num_images, seed) for seed in (0, 1)])


def loss_and_gradients(regularizer, cls, batch):
    cls = [x.detach().clone().requires_grad_() for x in cls]
    regularizer.zero_grad()
    output = regularizer.regularize(features_of(cls), None, batch)
    output.loss.backward()
    grads = [x.grad for x in cls if x.grad is not None]
    return output.loss.detach(), grads, [p.grad for p in regularizer.parameters()]


# What the oracles are made of.


def layer_norm(norm, x):
    mean, var = x.mean(1, keepdim=True), x.var(1, keepdim=True, correction=0)
    return (x - mean) / (var + 1e-6).sqrt() * norm.weight + norm.bias


def head(layers, x):
    """A head in training, layer by layer."""
    for layer in layers:
        if isinstance(layer, nn.Linear):
            x = x @ layer.weight.T
            x = x if layer.bias is None else x + layer.bias
        elif isinstance(layer, nn.ReLU):
            x = x.clamp(min=0)
        else:
            x = (x - x.mean(0)) / (x.var(0, correction=0) + layer.eps).sqrt()
            x = x * layer.weight + layer.bias if layer.affine else x
    return x


def contrast(queries, keys, temperature):
    """contrastive_loss of one process, row by row."""
    losses = []
    for i, query in enumerate(queries):
        cosines = [F.cosine_similarity(query, key.detach(), dim=0) for key in keys]
        logits = torch.stack(cosines) / temperature
        losses.append(logits.exp().sum().log() - logits[i])
    return 2 * temperature * sum(losses) / len(losses)


def assert_same_gradients(regularizer, cls, batch, oracle, num_cls, idle=()):
    """Loss and every gradient are those of `oracle(regularizer, cls, batch)`; 0 for `idle`."""
    loss, cls_grads, parameter_grads = loss_and_gradients(regularizer, cls, batch)
    cls = [x.detach().clone().requires_grad_() for x in cls]
    expected = oracle(regularizer, cls, batch)
    inputs = [*cls[:num_cls], *regularizer.parameters()]
    grads = torch.autograd.grad(expected, inputs)
    assert len(cls_grads) == num_cls
    # Measured: 1e-16 in the loss, 8e-16 in the gradients.
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=0)
    names = ["cls"] * num_cls + [name for name, _ in regularizer.named_parameters()]
    for name, one, other in zip(names, [*cls_grads, *parameter_grads], grads, strict=True):
        assert (other.abs().max() > 1e-6) == (name not in idle)
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-13)
