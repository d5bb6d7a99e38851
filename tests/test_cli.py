"""The command line teaches: its commands, the help of every class, and what a mistake should be."""

import re
import subprocess
import sys
from itertools import cycle
from pathlib import Path

import pytest
import torch

import ser_lightning
from commands.test_compare import run
from ser_lightning.checkpoints import CHECKPOINT_KEY
from ser_lightning.cli import COMMANDS, main
from ser_lightning.commands.compare import comparison_tables

ROOT = Path(__file__).parents[1]
TINY = ["--config", str(ROOT / "tests" / "tiny.yaml")]
FASHION = ["--config", str(ROOT / "configs" / "fashion_mnist.yaml")]
VERBS = [
    "fit", "validate", "test", "evaluate", "evaluate-all", "compare", "look",
    "latent", "report", "replay", "export", "embed", "cost", "demo",
]  # fmt: skip


def outcome(capsys, *args):
    """Exit status, or last message, and what was printed."""
    with pytest.raises(SystemExit) as stop:
        main(list(args))
    output = capsys.readouterr()
    status = stop.value.code or 0
    text = output.out + output.err + ("" if isinstance(status, int) else status)
    assert "Traceback" not in text
    return (status if isinstance(status, int) else 1), text


def python(*args):
    """What a fresh interpreter prints."""
    command = [sys.executable, "-X", "importtime", *args]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    heavy = re.findall(r"\| +(torch|lightning|numpy|matplotlib|yaml)$", result.stderr, re.MULTILINE)
    return result.stdout, heavy


def test_help_lists_every_command_without_importing_torch():
    output, heavy = python("-m", "ser_lightning", "--help")
    assert re.findall(r"^  (\S+)  +\S", output, re.MULTILINE) == VERBS == list(COMMANDS)
    assert heavy == []


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    """A run folder with a configuration, results, and measurements in a checkpoint."""
    folder = run(tmp_path_factory.mktemp("small") / "moco")
    comparison_tables([folder])  # counts its cost, once
    return folder


@pytest.mark.parametrize("verb", ["report", "compare", "look"])
def test_reports_and_tables_need_neither_torch_nor_lightning(verb, small_run, tmp_path):
    flag = {"report": "--output_dir", "compare": "--output", "look": "--output"}[verb]
    _, heavy = python("-m", "ser_lightning", verb, str(small_run), flag, str(tmp_path / "out"))
    assert not {"torch", "lightning"} & set(heavy)
    assert ("matplotlib" in heavy) == (verb == "look")
    assert (tmp_path / "out").exists()


def test_version_is_the_packages():
    assert python("-m", "ser_lightning", "--version") == (
        f"ser-fit {ser_lightning.__version__}\n",
        [],
    )
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", ser_lightning.__version__)


@pytest.mark.parametrize("verb", VERBS)
def test_every_command_answers_for_help(verb, capsys):
    status, text = outcome(capsys, verb, "--help")
    assert status == 0
    assert "usage: ser-fit" in text


def test_no_command_prints_the_help_and_fails(capsys):
    main(["--help"])
    text = capsys.readouterr().out
    assert outcome(capsys) == (2, text)


def test_mistyped_command_names_the_nearest(capsys):
    for typed, meant in (("fti", "fit"), ("evalute", "evaluate"), ("evaluate_all", "evaluate-all")):
        status, text = outcome(capsys, typed)
        assert status == 2
        assert f"did you mean '{meant}'?" in text
    assert "did you mean" not in outcome(capsys, "xyz")[1]
    assert outcome(capsys, *TINY)[0] == 2


OBJECTIVES = ["BYOL", "BarlowTwins", "DINO", "MoCoV3", "SimCLR", "SimSiam", "VICReg"]
ADD_ONS = ["AugSelf", "ESSL", "EquiMod", "PerLayer", "SERRegularizer", "STL"]
SOURCES = ["FashionMNISTFiles", "ImageFolder", "Shapes", "TorchvisionSet"]


def advertised(text):
    """The options `--*.help` that a help text names, and whether a class is needed."""
    return re.findall(r"^  --(\S+)\.help(?: (\[?)[A-Z_]+\]?)?$", text, re.MULTILINE)


