"""Online evaluation inside Lightning's loops."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from evaluation import online_run
from ser_lightning.backbones import SplitViT
from ser_lightning.data import Shapes
from ser_lightning.data.clean import Clean
from ser_lightning.data.datasets import Batches, CleanImages
from ser_lightning.data.loaders import BatchLoader, SlotKeys
from ser_lightning.data.reading import Reader
from ser_lightning.evaluation import OnlineEvaluation, online
from ser_lightning.evaluation.metrics.diagnostics import (
    feature_std,
    rankme,
    spatial_moments,
    spatial_variance_ratio,
)
from ser_lightning.evaluation.metrics.equivariance import FAMILIES, Reference, companion_scores
from ser_lightning.evaluation.metrics.knn import knn_accuracy
from ser_lightning.evaluation.per_image import Rows, even_subset
from ser_lightning.sources.base import MemoryImages
from support import run_processes

NAMES = {
    "knn_top1",
    "knn_top5",
    *(
        f"equivariance/{row}{f}_{at}"
        for row in ("", "mean_centred/")
        for f in ("rotation", "flip", "scale")
        for at in ("block1", "final")
    ),
    "rankme",
    "feature_std",
    "token_spatial_variance",
}


def fit(callback, root, module=None, labelled=True, ckpt_path=None, **options):
    train, evaluation = online_run.loaders(labelled=labelled)
    run = online_run.trainer(callback, root, **{"logger": False, **options})
    run.fit(module or online_run.Module(), train, evaluation, ckpt_path=ckpt_path)
    return run


def direct_metrics(backbone):
    """The same numbers without a trainer, from whole data sets."""
    bank, queries = online_run.Images(31, 0), online_run.Images(23, 1)
    backbone.eval()
    with torch.no_grad():
        bank_features = backbone(bank.pixels)
        features = backbone(queries.pixels)
        (maps,) = backbone.token_maps(queries.pixels, [1])
    accuracy = knn_accuracy(bank_features, bank.label, features, queries.label, 5)[5]
    rows = torch.tensor([i for i in range(23) if i * 10 % 23 < 10])
    maps_of_rows = backbone.token_maps(queries.pixels[rows], [1, 2])
    mean = tuple(m.detach().mean((0, 2, 3)) for m in maps_of_rows)
    scores = companion_scores(
        backbone, queries.pixels[rows], [1, 2], torch.arange(10), Reference(mean)
    )
    return {
        "knn_top1": accuracy.top1,
        "knn_top5": accuracy.top5,
        **{
            f"equivariance/{name}{family}_{at}": scores[row][family][layer].mean().item()
            for row, name in (("score", ""), ("mean_centred", "mean_centred/"))
            for family in FAMILIES
            for layer, at in ((1, "block1"), (2, "final"))
        },
        "rankme": rankme(features),
        "feature_std": feature_std(features),
        "token_spatial_variance": spatial_variance_ratio(*spatial_moments(maps)),
    }


def test_baseline_is_measured_before_the_first_step_and_logged(tmp_path, capsys):
    callback = OnlineEvaluation(k=5, num_equivariance_images=10)
    logger = CSVLogger(tmp_path, name="", version="")
    run = fit(callback, tmp_path, logger=logger)
    expected = direct_metrics(online_run.Module().backbone)
    assert callback.baseline == pytest.approx(expected, rel=1e-4)
    assert set(callback.baseline) == set(callback.latest) == NAMES
    assert callback.num_classes == 3
    assert "Random init, 23 images: k-NN top-1" in capsys.readouterr().out
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    logged = [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]
    assert float(logged[0]["val/rankme"]) == pytest.approx(expected["rankme"])
    assert logged[0]["step"] == "0"
    assert any(row["val/knn_top1"] for row in logged)
    assert {f"val/{name}" for name in NAMES} <= set(run.callback_metrics)
    assert {"knn", "turns"} == set(run.progress_bar_metrics)


def test_latest_and_history_follow_the_trained_weights(tmp_path):
    callback = OnlineEvaluation(k=5, num_equivariance_images=10)
    module = online_run.Module()
    fit(callback, tmp_path, module, max_epochs=2)
    assert callback.latest == pytest.approx(direct_metrics(module.backbone), rel=1e-4)
    assert [entry["step"] for entry in callback.history] == [2, 4]
    assert callback.history[1]["metrics"] == callback.latest
    assert callback.latest["rankme"] != callback.baseline["rankme"]


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_run_killed_between_its_last_step_and_its_last_measurement_is_measured_whole(tmp_path):
    first, resumed = (OnlineEvaluation(k=5, num_equivariance_images=3) for _ in range(2))
    for callback, path in ((first, None), (resumed, tmp_path / "kept" / "last.ckpt")):
        saver = ModelCheckpoint(tmp_path / "kept", "last", every_n_train_steps=1)
        callbacks = {"callbacks": [callback, saver], "enable_checkpointing": True}
        # its file is of a step's end, and the measurement comes after it
        fit(callback, tmp_path, max_epochs=2, ckpt_path=path, **callbacks)
    assert (resumed.num_bank, resumed.num_queries) == (31, 23)
    assert resumed.history == first.history


@pytest.mark.parametrize(
    ("limit", "last"),
    [
        ({"max_epochs": 3, "check_val_every_n_epoch": 2}, 6),
        ({"max_epochs": -1, "max_steps": 5}, 5),
    ],
)
def test_last_step_is_measured_whatever_the_interval(limit, last, tmp_path):
    checkpoint = ModelCheckpoint(tmp_path / "kept", "last", every_n_train_steps=1)
    callback, module = OnlineEvaluation(k=5, num_equivariance_images=10), online_run.Module()
    callbacks = {"callbacks": [callback, checkpoint], "enable_checkpointing": True}
    run = fit(callback, tmp_path, module, **limit, **callbacks)
    steps = [entry["step"] for entry in callback.history]
    assert steps[-1] == run.global_step == last
    assert len(set(steps)) == len(steps)
    assert callback.latest == pytest.approx(direct_metrics(module.backbone), rel=1e-4)
    assert (callback.num_bank, callback.num_queries) == (31, 23)
    assert checkpoint._last_global_step_saved == -1  # to be written again


def test_validation_that_is_off_stays_off(tmp_path):
    callback = OnlineEvaluation(k=5, num_equivariance_images=3)
    fit(callback, tmp_path, limit_val_batches=0, num_sanity_val_steps=0)
    assert callback.history == []


def test_given_weights_are_not_called_random(tmp_path, capsys):
    module, logger = online_run.Module(), CSVLogger(tmp_path / "logs", name="", version="")
    weights = str(tmp_path / "weights.safetensors")
    module.backbone.export_safetensors(weights)
    module.backbone = SplitViT(**module.backbone.arguments, weights=weights)
    callback = OnlineEvaluation(k=5, num_equivariance_images=3)
    fit(callback, tmp_path, module, logger=logger)
    assert callback.baseline_name == "given weights"
    assert "Given weights, 23 images: k-NN top-1" in capsys.readouterr().out
    header = (tmp_path / "logs" / "metrics.csv").read_text().splitlines()[0]
    assert "val/rankme" in header
    assert "random" not in header
    resumed = OnlineEvaluation()
    resumed.load_state_dict(callback.state_dict())
    assert resumed.baseline_name == "given weights"


def test_without_labels_there_is_no_knn(tmp_path):
    callback = OnlineEvaluation(num_equivariance_images=0)
    fit(callback, tmp_path, labelled=False)
    assert set(callback.latest) == {"rankme", "feature_std", "token_spatial_variance"}
    assert callback.num_classes == 0


def test_queries_that_are_in_the_bank_have_no_knn(tmp_path):
    images = Shapes(num_train=24, num_evaluation=4, image_size=32).train()
    callback = OnlineEvaluation(num_equivariance_images=0)
    run = online_run.trainer(callback, tmp_path, logger=False)
    made = [CleanImages(Reader(images), Clean(32), np.arange(start, start + 8)) for start in (0, 4)]
    sets = [BatchLoader(Batches(make, 8), SlotKeys(Batches(make, 8), (8, 4)), 0) for make in made]
    with pytest.warns(UserWarning, match="4 of 8 images to evaluate are in the k-NN bank too"):
        run.validate(online_run.Module(), sets, verbose=False)
    assert set(callback.latest) == {"rankme", "feature_std", "token_spatial_variance"}
    apart = [sets[0], BatchLoader(sets[1].dataset, sets[1].sampler, 0)]
    apart[1].dataset.make = CleanImages(Reader(images), Clean(32), np.arange(8, 16))
    run.validate(online_run.Module(), apart, verbose=False)
    assert "knn_top1" in callback.latest


def test_layer_at_the_depth_is_scored_once(tmp_path):
    callback = OnlineEvaluation(k=50, num_equivariance_images=3)  # k above the bank of 31
    fit(callback, tmp_path, online_run.Module(layer=2))
    names = {name for name in callback.latest if name.startswith("equivariance")}
    families = [f"{row}{f}" for row in ("", "mean_centred/") for f in FAMILIES]
    assert names == {f"equivariance/{family}_final" for family in families}


def test_partial_sanity_check_is_no_baseline(tmp_path):
    callback = OnlineEvaluation(k=3, num_equivariance_images=3)
    fit(callback, tmp_path, num_sanity_val_steps=1)
    assert callback.baseline == {}
    assert callback.latest


@pytest.mark.parametrize("when", ["mid_epoch", "epoch_end"])
def test_resumed_run_keeps_its_baseline(tmp_path, when):
    first = OnlineEvaluation(k=5, num_equivariance_images=3)
    # one of the two steps of epoch 1, or epoch 0 as a whole
    limit = {"max_steps": 3} if when == "mid_epoch" else {"max_epochs": 1}
    run = fit(first, tmp_path, **limit)
    run.save_checkpoint(tmp_path / "run.ckpt", weights_only=False)
    resumed = OnlineEvaluation(k=5, num_equivariance_images=3)
    fit(resumed, tmp_path, max_epochs=2, max_steps=-1, ckpt_path=tmp_path / "run.ckpt")
    assert resumed.baseline == first.baseline
    assert resumed.history[: len(first.history)] == first.history
    assert resumed.history[-1]["step"] == 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"k": 3, "num_equivariance_images": 3}, "k 5, now 3"),
        ({"k": 5, "num_equivariance_images": 4}, "equivariance images 3, now 4"),
    ],
)
def test_baseline_of_other_conditions_is_dropped_in_words(tmp_path, options, words):
    """Beside the trained weights' numbers its own would show the difference of the conditions."""
    first = OnlineEvaluation(k=5, num_equivariance_images=3)
    fit(first, tmp_path, max_epochs=1).save_checkpoint(tmp_path / "run.ckpt", weights_only=False)
    assert first.baseline
    resumed = OnlineEvaluation(**options)
    with pytest.warns(UserWarning, match=rf"random init was measured otherwise .*\({words}\)"):
        fit(resumed, tmp_path, max_epochs=2, max_steps=-1, ckpt_path=tmp_path / "run.ckpt")
    assert resumed.baseline == {}
    assert resumed.history[0] == first.history[0]


