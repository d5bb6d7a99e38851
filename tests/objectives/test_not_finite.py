"""Faults that make a step NaN or infinite end the run before it, with a file that runs it again."""

import math
import re
from functools import partial

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision

from objectives.tiny_run import assert_equal_trees
from ser_lightning.batch import LossOutput, ViewNeeds
from ser_lightning.objectives import NonFiniteError, Objective
from ser_lightning.objectives import finite_guard as guard_file
from ser_lightning.objectives.dino import DINO
from ser_lightning.objectives.examine import examine
from ser_lightning.objectives.finite_guard import FiniteGuard
from ser_lightning.objectives.moco_v3 import MoCoV3
from ser_lightning.objectives.replay_file import read_replay
from ser_lightning.regularizers import Regularizer
from support import WIDTH, tiny_backbone, tiny_batch, tiny_objective

BAD_STEP = 2

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*isinstance.*treespec.*"),
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`.*"),
]


class Faulty(Regularizer):
    """A linear layer and a function of its mean output that a fault may make zero."""

    needs = ViewNeeds(invertible=True)

    def __init__(self, function):
        super().__init__(WIDTH)
        self.layer = torch.nn.Linear(WIDTH, 4)
        self.function = function
        self.factor = 1.0

    def regularize(self, online, target, batch):
        tokens = online.invertible[0].taps[0].tokens.mean((2, 3))
        return LossOutput(self.function(self.factor * self.layer(tokens).square().mean()), {})


class Fault(L.Callback):
    """Lets something happen to module or batch before a step, and notes the weights then."""

    def __init__(self, do, step=BAD_STEP, batch_idx=None):
        self.do, self.place = do, (step, step if batch_idx is None else batch_idx)

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if (trainer.global_step, batch_idx) == self.place:
            with torch.no_grad():
                self.do(module, batch)
        if trainer.global_step == self.place[0]:
            self.before = {n: p.detach().clone() for n, p in module.backbone.named_parameters()}


def nan_pixel(module, batch):
    batch.crop[1].pixels[0, 0, 0, 0] = float("nan")


def infinite_weight(module, batch):
    module.backbone.vit.blocks[1].mlp.fc1.weight[0, 0] = float("inf")


def zero(module, batch):
    module.regularizer.factor = 0.0


def with_add_on(function):
    torch.manual_seed(0)
    return MoCoV3(
        tiny_backbone(), regularizer=Faulty(function), hidden=48, projection=16, warmup_epochs=0
    )


def fit(module, folder, *callbacks, max_steps=5, num_batches=8, **options):
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=max_steps,
        logger=False,
        default_root_dir=folder,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        **options,
    )
    batches = [tiny_batch(seed=seed) for seed in range(num_batches)]
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))


def run_again(path, make):
    """Examines the step of a file on a fresh objective."""
    step = read_replay(path)
    module = make()
    module.load_state_dict(step.weights)
    return step, examine(module, step.one_pass, step.place)


FAULTS = {
    "NaN pixel": (
        partial(tiny_objective, MoCoV3, warmup_epochs=0),
        nan_pixel,
        r"loss is nan, loss/invariance is nan\. First not finite: the output of "
        r"backbone\.vit\.patch_embed\.proj\.",
    ),
    "NaN pixel in DINO": (
        partial(tiny_objective, DINO, warmup_epochs=0),
        nan_pixel,
        r"First not finite: the output of backbone\.vit\.patch_embed\.proj\.",
    ),
    "infinite weight": (
        partial(tiny_objective, MoCoV3, warmup_epochs=0),
        infinite_weight,
        r"First not finite: the output of backbone\.vit\.blocks\.1\.mlp\.fc1\.",
    ),
    "log(0)": (
        partial(with_add_on, torch.log),
        zero,
        r"loss/equivariance is -inf\. First not finite: the loss itself\.",
    ),
    "gradient of sqrt(0)": (
        partial(with_add_on, torch.sqrt),
        zero,
        r"the norm of all gradients is nan\. First not finite: the gradient of the output of "
        r"regularizer\.layer \(of loss/equivariance\)\.",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_stops_before_the_step_and_its_file_runs_it_again(fault, tmp_path):
    make, do, message = FAULTS[fault]
    module, callback = make(), Fault(do)
    with pytest.raises(NonFiniteError, match=f"step {BAD_STEP}: .*{message}"):
        fit(module, tmp_path, callback)
    path = tmp_path / f"replay.step{BAD_STEP}.pt"
    for name, weight in module.backbone.named_parameters():
        torch.testing.assert_close(weight, callback.before[name], rtol=0, atol=0, equal_nan=True)

    def again():
        module = make()
        module.regularizer.factor = 0.0  # no weight: the file cannot know
        return module

    step, seen = run_again(path, again)
    assert not seen.is_finite
    assert repr(seen.terms) == repr(step.terms)  # bit for bit, with NaN equal to itself
    assert seen.finding is None or seen.finding.module in message.replace("\\", "")


def test_exploding_learning_rate_stops_the_run_and_float64_says_that_it_is_the_range(tmp_path):
    make = partial(
        tiny_objective, MoCoV3, warmup_epochs=0, base_learning_rate=1e9, optimizer=torch.optim.SGD
    )
    with pytest.raises(NonFiniteError, match=r"step 1: .*First not finite: the output of backbone"):
        fit(make(), tmp_path)
    _, seen = run_again(tmp_path / "replay.step1.pt", make)
    assert not seen.is_finite
    step = read_replay(tmp_path / "replay.step1.pt")
    module = make().double()
    module.load_state_dict(step.weights)
    batch = step.one_pass.batch
    views = {
        part: tuple(v._replace(pixels=v.pixels.double()) for v in getattr(batch, part))
        for part in ("crop", "invertible")
    }
    one = step.one_pass._replace(batch=batch._replace(**views))
    assert all(map(math.isfinite, examine(module, one, step.place).terms.values()))


def test_input_of_the_first_bad_module_is_described(tmp_path):
    make = FAULTS["infinite weight"][0]
    with pytest.raises(NonFiniteError):
        fit(make(), tmp_path, Fault(infinite_weight))
    _, seen = run_again(tmp_path / f"replay.step{BAD_STEP}.pt", make)
    (line,) = seen.finding.inputs
    numbers = r"-[\d.]+ to [\d.]+, mean \S+, deviation 1, 0.00% not finite"
    assert re.fullmatch(rf"\(\d+, 32\) float32, {numbers}", line)
    assert "backbone.vit.blocks.1.mlp.fc1.weight" in seen.weights


def test_file_holds_the_batch_whose_pass_was_bad_among_those_of_an_accumulated_step(tmp_path):
    fault = Fault(nan_pixel, step=1, batch_idx=3)
    with pytest.raises(NonFiniteError, match=r"step 1: .*patch_embed"):
        fit(tiny_objective(MoCoV3, warmup_epochs=0), tmp_path, fault, accumulate_grad_batches=2)
    one_pass = read_replay(tmp_path / "replay.step1.pt").one_pass
    assert one_pass.batch_idx == 3
    expected = tiny_batch(seed=3)
    assert_equal_trees(one_pass.batch.invertible, expected.invertible)
    assert one_pass.batch.crop[1].pixels[0, 0, 0, 0].isnan()


def test_step_left_out_by_the_optimizer_is_found_in_the_next_one(tmp_path, monkeypatch):
    monkeypatch.setattr(FiniteGuard, "can_skip", staticmethod(lambda norm, optimizer: True))
    make, do, message = FAULTS["gradient of sqrt(0)"]
    module, fault = make(), Fault(do)
    with pytest.raises(NonFiniteError, match=f"step {BAD_STEP}: .*{message}"):
        fit(module, tmp_path, fault)
    for name, weight in module.backbone.named_parameters():
        assert torch.equal(weight, fault.before[name]), name
    assert read_replay(tmp_path / f"replay.step{BAD_STEP}.pt").one_pass.step == BAD_STEP


def test_no_checkpoint_is_written_after_a_step_that_was_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(FiniteGuard, "can_skip", staticmethod(lambda norm, optimizer: True))
    make, do, _ = FAULTS["gradient of sqrt(0)"]

    class Saver(L.Callback):
        def on_train_batch_end(self, trainer, *rest):
            trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt", weights_only=False)

    with pytest.raises(NonFiniteError):
        fit(make(), tmp_path, Fault(do), Saver())
    assert sorted(p.name for p in tmp_path.glob("*.ckpt")) == ["1.ckpt", "2.ckpt"]


def scaled(init_scale):
    scaler = torch.amp.GradScaler("cpu", init_scale=init_scale)
    return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler)]}, scaler


@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.* before .optimizer.step.*")
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_gradient_scaler_goes_on_finding_its_scale(fused, tmp_path):
    options, scaler = scaled(init_scale=2.0**30)
    module = tiny_objective(
        MoCoV3,
        warmup_epochs=0,
        optimizer=lambda params, lr: torch.optim.AdamW(params, lr, fused=fused),
    )
    fit(module, tmp_path, max_steps=8, **options)
    assert scaler.get_scale() < 2.0**30  # steps were skipped
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_gradients_that_no_scale_makes_finite_stop_the_run(fused, tmp_path, monkeypatch):
    monkeypatch.setattr(guard_file, "MAX_SKIPPED", 3)
    options, _ = scaled(init_scale=1024.0)
    module = with_add_on(torch.sqrt)
    module.optimizer_factory = lambda params, lr: torch.optim.AdamW(params, lr, fused=fused)
    with pytest.raises(NonFiniteError, match=r"step 3: .*regularizer\.layer"):
        fit(module, tmp_path, Fault(zero, step=1), **options)


def test_disk_full_does_not_hide_what_was_not_finite(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ser_lightning.objectives.replay_file.torch.save", full)
    with pytest.raises(NonFiniteError, match=r"loss is nan, .*could not be written: No space left"):
        fit(tiny_objective(MoCoV3, warmup_epochs=0), tmp_path, Fault(nan_pixel))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [{"state_dict": {}}, {"replay": None}])
def test_another_file_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x\.pt holds no step .*give a replay\.step<N>\.pt"):
        read_replay(tmp_path / "x.pt")


def test_examining_moves_nothing_but_buffers(tmp_path):
    module = tiny_objective(DINO)
    one = guard_file.Pass(tiny_batch(), 0, 0, 0, 0, 7, dict(module.named_buffers()))
    before = {name: tensor.clone() for name, tensor in module.named_parameters()}
    seen = examine(module, one, module.place)
    assert seen.is_finite
    assert {"loss", "loss/invariance", "loss/equivariance"} == set(seen.terms)
    assert isinstance(module, Objective)
    assert all(p.grad is None and torch.equal(p, before[n]) for n, p in module.named_parameters())


@pytest.mark.parametrize(
    "record", [{}, {"one_pass": {}, "batch": None}, {"one_pass": {"x": 1}, "batch": {"type": "os"}}]
)
def test_file_with_less_than_a_step_is_refused(record, tmp_path):
    torch.save({"state_dict": {}, "replay": record}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x\.pt does not hold a step as this version writes it"):
        read_replay(tmp_path / "x.pt")
