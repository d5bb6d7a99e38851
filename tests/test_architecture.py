"""Rooms import only the rooms they may: data flows one way."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "ser_lightning"
ALLOWED = {
    # the ground floor
    "distributed": set(),
    "checkpoints": {"damage", "files", "trusted"},
    "contents": {"checkpoints", "damage"},
    "damage": set(),
    "files": {"processes"},
    "groups": set(),
    "numbers": set(),
    "on_demand": set(),
    "optim": set(),
    "memory": set(),
    "processes": set(),
    "randomness": set(),
    "run_length": set(),
    "step_logs": set(),
    "trainer_rules": set(),
    "trusted": set(),
    "batch": {"groups"},
    "corruptions": {"randomness"},
    "losses": {"distributed"},
    "results": {"corruptions", "files", "sealed"},
    "sealed": {"damage", "files"},
    "runtime": {"checkpoints", "files", "memory", "processes", "run_length", "trusted"},
    # source -> view -> batch -> token map -> loss
    "sources": {"files", "randomness", "sealed"},
    "data": {
        *("batch", "corruptions", "distributed", "files", "groups", "numbers", "processes"),
        *("randomness", "sealed", "sources"),
    },
    "foreign": {"checkpoints", "damage", "files", "sealed"},
    "backbones": {"batch", "checkpoints", "distributed", "files", "foreign", "sealed", "trusted"},
    "regularizers": {"backbones", "batch", "distributed", "groups", "losses"},
    "objectives": {
        *("backbones", "batch", "checkpoints", "distributed", "files", "groups", "losses", "optim"),
        *("regularizers", "run_length", "step_logs", "trainer_rules"),
    },
    # checkpoint -> stage -> record -> table
    "evaluation": {
        *("backbones", "batch", "checkpoints", "corruptions", "data", "distributed", "files"),
        "foreign",
        *(
            "groups",
            "optim",
            "randomness",
            "results",
            "run_length",
            "sealed",
            "sources",
            "step_logs",
            "trainer_rules",
            "trusted",
        ),
    },
    "exporting": {
        *("backbones", "batch", "checkpoints", "data", "evaluation", "files", "foreign"),
        *("results", "sealed", "sources"),
        "trusted",
    },
    "reporting": {"backbones", "batch", "checkpoints", "files", "groups", "results"},
    # what people type
    "commands": {
        *("backbones", "batch", "checkpoints", "cli", "contents", "data", "evaluation"),
        *("exporting", "files"),
        *("foreign", "groups", "objectives", "reporting", "results", "run_length", "runtime"),
        *("sealed", "trainer_rules", "trusted"),
    },
    "cli": {"commands", "data", "objectives", "runtime"},
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
    # whoever takes an option says its range; whoever imports little waits until it is asked
    assert set(imported_rooms(room)) - {room, "numbers", "on_demand"} <= ALLOWED[room]
