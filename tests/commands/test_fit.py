"""The command line in process: what runs, what it writes, and what it refuses, how."""

import json
import os
import re
import shutil
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from parsed import Parsed, ParsedOnly
from ser_lightning.backbones import SplitViT
from ser_lightning.checkpoints import load_checkpoint
from ser_lightning.cli import main
from ser_lightning.objectives import moco_v3
from ser_lightning.reporting.look import read_curves
from ser_lightning.runtime.run_folder import ConfigurationSaver, default_run_dir

ROOT = Path(__file__).parents[2]
TINY = str(ROOT / "tests" / "tiny.yaml")
BRIEF = ["--trainer.limit_train_batches", "1"]  # of each of two epochs
LOCAL = ["--data.crop", "CropViews", "--data.crop.local", '{"num": 2, "size": 8}']

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*isinstance.*treespec.*"),
]

TURNED = ["--data.crop", "CropViews", "--data.crop.turned", '{"ratio": 0.5}']


def overlap(*ratios):
    """Options for an add-on that compares these shares of the crops, one or several."""
    parts = [{"class_path": "OverlapRegularizer", "init_args": {"ratio": r}} for r in ratios]
    several = {"class_path": "PerLayer", "init_args": {"regularizers": parts}}
    add_on = parts[0] if len(parts) == 1 else several
    layers = "1" if len(parts) == 1 else "[1, 2]"
    return ["--model.regularizer", json.dumps(add_on), "--model.backbone.layer", layers]


@pytest.fixture
def tiny_run(trained_run, tmp_path):
    """A finished tiny run: its folder, which is put back as it was after the test."""
    untouched = shutil.copytree(trained_run, tmp_path / "untouched")
    yield trained_run
    shutil.rmtree(trained_run)
    shutil.move(untouched, trained_run)


@pytest.fixture(autouse=True)
def _stay_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """A folder in which `a run` was begun with `--ckpt_path last`, and what that printed."""
    folder = tmp_path_factory.mktemp("fresh")
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as printed:
        patch.chdir(folder)
        main(["fit", "--config", TINY, "--run_dir", "a run", "--ckpt_path", "last"])
    return folder, printed.getvalue()


def error_of(args, capsys):
    """The message with which the command line refuses `args`."""
    with pytest.raises(SystemExit) as stop:
        main(args)
    assert stop.value.code not in (0, None)
    text = capsys.readouterr().err
    return text if isinstance(stop.value.code, int) else text + str(stop.value.code)


def test_fit_writes_checkpoint_configuration_and_logs(tiny_run, capsys):
    assert (tiny_run / "fit.yaml").is_file()
    assert list(tiny_run.glob("events*"))
    checkpoint = load_checkpoint(tiny_run / "checkpoints" / "last.ckpt")
    assert checkpoint["global_step"] == 12
    stored = yaml.safe_load(checkpoint["ser_lightning"]["config"])
    assert stored["model"]["init_args"]["hidden"] == 32


@pytest.mark.slow
def test_finished_run_that_is_started_again_stays_as_it_is(tmp_path, capsys):
    command = ["fit", "--config", TINY, "--run_dir", "run", "--ckpt_path", "last"]
    command += ["--checkpoint.every_n_train_steps", "1", "--data.bank_size", "24"]
    tables, kept = [], []
    for _ in range(2):
        main(command)
        tables.append(capsys.readouterr().out.partition("random init")[2])
        kept.append(Path("run/checkpoints/last.ckpt").read_bytes())
    assert tables[0] == tables[1]
    assert kept[0] == kept[1]


def test_fit_prints_random_init_next_to_trained(fresh):
    _, table = fresh
    assert "random init" in table
    assert "k-NN top-1" in table
    assert "equivariance, rotation block 1" in table


