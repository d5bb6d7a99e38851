"""README and CONTRIBUTING: their snippets run as they stand, their commands in a short form.

Every `ser-fit fit` line is built and takes a step on the meta device in `test_configs.py`, too.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmark_trees import imagenet_head, write_imagenet_c, write_images
from results.result_records import record
from ser_lightning.cli import COMMANDS, main
from ser_lightning.results.record import write_record
from ser_lightning.sources.released import imagenet_synsets

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def blocks(language):
    """The code blocks of all pages, by page and number."""
    return {
        f"{page.name}-{i}": block
        for page in PAGES
        for i, block in enumerate(
            re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
        )
    }


def commands(pages=PAGES):
    """Every command of the shell blocks and in the text, after what its block has set."""
    for page in pages:
        text = page.read_text()
        for block in re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            assigned = ""
            for line in re.sub(r"\\\n *", "", block).splitlines():
                words = shlex.split(line, comments=True)
                assigned += f"{words[0]}; " if re.match(r"[A-Z]+=", line) else ""
                if words and words[0] in ("make", "ser-fit"):
                    yield assigned + line.partition("  #")[0].strip()
        yield from re.findall(r"`((?:ser-fit|make|python) [^`]+)`", text)


@pytest.fixture(scope="module")
def run(trained_run, tmp_path_factory):
    """A folder with a finished run where README has one."""
    folder = tmp_path_factory.mktemp("documents")
    shutil.copytree(trained_run, folder / "runs" / "moco_ser")
    checkpoint = str(folder / "runs" / "moco_ser" / "checkpoints" / "last.ckpt")
    main(["embed", checkpoint, "--output", str(folder / "pictures.npz"), "--device", "cpu"])
    return folder


PYTHON = blocks("python")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", PYTHON)
def test_snippet_runs_as_it_stands(name, run, monkeypatch):
    monkeypatch.chdir(run)
    code = PYTHON[name].replace("layers=[3]", "layers=[2]")  # the tiny run has fewer blocks
    images = torch.rand(2, 3, 16, 16)
    around = {
        "images": images,
        "loader": [torch.rand(2, 3, 224, 224)],
        "my_loss": lambda vit, images: vit(images).square().mean(),
    }
    exec(compile(code, name, "exec"), around)  # the documents' own text
    if "loss" in around:
        assert around["loss"].isfinite()
        assert all(p.grad is not None for p in around["ser"].parameters())
    elif "nearest" in around:
        assert len({*around["nearest"]} - {around["query"]}) == 5
    else:
        assert len(around["embedding"]) == len(around["tokens"]) == 2


def test_commands_are_there():
    targets = (ROOT / "Makefile").read_text()
    seen = set()
    for command in commands():
        words = command.rpartition("; ")[2].split()
        seen.add(words[0])
        verb = words[1].replace("<stage>", "knn").replace("<name>", "knn")
        if words[0] == "ser-fit":
            assert verb.startswith("-") or verb in COMMANDS, words
        elif words[0] == "make" and verb.endswith("-eval"):
            assert (ROOT / "configs" / "eval" / f"{verb.removesuffix('-eval')}.yaml").is_file()
        elif words[0] == "make":
            assert re.search(rf"^{verb}:", targets, re.MULTILINE), words
    assert seen >= {"make", "ser-fit"}


CPU = "--trainer.accelerator cpu --trainer.devices 1 --trainer.precision 32"
FEW = f"--data.num_workers 0 --data.global_batch_size 8 {CPU}"
STEP = f"{FEW} --trainer.max_epochs 1 --trainer.limit_train_batches 1 --model.warmup_epochs 0"
FIT = f"{STEP} --data.invertible.ratio 0.25 --data.bank_size 8 --data.num_queries 8 "
FIT += "--evaluation.num_equivariance_images 4"
SHORT = {  # what makes a command short, by its beginning; the longest one counts
    "make": "-n",
    "make demo": "DEMO='--trainer.max_epochs 2 --trainer.limit_train_batches 8 "
    "--trainer.check_val_every_n_epoch 1 --model.warmup_epochs 0'",
    "make linear-eval": "ARGS='--config configs/eval/small/linear.yaml --trainer.max_epochs 1 "
    f"--data.holdout_fraction 0.25 {FEW}'",
    "make imagenet-c-eval": f"ARGS='{FEW}'",
    "make knn-eval": f"ARGS='{FEW}'",
    "make evaluate ARGS=--small": f"ARGS='--small --only diagnostics {CPU}'",
    "make evaluate": f"ARGS='--small --only knn imagenet-c --data.num_workers 0 {CPU}'",
    "python": "",
    "ser-fit": "",
    "ser-fit fit --config": FIT,
    "ser-fit fit --config configs/moco_ser.yaml --config configs/trainer": (
        f"{FIT} --run_dir runs/imagenet"
    ),
    "ser-fit fit --config configs/moco_ser.yaml --config configs/fashion_mnist.yaml": (
        f"{FIT} --data.source Shapes --data.source.num_train 64 --data.source.num_evaluation 24"
    ),
    "ser-fit validate": f"{CPU} --data.validate_bank_size 8",
}
STANDS_FOR = {"FILE": "$CKPT", "<Name>": "SimCLR", "<stage>": "knn", "<name>": "knn", "...": "",
              "CKPT=...": "CKPT=$CKPT", "[DATA=...]": "", "[ARGS=...]": ""}  # fmt: skip


@pytest.fixture(scope="module")
def surroundings(tmp_path_factory):
    """What the documents' commands find around them: a checkout, runs, images."""
    run = tmp_path_factory.mktemp("surroundings")
    blocks = ["--model.backbone.vit_options", "{embed_dim: 32, depth: 4, num_heads: 2}"]
    tiny = str(ROOT / "tests" / "tiny.yaml")
    main(["fit", "--config", tiny, "--run_dir", str(run / "runs" / "moco_ser"), *blocks])
    for name in ("configs", "tests", "studies", "benchmarks", "Makefile", "pyproject.toml"):
        (run / name).symlink_to(ROOT / name)
    for name in ("moco", "moco_ser_seed1"):
        shutil.copytree(run / "runs" / "moco_ser", run / "runs" / name)
    write_record(record(), run / "runs" / "moco")
    imagenet_head(run / "runs" / "moco_ser")
    classes = imagenet_synsets()[:4]
    write_images(run / "data" / "imagenet" / "train", classes, per_class=6)
    write_images(run / "data" / "imagenet" / "val", classes, per_class=3, seed=1)
    write_imagenet_c(run / "data" / "imagenet-c", classes[:2])
    write_images(run / "pictures", ("cats", "dogs"), per_class=30, size=60)
    return run


