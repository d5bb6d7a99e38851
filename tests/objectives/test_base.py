"""What the base of all objectives does with gradients, logs and learning rates."""

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision

from ser_lightning.batch import LossOutput
from ser_lightning.objectives.moco_v3 import MoCoV3
from support import tiny_batch, tiny_objective

CLIP = 1e-3

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*isinstance.*treespec.*"),
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`.*"),
]


class LongestGradient(L.Callback):
    """Notes the longest gradient that the optimizer is given, and the norm of all together."""

    def __init__(self):
        self.norms = []
        self.together = []

    def on_before_zero_grad(self, trainer, module, optimizer):
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        if gradients:
            self.norms.append(max(g.norm().item() for g in gradients))
            self.together.append(torch.stack([g.norm() for g in gradients]).norm().item())


def trained(fused, scaled, clip_parameter_norm=CLIP, **options):
    module = tiny_objective(
        MoCoV3,
        clip_parameter_norm=clip_parameter_norm,
        warmup_epochs=0,
        optimizer=lambda params, lr: torch.optim.AdamW(params, lr, fused=fused),
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    plugins = [MixedPrecision("16-mixed", "cpu", scaler)] if scaled else []
    longest = LongestGradient()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=2,
        logger=False,
        plugins=plugins,
        callbacks=[longest],
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, torch.utils.data.DataLoader([tiny_batch()] * 2, batch_size=None))
    return longest


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("scaled", [False, True], ids=["float32", "float16"])
def test_each_gradient_is_clipped_to_the_norm_whatever_precision_and_kernel(fused, scaled):
    assert max(trained(fused, scaled).norms) == pytest.approx(CLIP, rel=2e-3)


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("scaled", [False, True], ids=["float32", "float16"])
@pytest.mark.parametrize("own", [None, 1.0], ids=["alone", "after each parameter's"])
def test_trainers_clipping_limits_the_norm_of_all_gradients(fused, scaled, own):
    norms = trained(fused, scaled, own, gradient_clip_val=CLIP).together
    assert max(norms) == pytest.approx(CLIP, rel=2e-3)


def test_sub_batches_add_loss_terms_and_average_diagnostics():
    parts = [
        LossOutput(torch.tensor(value), {"loss/a": torch.tensor(value), "d": torch.tensor(value)})
        for value in (1.0, 3.0)
    ]
    loss, logs = LossOutput.sum_of(parts)
    assert (loss, logs["loss/a"], logs["d"]) == (4.0, 4.0, 2.0)


@pytest.mark.parametrize(
    ("option", "value"),
    [("final_learning_rate", 1.5), ("clip_parameter_norm", 0.0)],
)
def test_settings_out_of_range_are_refused(option, value):
    with pytest.raises(ValueError, match=f"{option} {value}"):
        tiny_objective(MoCoV3, **{option: value})


@pytest.mark.parametrize(
    ("give", "words"),
    [
        (lambda loss: loss, "Tensor;"),
        (lambda loss: None, "NoneType;"),
        (lambda loss: (loss, {}), "tuple;"),
        (lambda loss: LossOutput(loss.expand(2), {}), r"a loss of shape \(2,\);"),
        (lambda loss: LossOutput(loss.detach(), {}), "a loss without a gradient"),
    ],
    ids=["tensor", "nothing", "tuple", "vector", "detached"],
)
def test_loss_that_cannot_be_trained_is_refused_with_its_objective(give, words):
    class Own(MoCoV3):
        def invariance_loss(self, online, target):
            return give(super().invariance_loss(online, target).loss)

    module, batch = tiny_objective(Own), tiny_batch()
    with pytest.raises(ValueError, match=rf"^Own\.invariance_loss returned {words}"):
        module.losses(batch)