def test_saved_configuration_can_be_run_again(tiny_run, tmp_path):
    main(["fit", "--config", str(tiny_run / "fit.yaml"), "--run_dir", str(tmp_path / "again")])
    weights = [
        load_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]
        for run in (tiny_run, tmp_path / "again")
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("verb", ["fit", "validate"])
def test_weights_that_a_checkpoint_replaces_are_recorded_and_not_read(verb, tiny_run):
    options = ["--config", TINY, "--run_dir", str(tiny_run), "--ckpt_path", "last"]
    cli = Parsed([verb, *options, "--model.backbone.weights", "gone.safetensors"])
    (saver,) = (c for c in cli.trainer.callbacks if isinstance(c, ConfigurationSaver))
    stored = yaml.safe_load(saver._text)["model"]["init_args"]["backbone"]["init_args"]
    assert stored["weights"] == cli.model.backbone.weights == "gone.safetensors"


def test_validate_needs_no_configuration_beside_a_checkpoint(tiny_run, capsys):
    path = str(tiny_run / "checkpoints" / "last.ckpt")
    main(["validate", "--ckpt_path", path, "--trainer.accelerator=cpu"])
    output = capsys.readouterr()
    assert f"configuration taken from {path}" in output.err
    assert "k-NN top-1" in output.out
    assert (tiny_run / "validate.yaml").is_file()
    assert yaml.safe_load((tiny_run / "fit.yaml").read_text())["trainer"]["max_epochs"] == 2


def test_validate_adds_nothing_to_the_curves_of_the_run(tiny_run):
    before = read_curves(tiny_run)["val/knn_top1"]
    main(["validate", "--run_dir", str(tiny_run), "--trainer.accelerator=cpu"])
    assert read_curves(tiny_run)["val/knn_top1"] == before


def test_backbone_of_a_run_is_rebuilt_from_its_checkpoint_alone(tiny_run):
    path = tiny_run / "checkpoints" / "last.ckpt"
    backbone = SplitViT.from_checkpoint(path)
    assert (backbone.layer, backbone.width, backbone.patch_size) == (1, 32, 4)
    weights = load_checkpoint(path)["state_dict"]
    for name, tensor in backbone.vit.state_dict().items():
        assert torch.equal(tensor, weights[f"backbone.vit.{name}"])


def test_fit_goes_on_from_a_checkpoint_alone_in_its_folder(tiny_run):
    path = tiny_run / "checkpoints" / "last.ckpt"
    main(["fit", "--ckpt_path", str(path), "--trainer.max_epochs", "3"])
    assert load_checkpoint(path)["global_step"] == 18


@pytest.mark.slow
def test_test_measures_the_same_numbers_as_validate(tiny_run, capsys):
    tables = []
    for command in ("validate", "test"):
        main([command, "--config", TINY, "--run_dir", str(tiny_run), "--ckpt_path", "last"])
        output = capsys.readouterr().out
        tables.append([line for line in output.splitlines() if line.startswith("k-NN")])
    assert tables[0] == tables[1] != []


def test_option_wins_over_checkpoint_and_the_difference_is_printed(tiny_run, caplog):
    path = str(tiny_run / "checkpoints" / "last.ckpt")
    with caplog.at_level("INFO"):
        cli = Parsed(
            ["validate", "--ckpt_path", path, "--config", TINY, "--model.temperature", "0.7"]
        )
    assert cli.model.temperature == 0.7
    assert "model.init_args.temperature: 0.2 -> 0.7" in caplog.text


def test_last_starts_afresh_where_nothing_is_there(fresh):
    folder, _ = fresh
    assert (folder / "a run" / "checkpoints" / "last.ckpt").is_file()


def test_last_goes_on_where_a_run_is_there(tiny_run):
    resumed = ["--run_dir", str(tiny_run), "--ckpt_path", "last", "--trainer.max_epochs", "3"]
    main(["fit", "--config", TINY, *resumed])
    assert load_checkpoint(tiny_run / "checkpoints" / "last.ckpt")["global_step"] == 18


@pytest.mark.parametrize(
    ("option", "reached"), [("epochs", "epoch 2"), ("steps", "step 12")], ids=lambda value: value
)
def test_run_that_would_end_before_its_checkpoint_is_refused(option, reached, tiny_run, capsys):
    shorter = [f"--trainer.max_{option}", "1", "--model.warmup_epochs", "0"]
    message = error_of(["fit", "--run_dir", str(tiny_run), "--ckpt_path", "last", *shorter], capsys)
    words = f"trainer.max_{option} 1 ends before the checkpoint, which has reached {reached}; raise"
    assert words in message


