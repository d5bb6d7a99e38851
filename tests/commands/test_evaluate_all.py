"""Which stages `evaluate-all` runs, and what it says about the others."""

from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from ser_lightning.cli import main
from ser_lightning.commands import evaluate_all
from ser_lightning.evaluation.stage import Stage, stage_classes
from ser_lightning.evaluation.stages.knn import KNNStage


@pytest.fixture
def commands(monkeypatch):
    """Notes the commands instead of running them."""
    noted = []

    class Done:
        returncode = 0

    def run(command, check):
        noted.append(command)
        if "linear" in stages([command]):
            run_folder = Path(command[command.index("--checkpoint") + 1]).parents[1]
            (run_folder / "results").mkdir(parents=True, exist_ok=True)
            own = "--data.source.root" not in command
            name = "shapes" if own else "imagenet1k"
            (run_folder / "results" / f"linear-{name}.safetensors").touch()
        return Done()

    monkeypatch.setattr(evaluate_all.subprocess, "run", run)
    monkeypatch.setattr(
        evaluate_all,
        "write_report",
        lambda runs, folder: type("Files", (), {"markdown": folder, "html": folder})(),
    )
    return noted


def stages(commands):
    return [
        command[command.index("--config") + 1].rpartition("/")[2].removesuffix(".yaml")
        for command in commands
    ]


def save_checkpoint(path, name, **arguments):
    """A checkpoint that knows nothing but the source of its images."""
    source = {"class_path": f"ser_lightning.data.{name}", "init_args": arguments}
    stored = {"config": yaml.safe_dump({"data": {"source": source}})}
    path.parent.mkdir(parents=True)
    torch.save({"ser_lightning": stored}, path)
    return str(path)


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    return save_checkpoint(path, "Shapes", num_train=12, num_evaluation=12, image_size=8)


@pytest.fixture
def data(tmp_path):
    """A folder of data sets, of which none is there yet."""
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def test_without_data_the_checkpoints_own_images_are_used(commands, checkpoint):
    main(["evaluate-all", "--checkpoint", checkpoint])
    assert stages(commands) == [
        "diagnostics", "equivariance", "knn", "latent", "lee", "finetune", "linear", "mlp",
        "transformation", "turned", "imagenet-c", "imagenet-p",
    ]  # fmt: skip
    assert commands[-1][-2:] == ["--data.generated", "true"]


def test_stages_without_images_are_skipped_and_said_so(commands, checkpoint, data, capsys):
    for name in ("imagenet", "imagenet-r", "imagenet-c"):
        (data / name).mkdir()
    arguments = ["evaluate-all", "--checkpoint", checkpoint, "--data_root", str(data)]
    main([*arguments, "--only", "linear", "imagenet-c", "imagenet-p", "shift", "detection"])
    assert stages(commands) == ["linear", "imagenet-c", "shift"]
    assert commands[2][-2:] == ["--data.imagenet_r", str(data / "imagenet-r")]
    output = capsys.readouterr().out
    assert f"== detection: skipped, {data / 'coco'} does not exist" in output
    assert f"== imagenet-p: skipped, {data / 'imagenet-p'} does not exist" in output


def test_clean_images_of_corruptions_are_those_of_the_folder(commands, checkpoint, data):
    (data / "imagenet").mkdir()
    (data / "imagenet-c").mkdir()
    arguments = ["--checkpoint", checkpoint, "--data_root", str(data)]
    main(["evaluate-all", *arguments, "--only", "linear", "imagenet-c"])
    given = ["--data.root", data / "imagenet-c", "--data.source.root", data / "imagenet"]
    assert commands[1][-4:] == [str(value) for value in given]