def test_every_form_of_help_that_is_advertised_works(capsys):
    keys = [key for key, _ in advertised(outcome(capsys, "fit", "--help")[1])]
    keys += [key for key, _ in advertised(outcome(capsys, "fit", "--model.help", "MoCoV3")[1])]
    assert {"model", "data.source", "data.crop", "model.backbone", "model.regularizer"} <= {*keys}
    for key, config in zip(sorted({*keys}), cycle([[], TINY])):
        status, text = outcome(capsys, "fit", *config, f"--{key}.help")
        assert status == 0
        listed = re.findall(r"^  ([A-Za-z]\w+)  \S", text, re.MULTILINE)
        for name in listed[:1]:
            status, text = outcome(capsys, "fit", *config, f"--{key}.help", name)
            assert (status, text.splitlines()[0].endswith(f".{name}")) == (0, True)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--model.backbone.help"], "--model.backbone.cls_layer"),
        (["--model.regularizer.help"], "SERRegularizer"),
        ([*TINY, "--model.regularizer.help"], "--model.regularizer.weight"),
        (["--model.regularizer.help", "AugSelf"], "--model.regularizer.hidden"),
        (["--model", "DINO", "--model.help"], "ser_lightning.objectives.dino.DINO"),
        (["--model.help=DINO"], "ser_lightning.objectives.dino.DINO"),
        (["--data.crop.help"], "--data.crop.p_flip"),
        (["--model.optimizer.help", "SGD"], "--model.optimizer.nesterov"),
        ([*TINY, *FASHION, "--data.source.help"], "fashion_mnist.FashionMNISTFiles"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_help_of_a_class_names_its_options(args, expected, capsys):
    status, text = outcome(capsys, "fit", *args)
    assert (status, expected in text) == (0, True)


def test_help_of_what_takes_no_class_is_refused(capsys):
    assert "no option that takes a class" in outcome(capsys, "fit", "--model.momentum.help")[1]
    assert "no such class; those that fit: BYOL" in outcome(capsys, "fit", "--model.help", "X")[1]


@pytest.mark.parametrize(
    ("verb", "first", "others"),
    [
        ("fit", "--config configs/moco_ser.yaml", "configs/eval are for ser-fit evaluate"),
        ("evaluate", "--config configs/eval/knn.yaml", "of runs are for ser-fit fit"),
    ],
)
@pytest.mark.parametrize("given", ["other", "small_photos", "cifar10", "trainer/cpu"])
def test_configuration_that_cannot_come_first_has_a_remedy(verb, first, others, given, capsys):
    other = {"fit": "eval/knn", "evaluate": "moco_ser"}[verb]
    file = f"configs/{other if given == 'other' else given}.yaml"
    checkpoint = ["--checkpoint", "vit_tiny_patch16_224", "--data.source", "Shapes"]
    more = checkpoint if verb == "evaluate" else []
    status, text = outcome(capsys, verb, "--config", file, *more)
    assert status == 2
    assert f"for example {first}, and overlays after it; those of" in text
    assert others in text


@pytest.mark.parametrize("options", ["{none: 1}", "{regularizer: {class_path: None_}}"])
def test_mistake_within_a_configuration_is_not_about_what_comes_first(options, capsys, tmp_path):
    (tmp_path / "run.yaml").write_text(f"model: {{class_path: MoCoV3, init_args: {options}}}")
    status, text = outcome(capsys, "fit", "--config", str(tmp_path / "run.yaml"))
    assert (status, "overlays" in text) == (2, False)


def test_what_is_required_is_named_as_an_option(capsys):
    assert "--checkpoint is required" in outcome(capsys, "evaluate")[1]


@pytest.mark.parametrize(
    ("option", "fits", "does_not"),
    [
        ("model", "KNNStage", "MoCoV3"),
        ("data", "LabelledDataModule", "ImageFolder"),
        ("data.source", "ImageFolder", "LabelledDataModule"),
    ],
)
def test_wrong_class_of_an_evaluation_lists_only_those_that_fit(
    option, fits, does_not, tmp_path, capsys
):
    config = (ROOT / "tests" / "runtime" / "fit_0.1.0.yaml").read_text()
    torch.save({CHECKPOINT_KEY: {"config": config}}, tmp_path / "a.ckpt")
    args = ["--config", str(ROOT / "configs" / "eval" / "knn.yaml")]
    args += ["--checkpoint", str(tmp_path / "a.ckpt"), f"--{option}", "X"]
    status, text = outcome(capsys, "evaluate", *args)
    assert status == 2
    assert fits in fitting(text)
    assert does_not not in fitting(text)


def fitting(text):
    """The classes that a message offers."""
    return re.search(r"classes that fit there: (.*)", text)[1].split(", ")


@pytest.mark.parametrize(
    ("option", "classes"),
    [("model", OBJECTIVES), ("model.regularizer", ADD_ONS), ("data.source", SOURCES)],
)
@pytest.mark.parametrize("name", ["X", "ser_lightning.data.X", "ser_lightning.batch.View"])
def test_wrong_class_lists_only_those_that_fit(option, classes, name, capsys):
    status, text = outcome(capsys, "fit", *TINY, f"--{option}", name)
    assert status == 2
    assert {*classes} <= {*fitting(text)}  # and what other tests have defined
    others = {*OBJECTIVES, *ADD_ONS, *SOURCES, "SplitViT", "KNNStage", "View"} - {*classes}
    assert not others & {*fitting(text)}


def test_name_that_no_configuration_can_hold_is_refused(capsys):
    with pytest.raises(SystemExit) as end:
        main(["fit", "--run_dir", "caf\udce9"])
    assert "'caf\\udce9' has bytes that are no UTF-8" in str(end.value)