def test_fit_does_not_overwrite_a_run(tiny_run, capsys):
    message = error_of(["fit", "--config", TINY, "--run_dir", str(tiny_run)], capsys)
    assert "already holds a run; continue it with --ckpt_path last" in message


def test_links_carry_sizes_seed_and_batch_size():
    cli = Parsed(["fit", "--config", TINY, "--seed_everything", "7"])
    assert (cli.datamodule.image_size, cli.datamodule.patch_size) == (16, 4)
    assert cli.datamodule.seed == cli.model.seed == 7
    assert cli.model.learning_rate == pytest.approx(5e-3 * 16 / 256)


def test_add_ons_at_several_layers_train_and_are_measured(tmp_path):
    ser = {"class_path": "SERRegularizer", "init_args": {"width": 32, "hidden": 16}}
    add_ons = {"class_path": "PerLayer", "init_args": {"regularizers": [ser, ser]}}
    layers = {"model": {"init_args": {"backbone": {"layer": [1, 2], "cls_layer": 1}}}}
    layers["model"]["init_args"]["regularizer"] = add_ons
    (tmp_path / "layers.yaml").write_text(yaml.safe_dump(layers))
    run = tmp_path / "run"
    files = ["--config", TINY, "--config", str(tmp_path / "layers.yaml")]
    main(["fit", *files, "--run_dir", str(run), *BRIEF])
    stored = load_checkpoint(run / "checkpoints" / "last.ckpt")
    measured = stored["callbacks"]["OnlineEvaluation"]["history"][-1]["metrics"]
    assert "equivariance/rotation_block1" in measured
    backbone = SplitViT.from_checkpoint(run / "checkpoints" / "last.ckpt")
    assert backbone.layers == (1, 2)


def test_run_folder_is_named_after_the_configuration():
    cli = Parsed(["fit", "--config", TINY])
    assert cli.run_dir == Path("runs/tiny")


def test_run_folder_of_an_overlay_that_names_other_images_is_below_its_name():
    files = [str(ROOT / "configs" / f"{name}.yaml") for name in ("moco", "fashion_mnist")]
    cli = ParsedOnly(["fit", *(part for file in files for part in ("--config", file))])
    assert cli.run_dir == Path("runs/fashion_mnist/moco")
    delta = str(ROOT / "configs" / "fashion_mnist" / "dino.yaml")
    assert default_run_dir([*files, delta], None) == Path("runs/fashion_mnist/moco")


@pytest.mark.parametrize("invertible", [[], ["--data.invertible.ratio", "0.5"]], ids=["", "asked"])
def test_run_without_an_add_on_has_cls_at_the_input_and_no_invertible_images(
    invertible, caplog, tmp_path
):
    options = ["--config", TINY, "--model.regularizer", "null", *invertible, *BRIEF]
    with caplog.at_level("INFO"):
        main(["fit", *options, "--run_dir", "run"])
    assert "no invertible sub-batch, since no add-on reads it" in caplog.text
    stored = yaml.safe_load((tmp_path / "run" / "fit.yaml").read_text())
    assert stored["model"]["init_args"]["backbone"]["init_args"]["cls_layer"] == 0
    assert stored["data"]["invertible"] is None
    assert SplitViT.from_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt").cls_layer == 0


