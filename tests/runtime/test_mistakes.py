"""Whose fault an error is: sentences for users' mistakes, tracebacks for bugs, never mixed up."""

import errno
import os
import resource
import sys
from pathlib import Path
from runpy import run_path
from types import ModuleType

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader

from ser_lightning.backbones.vit import sincos_position
from ser_lightning.cli import main
from ser_lightning.runtime.configuration import checked_seed
from ser_lightning.runtime.cores import refuse_too_many_workers
from ser_lightning.runtime.launch import BUG_STATUS, run
from ser_lightning.runtime.mistakes import sentence

TINY = str(Path(__file__).parents[1] / "tiny.yaml")

SHORTEST = ["--trainer.max_epochs", "1", "--model.warmup_epochs", "0"]
SHORTEST += ["--trainer.limit_train_batches", "1", "--trainer.limit_val_batches", "0"]

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*isinstance.*treespec.*"),
]


@pytest.fixture(autouse=True)
def _stay_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def raised(function, *args):
    """The error of a call."""
    try:
        function(*args)
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def chained(error, cause=None, context=None):
    """An error that was raised from, or during, another one."""
    error.__cause__, error.__context__ = cause, context
    return error


def test_complaint_of_this_package_is_the_users():
    assert "seed_everything -1 is no seed" in sentence(raised(checked_seed, -1))


def test_value_error_that_happens_to_a_statement_of_this_package_is_a_bug():
    error = raised(sincos_position, (1, 2, 3), 8)
    assert isinstance(error, ValueError)
    assert sentence(error) is None


def test_value_error_of_elsewhere_is_a_bug():
    assert sentence(raised(int, "three")) is None


def test_bug_while_a_mistake_is_handled_is_a_bug():
    def broken_handler():
        try:
            checked_seed(-1)
        except ValueError:
            {}["key"]

    assert sentence(raised(broken_handler)) is None


def test_bug_that_a_mistake_was_raised_from_is_the_mistake():
    error = chained(MisconfigurationException("no such accelerator"), cause=KeyError("gpu"))
    assert sentence(error) == "no such accelerator"


@pytest.mark.parametrize("number", [errno.EBADF, errno.EFAULT, errno.EINVAL])
def test_what_only_a_program_does_wrong_is_a_bug(number):
    assert sentence(OSError(number, os.strerror(number))) is None


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOENT, "runs/a does not exist; give another path"),
        (errno.EACCES, "runs/a may not be read or written by you; change its permissions"),
        (errno.EROFS, "runs/a lies on a disk that cannot be written"),
        (errno.ENOSPC, "runs/a cannot be written: the disk is full; free some space"),
        (errno.ENAMETOOLONG, "runs/a is too long a name"),
        (errno.EIO, "Input/output error: runs/a"),
    ],
)
def test_file_is_named_with_rule_and_remedy(number, words):
    for name in ("runs/a", b"runs/a"):  # TensorBoard's
        assert words in sentence(OSError(number, os.strerror(number), name))


def test_full_disk_is_called_so(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    error = raised(torch.save, {"weights": torch.zeros(10_000)}, "/dev/full")
    assert "MiB are free: the disk is full" in sentence(error, tmp_path)


def test_missing_package_is_named_with_its_extra():
    assert "pip install 'ser-lightning[wandb]'" in sentence(ModuleNotFoundError(name="wandb"))
    assert sentence(ModuleNotFoundError(name="ser_lightning.nothing")) is None


def test_memory_that_does_not_suffice_is_called_so():
    error = raised(torch.zeros, 10**15)
    assert "memory does not suffice" in sentence(error)
    assert "lower data.global_batch_size" in sentence(error)
    assert sentence(MemoryError()).startswith("the memory does not suffice; lower")


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            "upsample_bicubic2d_backward_out_cuda does not have a deterministic implementation, "
            "but you set 'torch.use_deterministic_algorithms(True)'. You can turn off",
            "use --trainer.deterministic warn",
        ),
        (
            "CUDA error: no kernel image is available for execution on the device\nCUDA kernel",
            "this torch is not made for this GPU; install one",
        ),
        (
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
            "the memory does not suffice",
        ),
        ("NCCL error in: ProcessGroupNCCL.cpp:1, unhandled system error", "does not answer"),
        ("[/gloo/transport/tcp/pair.cc:534] Connection closed by peer [::1]", "does not answer"),
        ("The server socket has failed to listen (errno: 98). EADDRINUSE", "MASTER_PORT another"),
        (
            "Expected to have finished reduction in the prior iteration before starting a new one.",
            "ddp_find_unused_parameters_true",
        ),
    ],
)
def test_what_a_device_or_another_process_cannot_do_has_a_remedy(said, words):
    assert words in sentence(RuntimeError(said))


@pytest.mark.parametrize(
    "said",
    ["Distributed package doesn't have NCCL built in", "invalid usage\nDuplicate GPU detected"],
)
def test_other_errors_between_processes_keep_their_words_and_traceback(said):
    assert sentence(RuntimeError(said)) is None


