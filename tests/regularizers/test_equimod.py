import math

import pytest
import torch
from torch import nn

from regularizers.equimod_stl_parts import (
    NUM_IMAGES,
    assert_same_gradients,
    batch_of,
    contrast,
    features_of,
    head,
    layer_norm,
    loss_and_gradients,
    make_batch,
    make_cls,
    make_record,
    make_regularizer,
)
from ser_lightning.batch import ViewNeeds, ViewRecord
from ser_lightning.regularizers.equimod import EquiMod, parameters

# Constants, which the normalisation of the linear layer behind them takes away again.
IDLE = {"norm.bias", "embed.1.bias"}


class Returns(nn.Module):
    """A predictor that always returns the same."""

    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(value)

    def forward(self, x):
        assert len(x) == len(self.value)
        return self.value


def oracle(regularizer, cls, batch):
    y1, y2, y0 = (head(regularizer.head, layer_norm(regularizer.norm, x)) for x in cls)
    rows = [
        [
            *(r.box[i, k] / r.source_size[i, k % 2] for k in range(4)),
            r.flip[i],
            r.jitter[i],
            *(r.order[i] if r.jitter[i] else range(4)),
            *([r.brightness[i], r.contrast[i], r.saturation[i], r.hue[i]] if r.jitter[i]
              else [1, 1, 1, 0]),
            r.gray[i],
            r.blur_sigma[i] > 0,
            r.blur_sigma[i],
            r.solarize[i],
        ]
        for r in (view.record for view in batch.crop)
        for i in range(len(r.flip))
    ]  # fmt: skip
    p = head(regularizer.embed, head([regularizer.standardise], torch.tensor(rows).double()))
    y = torch.cat([y1, y2])
    predicted = head(regularizer.predictor, torch.cat([torch.cat([y0, y0]), p], dim=1))
    temperature = regularizer.temperature
    return (contrast(y, predicted, temperature) + contrast(predicted, y, temperature)) / 2


def test_loss_and_gradients_equal_the_loop_written_out():
    regularizer = make_regularizer(EquiMod, temperature=0.3)
    assert_same_gradients(regularizer, make_cls(), make_batch(), oracle, num_cls=3, idle=IDLE)


def test_parameters_of_one_image_are_in_order_and_neutral_without_jitter():
    record = ViewRecord(
        source_size=torch.tensor([[200.0, 100.0]]).repeat(2, 1),
        box=torch.tensor([[20.0, 30.0, 50.0, 40.0]]).repeat(2, 1),
        flip=torch.tensor([1.0, 0.0]),
        jitter=torch.tensor([1.0, 0.0]),
        order=torch.tensor([[2.0, 0.0, 3.0, 1.0]]).repeat(2, 1),
        brightness=torch.tensor([0.75, 0.75]),
        contrast=torch.tensor([1.25, 1.25]),
        saturation=torch.tensor([0.875, 0.875]),
        hue=torch.tensor([-0.0625, -0.0625]),
        gray=torch.tensor([0.0, 1.0]),
        blur_sigma=torch.tensor([1.5, 0.0]),
        solarize=torch.tensor([0.0, 1.0]),
        turn=torch.tensor([0.0, 0.0]),
    )
    box = [20 / 200, 30 / 100, 50 / 200, 40 / 100]
    expected = [
        [*box, 1, 1, 2, 0, 3, 1, 0.75, 1.25, 0.875, -0.0625, 0, 1, 1.5, 0],
        [*box, 0, 0, 0, 1, 2, 3, 1, 1, 1, 0, 1, 0, 0, 1],
    ]
    assert torch.equal(parameters(record), torch.tensor(expected))


def test_standardised_parameters_have_mean_0_and_deviation_1_and_constants_are_0():
    rows = torch.cat([parameters(view.record) for view in make_batch(64).crop])
    result = EquiMod(384).standardise(rows)
    torch.testing.assert_close(result.mean(0), torch.zeros(18), rtol=0, atol=1e-5)
    # The epsilon of the norm, 1e-5, takes 0.2 % of the hue's deviation.
    torch.testing.assert_close(result.std(0, correction=0)[:17], torch.ones(17), rtol=0, atol=5e-3)
    assert torch.equal(result[:, 17], torch.zeros(128))


def test_parameter_count_at_width_384():
    regularizer = EquiMod(384)
    count = {
        name: sum(p.numel() for p in child.parameters())
        for name, child in regularizer.named_children()
    }
    assert count == {"head": 345_600, "standardise": 0, "embed": 2_560, "predictor": 32_768}
    assert 42_890_752 + sum(count.values()) == 43_271_680  # with MoCo-v3
    assert EquiMod.needs == ViewNeeds(cls=True, plain=True)


