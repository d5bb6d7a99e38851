"""What is settled before the parser sees a configuration."""

from pathlib import Path

import pytest
from jsonargparse import Namespace

from parsed import ParsedOnly
from ser_lightning.batch import ViewNeeds
from ser_lightning.regularizers import Regularizer
from ser_lightning.runtime.configuration import content_of, packaged, settle


class WithoutArguments(Regularizer):
    """An add-on of one's own, whose constructor takes nothing."""

    needs = ViewNeeds(plain=True)

    def __init__(self):
        super().__init__(None, 1.0)


def test_shipped_configuration_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = Path(packaged("configs/moco_ser.yaml"))
    assert found.is_absolute()
    assert "MoCoV3" in found.read_text()
    own = tmp_path / "configs" / "moco_ser.yaml"
    own.parent.mkdir()
    own.write_text("")
    assert packaged("configs/moco_ser.yaml") == "configs/moco_ser.yaml"
    assert packaged("configs/none.yaml") == "configs/none.yaml"


def test_shipped_configuration_is_found_behind_an_equals_sign(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for option in ("--config", "-c", "--trainer"):
        name, _, path = packaged(f"{option}=configs/trainer/cpu.yaml").partition("=")
        assert name == option
        assert Path(path).is_absolute()
    for other in ("--config=configs/none.yaml", "--run_dir=configs", "--a=b=configs"):
        assert packaged(other) == other


@pytest.mark.parametrize(
    "text", ["a: [", "a: !!python/object:os.system {}", f"{'[' * 2000}{']' * 2000}"]
)
def test_mistake_in_one_of_several_files_names_the_file(text, tmp_path):
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(text)
    with pytest.raises(ValueError, match=r"wrong\.yaml"):
        content_of(str(wrong))


def test_add_on_without_arguments_is_settled():
    add_on = Namespace(class_path=f"{__name__}.WithoutArguments")
    arguments = Namespace(regularizer=add_on, backbone=Namespace(init_args=Namespace()))
    data = Namespace(invertible=Namespace(ratio=0.1))
    settle(Namespace(model=Namespace(init_args=arguments), data=data))
    assert data.invertible is None


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        (["--model", "DINO"], "temperature 0.2, momentum 0.9, backbone; begin"),
        (["--model=DINO", "--model.momentum=0.99"], "temperature 0.2, backbone; begin"),
        (["--model", "DINO", "--config", "more.yaml"], "momentum 0.9, backbone; begin"),
        (["--config", "name.yaml"], "temperature 0.2, momentum 0.9, backbone; begin"),
        (["--config", "dino.yaml"], "temperature 0.2, backbone; begin"),
        (["--model", "SimCLR"], "temperature 0.2, backbone; begin"),  # which has no momentum
        (["--model", "MoCoV3"], None),
        (["--model.momentum", "0.99"], None),
    ],
)
def test_values_of_another_class_that_a_run_takes_over_are_named(
    options, kept, tmp_path, monkeypatch, caplog
):
    monkeypatch.chdir(tmp_path)
    backbone = "backbone: {name: vit_tiny_patch16_224, image_size: 32, layer: 1}"
    text = "model: {class_path: %s, init_args: {%s}}"
    moco = f"temperature: 0.2, momentum: 0.9, regularizer: null, {backbone}"
    Path("moco.yaml").write_text(text % ("MoCoV3", moco))
    Path("dino.yaml").write_text(text % ("DINO", "momentum: 0.99"))
    Path("name.yaml").write_text("model: DINO")
    Path("more.yaml").write_text("model: {init_args: {temperature: 0.3}}")
    caplog.set_level("INFO")
    ParsedOnly(["fit", "--config", "moco.yaml", "--data.source", "Shapes", *options])
    (said,) = [line for line in caplog.messages if "takes from" in line] or [None]
    words = "takes from the configuration of MoCoV3: "
    assert said is None if kept is None else f"{words}{kept}" in said
