"""The pyramid: its sizes, and that the ViT below it neither trains nor changes."""

import pytest
import torch

from ser_lightning.evaluation.detector import FrozenPyramid, SimpleFeaturePyramid
from support import WIDTH, tiny_backbone


def frozen_pyramid(scales=(4, 2, 1, 0.5), num_extra=1, **options):
    torch.manual_seed(0)
    pyramid = SimpleFeaturePyramid(WIDTH, 16, scales, num_extra)
    return FrozenPyramid(tiny_backbone(vit_options={**TINY, "drop_path_rate": 0.5}), pyramid)


TINY = {"embed_dim": WIDTH, "depth": 2, "num_heads": 2}


def test_levels_have_their_sizes_height_before_width():
    levels = frozen_pyramid()(torch.randn(2, 3, 24, 40))  # patches of 4: 6 x 10 tokens
    sizes = {name: tuple(level.shape) for name, level in levels.items()}
    assert sizes == {
        "p0": (2, 16, 24, 40),
        "p1": (2, 16, 12, 20),
        "p2": (2, 16, 6, 10),
        "p3": (2, 16, 3, 5),
        "p4": (2, 16, 2, 3),
    }


def test_unscaled_level_reads_the_normed_tokens_in_place():
    module = frozen_pyramid(scales=(1,), num_extra=0)
    with torch.no_grad():
        images = torch.randn(1, 3, 16, 24)
        (tokens,) = module.backbone.token_maps(images, [module.backbone.depth])
        expected = module.pyramid.levels[0](tokens)
        torch.testing.assert_close(module(images)["p0"], expected)


def test_extra_levels_subsample_the_coarsest():
    levels = frozen_pyramid(scales=(1, 0.5), num_extra=2)(torch.randn(1, 3, 32, 32))
    assert torch.equal(levels["p2"], levels["p1"][..., ::2, ::2])
    assert torch.equal(levels["p3"], levels["p1"][..., ::4, ::4])


def test_gradient_reaches_every_weight_of_the_pyramid_and_none_of_the_vit():
    module = frozen_pyramid()
    images = torch.randn(2, 3, 16, 16, requires_grad=True)
    levels = module(images)
    sum((level * torch.randn_like(level)).sum() for level in levels.values()).backward()
    assert images.grad is None  # nothing went back through the ViT
    for name, parameter in module.named_parameters():
        if name.startswith("backbone."):
            assert parameter.grad is None, name
            assert not parameter.requires_grad, name
        else:
            assert parameter.grad.abs().sum() > 0, name


def test_vit_stays_in_evaluation_mode():
    module = frozen_pyramid().train()
    assert module.pyramid.training
    assert not any(part.training for part in module.backbone.modules())
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(module(images)["p0"], module(images)["p0"])  # no stochastic depth


@pytest.mark.filterwarnings("ignore:.*CPU Autocast.*")
def test_reduced_precision_ends_with_the_vit():
    module = frozen_pyramid()
    images = torch.randn(2, 3, 16, 16)
    exact = module(images)["p0"]
    module.precision = torch.bfloat16
    levels = module(images)
    assert levels["p0"].dtype == torch.float32
    assert not torch.equal(levels["p0"], exact)
    torch.testing.assert_close(levels["p0"], exact, atol=0.1, rtol=0)
