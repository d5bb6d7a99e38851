"""What a checkpoint or a run's folder from elsewhere may decide; nothing that it names is imported.

Stand-ins for what an attacker would name leave a file behind when they are imported or called.
"""

import json
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml

from parsed import ParsedOnly, refusal
from ser_lightning.checkpoints import CHECKPOINT_KEY, read_config
from ser_lightning.cli import main
from ser_lightning.runtime.checkpoint import AtomicCheckpointIO
from ser_lightning.runtime.run_folder import usable_for
from ser_lightning.trusted import Untrusted

ROOT = Path(__file__).parents[2]
TINY = str(ROOT / "tests" / "tiny.yaml")
KNN = str(ROOT / "configs" / "eval" / "knn.yaml")
STAND_IN = """
from pathlib import Path
import lightning as L
Path("imported").touch()
class Canary(L.Callback):
    def __init__(self, *args, **options): Path("called").touch()
def canary(*args, **options): Path("called").touch()
"""
CANARY = {"class_path": "canary.Canary"}
TOUCH = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "called"]}}
REACHED = "ser_lightning.files.os.system"  # a module has what it imports itself
STRATEGIES = "lightning.pytorch.strategies"
LOGGERS = "lightning.pytorch.loggers"

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*isinstance.*treespec.*"),
]