def shortened(command):
    """A command as it is run here: short, with something in place of what it leaves open."""
    for name, value in sorted(STANDS_FOR.items(), key=lambda pair: -len(pair[0])):
        command = command.replace(name, value)
    line = command.rpartition("; ")[2]
    begin = max((begin for begin in SHORT if line.startswith(begin)), key=len)
    return f"{command} {SHORT[begin]}"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("command", dict.fromkeys(commands(PAGES[:2])))
def test_command_runs_in_its_short_form(command, surroundings):
    ours = Path(sys.executable).parent
    line = shortened(command).replace("/data", f"{surroundings}/data")
    line = re.sub(r"\bmake ", f"make -o .venv/.ready BIN={ours} ", line)
    python = shlex.quote(sys.executable)
    result = subprocess.run(
        ["bash", "-c", f'ser-fit() {{ {python} -m ser_lightning "$@"; }}; {line}'],
        cwd=surroundings,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("MAKE")},
            "CKPT": "runs/moco_ser/checkpoints/last.ckpt",
            "HOME": str(surroundings),
            "OMP_NUM_THREADS": "1",
            "PATH": f"{ours}:{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, f"{line}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / link).exists(), link


def test_named_configurations_are_there():
    for page in PAGES[:2]:
        for braces in re.findall(r"`(configs/[\w{},/.-]+\.yaml)`", page.read_text()):
            match = re.match(r"(.*)\{(.*)\}(.*)", braces)
            names = [match[1] + n + match[3] for n in match[2].split(",")] if match else [braces]
            for name in names:
                assert (ROOT / name).is_file(), name
