"""What the transformation probes see: versions of images, pooled features, inputs of a probe."""

import pytest
import torch
from torchvision.transforms.v2 import functional as F

from ser_lightning.evaluation.stages.transformation import (
    FAMILIES,
    NUM_VERSIONS,
    Task,
    TransformationStage,
    VersionHeads,
    list_tasks,
    probed_layers,
    task_input,
    version_features,
    versions,
)
from support import tiny_backbone

LAYERS = [1, 4]


def images(num=3):
    return torch.randn(num, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_versions_are_exact_turns_and_the_flip():
    x = images()
    made = versions(x)
    assert len(made) == NUM_VERSIONS
    for turns in range(4):
        expected = torch.stack([F.rotate(image, 90.0 * turns) for image in x])
        assert torch.equal(made[turns], expected)
    assert torch.equal(made[4], F.horizontal_flip(x))


def test_every_family_starts_with_the_image_as_it_is():
    assert {family: len(chosen) for family, chosen in FAMILIES.items()} == {
        "rotation": 4,
        "flip": 2,
    }
    assert all(chosen[0] == 0 for chosen in FAMILIES.values())


def test_features_are_mean_tokens_of_every_version_backbone_and_layer():
    backbones = [tiny_backbone().eval(), tiny_backbone(cls_layer=0).eval()]
    x = images()
    features = version_features(backbones, LAYERS)(x)
    assert features.shape == (3, NUM_VERSIONS, 4, 32)
    assert not features.requires_grad
    for version, shown in enumerate(versions(x)):
        for b, backbone in enumerate(backbones):
            for i, layer in enumerate(LAYERS):
                expected = backbone.token_maps(shown, [layer])[0].mean((2, 3))
                torch.testing.assert_close(features[:, version, 2 * b + i], expected)


@pytest.mark.parametrize("mode", ["pair", "single"])
@pytest.mark.parametrize("family", ["rotation", "flip"])
def test_probe_sees_the_version_of_its_label(family, mode):
    features = torch.randn(6, NUM_VERSIONS, 3, 5)
    label = torch.arange(6) % len(FAMILIES[family])
    seen = task_input(Task("", family, mode, 2), features, label)
    for row in range(6):
        moved = features[row, FAMILIES[family][label[row]], 2]
        expected = torch.cat([features[row, 0, 2], moved]) if mode == "pair" else moved
        assert torch.equal(seen[row], expected)


@pytest.mark.parametrize(("mode", "num_inputs"), [("pair", 10), ("single", 5)])
def test_head_has_two_hidden_layers(mode, num_inputs):
    (head,) = VersionHeads([Task("", "rotation", mode, 0)], 5, 7, 1e-3, seed=0).heads
    sizes = [(m.in_features, m.out_features) for m in head if isinstance(m, torch.nn.Linear)]
    assert sizes == [(num_inputs, 7), (7, 7), (7, 4)]
    assert sum(isinstance(m, torch.nn.ReLU) for m in head) == 2


def test_layers_are_clipped_sorted_and_listed_once():
    assert probed_layers([1, 3, 6, 9, 12], 12) == [1, 3, 6, 9, 12]
    assert probed_layers([1, 3, 6, 9, 12], 4) == [1, 3, 4]
    assert probed_layers([1.0, 0.25, 3, 0], 12) == [0, 3, 12]
    with pytest.raises(ValueError, match="layers is empty; name blocks"):
        probed_layers([], 12)


@pytest.mark.parametrize("modes", [(), ("pair", "pair")])
def test_modes_that_train_nothing_or_twice_are_refused(modes, checkpoint):
    with pytest.raises(ValueError, match=r"model.modes \[.*\] must name .*each once"):
        TransformationStage(str(checkpoint), modes=modes)


@pytest.mark.parametrize("layers", [[-1], [1, 1.5], [True]])
def test_layers_that_are_no_place_are_refused(layers):
    with pytest.raises(ValueError, match=r"layers .* must be Sequence\[int >= 0"):
        TransformationStage("no.ckpt", layers=layers)


def test_probes_are_named_as_the_report_expects():
    probes = list_tasks([3, 12], ["pair", "single"], baseline=True)
    assert len(probes) == len({p.name for p in probes}) == 16
    by_name = {p.name: p for p in probes}
    assert by_name["rotation_layer3"][1:] == ("rotation", "pair", 0)
    assert by_name["flip_layer12_single"][1:] == ("flip", "single", 1)
    assert by_name["random_init/flip_layer12"][1:] == ("flip", "pair", 3)
    assert len(list_tasks([3], ["pair"], baseline=False)) == 2
