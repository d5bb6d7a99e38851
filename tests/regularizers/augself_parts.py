"""Inputs and an oracle for the tests of AugSelf."""

import numpy as np
import torch
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
from ser_lightning.regularizers.augself import AugSelf

WIDTH, HIDDEN = 6, 10
JITTER = (0.4, 1.5, 0.2, 0.1)
WEIGHTS = {"crop": 0.5, "color": 0.25, "flip": 0.75, "blur": 0.125, "solarize": 1.5}


def make_record(num_images, seed, dtype=torch.float64):
    """Random draws, with some images of each kind."""
    rng = np.random.default_rng(seed)
    source = rng.integers(40, 90, (num_images, 2))
    size = rng.integers(10, source + 1)
    corner = rng.integers(0, source - size + 1)

    def flags():
        return rng.random(num_images) < 0.5

    low, high = 1 - np.minimum(JITTER[:3], 1), 1 + np.array(JITTER[:3])
    factors = rng.uniform(low, high, (num_images, 3)).T
    hue, sigma = rng.uniform(-JITTER[3], JITTER[3], num_images), rng.uniform(0.1, 2, num_images)
    fields = ViewRecord(
        *(source, np.concatenate([corner, size], 1), flags(), flags()),
        *(rng.permuted(np.tile(np.arange(4), (num_images, 1)), axis=1), *factors, hue),
        *(flags(), flags() * sigma, flags(), np.zeros(num_images)),
    )
    return ViewRecord(*(torch.tensor(field, dtype=dtype) for field in fields))


def one_record(**fields):
    """The record of a single 100 x 200 image of which nothing was changed."""
    values = {
        "source_size": [100.0, 200.0],
        "box": [0.0, 0.0, 100.0, 200.0],
        "order": [0.0, 1.0, 2.0, 3.0],
        "brightness": 1.0,
        "contrast": 1.0,
        "saturation": 1.0,
    } | fields
    return ViewRecord(*(torch.tensor([values.get(name, 0.0)]) for name in ViewRecord._fields))


def take(record, images):
    return ViewRecord(*(field[images] for field in record))


def make_batch(records):
    empty = torch.zeros(0)
    return PartitionedBatch(
        tuple(View(empty, None, record) for record in records), (), empty, empty, empty
    )


def make_features(classes):
    """A branch whose views have these [CLS]; maps and embeddings ask for gradients too."""
    return BranchFeatures(
        tuple(
            ViewFeatures(
                (TapFeatures(torch.ones(len(cls), WIDTH, 2, 2, requires_grad=True), cls),),
                torch.ones(len(cls), WIDTH, requires_grad=True),
            )
            for cls in classes
        ),
        (),
    )


def make_regularizer(is_final=False, **options):
    torch.manual_seed(2)
    regularizer = AugSelf(WIDTH, hidden=HIDDEN, **{**WEIGHTS, "jitter": JITTER, **options})
    regularizer.attach([Tap(4 if is_final else 2, True, is_final)], regularizer.width)
    if not is_final:
        nn.init.normal_(regularizer.norm.weight)
        nn.init.normal_(regularizer.norm.bias)
    return regularizer.double()


def make_case(num_images=5, images=slice(None)):
    """[CLS] of both views, and the batch, of some images of a fixed global batch."""
    generator = torch.Generator().manual_seed(3)
    classes = torch.randn(2, num_images, WIDTH, generator=generator, dtype=torch.float64)
    records = [take(make_record(num_images, seed), images) for seed in (0, 1)]
    return [cls[images].clone().requires_grad_() for cls in classes], make_batch(records)


def target_of_image(name, one, other, jitter):
    """What is to be predicted of one image, as a list of numbers, from the records' rows."""

    def centre(record):
        top, left, height, width = record.box.tolist()
        source_height, source_width = record.source_size.tolist()
        x = (left + width / 2) / source_width
        x = 1 - x if one.flip else x  # the first view's flip, for both views
        return (top + height / 2) / source_height, x, height / source_height, width / source_width

    def colours(record):
        if not record.jitter:
            return [0.0] * 4
        numbers = []
        for factor, strength in zip(record[5:8], jitter[:3], strict=True):
            low, high = max(0, 1 - strength), 1 + strength
            numbers.append((factor.item() - 1) / (high - low) if strength else 0.0)
        return [*numbers, record.hue.item() / (2 * jitter[3]) if jitter[3] else 0.0]

    def threshold(record):
        return [128 / 255 if record.solarize else 1.0]

    if name == "flip":
        return [float(bool(one.flip) == bool(other.flip))]
    numbers = {
        "crop": centre,
        "color": colours,
        "blur": lambda record: [record.blur_sigma.item()],
        "solarize": threshold,
    }[name]
    return [a - b for a, b in zip(numbers(one), numbers(other), strict=True)]


def oracle(regularizer, classes, batch):
    """Each attribute's loss, image by image."""
    records = [view.record for view in batch.crop]
    views = list(classes)
    if isinstance(regularizer.norm, nn.LayerNorm):
        views = []
        for cls in classes:
            mean, var = cls.mean(1, keepdim=True), cls.var(1, keepdim=True, correction=0)
            normed = (cls - mean) / (var + 1e-6).sqrt()
            views.append(normed * regularizer.norm.weight + regularizer.norm.bias)
    pairs = [(0, 1, b) for b in range(len(views[0]))] + [(1, 0, b) for b in range(len(views[0]))]
    losses = {}
    for name, predictor in regularizer.predictors.items():
        first, norm1, _, second, norm2, _, last = predictor
        rows = torch.stack([torch.cat([views[i][b], views[j][b]]) for i, j, b in pairs])
        for linear, norm in ((first, norm1), (second, norm2)):
            rows = rows @ linear.weight.T
            rows = (rows - rows.mean(0)) / (rows.var(0, correction=0) + norm.eps).sqrt()
            rows = (rows * norm.weight + norm.bias).clamp_min(0)
        rows = rows @ last.weight.T + last.bias
        terms = []
        for row, (i, j, b) in zip(rows, pairs, strict=True):
            numbers = target_of_image(
                name, take(records[i], b), take(records[j], b), regularizer.jitter
            )
            for predicted, wanted in zip(row, numbers, strict=True):
                if name == "flip":
                    chance = predicted.sigmoid()
                    terms.append(-(chance if wanted else 1 - chance).log())
                else:
                    terms.append((predicted.tanh() - wanted) ** 2)
        losses[name] = sum(terms) / len(terms)
    return losses


class Told(nn.Module):
    """Answers with given numbers, whatever it is shown."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, inputs):
        return self.answer.expand(len(inputs), -1)
