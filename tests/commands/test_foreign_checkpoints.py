"""Whatever is given as a checkpoint: every command says in one sentence what it is."""

import re
from itertools import product
from pathlib import Path

import pytest

from foreign_files import CUTS, write_all
from parsed import refusal
from ser_lightning.checkpoints import UnsafeCheckpointError, load_checkpoint
from ser_lightning.cli import main

ROOT = Path(__file__).parents[2]
TINY = str(ROOT / "tests" / "tiny.yaml")
KNN = str(ROOT / "configs" / "eval" / "knn.yaml")
NO_RUN = "has no configuration of a run; give one as --config FILE"
NAMESPACE = r"holds more than tensors and plain values \(argparse.Namespace\)"
NOT_TORCH = "no file of torch, or damaged; give a file that"
FILES = {  # what the reader says, and then `fit` on what torch can read
    "dino": NAMESPACE,
    "deit": NAMESPACE,
    "list": "holds a list; a state dict is needed",
    "safetensors": "a safetensors file: weights alone, to start a new run with",
    "jpeg": "an image; give a file that",
    "text": "a text file; give a file that",
    "html": "a text file; give a file that",
    "pickle": NOT_TORCH,
    "noise": NOT_TORCH,
    "flipped": "a part of it is not what its checksum says; fetch it again",
    "newer torch": r"cannot read it \(.*version 9999.*use a newer torch",
    "cut at 0 %": "empty; take another",
    **{f"cut at {cut} %": "its end is missing; fetch it again" for cut in CUTS[1:]},
    "folder": "is a folder; give a file",
    "missing": "does not exist",
}
READ = {
    "timm state dict": "has no state_dict; --model.backbone.weights .* starts a new run",
    "other project": "which ser-fit did not write, does not fit the model: 106 missing",
    "stripped": "is no training to go on with: no loops; --model.backbone.weights",
    "loops null": "is no training to go on with: no loops; --model.backbone.weights",
    "newer lightning": "was written with Lightning 9.1.0, and this is",
    "numbers": "which ser-fit did not write, does not fit the model",
}
MEASURED = ("newer lightning", "stripped", "loops null")  # what holds the weights of a run
MODELS = {
    "width": ["vit_options.embed_dim=48", "--model.regularizer.width=48"],
    "depth": ["vit_options.depth=3"],
    "image size": ["image_size=20"],
    "patch size": ["patch_size=8"],
}
MODELS = {name: [f"--model.backbone.{first}", *rest] for name, (first, *rest) in MODELS.items()}
MODELS |= {
    "objective": ["--model", "BarlowTwins"],
    "add-on": ["--model.regularizer", "null"],
    "parameter groups": ["--model.decay_biases", "false"],
    "optimizer": ["--model.optimizer", "torch.optim.SGD"],
    "frozen": ["--model.backbone.freeze_patch_embed", "false"],
}
FAST = {"objective", "parameter groups"}

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Detected pickle protocol"),
    pytest.mark.filterwarnings("ignore:The loaded checkpoint was produced with Lightning"),
]


@pytest.fixture(scope="module")
def good(trained_run):
    return trained_run / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def files(good, tmp_path_factory):
    return write_all(good, tmp_path_factory.mktemp("foreign"))


@pytest.fixture(autouse=True)
def _stay_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def sentence(args, capsys):
    """The one line in which a command refuses `args`; it has written no run."""
    text = refusal(args, capsys)
    (line,) = [line for line in text.splitlines() if line.startswith("ser-fit: error:")]
    assert not list(Path().rglob("*.ckpt"))
    return line


def test_every_file_is_tried(files):
    assert files.keys() == FILES.keys() | READ.keys()


@pytest.mark.parametrize("name", FILES)
def test_reader_says_what_a_file_is(name, files):
    with pytest.raises((UnsafeCheckpointError, FileNotFoundError), match=FILES[name]):
        load_checkpoint(files[name])


@pytest.mark.parametrize("name", READ)
def test_file_that_is_no_run_of_this_model_is_refused_before_training(name, files, capsys):
    resume = ["--run_dir", "run", "--ckpt_path", str(files[name])]
    found = sentence(["fit", "--config", TINY, *resume], capsys)
    assert re.search(READ[name], found)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in MODELS]
)
def test_checkpoint_of_another_model_is_refused_before_training(name, good, capsys):
    resume = ["--run_dir", "run", "--ckpt_path", str(good), *MODELS[name]]
    found = sentence(["fit", "--config", TINY, *resume], capsys)
    assert "do not fit the model: " in found or "is not this one: " in found
    assert "starts a new run from its weights" in found


def test_file_without_a_configuration_is_refused_where_none_is_given(files, capsys):
    assert NO_RUN in sentence(["fit", "--ckpt_path", str(files["timm state dict"])], capsys)
    assert "is a folder" in sentence(["fit", "--ckpt_path", str(files["folder"])], capsys)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FILES, *READ])
@pytest.mark.parametrize("command", ["fit", "fit alone", "validate", "evaluate", "weights"])
def test_every_command_says_it(command, name, files, capsys):
    path = str(files[name])
    args = {
        "fit": ["fit", "--config", TINY, "--run_dir", "run", "--ckpt_path", path],
        "fit alone": ["fit", "--run_dir", "run", "--ckpt_path", path],
        "validate": ["validate", "--config", TINY, "--run_dir", "run", "--ckpt_path", path],
        "evaluate": ["evaluate", "--config", KNN, "--checkpoint", path, "--run_dir", "run"],
        "weights": ["fit", "--config", TINY, "--run_dir", "run", "--model.backbone.weights", path],
    }[command]
    is_good_enough = {
        ("weights", "timm state dict"), ("weights", "dino"), ("weights", "deit"),
        *product(("weights", "validate", "evaluate"), MEASURED),
    }  # fmt: skip
    if (command, name) in is_good_enough:
        main([*args, "--trainer.accelerator", "cpu"])
    else:
        assert path in sentence(args, capsys)
