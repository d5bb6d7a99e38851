"""`ser-fit evaluate`: a checkpoint in, a record out."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from results.result_records import record
from ser_lightning.cli import main
from ser_lightning.commands.evaluate import (
    StageCommandLine,
    options_of_images,
    refuse_a_part,
)
from ser_lightning.data import Shapes
from ser_lightning.evaluation.stages.detection import DetectionStage
from ser_lightning.results.hits import hits_path
from ser_lightning.results.record import class_map_sha256, read_record, result_path
from tiny_names import SHAPES

ROOT = Path(__file__).parents[2]
KNN = str(ROOT / "configs" / "eval" / "knn.yaml")
STAGES = sorted((ROOT / "configs" / "eval").glob("*.yaml"))
CPU = ["--trainer.accelerator", "cpu", "--trainer.devices", "1"]

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*isinstance.*treespec.*"),
]


@pytest.fixture(scope="module")
def checkpoint(trained_run, tmp_path_factory):
    """The checkpoint of a finished tiny run."""
    run = shutil.copytree(trained_run, tmp_path_factory.mktemp("tiny") / "run")
    return run / "checkpoints" / "last.ckpt"


def evaluate(checkpoint, *options):
    main(["evaluate", "--config", KNN, "--checkpoint", str(checkpoint), *CPU, *options])


def error_of(args, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", *args])
    assert stop.value.code not in (0, None)
    text = capsys.readouterr().err
    return text if isinstance(stop.value.code, int) else text + str(stop.value.code)


@pytest.mark.parametrize("path", STAGES, ids=lambda p: p.stem)
def test_stage_configuration_says_where_it_is_from_and_names_a_stage(path):
    text = path.read_text()
    for note in ("Source:", "Run:", "Expect:"):
        assert note in text.split("model:")[0], note
    assert f"make {path.stem}-eval" in text
    assert yaml.safe_load(text)["model"]["class_path"]


def test_record_holds_checkpoint_data_and_protocol(checkpoint):
    evaluate(checkpoint, "--model.k", "[1,5]")
    (path,) = (checkpoint.parents[1] / "results").glob("knn-*.json")
    found = read_record(path)
    assert found.stage == "knn"
    assert found.dataset == SHAPES
    assert len(found.checkpoint_sha256) == 64
    assert found.num_samples == 24
    assert found.protocol == {
        "k": [1, 5],
        "temperature": [0.07],
        "num_bank": 96,
        "precision": "32-true",
        "evaluation_crop_fraction": 1.0,
        "num_train": None,
        "num_test": None,
        "on_bad_image": "fail",
        "max_bad_share": 0.01,
    }
    assert set(found.metrics) == {"top1_k1", "top5_k1", "top1_k5", "top5_k5"}
    assert found.transform["image_size"] == 16
    assert found.official
    names = Shapes(num_train=96, num_evaluation=24, image_size=16).train().class_names
    assert found.class_map_sha256 == class_map_sha256(names)


def test_a_setting_counts_also_where_a_file_has_its_name(checkpoint, tmp_path, monkeypatch):
    shutil.copytree(checkpoint.parents[1], tmp_path / "run")
    (tmp_path / "fail").touch()
    monkeypatch.chdir(tmp_path)
    evaluate(tmp_path / "run/checkpoints/last.ckpt")
    (path,) = (tmp_path / "run/results").glob("knn-*.json")
    assert read_record(path).protocol["on_bad_image"] == "fail"


def test_second_stage_finds_the_features_of_the_first(checkpoint):
    evaluate(checkpoint)
    folder = checkpoint.parents[1] / "features"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("cls.npy")}
    evaluate(checkpoint, "--model.temperature", "[0.1]")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("cls.npy")} == before
    assert not list(folder.glob("*.partial"))


def test_record_of_other_weights_is_not_replaced_without_a_word(checkpoint, tmp_path, caplog):
    other = shutil.copytree(checkpoint.parents[1], tmp_path / "run") / "checkpoints" / "other.ckpt"
    shutil.rmtree(tmp_path / "run" / "results", ignore_errors=True)
    content = torch.load(checkpoint, weights_only=False)
    content["state_dict"]["backbone.vit.cls_token"] += 1
    torch.save(content, other)
    caplog.set_level("INFO")
    for path in (other, other):
        evaluate(path, "--run_dir", str(tmp_path / "run"))
    assert "replaces" not in caplog.text
    evaluate(checkpoint, "--run_dir", str(tmp_path / "run"))
    assert f"replaces what was measured of {other}, " in caplog.text


def test_record_of_more_images_is_kept_beside_the_one_of_a_part(checkpoint, tmp_path, caplog):
    run = shutil.copytree(checkpoint.parents[1], tmp_path / "run")
    shutil.rmtree(run / "results", ignore_errors=True)
    caplog.set_level("INFO")
    for options in ([], ["--data.num_test", "12"]):
        evaluate(run / "checkpoints" / "last.ckpt", *options)
    path = run / "results" / f"knn-{SHAPES}.json"
    assert read_record(path).num_samples == 12
    assert read_record(path.with_suffix(".json.bak")).num_samples == 24
    assert f"replaces a record of 24 images, now {path.with_suffix('.json.bak')}" in caplog.text


def test_a_part_of_the_images_is_marked_unofficial(checkpoint, tmp_path):
    evaluate(checkpoint, "--data.num_test", "12", "--run_dir", str(tmp_path))
    record = json.loads((tmp_path / "results" / f"knn-{SHAPES}.json").read_text())
    assert record["num_samples"] == 12
    assert not record["official"]
    assert "a part" in "; ".join(record["unofficial_reasons"])


@pytest.mark.slow
def test_records_of_seeds_and_branches_are_kept_side_by_side(checkpoint, tmp_path):
    for options in ([], ["--seed_everything", "1"], ["--model.branch", "momentum"]):
        evaluate(checkpoint, *options, "--run_dir", str(tmp_path))
    paths = sorted((tmp_path / "results").glob("knn-*.json"))
    names = [f"knn-{SHAPES}-momentum.json", f"knn-{SHAPES}-seed1.json", f"knn-{SHAPES}.json"]
    assert [path.name for path in paths] == names
    found = [(read.seed, read.weights_key) for read in map(read_record, paths)]
    assert found == [(0, "momentum"), (1, "online"), (0, "online")]


@pytest.mark.parametrize(
    ("head", "name"), [("fcos", "detection-shapes-fcos"), ("faster_rcnn", "detection-shapes")]
)
def test_a_detector_that_is_not_the_default_names_its_record(head, name):
    stage = DetectionStage.__new__(DetectionStage)
    opened = SimpleNamespace(given=())
    vars(stage).update(head=head, seed=0, branch="online", default_branch="online", opened=opened)
    found = result_path(Path(), record("detection", "shapes"), stage.variant)
    assert found.stem == name


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("fast_dev_run", "true"),
        ("fast_dev_run", "2"),
        ("limit_test_batches", "0.4"),
        ("limit_test_batches", "1"),
    ],
)
def test_leaving_images_out_unnoticed_is_refused(option, value, checkpoint, tmp_path):
    options = [f"--trainer.{option}", value, "--run_dir", str(tmp_path)]
    with pytest.raises(SystemExit) as stop:
        evaluate(checkpoint, *options)
    assert f"trainer.{option} {value.title()} would leave images out" in str(stop.value.code)
    assert "--data.num_test N" in str(stop.value.code)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "origin"),
    [
        ("model.seed", "seed_everything"),
        ("data.seed", "seed_everything"),
        ("model.init_args.seed", "seed_everything"),
        ("model.checkpoint", "checkpoint"),
        ("data.image_size", "model.image_size"),
    ],
)
def test_value_that_is_taken_from_elsewhere_is_refused(option, origin, checkpoint, tmp_path):
    with pytest.raises(SystemExit) as stop:
        evaluate(checkpoint, f"--{option}", "5", "--run_dir", str(tmp_path))
    said = str(stop.value.code)
    assert f"{option.replace('init_args.', '')} 5 has no effect, since it is taken from" in said
    assert said.endswith(f"; remove it and set --{origin}")


def test_one_batch_is_a_part_and_all_batches_are_not():
    with pytest.raises(ValueError, match="limit_test_batches 1 would leave"):
        refuse_a_part(SimpleNamespace(fast_dev_run=False, limit_test_batches=1))
    for limit in (None, 1.0):
        refuse_a_part(SimpleNamespace(fast_dev_run=False, limit_test_batches=limit))


def test_unreadable_image_fails_whatever_pretraining_did(checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    config = yaml.safe_load(content["ser_lightning"]["config"])
    config["data"]["on_bad_image"] = "skip"
    content["ser_lightning"]["config"] = yaml.safe_dump(config)
    torch.save(content, tmp_path / "last.ckpt")
    data = StageCommandLine(["--config", KNN, "--checkpoint", str(tmp_path / "last.ckpt"), *CPU])
    assert data.datamodule.on_bad_image == "fail"


def test_images_come_from_the_checkpoint_unless_said_otherwise(checkpoint):
    args = ["--config", KNN, "--checkpoint", str(checkpoint), *CPU]
    data = StageCommandLine(args).datamodule
    assert type(data.source).__name__ == "Shapes"
    assert data.source.train().read(0).shape == (3, 16, 16)
    assert data.evaluation_crop_fraction == 1.0
    assert data.image_size == 16


def images_of(stage, folder):
    """What `--images` means to a stage, by its configuration."""
    config = ROOT / "configs" / "eval" / f"{stage}.yaml"
    return options_of_images(["--config", str(config), "--images", str(folder)])


@pytest.mark.parametrize(
    ("stage", "option"),
    [
        ("linear", "--data.source.root"),
        ("3diebench", "--data.source.root"),
        ("3diebench-regression", "--data.source.root"),
        ("detection", "--data.source.root"),
        ("segmentation", "--data.source.root"),
        ("imagenet-c", "--data.root"),
        ("imagenet-p", "--data.root"),
    ],
)
def test_images_are_in_the_folder_that_the_stage_reads(stage, option):
    assert images_of(stage, "/data/there") == [option, "/data/there"]
    assert options_of_images(["--model", "KNNStage"]) == []


def test_images_are_heard_however_the_stage_is_named(tmp_path):
    (tmp_path / "short.yaml").write_text("model: KNNStage")
    for named in (["--config", str(tmp_path / "short.yaml")], ["--model.class_path", "KNNStage"]):
        assert options_of_images([*named, "--images", "here"]) == ["--data.source.root", "here"]


def test_images_of_shift_are_in_the_folders_of_its_sets(tmp_path):
    (tmp_path / "imagenet-r").mkdir()
    assert images_of("shift", tmp_path) == ["--data.imagenet_r", f"{tmp_path}/imagenet-r"]
    (tmp_path / "imagenet-v2").mkdir()
    assert images_of("shift", tmp_path)[:2] == ["--data.imagenet_v2", f"{tmp_path}/imagenet-v2"]
    with pytest.raises(ValueError, match="none holds none of imagenet-v2, imagenet-r, imagenet-s"):
        images_of("shift", tmp_path / "none")


@pytest.mark.parametrize(("stage", "option"), [("knn", "source.root"), ("shift", "imagenet_r")])
def test_images_in_two_places_are_refused(stage, option):
    config = str(ROOT / "configs" / "eval" / f"{stage}.yaml")
    args = ["--config", config, "--images", "here", f"--data.{option}=there"]
    with pytest.raises(ValueError, match=f"--images here and --data.{option} there both .* one"):
        options_of_images(args)


def test_images_are_read_in_place_of_the_checkpoints_own(checkpoint, tmp_path):
    root = photographs(tmp_path / "own", *SPLITS)
    args = ["--config", KNN, "--checkpoint", str(checkpoint), "--images", str(root), *CPU]
    source = StageCommandLine(args).datamodule.source  # the checkpoint's own have no folder
    assert (type(source).__name__, source.root) == ("ImageFolder", str(root))


def test_last_checkpoint_and_images_count_wherever_they_stand(checkpoint, tmp_path):
    args = ["--config", KNN, "--checkpoint", "nowhere.ckpt", "--checkpoint", str(checkpoint)]
    roots = [photographs(tmp_path / name, *SPLITS) for name in ("first", "second")]
    images = [part for root in roots for part in ("--images", str(root))]
    cli = StageCommandLine([*args, *images, *CPU])
    assert cli.datamodule.source.root == str(roots[1])
    assert cli.run_dir == checkpoint.parents[1]
    config = tmp_path / "mine.yaml"
    config.write_text(yaml.safe_dump({"checkpoint": str(checkpoint)}))
    cli = StageCommandLine(["--config", KNN, "--config", str(config), *CPU])
    assert type(cli.datamodule.source).__name__ == "Shapes"
    assert cli.run_dir == checkpoint.parents[1]


def test_missing_checkpoint_gets_a_short_message(tmp_path, capsys):
    assert "nowhere.ckpt does not exist" in error_of(
        ["--config", KNN, "--checkpoint", "nowhere.ckpt"], capsys
    )


def test_unknown_setting_gets_a_hint(checkpoint, capsys):
    args = ["--config", KNN, "--checkpoint", str(checkpoint), "--model.kk", "3"]
    assert "kk" in error_of(args, capsys)


def photographs(root, *folders, seed=0):
    """Two folders' worth of small photographs in each of some folders."""
    rng = np.random.default_rng(seed)
    for folder in folders:
        (root / folder).mkdir(parents=True)
        for i in range(6):
            pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / folder / f"{i}.png")
    return root


