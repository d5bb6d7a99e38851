"""The lee stage: its pass against a brute-force computation, its record and its figure."""

from pathlib import Path

import lightning as L
import pytest
import torch

from ser_lightning.commands.evaluate import evaluate
from ser_lightning.data import Shapes
from ser_lightning.data.labelled import LabelledDataModule
from ser_lightning.evaluation.metrics.lie_derivative import lie_derivatives
from ser_lightning.evaluation.stages.lee import lie_errors
from ser_lightning.groups.generators import GENERATORS
from ser_lightning.results.record import read_record
from support import tiny_backbone
from tiny_names import SHAPES

CONFIG = str(Path(__file__).parents[3] / "configs" / "eval" / "lee.yaml")
CPU = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--data.num_workers", "0"]

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*isinstance.*treespec.*"),
]


def run_stage(checkpoint, folder, *options):
    args = ["--config", CONFIG, "--checkpoint", str(checkpoint), "--run_dir", str(folder)]
    evaluate([*args, *CPU, *options])
    return read_record(folder / "results" / f"lee-{SHAPES}.json")


def passed(backbone, layers, names):
    """A pass over 11 images in batches of 4, and the images."""
    data = LabelledDataModule(
        Shapes(num_train=24, num_evaluation=11, image_size=16),
        image_size=16, num_workers=0, evaluation_batch_size=4, evaluation_crop_fraction=1.0,
    )  # fmt: skip
    data.setup("test")
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    found = lie_errors(trainer, backbone, data.clean_loader("test"), layers, names)
    return found, torch.cat([batch.pixels for batch in data.clean_loader("test")])


@pytest.mark.parametrize("cls_layer", [0, 2])
def test_numbers_are_means_over_all_images(cls_layer):
    backbone = tiny_backbone(cls_layer=cls_layer).eval().requires_grad_(False)
    names = ["rotation", "translation_y"]
    measured, pixels = passed(backbone, [1, 4], names)
    outputs = [*backbone.token_maps(pixels, [1, 4]), backbone(pixels)]

    def encode(images):
        return *backbone.token_maps(images, [1, 4]), backbone(images)

    assert measured.num_images == 11
    for i, (_, found) in enumerate(lie_derivatives(encode, pixels, names)):
        for place, each in enumerate(found):
            size = each.lie[0].numel()
            lie, change = (
                sum(one.norm().item() ** 2 / size for one in values) / 11
                for values in (each.lie, each.change)
            )
            assert measured.errors[i, place].item() == pytest.approx(lie, rel=1e-4)
            assert measured.changes[i, place].item() == pytest.approx(change, rel=1e-4)
    for place, output in enumerate(outputs):
        mean = output.mean((0, 2, 3))[:, None, None] if output.dim() == 4 else output.mean(0)
        expected = (output - mean).square().mean().item()
        assert measured.spread[place].item() == pytest.approx(expected, rel=1e-3)


def test_outputs_that_do_not_differ_have_no_relative_error():
    backbone = tiny_backbone().eval().requires_grad_(False)
    backbone.vit.norm.weight.zero_()
    backbone.vit.norm.bias.fill_(0.3)
    measured, _ = passed(backbone, [1, 4], ["scale"])
    assert measured.spread.isnan().tolist() == [False, True, True]
    assert measured.errors[0, 1:].tolist() == [0, 0]


@pytest.mark.slow
def test_record_has_every_place_and_companion_and_a_figure(checkpoint, tmp_path):
    record = run_stage(checkpoint, tmp_path)
    rows = ["", "relative/", "no_action/", "random_init/", "random_init_relative/"]
    assert set(record.metrics) == {
        f"lee/{row}{name}_{place}"
        for row in rows
        for name in GENERATORS
        for place in ("block0", "block1", "final", "cls")
        if (row, place) != ("no_action/", "cls")
    }
    assert record.num_samples == 24
    assert record.official
    assert record.protocol["transformations"] == list(GENERATORS)
    assert (tmp_path / "results" / f"lee-{SHAPES}.png").stat().st_size > 10_000
    names = [f"lee/{row}rotation_cls" for row in ("", "random_init/")]
    trained, fresh = (record.metrics[name] for name in names)
    assert trained != fresh


def test_options_choose_images_layers_and_transformations(checkpoint, tmp_path):
    options = ["--model.num_images", "12", "--model.layers", "[0.5]"]
    record = run_stage(checkpoint, tmp_path, *options, "--model.transformations", "[shear]")
    assert {name for name in record.metrics if name.startswith("lee/relative")} == {
        "lee/relative/shear_block1", "lee/relative/shear_cls",
    }  # fmt: skip
    assert record.unofficial_reasons == ("measured on 12 of 24 images",)


def test_half_precision_weights_and_unknown_layers_are_refused(checkpoint, tmp_path):
    with pytest.raises(ValueError, match="bf16-true turns the weights into half precision"):
        run_stage(checkpoint, tmp_path, "--trainer.precision", "bf16-true")
    with pytest.raises(ValueError, match=r"layer 7 is not in 0\.\.2"):
        run_stage(checkpoint, tmp_path, "--model.layers", "[7]")
