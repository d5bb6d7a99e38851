"""What every objective promises, with SER and without: a new one is tested here by existing."""

from importlib import import_module

import pytest
import torch

from objectives.tiny_run import assert_equal_trees, tiny_fit
from ser_lightning.objectives.encode import encode
from support import objective_classes, tiny_batch, tiny_objective, turned

PATCH_EMBEDDING = {
    "backbone.vit.patch_embed.proj.weight",
    "backbone.vit.patch_embed.proj.bias",
}

pytestmark = [
    pytest.mark.parametrize("cls", objective_classes(), ids=lambda cls: cls.__name__),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*isinstance.*treespec.*"),
]


def gradients(module, batch):
    module.zero_grad()
    module.training_step(batch, 0).backward()
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def view_counts(cls):
    return (0, 4) if cls.accepts_local_views else (0,)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Runs an objective from start to end, once; also gives the checkpoint of its step 8."""
    runs, folder = {}, tmp_path_factory.mktemp("unbroken")

    def run(cls):
        path = folder / f"{cls.__name__}.ckpt"
        if cls not in runs:
            runs[cls] = tiny_fit(cls, save_after=8, save_to=path)
        return runs[cls], path

    return run


@pytest.mark.parametrize("ser", [True, False], ids=["ser", "plain"])
def test_every_trainable_parameter_receives_a_gradient_and_no_other(cls, ser):
    for num_local in view_counts(cls):
        module = tiny_objective(cls, ser)
        received = gradients(module, tiny_batch(num_local=num_local))
        assert set(received) == {n for n, p in module.named_parameters() if p.requires_grad}
        for name, gradient in received.items():
            assert torch.isfinite(gradient).all(), name
            assert gradient.abs().sum() > 0, name


def test_views_turned_by_any_angle_give_every_trainable_parameter_a_gradient(cls):
    for num_local in view_counts(cls):
        batch, module = tiny_batch(num_local=num_local), tiny_objective(cls)
        upright = gradients(module, batch)
        received = gradients(module, turned(batch))
        assert set(received) == set(upright)
        for name, gradient in received.items():
            assert torch.isfinite(gradient).all(), name
            assert gradient.abs().sum() > 0, name
        of_prefix = "backbone.vit.blocks.0.attn.qkv.weight"
        assert not torch.allclose(received[of_prefix], upright[of_prefix])


def test_nothing_is_frozen_but_patch_embedding_and_momentum_branch(cls):
    frozen = {n for n, p in tiny_objective(cls).named_parameters() if not p.requires_grad}
    assert {n for n in frozen if not n.startswith("momentum_")} == PATCH_EMBEDDING


def test_regularizer_trains_its_own_layers_and_the_prefix_only(cls):
    module, batch = tiny_objective(cls), tiny_batch()
    online = encode(module.backbone, batch)
    module.regularizer.regularize(online, module.target_features(batch), batch).loss.backward()
    received = {
        name
        for name, p in module.named_parameters()
        if p.grad is not None and p.grad.abs().sum() > 0
    }
    blocks = {n for n in received if ".blocks." in n}
    assert {int(n.split(".blocks.")[1].split(".")[0]) for n in blocks} == {0, 1}  # layer is 2
    assert received - blocks == {
        "backbone.vit.pos_embed",
        "regularizer.norm.weight",
        "regularizer.norm.bias",
        "regularizer.projector.0.weight",
        "regularizer.projector.2.weight",
    }


def test_weight_zero_gives_the_baseline_gradients_bit_for_bit(cls):
    batch = tiny_batch()
    baseline = gradients(tiny_objective(cls, ser=False), batch)
    weightless = gradients(tiny_objective(cls, ser=True, weight=0.0), batch)
    for name, gradient in baseline.items():
        assert torch.equal(weightless[name], gradient), name


def test_weight_changes_the_gradients_of_the_prefix(cls):
    batch = tiny_batch()
    name = "backbone.vit.blocks.0.attn.qkv.weight"
    with_ser, without = (gradients(tiny_objective(cls, ser), batch)[name] for ser in (True, False))
    assert not torch.allclose(with_ser, without)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("ser", [True, False], ids=["ser", "plain"])
def test_loss_is_float32_under_autocast(cls, ser, dtype):
    module = tiny_objective(cls, ser)
    with torch.autocast("cpu", dtype):
        loss = module.training_step(tiny_batch(), 0)
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)


@pytest.mark.parametrize("partition", ["joint", "separate"])
@pytest.mark.parametrize(("num_crop", "num_invertible"), [(6, 4), (4, 0), (0, 4)])
def test_any_sub_batch_may_be_missing(cls, partition, num_crop, num_invertible):
    module = tiny_objective(cls, ser=num_invertible > 0, partition=partition)
    assert gradients(module, tiny_batch(num_crop, num_invertible))


def test_interrupted_run_ends_bit_identical_to_the_unbroken_one(cls, unbroken):
    whole, path = unbroken(cls)
    resumed = tiny_fit(cls, resume_from=path)
    assert resumed.losses == whole.losses[8:]
    assert_equal_trees(resumed.module.state_dict(), whole.module.state_dict())
    assert_equal_trees(resumed.optimizer, whole.optimizer)


@pytest.mark.slow  # `test_dino_run.py` and `test_resumed_place.py` have one of each
def test_interrupted_run_with_accumulation_and_local_views_ends_bit_identical(cls, tmp_path):
    path = tmp_path / "stopped.ckpt"
    options = {"accumulate": 2, "num_local": 2 if cls.accepts_local_views else 0}
    whole = tiny_fit(cls, save_after=4, save_to=path, **options)
    resumed = tiny_fit(cls, resume_from=path, **options)
    assert resumed.losses == whole.losses[8:]
    assert_equal_trees(resumed.module.state_dict(), whole.module.state_dict())
    assert_equal_trees(resumed.optimizer, whole.optimizer)


def test_first_five_losses_are_the_golden_ones(cls, unbroken):
    golden = import_module(f"objectives.test_{cls.__module__.rpartition('.')[2]}").GOLDEN
    # float32 on another processor rounds otherwise, and five steps of training carry that on
    assert unbroken(cls)[0].losses[:5] == pytest.approx(golden, rel=1e-4)
