"""What can be told from the raw arguments, before the parser sees them."""

from pathlib import Path
from typing import Any

import yaml

CHECKPOINT_FOLDER = "checkpoints"


def options(args: list[str], *names: str) -> list[str]:
    """The values given to an option, as `--name value` or `--name=value`."""
    values = []
    for position, argument in enumerate(args):
        name, separator, value = argument.partition("=")
        if name in names and (separator or position + 1 < len(args)):
            values.append(value if separator else args[position + 1])
    return values


def read_config(config: str) -> dict[str, Any]:
    """A configuration file's content; empty where it is no file, which the parser will say."""
    path = Path(config)
    content = yaml.safe_load(path.read_text()) if path.is_file() else {}
    return content if isinstance(content, dict) else {}


def refuse_linked_keys(configs: list[str], linked: dict[tuple[str, str], str]) -> None:
    """Raises where a file sets a value that is taken from elsewhere: it would have no effect."""
    for config in configs:
        content = read_config(config)
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


def usable_for(command: str, text: str) -> str:
    """Keeps of a checkpoint's configuration what describes the run; for fit, its hardware too."""
    config = yaml.safe_load(text)
    keys = ["seed_everything", "model", "data", "evaluation"]
    keys += ["trainer", "checkpoint"] if command == "fit" else []
    return yaml.safe_dump({key: config[key] for key in keys if key in config})


def run_folder(checkpoint: Path) -> Path:
    """The folder of the run that a checkpoint belongs to."""
    folder = Path(checkpoint).absolute().parent
    return folder.parent if folder.name == CHECKPOINT_FOLDER else folder


def default_run_dir(configs: list[Any] | None, checkpoint: str | None) -> Path:
    """runs/<first file with a model>, as below `configs`; else where the checkpoint lies.

    A later file that names other images gives the folder: runs/fashion_mnist/moco_ser.
    """
    files = [str(config) for config in configs or [] if config is not None]
    files = [file for file in files if "model" in read_config(file)]
    if files:
        parts = Path(files[0]).with_suffix("").parts
        first = len(parts) - parts[::-1].index("configs") if "configs" in parts else -1
        others = [Path(f).stem for f in files[1:] if "source" in (read_config(f).get("data") or {})]
        return Path("runs", *others[-1:], *parts[first:])
    folder = Path(checkpoint).parent if checkpoint else Path()
    if folder.name == CHECKPOINT_FOLDER:
        return folder.parent
    return Path("runs") / "run"
