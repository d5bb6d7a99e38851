"""What a file from elsewhere may decide: plain values, and classes of a short list.

A checkpoint, `fit.yaml` or export that somebody sent says what to build. Nothing that it names is
imported unless it stands here; docs/trust.md tells users. What people type is trusted.
"""

import argparse
import inspect
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from typing_extensions import override

# By the beginning of their import path. Whatever is not written here is refused: these compute and
# print, and where they write is told by `WRITTEN`.
CLASSES: dict[str, frozenset[str] | None] = {
    "ser_lightning": None,  # every class that is defined there
    "torch.optim": None,
    "timm.optim": None,
    "lightning.pytorch.callbacks": frozenset({
        "DeviceStatsMonitor", "EarlyStopping", "LearningRateMonitor", "ModelCheckpoint",
        "ModelSummary", "RichModelSummary", "RichProgressBar", "TQDMProgressBar",
    }),
    "lightning.pytorch.loggers": frozenset({"CSVLogger", "TensorBoardLogger"}),
    "lightning.pytorch.strategies": frozenset({"DDPStrategy"}),
}  # fmt: skip
WRITTEN = frozenset({"default_root_dir", "dirpath", "save_dir"})
"""Options of Lightning's classes that say in which folder files are written."""
NAMED = frozenset({"filename", "filename_suffix", "name", "prefix", "sub_dir", "version"})
"""Options of Lightning's classes that say how files in that folder are called."""

# Objects that public pretraining code saves beside its weights, by import path. None of them is
# imported: something that does nothing stands in their place, and what it is told is forgotten.
_BESIDE_WEIGHTS = (
    *(f"numpy.{part}.multiarray.{name}" for part in ("core", "_core")
      for name in ("scalar", "_reconstruct")),
    "numpy.ndarray", "numpy.dtype", "pathlib.PosixPath", "pathlib._local.PosixPath",
    "typing.Any", "builtins.int", "builtins.str", "builtins.dict", "builtins.list",
    *(f"omegaconf.{name}" for name in (
        "dictconfig.DictConfig", "listconfig.ListConfig", "base.ContainerMetadata",
        "base.Metadata", "nodes.AnyNode")),
    *(f"torch.nn.modules.{name}" for name in (
        "container.Sequential", "linear.Linear", "linear.Identity", "activation.ReLU",
        "activation.GELU", "batchnorm.BatchNorm1d", "batchnorm.SyncBatchNorm")),
)  # fmt: skip

MAX_LENGTH = 2**18  # characters of a stored configuration, which has about 4,000
MAX_VALUES = 2**14  # in it, which has about 200
MAX_OWN_VALUES = 100_000  # in one that the user gives


class Untrusted(ValueError):  # noqa: N818 - what it is, as the reader says it
    """A file asks for more than it may decide; nothing of it was imported or run."""


def trusted_class(path: str) -> type | None:
    """The class of an import path, if a file may name it; nothing else is imported."""
    module, _, name = path.rpartition(".")
    root = next((root for root in CLASSES if f"{module}.".startswith(f"{root}.")), None)
    names = CLASSES[root] if root else frozenset()
    if root is None or not (names is None or name in names):
        return None
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError):
        return None
    # a module also has what it imported itself, such as `os`
    is_own = inspect.isclass(found) and f"{found.__module__}.".startswith(f"{root}.")
    return found if is_own else None


class StandIn:
    """An object of a file that is not built: nothing comes of what the file says about it."""

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


def _without_default(*_: Any) -> dict[Any, Any]:
    """The place of a `defaultdict`, as OmegaConf's containers have them; its items come later."""
    return {}


def stand_ins() -> list[Any]:
    """What torch's reader of plain values may take beside them, for `safe_globals`.

    A Namespace is a plain container of arguments and stays one, a `defaultdict` becomes a dict;
    everything else is a `StandIn`.
    """
    plain = [argparse.Namespace, (_without_default, "collections.defaultdict")]
    return [*plain, *((StandIn, path) for path in _BESIDE_WEIGHTS)]


def writes_outside(option: str, value: Any, folder: Path) -> bool:
    """Whether an option of a class of Lightning has files written elsewhere than into a folder."""
    if option in NAMED:
        return re.search(r"[/\\:]|^\.\.$", str(value)) is not None
    if option not in WRITTEN or value is None:
        return False
    return not Path(str(value)).expanduser().resolve().is_relative_to(folder.resolve())


def printable(text: str) -> str:
    """A text from a file without what would steer the terminal that it is printed to."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def plain_yaml(text: str) -> Any:
    """The content of a configuration from elsewhere: plain values, not more than it can need.

    Raises:
        ValueError: it is larger, or as nested as none is.
        yaml.YAMLError: it is no YAML, needs objects, or merges mappings (`<<`).
    """
    if len(text) > MAX_LENGTH:
        raise ValueError(
            f"a configuration of {len(text):,} characters; none has more than {MAX_LENGTH:,}"
        )
    return _bounded(text, _PlainLoader, MAX_VALUES)


def own_yaml(text: str) -> Any:
    """The content of a user's own configuration: plain YAML, of a size that can be gone through.

    Raises:
        ValueError: it is larger, or nested without end.
        yaml.YAMLError: it is no YAML, needs objects, or has a key twice in one mapping.
    """
    return _bounded(text, _OwnLoader, MAX_OWN_VALUES)


def _bounded(text: str, loader: type[yaml.SafeLoader], most: int) -> Any:
    try:
        content = yaml.load(text, loader)
        _count(content, most)
    except RecursionError:
        raise ValueError("the YAML is nested too deeply; a configuration is flat") from None
    except _TooManyError:
        raise ValueError(
            f"the YAML holds more than {most:,} values, or an alias (*name) within what it stands "
            "for; write out what it repeats"
        ) from None
    return content


class _TooManyError(Exception):
    """More values than were left."""


class _PlainLoader(yaml.SafeLoader):
    """Without merges: few of them, of each other, fill any memory while they are read."""

    @override
    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
            raise yaml.constructor.ConstructorError(None, None, "it merges mappings (<<)")


class _OwnLoader(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping, of which the first would go unheard."""

    @override
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in lines:
                    problem = f"{key.value} stands in line {lines[key.value]} already; join the two"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                lines[key.value] = key.start_mark.line + 1
        return node


def _count(node: Any, left: int) -> int:
    """How many values may still come; repeated ones (`*name`) count as often as they stand."""
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    for child in children:
        left = _count(child, left - 1)
    if left < 0:
        raise _TooManyError
    return left
