"""Names of a room that are imported when they are asked for.

What a command does not use is not imported: `ser-fit report` needs no torch.
"""

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any


def on_demand(package: str, file: str) -> Callable[[str], Any]:
    """The `__getattr__` of a package whose imports stand below `if TYPE_CHECKING:`.

    Args:
        package: its `__name__`.
        file: its `__file__`, where the imports are read.
    """
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    modules = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    # once imported, a file of that name would hide it
    assert not any(Path(file).with_name(f"{name}.py").exists() for name in modules)

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(modules[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return get