def run_on(checkpoint, run, root, *options, stage="knn"):
    """The record of a stage on a folder of one's own."""
    config = str(ROOT / "configs" / "eval" / f"{stage}.yaml")
    args = ["--config", config, "--checkpoint", str(checkpoint), *CPU, "--run_dir", str(run)]
    source = ["--data.source", "ImageFolder", "--data.source.root", str(root)]
    before = set((run / "results").glob("*.json"))
    main(["evaluate", *args, *source, "--data.num_workers", "0", *options])
    (path,) = set((run / "results").glob("*.json")) - before
    return path, read_record(path)


SPLITS = ("train/a", "train/b", "val/a", "val/b")


@pytest.mark.slow
def test_folders_with_the_same_classes_have_records_of_their_own(checkpoint, tmp_path):
    options = ["--model.k", "[1]"]
    found = [
        run_on(checkpoint, tmp_path / "run", photographs(tmp_path / name, *SPLITS), *options)
        for name in ("first/images", "second/images")
    ]
    (first, one), (second, two) = found
    assert first != second
    assert one.dataset != two.dataset
    for path, each in found:
        assert each.dataset.startswith("folder_images_")
        assert each.dataset in path.name
        assert hits_path(path).is_file()
        assert each.unofficial_reasons == (
            "measured on a folder of one's own, which is no released set",
        )
    assert one.data_sha256 == two.data_sha256  # the same names, labels and classes
    (tmp_path / "third").mkdir()
    more = photographs(tmp_path / "third" / "images", *SPLITS, "val/c", "train/c")
    assert run_on(checkpoint, tmp_path / "run", more, *options)[1].data_sha256 != one.data_sha256