@pytest.mark.parametrize("knows", [True, False])
def test_baseline_of_images_prepared_otherwise_is_dropped(tmp_path, monkeypatch, knows):
    """One of an earlier version does not know how they were prepared, and is kept."""

    def prepared(crop_fraction):
        images = MemoryImages(torch.zeros(1, 3, 4, 4), torch.zeros(1), ())
        made = SimpleNamespace(reader=SimpleNamespace(images=images), clean=Clean(4, crop_fraction))
        monkeypatch.setattr(online, "_clean_sets", lambda trainer: [made])

    prepared(0.875)
    first = OnlineEvaluation(k=5, num_equivariance_images=3)
    run = fit(first, tmp_path, max_epochs=1)
    if not knows:
        del first.baseline_conditions["images' preparation"]
    run.save_checkpoint(tmp_path / "run.ckpt", weights_only=False)
    prepared(0.5)
    resumed = OnlineEvaluation(k=5, num_equivariance_images=3)
    words = r"\(images' preparation .*crop_fraction=0\.875.*, now .*crop_fraction=0\.5"
    with pytest.warns(UserWarning, match=words) if knows else nullcontext():
        fit(resumed, tmp_path, max_epochs=2, max_steps=-1, ckpt_path=tmp_path / "run.ckpt")
    assert resumed.baseline == ({} if knows else first.baseline)


