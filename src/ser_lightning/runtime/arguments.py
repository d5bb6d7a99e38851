"""What can be told from the raw arguments, before the parser sees them."""

from pathlib import Path
from typing import Any

import yaml

from ser_lightning.files import checkpoint_config, last_checkpoint, read_config, upgraded

CHECKPOINT_FOLDER = "checkpoints"
RECORD = "fit.yaml"


def options(args: list[str], *names: str) -> list[str]:
    """The values given to an option, as `--name value` or `--name=value`."""
    values = []
    for position, argument in enumerate(args):
        name, separator, value = argument.partition("=")
        if name in names and (separator or position + 1 < len(args)):
            values.append(value if separator else args[position + 1])
    return values


def content_of(config: str) -> dict[str, Any]:
    """A configuration file's content; empty where it is no file, which the parser will say."""
    return read_config(Path(config).read_text()) if _is_file(config) else {}


def _is_file(config: str) -> bool:
    """False for a configuration's text too, which can stand in the place of a file."""
    return "\n" not in config and Path(config).is_file()


def in_todays_words(args: list[str], *names: str) -> list[str]:
    """Replaces configuration files of an earlier version, given to an option, by their content."""
    args = list(args)
    for position, argument in enumerate(args):
        name, separator, value = argument.partition("=")
        if name not in names or not (separator or position + 1 < len(args)):
            continue
        config = value if separator else args[position + 1]
        old = yaml.safe_load(Path(config).read_text()) if _is_file(config) else None
        new = upgraded(old)
        if new != old:
            text = yaml.safe_dump(new, sort_keys=False)
            args[position + (not separator)] = f"{name}={text}" if separator else text
    return args


def refuse_linked_keys(configs: list[str], linked: dict[tuple[str, str], str]) -> None:
    """Raises where a file sets a value that is taken from elsewhere: it would have no effect."""
    for config in configs:
        content = content_of(config)
        sections = {
            "data": content.get("data") or {},
            "model.init_args": (content.get("model") or {}).get("init_args") or {},
        }
        for (section, name), origin in linked.items():
            if name in sections[section]:
                raise ValueError(
                    f"{config} sets {section}.{name}, which is taken from {origin}; remove it "
                    f"there and set {origin}"
                )


def packaged(argument: str) -> str:
    """Finds configs/... in the installed package, where there is no checkout around it."""
    path = Path(__file__).parents[1] / argument
    is_config = argument.startswith("configs/") and argument.endswith(".yaml")
    return str(path) if is_config and not Path(argument).exists() else argument


def usable_for(command: str, config: dict[str, Any]) -> str:
    """Keeps of a checkpoint's configuration what describes the run; for fit, its hardware too."""
    keys = ["seed_everything", "model", "data", "evaluation"]
    keys += ["trainer", "checkpoint"] if command == "fit" else []
    return yaml.safe_dump({key: config[key] for key in keys if key in config})


def stored_configuration(args: list[str]) -> tuple[Path, dict[str, Any]]:
    """A run's own configuration, and the file that holds it; empty where there is none.

    The file is the checkpoint that `--ckpt_path` names; for `last`, or without it, the last
    checkpoint in `--run_dir`, or the record of a run that has no checkpoint yet.
    """
    checkpoint = (options(args, "--ckpt_path") or ["last"])[-1]
    run_dir = (options(args, "--run_dir") or [""])[-1]
    if checkpoint not in ("last", "null"):
        path = Path(checkpoint)
        return path, (checkpoint_config(path) if path.is_file() else None) or {}
    path = last_checkpoint(Path(run_dir) / CHECKPOINT_FOLDER)
    if run_dir and path.is_file():
        return path, checkpoint_config(path) or {}
    record = Path(run_dir) / RECORD
    return record, content_of(str(record)) if run_dir else {}


def checked_seed(seed: bool | int) -> int:
    """The seed of a run; `true` and `false` would draw with a seed that no record names."""
    if isinstance(seed, bool) or not 0 <= seed < 2**32:
        shown = str(seed).lower()
        raise ValueError(f"seed_everything {shown} is no seed; give a number below {2**32}")
    return seed


def run_folder(checkpoint: Path) -> Path:
    """The folder of the run that a checkpoint belongs to."""
    folder = Path(checkpoint).absolute().parent
    return folder.parent if folder.name == CHECKPOINT_FOLDER else folder


def default_run_dir(configs: list[Any] | None, checkpoint: str | None) -> Path:
    """runs/<first file with a model>, as below `configs`; else where the checkpoint lies.

    A later file that names other images gives the folder: runs/fashion_mnist/moco_ser.
    """
    files = [str(config) for config in configs or [] if config is not None]
    files = [file for file in files if "model" in content_of(file)]
    if files:
        parts = Path(files[0]).with_suffix("").parts
        first = len(parts) - parts[::-1].index("configs") if "configs" in parts else -1
        others = [Path(f).stem for f in files[1:] if "source" in (content_of(f).get("data") or {})]
        return Path("runs", *others[-1:], *parts[first:])
    folder = Path(checkpoint).parent if checkpoint else Path()
    if folder.name == CHECKPOINT_FOLDER:
        return folder.parent
    return Path("runs") / "run"
