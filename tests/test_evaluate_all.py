"""Which stages `evaluate-all` runs, and what it says about the others."""

import pytest

from ser_lightning import evaluate_all
from ser_lightning.cli import main


@pytest.fixture
def commands(monkeypatch):
    """Notes the commands instead of running them."""
    noted = []

    class Done:
        returncode = 0

    def run(command, check):
        noted.append(command)
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


def test_without_data_the_checkpoints_own_images_are_used(commands):
    main(["evaluate-all", "--checkpoint", "runs/a/checkpoints/last.ckpt"])
    assert stages(commands) == [
        "knn", "linear", "mlp", "equivariance", "transformation", "diagnostics", "finetune",
        "imagenet-c", "imagenet-p",
    ]  # fmt: skip
    assert commands[-1][-2:] == ["--data.generated", "true"]


def test_stages_without_images_are_skipped_and_said_so(commands, tmp_path, capsys):
    (tmp_path / "imagenet-r").mkdir()
    (tmp_path / "imagenet-c").mkdir()
    main(["evaluate-all", "--checkpoint", "a.ckpt", "--data_root", str(tmp_path)])
    assert stages(commands) == ["imagenet-c", "shift"]
    assert commands[1][-2:] == ["--data.imagenet_r", str(tmp_path / "imagenet-r")]
    output = capsys.readouterr().out
    assert f"== detection: skipped, {tmp_path / 'coco'} does not exist" in output
    assert f"== knn: skipped, {tmp_path / 'imagenet'} does not exist" in output


def test_other_options_go_to_every_stage(commands):
    main(["evaluate-all", "--checkpoint", "a.ckpt", "--only", "knn", "--trainer.devices", "2"])
    (command,) = commands
    assert command[-2:] == ["--trainer.devices", "2"]


def test_small_recipes_come_after_the_usual_ones(commands):
    main(["evaluate-all", "--checkpoint", "a.ckpt", "--small", "--only", "knn", "linear"])
    knn, linear = commands
    assert knn.count("--config") == 1
    assert linear.count("--config") == 2
    assert linear[linear.index("--config") + 3].endswith("small/linear.yaml")


def test_failed_stages_are_named_at_the_end(commands, monkeypatch):
    class Failed:
        returncode = 1

    monkeypatch.setattr(evaluate_all.subprocess, "run", lambda *_, **__: Failed())
    with pytest.raises(SystemExit, match="failed, see above: knn"):
        main(["evaluate-all", "--checkpoint", "a.ckpt", "--only", "knn"])