def test_add_on_within_another_keeps_its_invertible_images():
    ser = '[{"class_path": "SERRegularizer"}]'
    add_ons = ["--model.regularizer", "PerLayer", "--model.regularizer.regularizers", ser]
    cli = Parsed(["fit", "--config", TINY, *add_ons])
    assert cli.datamodule.invertible is not None
    assert cli.model.backbone.cls_layer == 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--model.temprature", "0.3"], "did you mean 'temperature'"),
        (["--data.bank_sizes", "3"], "did you mean 'bank_size'"),
        (["--trainer.max_epoch", "3"], "max_epoch"),
        (["--data.global_batch_size", "many"], "many"),
        (["--model.backbone.layer", "9"], "layer 9 is not in 0..2"),
        (["--model.backbone.image_size", "18"], "18"),
        (["--data.global_batch_size", "15", "--trainer.accumulate_grad_batches", "2"], "15 does"),
        (["--data.invertible.ratio", "0.01"], "at least 2 are needed"),
        (["--model", "BarlowTwins", *LOCAL], "BarlowTwins compares two views"),
        (["--model.backbone.layer", "3.5"], "3.5"),
        (["--data.invertible", "null"], "SERRegularizer needs an invertible sub-batch"),
        (TURNED, "`data.crop.turned` turns 0.5 of the crops, but SERRegularizer compares none"),
        ([*TURNED, "--model.regularizer", "null"], "but without an add-on nothing compares them"),
        ([*TURNED, *overlap(0.25)], "turns 0.5 of the crops, but OverlapRegularizer compares 0.25"),
        ([*TURNED, *overlap(0.25), "--model.regularizer.weight", "0"], "compares 0.25"),
        ([*TURNED, *overlap(0.25, 0.5)], "but PerLayer compares 0.25 and 0.5"),
        (["--model.regularizer.width", "48"], "the backbone has 32"),
        (["--data.image_size", "99"], "--data.image_size 99 has no effect, since it is taken from"),
        (["--data.crop.view_1", "null"], "a section is a single value in place of options"),
        (["--data.crop.scale", "[0.2,1"], "Not of type [a, b] with 0 < a <= b <= 1: given [0.2,1"),
        (["--data.source", "ImageFolder", "--data.source.root", "missing"], "missing"),
        (["--ckpt_path", "nowhere.ckpt"], "nowhere.ckpt does not exist"),
        (["--model.warmup_epochs", "5"], "warm-up of 5"),
        pytest.param(
            ["--model.optimizer", "torch.optim.Muon"],
            "size: torch.Size([1, 1, 32]): use --model.optimizer timm.optim.Muon",
            marks=pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch 2.9"),
        ),
        (["--trainer.max_epochs", "-1"], "the run has no end"),
        (["--trainer.devices", "64"], "devices 64 would start as many processes on a CPU of"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_mistake_gets_a_short_message_before_training(options, expected, capsys):
    message = error_of(["fit", "--config", TINY, *options], capsys)
    assert expected in message
    assert len(message.splitlines()) < 25
    assert "Traceback" not in message


def test_processes_of_torchrun_that_would_train_side_by_side_are_refused(capsys, monkeypatch):
    names = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
    for name, value in {**names, "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "run"}.items():
        monkeypatch.setenv(name, value)
    message = error_of(["fit", "--config", TINY, "--trainer.devices", "1"], capsys)
    assert "makes a run of 1, but torchrun has started 2 processes" in message
    assert "give --trainer.devices 2" in message


@pytest.mark.parametrize("weight", ["1", "0"])
@pytest.mark.parametrize("ratios", [(0.5,), (0.5, 0.5)])
def test_crops_may_be_turned_where_the_same_ones_are_compared(ratios, weight):
    options = [*TURNED, *overlap(*ratios), "--model.regularizer.weight", weight]
    cli = Parsed(["fit", "--config", TINY, *options])
    assert cli.datamodule.crop.turned.ratio == 0.5


def test_value_that_is_taken_from_elsewhere_is_refused_in_a_file(tmp_path, capsys):
    (tmp_path / "more.yaml").write_text("data: {image_size: 99}")
    message = error_of(["fit", "--config", TINY, "--config", "more.yaml"], capsys)
    words = "data.image_size 99 has no effect, since it is taken from model.init_args.backbone"
    assert f"more.yaml: --{words}; remove it and set --model.backbone" in message


@pytest.mark.parametrize(
    ("option", "value", "name"),
    [
        ("--model", "{class_path: MoCoV3, init_args: {seed: 3}}", "model.seed 3"),
        ("--model", "model.yaml", "model.seed 3"),
        ("--model.init_args", "{seed: 3}", "model.seed 3"),
        ("--data", "{image_size: 99}", "data.image_size 99"),
        ("--data", "data.yaml", "data.image_size 99"),
        ("--data.needs", "{invertible: true}", "data.needs.invertible True"),
        ("--config", "{model: {init_args: {seed: 3}}}", "model.seed 3"),
    ],
)
def test_value_that_is_taken_from_elsewhere_is_refused_in_a_section_given_as_a_whole(
    option, value, name, tmp_path, capsys
):
    (tmp_path / "model.yaml").write_text("class_path: MoCoV3\ninit_args: {seed: 3}")
    (tmp_path / "data.yaml").write_text("image_size: 99")
    message = error_of(["fit", "--config", TINY, option, value], capsys)
    assert f"--{name} has no effect, since it is taken from" in message


@pytest.mark.parametrize(
    ("option", "origin"),
    [
        ("--model.global_batch_size", "data.global_batch_size"),
        ("--model.init_args.global_batch_size", "data.global_batch_size"),
        ("--model.seed", "seed_everything"),
        ("--model.init_args.seed", "seed_everything"),
    ],
)
@pytest.mark.parametrize("separator", [" ", "="])
def test_value_that_is_taken_from_elsewhere_is_refused_as_an_option(
    option, origin, separator, capsys
):
    given = f"{option}{separator}8".split()
    message = error_of(["fit", "--config", TINY, *given], capsys)
    words = f"{option.replace('init_args.', '')} 8 has no effect, since it is taken from {origin}"
    assert f"{words}; remove it and set --{origin}" in message


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "steps"), [("1", 1), ("1.0", 6)])
def test_limit_is_a_number_of_batches_or_a_share_and_a_resumed_run_keeps_it(limit, steps, tmp_path):
    options = ["--trainer.limit_train_batches", limit, "--trainer.limit_val_batches", "1"]
    options += ["--trainer.num_sanity_val_steps", "0", "--model.warmup_epochs", "0"]
    main(["fit", "--config", TINY, "--run_dir", "run", "--trainer.max_epochs", "1", *options])
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert torch.load(path, weights_only=True)["global_step"] == steps
    assert f"limit_train_batches: {limit}\n" in (tmp_path / "run" / "fit.yaml").read_text()
    main(["fit", "--run_dir", "run", "--ckpt_path", "last", "--trainer.max_epochs", "2"])
    assert torch.load(path, weights_only=True)["global_step"] == 2 * steps


