"""The arrows between the rooms: who may import whom, and through which door."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import saegis_server

ROOT = Path(saegis_server.__file__).parent
#: What each room may import beside itself and the single modules that stand beside the rooms.
ALLOWED = {
    "steering": set(),
    "sae": {"steering"},
    "engine": {"steering"},
    "telemetry": {"engine"},
    "audit": set(),
    "policy": {"audit", "telemetry", "engine", "sae", "steering"},
    "rpc": {"policy", "audit", "telemetry", "engine", "sae", "steering"},
    "training": {"engine", "sae", "steering"},
    "evaluation": {"training", "policy", "sae", "steering"},
    "bench": {"engine", "sae", "steering"},
    "polyglot": {"evaluation", "training", "rpc", "engine", "sae", "steering"},
}
ALLOWED["cli"] = set(ALLOWED)
#: What those who serve with an engine may know of it; sites too, while they live in its room.
SEAM = {"engine.api", "engine.sites"}
THROUGH_THE_SEAM = {"rpc", "telemetry", "policy", "audit", "evaluation"}
#: The one module that puts a server together, and so names the engine that it serves with.
MAKES_THE_ENGINE = "rpc/server/loading.py"


def imports() -> Iterator[tuple[str, str]]:
    """Each module's path below the package, and what of the package it imports, also within functions."""
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path} imports relatively"
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            for name in names:
                package, _, inner = name.partition(".")
                if package == saegis_server.__name__:
                    yield path.relative_to(ROOT).as_posix(), inner


def room(path: str) -> str | None:
    """The room of a path or a module's name; None for what stands beside the rooms."""
    first = path.replace("/", ".").split(".")[0]
    return first if (ROOT / first).is_dir() else None


def test_every_room_has_its_arrows() -> None:
    assert {each.parent.name for each in ROOT.glob("*/__init__.py")} == set(ALLOWED)


@pytest.mark.parametrize("name", sorted(ALLOWED))
def test_no_arrow_runs_up(name: str) -> None:
    wrong = [
        f"{path} imports {module}"
        for path, module in imports()
        if room(path) == name and room(module) not in {None, name, *ALLOWED[name]}
    ]
    assert not wrong


def test_what_stands_beside_the_rooms_imports_no_room() -> None:
    assert not [(path, module) for path, module in imports() if room(path) is None and room(module)]


def test_an_engine_is_known_by_its_seam_alone() -> None:
    wrong = [
        f"{path} imports {module}"
        for path, module in imports()
        if room(path) in THROUGH_THE_SEAM
        and room(module) == "engine"
        and ".".join(module.split(".")[:2]) not in SEAM
        and path != MAKES_THE_ENGINE
    ]
    assert not wrong


def test_the_seam_knows_no_engine() -> None:
    assert not [
        f"{path} imports {module}"
        for path, module in imports()
        if path in {f"{name.replace('.', '/')}.py" for name in SEAM} and module.startswith("engine.torch")
    ]
