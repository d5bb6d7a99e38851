"""What is settled before the parser sees a configuration."""

from pathlib import Path

import pytest
from jsonargparse import Namespace

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
