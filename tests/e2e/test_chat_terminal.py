"""`saegis chat` in a terminal: the arrow keys edit the line and bring back earlier ones."""

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.e2e.serving import Serving, environment

UP, LEFT, ENTER, BACKSPACE, END_OF_INPUT = b"\x1b[A", b"\x1b[D", b"\r", b"\x7f", b"\x04"
PATIENCE_SECONDS = 60.0


class Terminal:
    """A chat whose input, output and errors are one terminal."""

    def __init__(self, target: str) -> None:
        self._ours, theirs = pty.openpty()
        self._seen = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "saegis_server.cli", "chat", "--server", target],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment(TERM="xterm", COLUMNS="400", LC_ALL="C.UTF-8", INPUTRC=os.devnull),
            start_new_session=True,
        )
        os.close(theirs)

    def press(self, *keys: bytes | str) -> None:
        """Type keys."""
        os.write(self._ours, b"".join(key if isinstance(key, bytes) else key.encode() for key in keys))

    def awaited(self, text: str) -> None:
        """Read until `text` has come, and forget all until then. Fails where it does not come in time."""
        deadline, raw = time.monotonic() + PATIENCE_SECONDS, self._seen.encode()
        while text not in raw.decode(errors="replace"):
            assert select.select([self._ours], [], [], max(0.0, deadline - time.monotonic()))[0], raw
            raw += os.read(self._ours, 65536)
        self._seen = raw.decode(errors="replace").partition(text)[2]

    def answered(self, text: str) -> None:
        """Read until `text` has come and the next line may be typed, which nothing edits earlier."""
        self.awaited(text)
        self.awaited("> ")

    def close(self) -> None:
        """End it, whatever it does."""
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


@pytest.fixture
def terminal(server: Serving) -> Iterator[Terminal]:
    """A chat that waits for the first line."""
    chat = Terminal(server.target)
    chat.answered("unsteered")
    yield chat
    chat.close()


def test_lines_are_edited_and_brought_back_whatever_is_written_in_them(terminal: Terminal) -> None:
    terminal.press("/clamp 3=8", ENTER)
    terminal.answered("in force: clamp 3=8")
    terminal.press(UP, BACKSPACE, "9", ENTER)
    terminal.answered("in force: clamp 3=9")
    # A character of two columns, and one that is made of two: each goes with one key.
    terminal.press("/ban 桥x梁", LEFT, BACKSPACE, ENTER)
    terminal.answered("'桥梁'")
    terminal.press("/ban cafe\u0301sx", LEFT, LEFT, LEFT, BACKSPACE, ENTER)
    terminal.awaited("'cae\u0301sx'")
    terminal.answered("in force: clamp 3=9")
    terminal.press(END_OF_INPUT)
    assert terminal.process.wait(PATIENCE_SECONDS) == 0
