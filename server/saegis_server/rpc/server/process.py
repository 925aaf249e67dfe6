"""A server process: starts `saegis serve` on free loopback ports, waits for it, and stops it."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

#: Called with a stage of the start, how much of it is done, and out of how much (0: not known).
Progress = Callable[[str, int, int], None]
STOP_SECONDS = 60.0
_LAST_LINES = 20
#: Variables of this prefix are settings of a server, but for the folder of what was compiled.
_SETTINGS, _NO_SETTING = "SAEGIS_", "SAEGIS_COMPILE_CACHE"


class ServerProcessError(RuntimeError):
    """The server did not start or stop properly; the message holds its last lines."""


class ServerProcess:
    """A running `saegis serve`; the end of the `with` block always stops it.

    Its settings are the options alone, whatever the environment sets for other servers.
    """

    def __init__(self, options: Sequence[str], progress: Progress) -> None:
        """Start it with these options of `saegis serve`, and wait until it serves.

        Raises ServerProcessError if it ends before.
        """
        self.target = ""
        self.metrics_port = 0
        self.http_port: int | None = None
        self.start_seconds = 0.0
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        # -P: otherwise Python would import modules from the current folder, such as a user's `secrets.py`.
        command = [sys.executable, "-P", "-m", "saegis_server.cli", "serve", "--json", "--port", "0"]
        # In a session of its own: Ctrl-C reaches only this process, which then stops the server properly.
        self._process = subprocess.Popen(  # noqa: S603 - the command is made here
            [*command, "--metrics-port", "0", *options],
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
            env={
                name: value
                for name, value in os.environ.items()
                if not name.startswith(_SETTINGS) or name == _NO_SETTING
            },
            start_new_session=True,
        )
        try:
            self._await_ready(progress)
        except BaseException:
            self._end()
            raise

    def _await_ready(self, progress: Progress) -> None:
        began, stage = time.monotonic(), ""
        if self._process.stdout is None:
            raise ServerProcessError("the server has no standard output")
        for line in self._process.stdout:
            event: dict[str, Any] = json.loads(line)
            if event["event"] == "stage":
                stage = event["stage"]
                progress(stage, event["done"], event["total"])
            elif event["event"] == "ready":
                progress(stage, 1, 1)
                self.target, self.metrics_port = event["target"], event["metrics_port"]
                self.http_port = event.get("http_port")
                self.start_seconds = time.monotonic() - began
                return
        code = self._process.wait()
        raise ServerProcessError(f"the server ended with exit {code} before it served:\n{self._last_lines()}")

    def stop(self) -> float:
        """Send SIGTERM and wait for the end; returns how many seconds it took.

        Raises ServerProcessError unless it ends with exit 0 in time.
        """
        began = time.monotonic()
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise ServerProcessError(
                f"the server did not stop within {STOP_SECONDS:g} s of SIGTERM"
            ) from None
        if code != 0:
            raise ServerProcessError(f"the server ended with exit {code}:\n{self._last_lines()}")
        return time.monotonic() - began

    def _last_lines(self) -> str:
        self._errors.seek(0)
        return "".join(self._errors.readlines()[-_LAST_LINES:]).rstrip()

    def _end(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._errors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