@pytest.mark.slow
def test_splits_of_the_checkpoints_own_folder_are_not_looked_for_in_another(checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    config = yaml.safe_load(content["ser_lightning"]["config"])
    names = {"train": "learn", "evaluation": "exam"}
    own = {"class_path": "ser_lightning.data.ImageFolder", "init_args": {"root": "own", **names}}
    config["data"]["source"] = own
    content["ser_lightning"]["config"] = yaml.safe_dump(config)
    torch.save(content, tmp_path / "last.ckpt")
    other = photographs(tmp_path / "other", *SPLITS, "exam/a", "exam/b")
    args = ["--config", KNN, "--checkpoint", str(tmp_path / "last.ckpt"), *CPU]
    source = StageCommandLine([*args, "--data.source.root", str(other)]).datamodule.source
    assert (source.root, source.train_name, source.evaluation_name) == (str(other), "train", "val")
    source = StageCommandLine(args).datamodule.source
    assert (source.root, source.train_name, source.evaluation_name) == ("own", "learn", "exam")


@pytest.mark.parametrize(
    "stage",
    [
        "equivariance",
        *(pytest.param(s, marks=pytest.mark.slow) for s in ("diagnostics", "transformation")),
    ],
)
def test_photographs_without_classes_go_through_stages_that_need_none(stage, checkpoint, tmp_path):
    root = photographs(tmp_path / "images", "train", "val")
    options = {
        "diagnostics": ["--model.num_images", "4", "--model.num_views", "2"],
        "transformation": ["--model.batch_size", "4", "--trainer.max_epochs", "1"],
    }
    _, record = run_on(checkpoint, tmp_path / "run", root, *options.get(stage, []), stage=stage)
    assert record.num_samples == 6
    assert record.class_map_sha256 is None
    with pytest.raises(SystemExit, match="this stage needs labels, but images of the source have"):
        run_on(checkpoint, tmp_path / "run", root)
