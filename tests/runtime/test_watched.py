"""A callback that watches what nobody logs: said after the first step, once, with close names."""

import warnings
from functools import partial
from types import SimpleNamespace

import pytest
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint

from ser_lightning.evaluation import OnlineEvaluation
from ser_lightning.runtime.watched import Watched

MEASURED = {"knn_top1": 50.0, "rankme": 3.0, "equivariance/mean_centred/rotation_final": 0.5}


def measured(baseline):
    """The names of a run whose first validation gave a baseline."""
    evaluation = OnlineEvaluation()
    evaluation.baseline = baseline
    return partial(evaluation.measured, SimpleNamespace(layer=2, depth=2))


def step(watched, *callbacks, number=3):
    """What happens after a step of a run that logs at every second one."""
    trainer = SimpleNamespace(
        callbacks=[watched, *callbacks], callback_metrics={"loss": 1.0, "loss/invariance": 1.0},
        log_every_n_steps=2, global_step=number, _results={},
    )  # fmt: skip
    watched.on_train_batch_end(trainer, None, None, None, 0)


@pytest.mark.parametrize(
    ("name", "close"),
    [("val/knn_top_1", "val/knn_top1"), ("los", "loss"), ("zzz", "knn, loss, loss/invariance,")],
)
@pytest.mark.parametrize("kind", [EarlyStopping, ModelCheckpoint])
def test_unknown_number_is_named_once_with_close_ones(kind, name, close):
    watched = Watched(measured(MEASURED))
    with pytest.warns(UserWarning, match=f"{kind.__name__} watches '{name}'.* close .*: {close}"):
        step(watched, kind(monitor=name))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(watched, kind(monitor=name))


def test_what_steps_or_validations_log_and_callbacks_that_watch_nothing_are_passed_over():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("loss", "knn", "turns", "val/knn_top1", "val/rankme"):
            step(Watched(measured(MEASURED)), EarlyStopping(monitor=name))
        others = LearningRateMonitor(), ModelCheckpoint()
        step(Watched(measured(MEASURED)), *others)
        step(Watched(measured(MEASURED)), EarlyStopping(monitor="no", strict=False))
        # some numbers are logged at every second step alone
        step(Watched(measured(MEASURED)), EarlyStopping(monitor="no"), number=2)
        # without a first validation nobody knows what it will log
        step(Watched(measured({})), EarlyStopping(monitor="val/nonsense"))


def test_images_without_classes_have_no_knn_to_watch():
    unlabelled = {"rankme": 3.0}
    with pytest.warns(UserWarning, match="watches 'knn'"):
        step(Watched(measured(unlabelled)), EarlyStopping(monitor="knn"))