def test_validate_measures_without_history(tmp_path):
    callback = OnlineEvaluation(k=5, num_equivariance_images=3)
    module = online_run.Module()
    run = online_run.trainer(callback, tmp_path, logger=False)
    (logged, _) = run.validate(module, online_run.loaders()[1], verbose=False)
    assert logged["val/knn_top1"] == pytest.approx(callback.latest["knn_top1"])
    assert callback.history == []
    assert callback.baseline == {}


def test_bfloat16_precision_keeps_the_scores_in_float32(tmp_path):
    results = {}
    for precision in ("32-true", "bf16-mixed"):
        callback = OnlineEvaluation(k=5, num_equivariance_images=10)
        run = online_run.trainer(callback, tmp_path, logger=False, precision=precision)
        run.validate(online_run.Module(), online_run.loaders()[1], verbose=False)
        results[precision] = callback.latest
    full, mixed = results["32-true"], results["bf16-mixed"]
    assert full["equivariance/rotation_final"] == mixed["equivariance/rotation_final"]
    assert full["rankme"] != mixed["rankme"]


def test_a_single_loader_is_refused(tmp_path):
    run = online_run.trainer(OnlineEvaluation(), tmp_path, logger=False)
    with pytest.raises(ValueError, match=r"got 1 validation loader.*bank and the queries"):
        run.validate(online_run.Module(), online_run.loaders()[1][0], verbose=False)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="k 0 must be int >= 1; the default is 20"):
        OnlineEvaluation(k=0)
    with pytest.raises(ValueError, match="num_equivariance_images -1 must be int >= 0"):
        OnlineEvaluation(num_equivariance_images=-1)


