"""Every command, whatever the encodings and the output: one sentence, a sensible exit status, no answer lost.

The commands run in this process, on real files, pipes and devices in place of the standard streams.
"""

import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import typer
import typer.main

from saegis_lab.cli.app import app
from saegis_lab.cli.files import write_result
from tests.rpc.harness import running

NOT_UTF8 = "caf\udce9"
HALF = b'{"text": "\\ud800 is half", "label": "x", "language": "en", "prompt": "\\ud800", "harmful": true}\n'
LATIN1 = '{"text": "café", "label": "x", "language": "en", "prompt": "café", "harmful": true}\n'.encode(
    "latin-1"
)
NOBODY = ("--server", "127.0.0.1:1")


@dataclass(frozen=True)
class Ran:
    """How a command ended, and what it wrote."""

    code: int
    out: bytes
    told: str

    @property
    def errors(self) -> list[str]:
        return [line for line in self.told.splitlines() if line.startswith("error: ")]


def full() -> BinaryIO:
    """Output with no room."""
    return open("/dev/full", "wb", buffering=0)


def unread() -> BinaryIO:
    """Output that nobody reads any more."""
    read, write = os.pipe()
    os.close(read)
    return os.fdopen(write, "wb", buffering=0)


def ran(
    *arguments: str,
    given: bytes = b"",
    encoding: str = "utf-8",
    out: Callable[[], BinaryIO] = tempfile.TemporaryFile,
    told: Callable[[], BinaryIO] = tempfile.TemporaryFile,
) -> Ran:
    """Run a command on standard streams of an encoding, as strict as Python's own."""
    before = sys.stdin, sys.stdout, sys.stderr
    with out() as out_file, told() as told_file:
        sys.stdin = io.TextIOWrapper(io.BytesIO(given), encoding)
        sys.stdout = io.TextIOWrapper(out_file, encoding, errors="strict")
        sys.stderr = io.TextIOWrapper(told_file, encoding, errors="backslashreplace")
        try:
            app(arguments, prog_name="saegis")
        except SystemExit as end:
            code = end.code
        finally:
            streams = sys.stdout, sys.stderr
            sys.stdin, sys.stdout, sys.stderr = before
        assert isinstance(code, int)
        written = []
        for stream, file in zip(streams, (out_file, told_file), strict=True):
            stream.flush()
            stream.detach()
            seekable = file.seekable() and file.readable()
            if seekable:
                file.seek(0)
            written.append(file.read() if seekable else b"")
    return Ran(code, written[0], written[1].decode(encoding))


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")


