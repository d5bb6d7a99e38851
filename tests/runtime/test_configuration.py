"""What is settled before the parser sees a configuration."""

from pathlib import Path

from ser_lightning.runtime import packaged


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