def test_checkpoint_of_another_run_does_not_overwrite_this_one(tiny_run, tmp_path, capsys):
    shutil.copytree(tiny_run, "other")
    path = str(tiny_run / "checkpoints" / "last.ckpt")
    options = ["--config", TINY, "--run_dir", "other", "--ckpt_path", path]
    assert "already holds a run" in error_of(["fit", *options], capsys)


def test_trial_run_leaves_no_checkpoint(tmp_path):
    main(["fit", "--config", TINY, "--run_dir", "run", "--trainer.fast_dev_run", "true"])
    assert not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


def test_empty_folder_is_refused_with_the_expected_layout(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    source = ["--data.source", "ImageFolder", "--data.source.root", str(tmp_path / "empty")]
    assert "empty" in error_of(["fit", "--config", TINY, *source], capsys)


def test_no_configuration_gets_a_hint(capsys):
    assert "--config configs/moco_ser.yaml" in error_of(["fit"], capsys)


def test_validate_refuses_random_weights_unless_asked(capsys):
    assert "random weights" in error_of(["validate", "--config", TINY], capsys)
    main(["validate", "--config", TINY, "--allow_random_weights", "true"])
    assert "k-NN top-1" in capsys.readouterr().out


def test_malicious_checkpoint_is_refused(tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return os.mkdir, ("executed",)

    torch.save({"ser_lightning": Evil()}, tmp_path / "evil.ckpt")
    message = error_of(["fit", "--config", TINY, "--ckpt_path", "evil.ckpt"], capsys)
    assert "was not loaded" in message
    assert not (tmp_path / "executed").exists()


def test_loss_that_is_not_finite_stops_before_the_step_and_names_the_term(capsys, monkeypatch):
    contrast = moco_v3.contrastive_loss
    calls = []

    def breaks_in_the_third_step(*args):
        calls.append(1)
        return contrast(*args) * (float("nan") if len(calls) > 4 else 1)

    monkeypatch.setattr(moco_v3, "contrastive_loss", breaks_in_the_third_step)
    message = error_of(["fit", "--config", TINY, "--run_dir", "run"], capsys)
    assert "step 2: loss is nan, loss/invariance is nan" in message
    assert not Path("run/checkpoints/last.ckpt").exists()


def test_compare_prints_a_line_per_run(tiny_run, capsys):
    capsys.readouterr()
    main(["compare", str(tiny_run)])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    groups = lines.index(["run", "seeds", "views", "parameters", "(M)", "GMAC", "per", "image"])
    assert lines[groups + 2][:3] == ["run", "1", "2"]
    assert lines[groups + 2][3].startswith("0.0")
    (online,) = [i for i, line in enumerate(lines) if line[:2] == ["run", "steps"]]
    assert lines[online][2:6] == ["k-NN", "top-1", "eq.", "rotation"]
    (values,) = [line for line in lines[online:] if line[:2] == ["run", "12"]]
    assert values[3] == "%"


def test_compare_refuses_what_is_no_run(tmp_path, capsys):
    assert "is no run folder" in error_of(["compare", str(tmp_path)], capsys)


OLD = ROOT / "tests" / "runtime" / "fit_0.1.0.yaml"


@pytest.mark.parametrize("source", ["data.Shapes", "data.shapes.Shapes", "data.folder.ImageFolder"])
def test_configuration_of_version_0_1_0_runs(source, tmp_path):
    text = OLD.read_text().replace("ser_lightning.data.Shapes", f"ser_lightning.{source}")
    if source.endswith("ImageFolder"):
        config = yaml.safe_load(text)
        config["data"]["source"]["init_args"] = {"root": "images"}
        text = yaml.safe_dump(config)
    (tmp_path / "old.yaml").write_text(text)
    config = ParsedOnly(["fit", "--config", "old.yaml"]).config["fit"]
    assert config.data.source.class_path.endswith(source.rpartition(".")[2])
    assert config.model.init_args.regularizer.init_args.hidden == 192


def test_run_folder_alone_tells_what_to_go_on_with(tiny_run, capsys):
    run = ["--run_dir", str(tiny_run)]
    main(["fit", *run, "--ckpt_path", "last", "--trainer.max_epochs", "3"])
    assert load_checkpoint(tiny_run / "checkpoints" / "last.ckpt")["global_step"] == 18
    main(["validate", *run])
    assert "configuration taken from" in capsys.readouterr().err
    for checkpoint in (tiny_run / "checkpoints").iterdir():
        checkpoint.unlink()
    again = Parsed(["fit", *run, "--ckpt_path", "last"])
    assert (again.run_dir, again.model.temperature) == (tiny_run, 0.2)
    assert "required" in error_of(["fit", "--run_dir", "nowhere"], capsys)


def test_fit_ends_with_what_to_type_next(fresh):
    path = "a run/checkpoints/last.ckpt"
    assert fresh[1].endswith(
        f"Run folder: a run\nCheckpoint: {path}\n"
        "Next:       ser-fit look 'a run'\n"
        "            ser-fit evaluate --config configs/eval/knn.yaml \\\n"
        f"                --checkpoint '{path}'\n"
    )


def test_fit_on_images_without_labels_ends_with_a_stage_that_needs_none(tmp_path, capsys):
    (tmp_path / "images").mkdir()
    for number in range(40):
        pixels = np.random.default_rng(number).integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    source = ["--data.source", "ImageFolder", "--data.source.root", "images"]
    main(["fit", "--config", TINY, *source, "--run_dir", "run"])
    assert "--config configs/eval/equivariance.yaml" in capsys.readouterr().out


def test_validate_prints_one_table_of_one_column(tiny_run, capsys):
    capsys.readouterr()
    main(["validate", "--run_dir", str(tiny_run)])
    output = capsys.readouterr().out
    assert output.count("k-NN top-1") == 1
    assert "knn_top1" not in output
    assert "random init" not in output
    (line,) = [line for line in output.splitlines() if line.startswith("k-NN top-1")]
    assert re.fullmatch(r"k-NN top-1 \(chance 8\.3 %\) +\d+\.\d %", line)


@pytest.mark.parametrize("seed", ["true", "false", "-1", "4294967296"])
def test_seed_that_no_record_could_name_is_refused(seed, capsys):
    message = error_of(["fit", "--config", TINY, "--seed_everything", seed], capsys)
    assert f"seed_everything {seed} is no seed" in message
    assert len(message.splitlines()) < 5


def test_record_says_what_ran(tmp_path):
    """Every value that is linked, computed or settled before training is the one written down."""
    options = ["--seed_everything", "7", "--model.backbone.image_size", "20"]
    main(["fit", "--config", TINY, "--run_dir", "run", "--ckpt_path", "last", *options, *BRIEF])
    checkpoint = load_checkpoint("run/checkpoints/last.ckpt")
    stored = yaml.safe_load(checkpoint["ser_lightning"]["config"])
    assert stored == yaml.safe_load(Path("run/fit.yaml").read_text())
    again = Parsed(["fit", "--config", "run/fit.yaml", "--run_dir", "again"])
    assert stored["seed_everything"] == again.model.seed == again.datamodule.seed == 7
    assert checkpoint["PartitionedDataModule"]["seed"] == 7
    assert (stored["run_dir"], stored["ckpt_path"]) == ("run", None)
    backbone = stored["model"]["init_args"]["backbone"]["init_args"]
    sizes = again.datamodule.image_size, again.datamodule.patch_size
    assert sizes == (backbone["image_size"], backbone["patch_size"]) == (20, 4)
    rate = stored["model"]["init_args"]["base_learning_rate"]
    assert again.model.learning_rate == rate * stored["data"]["global_batch_size"] / 256
    assert again.datamodule.needs == again.model.regularizer.needs


@pytest.mark.parametrize(
    "options",
    [
        ["--trainer.accelerator", "nonsense"],
        ["--trainer.strategy", "nonsense"],
        ["--trainer.val_check_interval", "99"],
        ["--trainer.accelerator", "gpu"],
        ["--trainer.precision", "7"],
        ["--run_dir", "/dev/null/run"],
        ["--config", "broken.yaml"],
        ["--model.backbone.weights", "nowhere.safetensors"],
    ],
    ids="-".join,
)
def test_mistake_of_any_kind_ends_in_a_few_lines(options, tmp_path, capsys):
    (tmp_path / "broken.yaml").write_text("model: {class_path: [")
    message = error_of(["fit", "--config", TINY, *options], capsys)
    assert "ser-fit: error: " in message
    assert "Traceback" not in message
    assert len(message.splitlines()) < 25


def watching(name, run):
    options = ["--trainer.callbacks", "EarlyStopping", "--trainer.callbacks.monitor", name]
    options += ["--trainer.log_every_n_steps", "1"]
    return ["fit", "--config", TINY, "--run_dir", str(run), *options]


def test_number_that_nobody_logs_is_warned_of_before_the_run_ends_for_it(tmp_path, capsys):
    with pytest.warns(UserWarning, match=r"EarlyStopping watches 'val/knn'.* val/knn_top1"):
        error_of(watching("val/knn", tmp_path), capsys)


@pytest.mark.parametrize(
    "name",
    [
        "data/unreadable_images",  # at the end of an epoch alone
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("throughput/images_per_second", "gradient_norm", "knn", "loss/invariance")
        ),
    ],
)
def test_every_number_of_a_run_may_be_watched(name, tmp_path):
    main(watching(name, tmp_path))  # in which a warning is an error
