"""Configurations are compared key by key, where they matter."""

import locale
from pathlib import Path
from types import SimpleNamespace

from ser_lightning.checkpoints import read_config
from ser_lightning.files import read_text
from ser_lightning.runtime import run_folder as runtime

OLD = """
seed_everything: 0
trainer: {max_epochs: 5}
model: {class_path: MoCoV3, init_args: {temperature: 0.2, regularizer: null}}
data: {global_batch_size: 256}
"""


def differences(old, new):
    return runtime.differences(read_config(old), read_config(new))


def test_equal_configurations_have_no_differences():
    assert differences(OLD, OLD) == []


def test_differences_name_key_and_both_values():
    new = OLD.replace("temperature: 0.2", "temperature: 0.7").replace("256", "128")
    assert differences(OLD, new) == [
        "data.global_batch_size: 256 -> 128",
        "model.init_args.temperature: 0.2 -> 0.7",
    ]


def test_hardware_does_not_count():
    new = OLD.replace("max_epochs: 5", "max_epochs: 5, devices: 8, strategy: ddp")
    assert differences(OLD, new) == []


def test_memory_does_not_count():
    backbone = "backbone: {init_args: {grad_checkpointing: %s}}"
    one, other = (OLD.replace("regularizer: null", backbone % value) for value in ("true", "false"))
    assert differences(one, other) == []


def test_length_of_the_run_counts():
    new = OLD.replace("max_epochs: 5", "max_epochs: 9")
    assert differences(OLD, new) == ["trainer.max_epochs: 5 -> 9"]


def test_one_batch_is_another_length_than_all_of_them():
    one, share, two, stored = (
        OLD.replace("max_epochs: 5", f"limit_train_batches: {limit}")
        for limit in ("1", "1.0", "2", "2.0")
    )
    assert differences(share, one) == ["trainer.limit_train_batches: 1.0 -> 1"]
    assert differences(stored, two) == []


def test_what_a_file_says_does_not_steer_the_terminal():
    new = OLD.replace("MoCoV3", '"a\\e]0;title\\a"')
    (line,) = differences(OLD, new)
    assert line == r"model.class_path: MoCoV3 -> a\x1b]0;title\x07"


def test_key_on_one_side_only_is_shown():
    new = OLD.replace("regularizer: null", "regularizer: {class_path: SERRegularizer}")
    assert differences(OLD, new) == [
        "model.init_args.regularizer: None -> (not set)",
        "model.init_args.regularizer.class_path: (not set) -> SERRegularizer",
    ]


def test_run_folder_is_below_the_last_overlay_that_names_images():
    root = Path(__file__).parents[2] / "configs"
    files = [root / f"{name}.yaml" for name in ("moco_ser", "small_photos", "cifar10")]
    for first in ([], [root / "trainer" / "cpu.yaml"]):
        found = runtime.default_run_dir([*first, *files, root / "trainer" / "cpu.yaml"], None)
        assert found == Path("runs/cifar10/moco_ser")


def test_record_of_a_run_is_utf8_whatever_the_locale(tmp_path, monkeypatch):
    saver = runtime.ConfigurationSaver.__new__(runtime.ConfigurationSaver)
    saver.__dict__["_text"] = "run_dir: l\u00e4ufe\n"
    trainer = SimpleNamespace(is_global_zero=True, default_root_dir=tmp_path)
    before = locale.setlocale(locale.LC_CTYPE)
    locale.setlocale(locale.LC_CTYPE, "C")
    try:
        saver._write(trainer, "fit")
    finally:
        locale.setlocale(locale.LC_CTYPE, before)
    assert read_text(tmp_path / "fit.yaml") == saver._text


def test_configuration_given_as_a_text_names_no_folder():
    text = "{model: {class_path: MoCoV3}}"
    assert runtime.default_run_dir([text], None) == Path("runs/run")
    long = f"# {'a' * 300}\nmodel: {{class_path: MoCoV3}}\n"
    assert runtime.default_run_dir([long], None) == Path("runs/run")


def test_file_called_configs_names_its_folder(tmp_path):
    for place, folder in (("configs.yaml", "configs"), ("configs/configs.yaml", "configs")):
        path = tmp_path / place
        path.parent.mkdir(exist_ok=True)
        path.write_text("model: {class_path: MoCoV3}")
        assert runtime.default_run_dir([path], None) == Path("runs", folder)