def test_stages_that_test_a_head_are_skipped_without_one(commands, checkpoint, data, capsys):
    for name in ("imagenet-c", "imagenet-v2", "imagenet"):
        (data / name).mkdir()
    arguments = ["evaluate-all", "--checkpoint", checkpoint, "--data_root", str(data)]
    main([*arguments, "--only", "knn", "imagenet-c", "shift"])
    assert stages(commands) == ["knn"]
    results = data.parent / "run" / "results"
    output = capsys.readouterr().out
    for name in ("imagenet-c", "shift"):
        expected = f"{name}: skipped, no head {results}/linear-imagenet1k.safetensors; run linear"
        assert expected in output
    results.mkdir(parents=True)
    (results / "linear-shapes.safetensors").touch()  # of other classes
    with pytest.raises(SystemExit, match="no stage was run"):
        main([*arguments, "--only", "imagenet-c"])
    (results / "linear-imagenet1k-seed1.safetensors").touch()
    main([*arguments, "--only", "imagenet-c"])
    assert stages(commands)[-1] == "imagenet-c"


def test_given_head_or_folder_of_the_run_is_used(commands, checkpoint, data, tmp_path):
    (data / "imagenet-c").mkdir()
    arguments = ["evaluate-all", "--checkpoint", checkpoint, "--data_root", str(data)]
    main([*arguments, "--only", "imagenet-c", "--model.head", "head.safetensors"])
    other = tmp_path / "other"
    (other / "results").mkdir(parents=True)
    (other / "results" / "linear-imagenet1k.safetensors").touch()
    main([*arguments, "--only", "imagenet-c", "--run_dir", str(other)])
    assert stages(commands) == ["imagenet-c", "imagenet-c"]


def test_unknown_stages_and_folders_are_refused(commands, checkpoint, data):
    with pytest.raises(
        SystemExit, match="--only lin: no such stage; use diagnostics, equivariance, knn,"
    ):
        main(["evaluate-all", "--checkpoint", checkpoint, "--only", "lin", "knn"])
    with pytest.raises(SystemExit, match="none is no folder; give the one that holds imagenet"):
        main(["evaluate-all", "--checkpoint", checkpoint, "--data_root", str(data / "none")])
    with pytest.raises(SystemExit, match=r"checkpoint none\.ckpt does not exist"):
        main(["evaluate-all", "--checkpoint", "none.ckpt"])
    assert commands == []


def test_checkpoint_that_is_not_there_is_said_as_such(commands, data):
    for given, what in ((data / "nowhere", "does not exist"), (data, "is a folder")):
        message = f"checkpoint {given} {what}; give a file, such as runs/"
        with pytest.raises(SystemExit, match=message):
            main(["evaluate-all", "--checkpoint", str(given)])
    assert commands == []


def test_nothing_to_run_is_said_as_such(commands, checkpoint, data, capsys):
    with pytest.raises(SystemExit, match="no stage was run; see above"):
        main(["evaluate-all", "--checkpoint", checkpoint, "--data_root", str(data)])
    assert commands == []
    assert f"== knn: skipped, {data / 'imagenet'} does not exist" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no stage was run"):
        main(["evaluate-all", "--checkpoint", checkpoint, "--only", "shift"])
    assert "== shift: skipped, needs --data_root" in capsys.readouterr().out


def test_other_options_go_to_every_stage(commands, checkpoint):
    main(["evaluate-all", "--checkpoint", checkpoint, "--only", "knn", "--trainer.devices", "2"])
    (command,) = commands
    assert command[-2:] == ["--trainer.devices", "2"]


def test_images_of_ones_own_are_those_that_are_generated_from(commands, checkpoint, data, capsys):
    arguments = ["evaluate-all", "--checkpoint", checkpoint, "--images", "mine"]
    main([*arguments, "--only", "linear", "imagenet-c"])
    assert [c[-2:] for c in commands] == [["--data.source.root", "mine"]] * 2
    with pytest.raises(SystemExit):
        main([*arguments, "--data_root", str(data)])
    assert "give one" in capsys.readouterr().err


def test_small_recipes_come_after_the_usual_ones(commands, checkpoint):
    main(["evaluate-all", "--checkpoint", checkpoint, "--small", "--only", "knn", "linear"])
    knn, linear = commands
    assert knn.count("--config") == 1
    assert linear.count("--config") == 2
    assert linear[linear.index("--config") + 3].endswith("small/linear.yaml")


