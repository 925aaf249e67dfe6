"""Commands in environments that nobody cleaned up: proxies, no home, odd variables, modules of the user's.

Each command answers, or says in one sentence why it does not. One server is started as `saegis demo` starts
its own, in all that a process inherits at once; the commands run in this process, in one oddity each.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from saegis_lab.cli.app import app
from saegis_server.rpc.server.process import ServerProcess
from tests.e2e.serving import write_tiny_files
from tests.sweep.test_starts import NO_MODEL, start, told

#: Modules of the standard library that Python has not loaded before it looks in the current folder.
SHADOWS = (
    "secrets",
    "random",
    "json",
    "typing",
    "dataclasses",
    "logging",
    "asyncio",
    "socket",
    "uuid",
    "ssl",
)
#: A proxy that nobody runs, and variables that name what is not there.
MISSING = "/no/such/folder"
PROXY = "http://127.0.0.1:1"
PROXIES = dict.fromkeys(("http_proxy", "https_proxy", "grpc_proxy", "all_proxy", "HTTP_PROXY"), PROXY)
#: Oddities that leave a command able to answer.
HARMLESS: dict[str, dict[str, str | None]] = {
    "proxies": {**PROXIES, "no_proxy": None},
    "home missing": {"HOME": MISSING, "XDG_CACHE_HOME": MISSING, "HF_HOME": MISSING},
    "home unset": {"HOME": None, "USER": None, "LOGNAME": None},
    "home empty": {"HOME": ""},
    "temporary folder missing": {"TMPDIR": MISSING},
    "terminal unknown": {"TERM": "no-such-terminal", "COLUMNS": "many", "LINES": "-1"},
    "terminal without columns": {"COLUMNS": "0"},
    "terminal unset": {"TERM": None, "LANG": None, "LC_ALL": None},
    "python careful": {"PYTHONSAFEPATH": "1", "PYTHONWARNINGS": "error", "PYTHONUTF8": "0"},
    "server and token empty": {"SAEGIS_SERVER": "", "SAEGIS_TOKEN": ""},
}
#: Oddities for which a command says in one sentence that it cannot.
TOLD = {
    "server is a URL": ({"SAEGIS_SERVER": "http://localhost:50051"}, "is a URL"),
    "server without a port": ({"SAEGIS_SERVER": "localhost:"}, "no port from 1 to 65535"),
    "token of two lines": ({"SAEGIS_TOKEN": "one\ntwo"}, "token"),
    "token not ASCII": ({"SAEGIS_TOKEN": "schlüssel"}, "token"),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server as the demo starts it, in a folder of modules that say so when they are run."""
    files = write_tiny_files(tmp_path_factory.mktemp("tiny"))
    folder = tmp_path_factory.mktemp("current")
    for name in SHADOWS:
        (folder / f"{name}.py").write_text(f"open({str(folder / 'run')!r}, 'a').write('{name} ')\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("PYTHONSAFEPATH", raising=False)
        odd = {
            **PROXIES,
            "HOME": MISSING,
            "TMPDIR": MISSING,
            "TERM": "none",
            "HF_HUB_OFFLINE": "1",
            "SAEGIS_MODEL": MISSING,
        }
        for name, value in {**odd, "OMP_NUM_THREADS": "1"}.items():
            patch.setenv(name, value)
        with ServerProcess(["--compile", "never", *files.options], lambda *_: None) as running:
            yield running
    assert not (folder / "run").exists(), (folder / "run").read_text(encoding="utf-8")


def generate(target: str, env: dict[str, str | None]) -> Result:
    """`saegis generate` of two tokens, in an environment."""
    words = ("generate", "the river", "--temperature", "0", "--max-tokens", "8", "--timeout", "60")
    return CliRunner().invoke(app, [*words, *(("--server", target) if target else ())], env=env)


@pytest.mark.parametrize("oddity", HARMLESS)
def test_generate_answers(server: ServerProcess, oddity: str) -> None:
    result = generate(server.target, HARMLESS[oddity])
    assert result.exit_code == 0, result.output
    assert result.stdout.strip()


@pytest.mark.parametrize("oddity", TOLD)
def test_generate_says_what_is_wrong(server: ServerProcess, oddity: str) -> None:
    env, words = TOLD[oddity]
    said = told(generate("" if "SAEGIS_SERVER" in env else server.target, dict(env)))
    assert words in said


@pytest.mark.parametrize("oddity", HARMLESS)
def test_serve_says_what_is_wrong_and_no_more(oddity: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a start that can fail for one reason alone."""
    for name, value in HARMLESS[oddity].items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        elif name != "PYTHONWARNINGS":
            monkeypatch.setenv(name, value)
    assert told(start()).count("error: ") == 1


def test_a_current_folder_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert NO_MODEL in told(start())
    assert "No such file" in told(start("--unix", "relative.sock"))
    os.chdir(tmp_path)
