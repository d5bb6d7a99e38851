"""Rooms import only the rooms they may: data flows one way."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "ser_lightning"
ALLOWED = {
    "groups": set(),
    "distributed": set(),
    "optim": set(),
    "files": set(),
    "runtime": {"files"},
    "batch": {"groups"},
    "data": {"batch", "groups"},
    "backbones": {"distributed", "files"},
    "precision": set(),
    "regularizers": {"backbones", "batch", "groups", "distributed", "precision"},
    "objectives": {"batch", "backbones", "regularizers", "distributed", "optim", "precision"},
    "evaluation": {"batch", "backbones", "groups", "distributed", "data", "files", "optim"},
    "reporting": {"batch", "backbones", "files", "groups"},
    "compare": {"cost", "files", "reporting", "runtime"},
    "evaluate": {"data", "evaluation", "reporting", "runtime"},
    "evaluate_all": {"reporting", "runtime"},
    "cost": {"batch", "groups", "objectives"},
    "study": {"compare", "reporting", "runtime"},
    "cli": {
        "batch",
        "compare",
        "evaluate",
        "evaluate_all",
        "data",
        "evaluation",
        "objectives",
        "reporting",
        "runtime",
    },
    "demo": {"backbones", "cli", "data", "evaluation", "groups", "reporting"},
}


def rooms():
    return sorted(
        path.stem
        for path in PACKAGE.iterdir()
        if not path.name.startswith("__") and (path.is_dir() or path.suffix == ".py")
    )


def imported_rooms(room):
    path = PACKAGE / room
    for file in path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file}: imports are absolute"
                names = [node.module]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            for name in names:
                parts = name.split(".")
                if parts[0] == "ser_lightning" and len(parts) > 1:
                    yield parts[1]


@pytest.mark.parametrize("room", rooms())
def test_room_imports_only_what_it_may(room):
    assert set(imported_rooms(room)) - {room} <= ALLOWED[room]