def commands(command: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The names of all commands."""
    command = typer.main.get_command(app) if command is None else command
    within = getattr(command, "commands", None)
    if within is None:
        yield path
    else:
        for name, each in within.items():
            yield from commands(each, (*path, name))


COMMANDS = list(commands())


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The target of a server of the tiny model."""
    with running() as served:
        yield served.target


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_refuses_an_argument_that_is_no_text(command: tuple[str, ...]) -> None:
    found = ran(*command, NOT_UTF8)
    assert (found.code, found.out) == (2, b"")
    assert found.told == f"error: argument {len(command) + 1} is not UTF-8 text: 'caf\\udce9'\n"


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_commands_help_is_shown_or_said_to_be_lost(command: tuple[str, ...]) -> None:
    shown = ran(*command, "--help", encoding="ascii")
    assert (shown.code, shown.told) == (0, "")
    assert b"Usage" in shown.out
    for out, why in ((full, "No space left on device"), (unread, "Broken pipe")):
        lost = ran(*command, "--help", out=out)
        assert (lost.code, lost.told) == (1, f"error: the output cannot be written: {why}\n")


#: What is asked of the server: each prints something, the first ones what the model wrote.
ASKED: tuple[tuple[str, ...], ...] = (
    ("generate", "the river", "--temperature", "0", "--max-tokens", "24"),
    ("generate", "the river", "--temperature", "0", "--max-tokens", "24", "--stream"),
    ("generate", "the river", "--temperature", "0", "--max-tokens", "24", "--json"),
    ("generate", "the river", "--temperature", "0", "--max-tokens", "24", "--json", "--stream"),
    ("inspect", "die Brücke 中文", "--sae-id", "first"),
    ("inspect", "die Brücke 中文", "--sae-id", "first", "--json"),
    ("features", "search", "bridge", "--json"),
    ("features", "search", "bridge"),
    ("features", "show", "3", "--sae-id", "first"),
    ("features", "contrast", "--with", "Brücke", "--without", "river", "--sae-id", "first"),
)


@pytest.mark.parametrize("arguments", ASKED, ids=" ".join)
def test_no_answer_is_lost_to_an_encoding(server: str, arguments: tuple[str, ...]) -> None:
    usual = ran(*arguments, "--server", server)
    plain = ran(*arguments, "--server", server, encoding="ascii")
    assert (usual.code, plain.code) == (0, 0), plain.told
    assert plain.out.isascii()
    if "--json" in arguments:
        texts = [_texts(each.out) for each in (usual, plain)]
        assert texts[0] == texts[1]
    elif arguments[0] == "generate":
        assert plain.out == usual.out.decode().encode("ascii", "backslashreplace")
        assert not usual.out.isascii(), "the model writes what ASCII cannot show"


def _texts(out: bytes) -> list[object]:
    """All texts of the JSON documents that were printed, without what differs from call to call.

    Those of a stream's chunks as one text: how many tokens come in a chunk is a matter of time.
    """
    decoder, text, found, streamed = json.JSONDecoder(), out.decode().strip(), [], ""
    while text:
        value, end = decoder.raw_decode(text)
        text = text[end:].lstrip()
        if "chunk" in value:
            streamed += value["chunk"]["text"]
        else:
            found.append(value)
    return [streamed, *_leaves(found)]


def _leaves(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        for key in value.keys() - {"decision_id", "request_id"}:
            yield from _leaves(value[key])
    elif isinstance(value, list):
        for each in value:
            yield from _leaves(each)
    elif isinstance(value, str):
        yield value


@pytest.mark.parametrize("arguments", ASKED, ids=" ".join)
def test_output_that_is_not_taken_is_one_sentence(server: str, arguments: tuple[str, ...]) -> None:
    for out, why in ((full, "No space left on device"), (unread, "Broken pipe")):
        found = ran(*arguments, "--server", server, out=out)
        assert found.code == 1
        assert found.errors == [f"error: the output cannot be written: {why}"]
        assert "Traceback" not in found.told
    # Notes that nobody takes do not cost the answer.
    for told in (full, unread):
        kept = ran(*arguments, "--server", server, told=told)
        assert kept.code == 0
        assert kept.out


def test_a_chat_tells_a_line_that_is_no_text_and_goes_on(server: str) -> None:
    found = ran("chat", "--max-tokens", "2", "--server", server, given=b"caf\xe9\n/help\n")
    assert found.code == 0
    assert found.errors == ["error: messages.content: no Unicode text: half of a character stands at 3"]
    assert "/quit" in found.told


@pytest.mark.parametrize("command", [("generate", "-"), ("inspect", "-")], ids=" ".join)
def test_a_prompt_that_is_no_text(server: str, command: tuple[str, ...]) -> None:
    found = ran(*command, "--server", server, given=b"caf\xe9")
    assert (found.code, found.errors) == (2, ["error: standard input is not UTF-8 text: 'caf\\udce9'"])
    # A locale that knows ASCII alone does not keep a command from reading UTF-8.
    read = ran(
        "inspect", "-", "--sae-id", "first", "--json", "--server", server, given=b"\xc3\xa9", encoding="ascii"
    )
    assert read.code == 0, read.told


#: Commands that read a file, here {}, with what they need beside it.
READERS: tuple[tuple[str, ...], ...] = (
    ("features", "contrast", "--with-file", "{}", "--without", "b", *NOBODY),
    ("features", "label", "--model", "m", "--sae", "s", "--texts", "{}"),
    ("features", "choose", "--model", "m", "--sae", "s", "--texts", "{}", "--chosen-from", "en"),
    ("features", "import", "{}", "--sae", ".", "--out", "labels"),
    ("eval", "coverage", "--model", "m", "--sae", "s", "--texts", "{}", "--features", "1"),
    ("eval", "ban", "--prompts", "{}", *NOBODY),
    ("eval", "ban", "--features", "{}", *NOBODY),
    ("eval", "clamp", "--features", "{}", *NOBODY),
    ("policy", "validate", "{}"),
    ("policy", "test", "{}"),
    ("policy", "diff", "{}", "{}"),
    ("policy", "apply", "{}", *NOBODY),
    ("policy", "calibrate", "{}", "--prompts", "{}", "--scorer", "{}", *NOBODY),
    ("policy", "sign", "{}", "--key", "{}"),
    ("audit", "verify", "{}"),
    ("generate", "x", "--token-file", "{}", *NOBODY),
    ("serve", "--identities", "{}", "--port", "0", "--metrics-port", "-1", "--model", "m"),
)


@pytest.mark.parametrize("content", [LATIN1, HALF], ids=["latin-1", "half a character"])
@pytest.mark.parametrize("arguments", READERS, ids=" ".join)
def test_a_file_that_is_no_text_is_told_in_words(
    tmp_path: Path, arguments: tuple[str, ...], content: bytes
) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    found = ran(*(each.format(file) for each in arguments))
    assert found.code in (1, 2), found
    assert "Traceback" not in found.told
    assert "cannot encode" not in found.told
    assert found.told or found.out


def test_a_result_that_cannot_be_written_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as end:
        write_result(Path("/dev/full"), {"share": 0.5, "name": "café"})
    shown = capsys.readouterr()
    assert end.value.exit_code == 1
    assert json.loads(shown.out) == {"share": 0.5, "name": "café"}
    assert "error: /dev/full cannot be written: No space left on device" in shown.err


def _process(arguments: Sequence[str], redirect: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """The command as a process of its own, behind a shell's redirection."""
    line = f'"$0" -m saegis_server.cli "$@" {redirect}'
    environment = {**os.environ, **variables}
    return subprocess.run(
        ["/bin/sh", "-c", line, sys.executable, *arguments], capture_output=True, env=environment
    )


def test_the_process_itself_ends_so_too() -> None:
    full_one = _process(["--help"], "> /dev/full")
    assert (full_one.returncode, full_one.stderr) == (
        1,
        b"error: the output cannot be written: No space left on device\n",
    )
    closed = _process(["--version"], ">&-")
    assert (closed.returncode, closed.stderr.count(b"\n")) == (1, 1)
    assert b"standard output is closed" in closed.stderr
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    found = _process(["features", "show", "é", *NOBODY], "", **ascii_only)
    assert (found.returncode, found.stderr.count(b"error: ")) == (1, 1)
    assert b"listens at 127.0.0.1:1" in found.stderr