class Broken(torch.utils.data.Dataset):
    """Complains or breaks while an item is made."""

    def __init__(self, make):
        self.make = make

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return self.make()


def complain():
    return checked_seed(-1)


def break_down():
    return sincos_position((1, 2, 3), 8)


@pytest.mark.parametrize(
    ("make", "is_mistake"),
    [(complain, True), pytest.param(break_down, False, marks=pytest.mark.slow)],
)
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_error_of_a_worker_counts_as_in_one_process(make, is_mistake):
    error = raised(lambda: list(DataLoader(Broken(make), num_workers=1)))
    text = sentence(error)
    assert (text is not None) == is_mistake
    if is_mistake:
        assert text.startswith("seed_everything -1 is no seed")


@pytest.fixture
def command(monkeypatch):
    """A function that `run` calls, by the name of its module."""
    module = ModuleType("broken_command")
    monkeypatch.setitem(sys.modules, "broken_command", module)

    def set_up(function):
        module.evaluate_all = function
        return "broken_command", "evaluate_all"

    return set_up


def status_of(name, args):
    with pytest.raises(SystemExit) as stop:
        run(*name, args)
    return stop.value.code


def test_bug_leaves_its_traceback_versions_and_command_in_a_file(command, capsys):
    name = command(lambda args: break_down())
    Path("a run").mkdir()
    assert status_of(name, ["--run_dir", "a run"]) == BUG_STATUS
    shown = capsys.readouterr().err
    (path,) = Path("a run").iterdir()
    assert str(path) in shown
    assert len(shown.splitlines()) == 2
    assert "internal error, not a mistake of yours: ValueError: too many values" in shown
    text = path.read_text()
    assert "command: ser-fit evaluate-all --run_dir 'a run'" in text
    assert f"torch {torch.__version__.partition('+')[0]}" in text
    assert "Traceback (most recent call last)" in text
    assert "lambda args: break_down()" in text


@pytest.mark.parametrize("text", ["{}['key']", "raise KeyError('key')", "torch.zeros(3).view(5)"])
@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_error_of_a_users_own_code_names_its_line(text, num_workers, command, tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text(f"import torch\n\ndef read():\n    {text}\n")
    own = run_path(str(file))["read"]
    name = command(lambda args: list(DataLoader(Broken(own), num_workers=num_workers)))
    assert status_of(name, []) == BUG_STATUS
    shown = capsys.readouterr().err
    assert f"ser-fit: error in {file}, line 4, of your own code: " in shown
    assert "internal" not in shown
    assert len(shown.splitlines()) == 2


def test_bug_before_there_is_a_run_folder_is_written_where_one_stands(command, capsys):
    name = command(lambda args: {}["key"])
    assert status_of(name, ["--run_dir", "none"]) == BUG_STATUS
    assert [path.name.partition("-")[0] for path in Path().iterdir()] == ["error"]


def test_debug_shows_the_traceback_and_is_no_option_of_the_command(command):
    seen = []

    def fail(args):
        seen.extend(args)
        checked_seed(-1)

    with pytest.raises(ValueError, match="is no seed"):
        run(*command(fail), ["--a", "--debug", "b"])
    assert seen == ["--a", "b"]
    assert list(Path().iterdir()) == []


def test_long_complaints_are_cut(command):
    def complain_long(args):
        raise MisconfigurationException("\n".join(["a line"] * 90))

    assert len(status_of(command(complain_long), []).splitlines()) == 21


def test_reader_that_has_seen_enough_ends_a_command_quietly(command, capfd):
    def print_to_nobody(args):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    kept = os.dup(1)
    try:
        assert status_of(command(print_to_nobody), []) == 141
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def test_workers_beyond_reason_are_refused():
    refuse_too_many_workers(16)
    with pytest.raises(ValueError, match=r"num_workers 1000000 would start .* use at most"):
        refuse_too_many_workers(1_000_000)


def test_checkpoint_that_cannot_be_written_whole_ends_a_run_in_a_sentence():
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limit[1]))
    try:
        with pytest.raises(SystemExit) as stop:
            main(["fit", "--config", TINY, "--run_dir", "run", *SHORTEST])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert "could not be written whole" in stop.value.code
    assert list(Path("run/checkpoints").iterdir()) == []


@pytest.mark.parametrize("name", ["trainer", "checkpoint", "evaluation", "pictures"])
def test_section_that_is_null_is_refused(name):
    Path("null.yaml").write_text(f"{name}: null")
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", TINY, "--config", "null.yaml", "--run_dir", "run"])
    assert stop.value.code == (
        f"ser-fit: error: {name} null is no section; leave it out for its defaults"
    )


def test_value_in_the_place_of_a_section_is_called_so():
    with pytest.raises(TypeError) as caught:
        dict(**False)
    assert "a section is a single value" in sentence(caught.value)
