"""The arrows between the rooms of the server and the lab: who may import whom, and through which door."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import saegis_lab
import saegis_server

SERVER, LAB = Path(saegis_server.__file__).parent, Path(saegis_lab.__file__).parent
#: What each room may import beside itself and the single modules that stand beside the rooms.
ALLOWED = {
    "steering": set(),
    "directions": {"steering"},
    "sae": {"steering"},
    "engine": {"steering"},
    "telemetry": {"engine"},
    "audit": set(),
    "policy": {"audit", "telemetry", "engine", "sae", "directions", "steering"},
    "pictures": set(),
    "rpc": {"policy", "audit", "telemetry", "pictures", "engine", "sae", "directions", "steering"},
    "http": {"rpc", "policy", "audit", "telemetry", "engine", "steering"},
    "cli": {"http", "rpc", "policy", "audit", "telemetry", "engine", "sae", "directions", "steering"},
    "lab/training": {"engine", "sae", "steering"},
    "lab/evaluation": {"lab/training", "rpc", "policy", "sae", "steering"},
    "lab/filters": {"lab/evaluation", "lab/training", "rpc", "policy", "engine", "sae", "steering"},
    "lab/bench": {"rpc", "engine", "sae", "steering"},
    "lab/polyglot": {
        "lab/evaluation",
        "lab/filters",
        "lab/training",
        "rpc",
        "policy",
        "engine",
        "sae",
        "steering",
    },
}
ALLOWED["lab/realmodel"] = {*ALLOWED["lab/polyglot"], "cli"} - {"lab/polyglot"}
ALLOWED["lab/cli"] = set(ALLOWED)
#: What those who serve with an engine may know of it; sites too, while they live in its room.
SEAM = {
    "engine.api",
    "engine.readouts",
    "engine.receipts",
    "engine.counts",
    "engine.pictures",
    "engine.admission",
    "engine.sites",
}
THROUGH_THE_SEAM = {"rpc", "http", "telemetry", "policy", "audit", "lab/evaluation"}
#: The one module that puts a server together, and so names the engine that it serves with.
MAKES_THE_ENGINE = "rpc/server/loading.py"
#: The one module of the server that names the lab: `python -m saegis_server.cli` is the whole command.
KNOWS_THE_LAB = "cli/__main__.py"


def named(module: str) -> str | None:
    """A module below its package, `lab/` before one of the lab's; None for one of another distribution."""
    package, _, inner = module.partition(".")
    return {saegis_server.__name__: inner, saegis_lab.__name__: f"lab/{inner}"}.get(package)


@cache
def imports() -> tuple[tuple[str, str], ...]:
    """Each module's path, and what of the two packages it imports, also within functions; both as `named`."""
    return tuple(_imports())


def _imports() -> Iterator[tuple[str, str]]:
    paths = [(path, path.relative_to(SERVER).as_posix()) for path in sorted(SERVER.rglob("*.py"))]
    paths += [(path, f"lab/{path.relative_to(LAB).as_posix()}") for path in sorted(LAB.rglob("*.py"))]
    for path, name in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path} imports relatively"
                modules = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            else:
                continue
            for module in modules:
                if (inner := named(module)) is not None:
                    yield name, inner


def room(name: str) -> str | None:
    """The room of what is `named` so, be it a path or a module; None for what stands beside the rooms."""
    lab, root, inner = ("lab/", LAB, name[4:]) if name.startswith("lab/") else ("", SERVER, name)
    first = inner.replace("/", ".").split(".")[0]
    return f"{lab}{first}" if (root / first).is_dir() else None


def test_every_room_has_its_arrows() -> None:
    rooms = {each.parent.name for each in SERVER.glob("*/__init__.py")}
    assert rooms | {f"lab/{each.parent.name}" for each in LAB.glob("*/__init__.py")} == set(ALLOWED)


@pytest.mark.parametrize("name", sorted(ALLOWED))
def test_no_arrow_runs_up(name: str) -> None:
    wrong = [
        f"{path} imports {module}"
        for path, module in imports()
        if room(path) == name and room(module) not in {None, name, *ALLOWED[name]} and path != KNOWS_THE_LAB
    ]
    assert not wrong


def test_the_server_stands_without_the_lab() -> None:
    known = {path for path, module in imports() if module.startswith("lab/") and not path.startswith("lab/")}
    assert known == {KNOWS_THE_LAB}


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
