"""The contract is lint-free, and the committed stubs are those that it generates."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def gen_stubs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gen_stubs", ROOT / "scripts/gen_stubs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def buf(*arguments: str) -> subprocess.CompletedProcess[str]:
    beside_python = Path(sys.executable).with_name("buf")
    program = str(beside_python) if beside_python.exists() else shutil.which("buf")
    assert program is not None, "buf is missing: install the extra 'dev'"
    return subprocess.run([program, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def test_buf_lint_finds_nothing() -> None:
    result = buf("lint")
    assert result.stdout + result.stderr == ""
    assert result.returncode == 0


def test_buf_lint_would_find_something(tmp_path: Path) -> None:
    """The rules are really in force: an uncommented message with a bare enum is refused."""
    shutil.copy(ROOT / "buf.yaml", tmp_path)
    shutil.copytree(ROOT / "protos", tmp_path / "protos")
    bad = tmp_path / "protos/saegis/v1/bad.proto"
    bad.write_text('syntax = "proto3";\npackage saegis.v1;\nenum Kind { NONE = 0; }\n')
    result = buf("lint", str(tmp_path))
    assert result.returncode != 0
    assert "ENUM" in result.stdout or "Enum" in result.stdout
    assert "comment" in result.stdout


def test_protos_are_formatted() -> None:
    assert buf("format", "--diff", "--exit-code").stdout == ""


def test_stubs_are_current() -> None:
    script = [sys.executable, str(ROOT / "scripts/gen_stubs.py"), "--check"]
    result = subprocess.run(script, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_check_sees_changed_missing_and_superfluous_stubs(gen_stubs: ModuleType, tmp_path: Path) -> None:
    committed = tmp_path / "committed"
    shutil.copytree(
        ROOT / "clients/python/saegis/v1", committed, ignore=shutil.ignore_patterns("__pycache__")
    )
    fresh = ROOT / "clients/python/saegis/v1"
    assert gen_stubs.differences(fresh, committed) == []
    (committed / "model_pb2.py").write_text("changed = True\n")
    (committed / "prompt_pb2.pyi").unlink()
    (committed / "old_pb2.py").write_text("")
    assert gen_stubs.differences(fresh, committed) == ["model_pb2.py", "old_pb2.py", "prompt_pb2.pyi"]