def test_failed_stages_are_named_at_the_end(commands, checkpoint, monkeypatch):
    class Failed:
        returncode = 1

    monkeypatch.setattr(evaluate_all.subprocess, "run", lambda *_, **__: Failed())
    with pytest.raises(SystemExit, match="failed, see above: knn"):
        main(["evaluate-all", "--checkpoint", checkpoint, "--only", "knn"])


class Extra(Stage):
    """A stage that no list knows."""

    name = "extra"
    folders = (("extra-images", "data.root"),)
    needs_head = True
    package = ("not_installed", "extra")

    def run(self, trainer, data, folder):
        """Gives no results."""
        return []


def test_a_new_stage_is_planned_by_its_members_alone(data, monkeypatch):
    monkeypatch.setattr(evaluate_all, "stage_classes", lambda: [Extra, KNNStage])
    monkeypatch.setattr(evaluate_all, "_config", lambda stage, folder="": __file__)
    planned = {each.stage: each for each in evaluate_all.plan(data)}
    assert list(planned) == [KNNStage, Extra]
    assert planned[Extra].skipped == f"{data / 'extra-images'} does not exist"
    (data / "extra-images").mkdir()
    extra = evaluate_all.plan(data)[1]
    assert extra.options == ("--data.root", str(data / "extra-images"))
    assert extra.skipped == "pip install 'ser-lightning[extra]' first"


def test_a_stage_of_own_images_is_skipped_without_its_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    skipped = {each.stage.name: each.skipped for each in evaluate_all.plan(None)}
    assert skipped["latent"] == "pip install 'ser-lightning[latent]' first"
    assert not skipped["imagenet-p"]  # generated, it reads no videos
    assert not skipped["knn"]


def test_every_stage_has_a_configuration_of_its_name():
    classes = stage_classes()
    names = [stage.name for stage in classes if stage.__module__.startswith("ser_lightning.")]
    assert len(set(names)) == len(names)
    configs = Path(__file__).parents[2] / "configs" / "eval"
    for path in configs.glob("*.yaml"):
        named = yaml.safe_load(path.read_text())["model"]["class_path"].rpartition(".")[2]
        (stage,) = (each for each in classes if each.__name__ == named)
        assert stage.name == path.stem
    assert {path.stem for path in configs.glob("*.yaml")} == set(names)


def test_stages_that_need_classes_are_skipped_where_there_are_none(
    commands, data, tmp_path, capsys
):
    for i in range(3):
        Image.new("RGB", (4, 4), (i, 0, 0)).save(data / f"{i}.png")
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    checkpoint = save_checkpoint(path, "ImageFolder", root=str(data))
    wanted = ["knn", "linear", "equivariance", "diagnostics", "transformation"]
    main(["evaluate-all", "--checkpoint", checkpoint, "--only", *wanted])
    assert stages(commands) == ["diagnostics", "equivariance", "transformation"]
    output = capsys.readouterr().out
    assert "== knn: skipped, it needs classes, and the images have none; put them" in output
    assert "--data.source.train_split train" in output


def test_images_of_ones_own_without_classes_are_not_measured_by_them(
    commands, checkpoint, tmp_path, capsys
):
    for i in range(3):
        Image.new("RGB", (4, 4), (i, 0, 0)).save(tmp_path / f"{i}.png")
    options = ["--images", str(tmp_path), "--only", "knn", "diagnostics"]
    main(["evaluate-all", "--checkpoint", checkpoint, *options])
    assert stages(commands) == ["diagnostics"]
    assert "== knn: skipped, it needs classes" in capsys.readouterr().out


def test_labels_may_be_those_of_another_split_of_the_source(commands, data, tmp_path):
    for name in ("cat", "dog"):
        (data / name).mkdir()
        for i in range(2):
            Image.new("RGB", (4, 4), (i, 0, 0)).save(data / name / f"{i}.png")
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    checkpoint = save_checkpoint(path, "ImageFolder", root=str(data), labels=False)
    command = ["evaluate-all", "--checkpoint", checkpoint, "--only", "knn"]
    with pytest.raises(SystemExit, match="no stage was run"):
        main(command)
    main([*command, "--data.source.labels", "true"])
    assert stages(commands) == ["knn"]