@pytest.mark.parametrize(("total", "count"), [(23, 10), (10, 23), (9, 3), (100, 1), (7, 0)])
def test_even_subset_has_the_asked_size_and_numbers_its_images(total, count):
    parts = [even_subset(rows, total, count) for rows in torch.arange(total).split(4)]
    position = torch.cat([position for _, position in parts])
    assert position.tolist() == list(range(min(count, total)))


def test_rows_are_sorted_and_counted_once():
    rows = Rows(2)
    for index in torch.tensor([[4, 1], [3, 4], [0, 1]]):
        rows.add(index, index + 10, torch.stack([index, index], 1).bfloat16())
    gathered = rows.gather()
    assert gathered.label.tolist() == [10, 11, 13, 14]
    assert gathered.values[:, 1].tolist() == [0, 1, 3, 4]


def test_chosen_images_pass_once_upright_and_once_moved(tmp_path, monkeypatch):
    passes, plain = [], SplitViT._walk

    def counted(self, images, layers):
        passes.append(sum(map(len, images)))
        return plain(self, images, layers)

    monkeypatch.setattr(SplitViT, "_walk", counted)
    callback = OnlineEvaluation(k=5, num_equivariance_images=10)
    run = online_run.trainer(callback, tmp_path, logger=False)
    run.validate(online_run.Module(), online_run.loaders()[1], verbose=False)
    few = 16  # a pass of fewer images has some of them twice
    bank, others = 5 * [few], 4 * [few]  # in batches of 7, the last one of 3 and of 2
    assert sorted(passes) == sorted([*bank, *others, 10, 3 * 10])


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_numbers_are_bit_equal_at_any_batch_size(tmp_path, precision):
    results = []
    for batch_size in (7, 1, 3, 31):
        callback = OnlineEvaluation(k=5, num_equivariance_images=10)
        run = online_run.trainer(callback, tmp_path, logger=False, precision=precision)
        _, evaluation = online_run.loaders(batch_size=batch_size)
        run.validate(online_run.Module(), evaluation, verbose=False)
        results.append(callback.latest)
    assert all(result == results[0] for result in results)


@pytest.mark.slow
def test_two_processes_measure_bit_by_bit_what_one_does(tmp_path):
    results = run_processes(online_run.validate_as_a_rank, tmp_path)
    alone = online_run.validate_as_a_rank(tmp_path)
    assert results[0] == results[1] == alone
    assert alone == pytest.approx(direct_metrics(online_run.Module().backbone), rel=1e-4)