def test_images_all_alike_give_the_chance_value():
    record = ViewRecord(*(x[:1].repeat_interleave(NUM_IMAGES, 0) for x in make_record()))
    cls = [make_cls()[0][:1].repeat(NUM_IMAGES, 1)] * 3
    regularizer = make_regularizer(EquiMod)
    loss, _, _ = loss_and_gradients(regularizer, cls, batch_of([record, record]))
    # The mean over two directions of 2 tau log(number of candidates).
    assert loss == pytest.approx(0.4 * math.log(2 * NUM_IMAGES), rel=1e-12)


@pytest.mark.parametrize("kind", ["constant", "perfect"])
def test_constant_and_perfect_predictor_on_orthogonal_features(kind):
    first, second, plain = torch.eye(8).double()[:6].split(2)  # two images
    y = torch.cat([first, second])
    regularizer = make_regularizer(EquiMod, is_final=True)
    regularizer.head = nn.Identity()
    regularizer.predictor = Returns(
        3 * y if kind == "perfect" else y.sum(0, keepdim=True).repeat(4, 1)
    )
    loss, _, _ = loss_and_gradients(regularizer, [first, second, plain], make_batch(2))
    # Equal cosines with all 4 rows, or 1 with the own and 0 with the other 3.
    chance, perfect = math.log(4), math.log(1 + 3 * math.exp(-1 / 0.2))
    assert loss == pytest.approx(0.4 * (perfect if kind == "perfect" else chance), rel=1e-12)


def test_random_predictor_is_near_chance():
    num_images, width = 64, 128
    regularizer = make_regularizer(EquiMod, True, width=width, projection=width)
    regularizer.head = nn.Identity()
    cls, batch = make_cls(num_images, width=width), make_batch(num_images)
    loss, _, _ = loss_and_gradients(regularizer, cls, batch)
    # Independent cosines of variance 1 / width raise log-sum-exp by half the logits' variance.
    expected = 0.4 * (math.log(2 * num_images) + 1 / (2 * width * 0.2**2))
    assert loss == pytest.approx(expected, abs=0.03)  # measured: 0.002


def test_gradient_reaches_three_cls_and_all_parameters_but_no_tokens():
    regularizer = make_regularizer(EquiMod)
    cls = [x.requires_grad_() for x in make_cls()]
    features = features_of(cls)
    regularizer.regularize(features, None, make_batch()).loss.backward()
    trained = [x for name, x in regularizer.named_parameters() if name not in IDLE]
    for x in (*cls, *trained):
        assert x.grad.abs().max() > 1e-6
    names = {name.split(".")[0] for name, _ in regularizer.named_parameters()}
    assert names == {"norm", "head", "embed", "predictor"}
    taps = [view.taps[0] for view in features.crop] + [tap[0] for tap in features.extra]
    assert all(tap.tokens.grad is None for tap in taps)


def test_only_an_inner_tap_is_normed():
    inner, final = make_regularizer(EquiMod), make_regularizer(EquiMod, is_final=True)
    assert not list(final.norm.parameters())
    final.load_state_dict(
        {k: v for k, v in inner.state_dict().items() if not k.startswith("norm.")}
    )
    cls, batch = make_cls(), make_batch()
    normed = [inner.norm(x).detach() for x in cls]
    losses = [loss_and_gradients(*args, batch)[0] for args in ((inner, cls), (final, normed))]
    assert losses[0] == losses[1]
    assert loss_and_gradients(final, cls, batch)[0] != losses[0]


def test_loss_is_float32_under_autocast_and_close_to_it():
    regularizer = make_regularizer(EquiMod).float()
    features = features_of([x.float() for x in make_cls()])
    exact = regularizer.regularize(features, None, make_batch()).loss
    with torch.autocast("cpu", torch.bfloat16):
        loss = regularizer.regularize(features, None, make_batch()).loss
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=0.03, atol=0)


@pytest.mark.parametrize(
    ("num_cls", "records", "message"),
    [
        (
            0,
            [],
            "has 0 global crops, 0 with a record .* and 0 extra views; .*: set `data.invertible`",
        ),
        (2, [make_record()] * 2, "has 2 global crops, 2 with a record .* and 0 extra views"),
        (3, [make_record(), None], "has 2 global crops, 1 with a record .* and 1 extra views"),
    ],
)
def test_batch_without_what_it_needs_raises(num_cls, records, message):
    features = features_of(make_cls()[:num_cls])
    with pytest.raises(ValueError, match=message):
        make_regularizer(EquiMod).regularize(features, None, batch_of(records))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature 0.0 must be float > 0; the default is 0.2"),
        ({"projection": 0}, "projection 0 must be int >= 1"),
        ({"weight": -1.0}, "weight -1.0 must be float >= 0"),
    ],
)
def test_invalid_argument_raises(options, message):
    with pytest.raises(ValueError, match=message):
        EquiMod(**options)