@pytest.fixture(scope="module")
def content(trained_run):
    return torch.load(trained_run / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.fixture(autouse=True)
def _stand_in(tmp_path, monkeypatch):
    """Runs in a folder with a module that must not be imported, and a file that names it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "canary.py").write_text(STAND_IN)
    (tmp_path / "evil").write_text(yaml.safe_dump(CANARY))
    yield
    assert not Path("imported").exists()
    assert not Path("called").exists()
    assert "canary" not in sys.modules


def changed(content, place, value):
    """The content of a checkpoint whose configuration says something else at a place."""
    config = yaml.safe_load(content[CHECKPOINT_KEY]["config"])
    node = config
    *parts, last = place.split(".")
    for part in parts:
        node = node[part]
    node[last] = value
    return config, {**content, CHECKPOINT_KEY: {"config": yaml.safe_dump(config)}}


BACKBONE = "model.init_args.backbone.init_args"
NAMES = {
    "list": ("trainer.callbacks", [CANARY], "canary.Canary"),
    "one": ("trainer.callbacks", CANARY, "canary.Canary"),
    "short": ("trainer.callbacks", "canary.Canary", "canary.Canary"),
    "short in a list": ("trainer.callbacks", ["canary.Canary"], "canary.Canary"),
    "text": ("trainer.callbacks", json.dumps([CANARY]), "class_path"),
    "file": ("trainer.callbacks", "evil", "evil"),
    "program": ("trainer.logger", TOUCH, "subprocess.Popen"),
    "through us": ("trainer.logger", REACHED, REACHED),
    "class through us": ("trainer.plugins", {"class_path": REACHED}, REACHED),
    "of Lightning": ("trainer.callbacks", {"class_path": "LambdaCallback"}, "LambdaCallback"),
    "network": ("trainer.logger", {"class_path": f"{LOGGERS}.WandbLogger"}, "WandbLogger"),
    "short of Lightning": ("trainer.logger", "WandbLogger", "WandbLogger"),
    "hook": ("trainer.strategy", {"class_path": f"{STRATEGIES}.DDPStrategy",
             "init_args": {"ddp_comm_hook": "canary.canary"}}, "canary.canary"),
    "further option": ("trainer.strategy", {"class_path": f"{STRATEGIES}.DDPStrategy",
                       "dict_kwargs": {"mixed_precision": "canary.Canary"}}, "canary.Canary"),
    "tensor": ("model.init_args.optimizer.init_args.betas", [{"size": [9]}, 0.9], "torch.Tensor"),
    "no class": ("trainer.callbacks", {"init_args": {"x": CANARY}}, "callback.Callback"),
    "appended": ("trainer.callbacks+", CANARY, "canary.Canary"),
    "number": ("trainer.max_epochs", "canary.canary", "canary.canary"),
    "strategy": ("trainer.strategy", "canary.Canary", "canary.Canary"),
    "accelerator": ("trainer.accelerator", CANARY, "canary.Canary"),
    "profiler": ("trainer.profiler", CANARY, "canary.Canary"),
    "argument": (
        "trainer.callbacks",
        [{"class_path": "lightning.pytorch.callbacks.EarlyStopping",
          "init_args": {"monitor": "loss", "patience": CANARY}}],
        "canary.Canary",
    ),
    "objective": ("model.class_path", "canary.Canary", "canary.Canary"),
    "no objective": ("model.class_path", "ser_lightning.data.ImageFolder", "ImageFolder"),
    "optimizer": ("model.init_args.optimizer", "canary.canary", "canary.canary"),
    "regularizer": ("model.init_args.regularizer", TOUCH, "subprocess.Popen"),
    "plain options": (f"{BACKBONE}.vit_options", {"norm_layer": CANARY}, "canary.Canary"),
    "source": ("data.source", CANARY, "canary.Canary"),
    "view": ("data.invertible.init_args.view_1", "canary.Canary", "canary.Canary"),
    "plain value": ("evaluation.k", CANARY, "canary.Canary"),
}  # fmt: skip


@pytest.fixture(scope="module")
def parser():
    """The parser of `fit`, which knows what every section is."""
    return ParsedOnly(["fit", "--config", TINY])._parser("fit")


@pytest.mark.parametrize("name", NAMES)
def test_class_of_elsewhere_is_refused_and_not_imported(name, content, parser):
    place, value, shown = NAMES[name]
    config = read_config(yaml.safe_dump(changed(content, place, value)[0]))
    with pytest.raises(Untrusted, match="give it yourself, as --") as refusal:
        usable_for(["fit"], config, parser.roots, Path("evil.ckpt"))
    option = place.replace(".init_args", "").replace(".class_path", "")
    assert str(refusal.value).startswith(f"evil.ckpt: {option}")
    assert shown in str(refusal.value)


@pytest.mark.parametrize("name", ["moco_ser_2plus4", "moco_essl", "barlow_lars"])
def test_configuration_of_this_package_is_taken_as_it_is(name, parser):
    config = ParsedOnly(["fit", "--config", str(ROOT / "configs" / f"{name}.yaml"),
                         "--data.source.root", "/data/my images"]).config["fit"]  # fmt: skip
    stored = read_config(parser.dump(config, skip_none=False))
    taken = yaml.safe_load(usable_for(["fit"], stored, parser.roots, Path("run/fit.yaml")))
    assert taken == {key: stored[key] for key in taken}
    assert taken.keys() >= {"model", "data", "trainer"}


READERS = {
    "checkpoint": ["fit", "--ckpt_path", "run/checkpoints/last.ckpt"],
    "validate": ["validate", "--ckpt_path", "run/checkpoints/last.ckpt"],
    "run folder": ["fit", "--run_dir", "run", "--ckpt_path", "last"],
    "evaluate": ["evaluate", "--config", KNN, "--checkpoint", "run/checkpoints/last.ckpt"],
    "evaluate-all": ["evaluate-all", "--checkpoint", "run/checkpoints/last.ckpt"],
    "fit.yaml": ["fit", "--run_dir", "run"],
    "cost": ["cost", "run"],
}


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_of_a_configuration_refuses_it(reader, content, capsys):
    place = "model.init_args.regularizer" if reader == "cost" else "data.source"
    config, evil = changed(content, place, TOUCH)
    Path("run/checkpoints").mkdir(parents=True)
    Path("run/fit.yaml").write_text(yaml.safe_dump(config))
    if reader not in ("fit.yaml", "cost"):
        torch.save(evil, "run/checkpoints/last.ckpt")
    text = refusal(READERS[reader], capsys)
    assert place.replace(".init_args", "") in text
    assert "subprocess.Popen" in text
    assert "not taken from a file" in text


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("trainer.default_root_dir", "/elsewhere"),
        ("trainer.logger", {"class_path": f"{LOGGERS}.CSVLogger",
                            "init_args": {"save_dir": "run/../.."}}),
        ("trainer.logger", {"class_path": f"{LOGGERS}.TensorBoardLogger",
                            "init_args": {"save_dir": "run", "name": "../.."}}),
        ("trainer.callbacks", [{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                                "init_args": {"dirpath": "~"}}]),
    ],
)  # fmt: skip
def test_place_outside_of_the_run_is_refused(place, value, content, capsys):
    Path("run/checkpoints").mkdir(parents=True)
    torch.save(changed(content, place, value)[1], "run/checkpoints/last.ckpt")
    text = refusal(["fit", "--run_dir", "run", "--ckpt_path", "last"], capsys)
    assert f"{place}" in text
    assert "would write to" in text


def test_harmless_classes_and_places_within_the_run_are_taken(content):
    callbacks = [
        {"class_path": "lightning.pytorch.callbacks.LearningRateMonitor"},
        {"class_path": "ser_lightning.runtime.ProgressLines"},
    ]
    logger = {"class_path": f"{LOGGERS}.CSVLogger", "init_args": {"save_dir": "run/csv"}}
    content = changed(content, "trainer.callbacks", callbacks)[1]
    Path("run/checkpoints").mkdir(parents=True)
    torch.save(changed(content, "trainer.logger", logger)[1], "run/checkpoints/last.ckpt")
    config = ParsedOnly(["fit", "--run_dir", "run", "--ckpt_path", "last"]).config["fit"]
    assert [each.class_path.rpartition(".")[2] for each in config.trainer.callbacks] == [
        "LearningRateMonitor", "ProgressLines",
    ]  # fmt: skip
    assert config.trainer.logger.init_args.save_dir == "run/csv"


def test_what_the_user_gives_stands_in_its_place(content):
    torch.save(changed(content, "trainer.callbacks", [CANARY])[1], "evil.ckpt")
    given = ["--trainer.callbacks", '["LearningRateMonitor"]']
    config = ParsedOnly(["fit", "--ckpt_path", "evil.ckpt", *given]).config["fit"]
    (callback,) = config.trainer.callbacks
    assert callback.class_path.endswith("LearningRateMonitor")
    Path("own.yaml").write_text("trainer: {callbacks: null}")
    config = ParsedOnly(["fit", "--ckpt_path", "evil.ckpt", "--config", "own.yaml"]).config["fit"]
    assert config.trainer.callbacks is None


def test_class_that_the_user_names_too_keeps_its_stored_options(content, capsys):
    Path("mylab.py").write_text("from torch.optim import AdamW\nclass Own(AdamW): pass\n")
    stored = {"class_path": "mylab.Own", "init_args": {"weight_decay": 0.3}}
    torch.save(changed(content, "model.init_args.optimizer", stored)[1], "own.ckpt")
    assert "model.optimizer names 'mylab.Own'" in refusal(
        ["fit", "--ckpt_path", "own.ckpt"], capsys
    )
    given = ["--model.optimizer", "mylab.Own"]
    config = ParsedOnly(["fit", "--ckpt_path", "own.ckpt", *given]).config["fit"]
    assert config.model.init_args.optimizer.init_args.weight_decay == 0.3


def test_nothing_is_fetched_because_a_file_says_so(content):
    source = {"class_path": "ser_lightning.data.TorchvisionSet"}
    source["init_args"] = {"name": "CIFAR10", "root": "data", "download": True}
    torch.save(changed(content, "data.source", source)[1], "cifar.ckpt")
    config = ParsedOnly(["fit", "--ckpt_path", "cifar.ckpt"]).config["fit"]
    assert config.data.source.init_args.download is False


def bomb(first, each):
    """A short text whose last value holds ten million others."""
    lines = [each.format(name=name, ten=", ".join([f"*{of}"] * 10)) for of, name in STEPS]
    return "\n".join([first, *lines])


STEPS = list(pairwise("abcdefgh"))
BOMBS = {
    "aliases": bomb("a: &a [x]", "{name}: &{name} [{ten}]"),
    "merges": bomb("a: &a {x: 1}", "{name}: &{name} {{<<: [{ten}]}}"),
    "depth": "[" * 5000,
    "length": "x" * 10**6,
    "object": "!!python/object/apply:os.mkdir [called]",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bomb_is_refused(name):
    with pytest.raises(ValueError, match="the configuration in bomb is not YAML that can be read"):
        read_config(BOMBS[name], "bomb")


def test_checkpoint_does_not_say_which_files_to_delete(content, tmp_path):
    """Lightning removes what a stored state calls the best file, once there is a better one."""
    precious = tmp_path / "precious"
    precious.touch()
    Path("run/checkpoints").mkdir(parents=True)
    name = str(tmp_path / "run" / "checkpoints" / ".." / ".." / "precious")
    states = {
        key: {**state, "best_model_path": name} if "best_model_path" in state else state
        for key, state in content["callbacks"].items()
    }
    states["ModelCheckpoint{'monitor': 'loss'}"] = {"best_k_models": {name: 1.0}}
    torch.save({**content, "callbacks": states}, "run/checkpoints/last.ckpt")
    with pytest.warns(UserWarning, match="ModelCheckpoint.*is left out, since it names files"):
        loaded = AtomicCheckpointIO().load_checkpoint("run/checkpoints/last.ckpt")
    assert name not in str(loaded["callbacks"])
    torch.save(
        {**content, "callbacks": dict(list(states.items())[:-1])}, "run/checkpoints/last.ckpt"
    )
    main(["fit", "--run_dir", "run", "--ckpt_path", "last", "--trainer.max_epochs", "3"])
    assert precious.exists()


def test_own_callbacks_state_within_the_run_is_kept(content, tmp_path):
    state = {"best_model_path": str(tmp_path / "run" / "best" / "a.ckpt"), "best_k_models": {}}
    Path("run/checkpoints").mkdir(parents=True)
    torch.save({**content, "callbacks": {"ModelCheckpoint": state}}, "run/checkpoints/last.ckpt")
    loaded = AtomicCheckpointIO().load_checkpoint("run/checkpoints/last.ckpt")
    assert loaded["callbacks"] == {"ModelCheckpoint": state}
