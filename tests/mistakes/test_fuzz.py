"""Random values and damaged YAML: works or is refused, in time, whatever they are."""

import os
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mistakes.command_line import TINY, outcome_of

CONFIGS = Path(__file__).parents[2] / "configs"
BUILT = ["--trainer.fast_dev_run", "true", "--model.warmup_epochs", "0"]  # one step
NOT_HERE = re.compile(  # starts processes, waits for other nodes, or writes elsewhere
    r"^(run_dir|ckpt_path|trainer\.(devices|num_nodes|strategy|default_root_dir|fast_dev_run)"
    r"|data\.num_workers|model\.init_args\.optimizer\.init_args)(\.|$)"  # torch checks only some
)

pytestmark = pytest.mark.filterwarnings("ignore")
# random searches find what nobody has seen yet, on any day: they are asked for by SER_FUZZ=1
open_ended = pytest.mark.skipif("SER_FUZZ" not in os.environ, reason="SER_FUZZ=1 searches")
quietly = settings(
    deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=False
)

words = st.sampled_from(
    ["", " ", "null", "~", "true", "nan", "1e3", "-", "[", "{", "../..", "\0", "\u00e9\U0001f600"]
)
numbers = st.one_of(
    st.integers(-3, 3),
    st.sampled_from([10**9, 2**31, 2**63, -(2**63), 10**30]),
    st.floats(-2, 2),
    st.sampled_from([float("inf"), float("-inf"), float("nan"), 1e-300, 1e300]),
)
plain = st.one_of(st.none(), st.booleans(), numbers, words, st.text(max_size=5))
values = st.one_of(
    plain,
    st.lists(plain, max_size=3),
    st.dictionaries(st.sampled_from(["class_path", "init_args", "a", "size"]), plain, max_size=2),
)


def leaves(node, place=()):
    """The dotted places of a configuration, with those of sections."""
    if place:
        yield ".".join(place)
    for key, child in node.items() if isinstance(node, dict) else ():
        yield from leaves(child, (*place, key))


def nested(place, value):
    """A configuration with one value."""
    for key in reversed(place.split(".")):
        value = {key: value}
    return value


def check(args, capsys, seconds=120):
    """Asserts that a command works, or is refused with the right status in a sentence."""
    outcome = outcome_of(args, capsys, seconds)
    assert outcome.kind in ("works", "refused"), outcome.text[-3000:]
    assert outcome.status in ((1, 2) if outcome.kind == "refused" else (0,))
    assert outcome.kind == "works" or "error: " in outcome.text


def damaged(draw, content):
    """The bytes of a file, some of which were changed, lost or doubled."""
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.integers(0, 8)))
        put = draw(st.one_of(st.binary(max_size=4), st.sampled_from([b"\t", b": ", b"&a *a", b""])))
        content = content[:start] + put + content[end:]
    return content


@st.composite
def damaged_files(draw):
    """A shipped configuration with damage."""
    files = [TINY, *sorted(CONFIGS.glob("*.yaml"))]
    return damaged(draw, draw(st.sampled_from(files)).read_bytes())


@pytest.fixture(scope="module")
def places(trained_run):
    """All options of a run."""
    stored = yaml.safe_load((trained_run / "fit.yaml").read_text())
    return [place for place in leaves(stored) if not NOT_HERE.search(place)]


def parse_damaged(content, capsys):
    """Has a damaged file parsed."""
    Path("damaged.yaml").write_bytes(content)
    check(["fit", "--config", str(TINY), "--config", "damaged.yaml", "--print_config"], capsys)


@given(content=damaged_files())
@settings(quietly, max_examples=6, derandomize=True)
def test_damaged_configuration_is_read_or_refused(content, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    parse_damaged(content, capsys)


@pytest.mark.slow
@open_ended
@given(content=damaged_files())
@settings(quietly, max_examples=300)
def test_any_damaged_configuration_is_read_or_refused(content, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    parse_damaged(content, capsys)


@pytest.mark.slow
@open_ended
@pytest.mark.timeout(3600)
@given(data=st.data())
@settings(quietly, max_examples=200)
def test_any_value_of_any_option_works_or_is_refused(
    data, places, tmp_path, monkeypatch, capsys
):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    place, value = data.draw(st.sampled_from(places)), data.draw(values)
    Path("odd.yaml").write_text(yaml.safe_dump(nested(place, value), allow_unicode=True))
    args = ["fit", "--config", str(TINY), "--config", "odd.yaml", *BUILT, "--run_dir", "run"]
    check(args, capsys)
