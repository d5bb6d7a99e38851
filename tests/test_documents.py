"""README and CONTRIBUTING: their snippets run as they stand, their commands and links exist.

Every `ser-fit fit` line is built and takes a step in `test_configs.py`.
"""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from ser_lightning.cli import COMMANDS

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


def commands():
    """Every line of a shell block, with its continuation lines, without comments."""
    for block in blocks("bash").values():
        for line in re.sub(r"\\\n", " ", block).splitlines():
            words = shlex.split(line, comments=True)
            if words and words[0] in ("make", "ser-fit", "pip"):
                yield words


@pytest.fixture(scope="module")
def run(trained_run, tmp_path_factory):
    """A folder with a finished run where README has one."""
    folder = tmp_path_factory.mktemp("documents")
    shutil.copytree(trained_run, folder / "runs" / "moco_ser")
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
    else:
        assert len(around["embedding"]) == len(around["tokens"]) == 2


def test_commands_are_there():
    targets = (ROOT / "Makefile").read_text()
    seen = set()
    for words in commands():
        seen.add(words[0])
        verb = words[1]
        if words[0] == "ser-fit":
            assert verb.startswith("-") or verb in COMMANDS, words
        elif words[0] == "make" and verb.endswith("-eval"):
            assert (ROOT / "configs" / "eval" / f"{verb.removesuffix('-eval')}.yaml").is_file()
        elif words[0] == "make":
            assert re.search(rf"^{verb}:", targets, re.MULTILINE), words
    assert seen >= {"make", "ser-fit"}


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
