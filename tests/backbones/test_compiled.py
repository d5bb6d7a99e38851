"""Compiled blocks: the same numbers but for rounding, and a sentence where nothing compiles."""

import lightning as L
import pytest
import torch

from ser_lightning.backbones import compiled
from ser_lightning.objectives.moco_v3 import MoCoV3
from support import tiny_batch, tiny_objective

OPTIONS = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}


def step(**options):
    """The loss of a tiny MoCo-v3 + SER, and all gradients."""
    module = tiny_objective(MoCoV3, **options)
    loss = module.training_step(tiny_batch(num_local=2), 0)
    loss.backward()
    return loss, {n: p.grad for n, p in module.named_parameters() if p.grad is not None}, module


def test_both_branches_run_compiled_functions_and_keep_their_names(monkeypatch):
    calls = []

    def noted(run, dynamic):
        assert dynamic
        return lambda *args: calls.append(run.__name__) or run(*args)

    monkeypatch.setattr(torch, "compile", noted)
    compiled.compiled.cache_clear()
    loss, gradients, module = step(compile=True)
    compiled.compiled.cache_clear()
    assert calls.count("run_cls_block") == 2  # one pass per branch
    assert calls.count("run_block") == 2 * 3
    expected = step()
    assert torch.equal(loss, expected[0])
    torch.testing.assert_close(gradients, expected[1])
    assert module.state_dict().keys() == expected[2].state_dict().keys()


def test_machine_without_a_compiler_is_told_so_before_the_first_batch(monkeypatch, tmp_path):
    def fails(run, **options):
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(torch, "compile", fails)
    trainer = L.Trainer(accelerator="cpu", default_root_dir=tmp_path, **OPTIONS)
    module = tiny_objective(MoCoV3, compile=True)
    module.trainer = trainer
    with pytest.raises(ValueError, match=r"model.compile true, .*No working.*leave model.compile"):
        module.setup("fit")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_compiled_losses_and_gradients_are_those_of_the_eager_path():
    loss, gradients, _ = step(compile=True)
    expected = step()
    # float32 sums in another order; measured: loss equal, gradients within 2e-6 of the largest one
    torch.testing.assert_close(loss, expected[0], rtol=1e-5, atol=1e-6)
    largest = max(float(gradient.abs().max()) for gradient in expected[1].values())
    for name, gradient in expected[1].items():
        torch.testing.assert_close(gradients[name], gradient, rtol=0, atol=2e-5 * largest)
