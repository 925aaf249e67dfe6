"""promtool, Prometheus's own checker."""

import subprocess

from tests.tools import program


def promtool(*arguments: str, text: str = "") -> str:
    """What it says. Fails the test where it finds fault."""
    command = [program("promtool"), *arguments]
    ended = subprocess.run(command, input=text, text=True, capture_output=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


def check_metrics(text: str) -> None:
    """Fail the test where promtool finds anything in a scrape."""
    assert promtool("check", "metrics", text=text) == ""
