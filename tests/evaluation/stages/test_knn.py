"""The k-NN stage: its numbers are those of the images that it says were right."""

from pathlib import Path

import lightning as L
import numpy as np
import pytest

from ser_lightning.commands.evaluate import evaluate
from ser_lightning.data import Shapes
from ser_lightning.data.labelled import LabelledDataModule
from ser_lightning.evaluation.stages.knn import KNNStage
from ser_lightning.evaluation.stages.linear import head_path
from ser_lightning.results.hits import load_hits
from ser_lightning.results.record import read_record
from ser_lightning.sources.base import Part
from tiny_names import SHAPES

ROOT = Path(__file__).parents[3]

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*isinstance.*treespec.*"),
]


def run_stage(checkpoint, folder, *options):
    config = str(ROOT / "configs" / "eval" / "knn.yaml")
    args = ["--config", config, "--checkpoint", str(checkpoint), "--run_dir", str(folder)]
    evaluate([*args, "--trainer.accelerator", "cpu", "--data.num_workers", "0", *options])
    return folder / "results" / f"knn-{SHAPES}.json"


def test_hits_lie_beside_the_record_and_make_its_numbers(checkpoint, tmp_path):
    path = run_stage(checkpoint, tmp_path, "--model.k", "[1, 20]")
    metrics = read_record(path).metrics
    for name in ("top1_k1", "top1_k20"):
        hits = load_hits(path, name).values
        assert len(hits) == 24
        assert 100 * hits.mean() == pytest.approx(metrics[name])
    assert load_hits(path, "top5_k20") is None
    assert not head_path(tmp_path, SHAPES).exists()


def test_features_that_were_found_are_measured_whole_whatever_the_devices(checkpoint, tmp_path):
    """No pass is left that would start the second process."""
    before = read_record(run_stage(checkpoint, tmp_path)).metrics
    assert read_record(run_stage(checkpoint, tmp_path, "--trainer.devices", "2")).metrics == before


def test_hits_of_another_temperature_have_its_name(checkpoint, tmp_path):
    path = run_stage(checkpoint, tmp_path, "--model.temperature", "[0.07, 0.2]")
    metrics = read_record(path).metrics
    for name in ("top1_k20_T0.07", "top1_k20_T0.2"):
        assert 100 * load_hits(path, name).values.mean() == pytest.approx(metrics[name])


@pytest.mark.parametrize("holdout", ["0", pytest.param("0.25", marks=pytest.mark.slow)])
def test_bank_is_the_whole_training_split_whatever_is_held_out(checkpoint, tmp_path, holdout):
    path = run_stage(checkpoint, tmp_path, "--data.holdout_fraction", holdout)
    record, whole = read_record(path), read_record(run_stage(checkpoint, tmp_path / "other"))
    assert record.protocol["num_bank"] == 96
    assert record.metrics == whole.metrics


class Overlapping(Shapes):
    """Whose test images are some of its training images."""

    def evaluation(self):
        return Part(self.train(), np.arange(5))

    def train(self):
        self._train = getattr(self, "_train", None) or super().train()
        return self._train


def test_bank_with_test_images_is_refused(checkpoint, tmp_path):
    source = Overlapping(num_train=96, num_evaluation=24, image_size=16)
    data = LabelledDataModule(source, image_size=16, num_workers=0)
    with pytest.raises(ValueError, match="5 of 5 test images are in the bank too"):
        KNNStage(str(checkpoint)).run(L.Trainer(logger=False), data, tmp_path)
    assert list(tmp_path.iterdir()) == []
