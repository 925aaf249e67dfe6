"""promtool, Prometheus's own checker, where this machine has it."""

import os
import shutil
import subprocess

import pytest

#: Its path; the variable PROMTOOL names one that is not installed, such as one that dpkg -x has unpacked.
PROMTOOL = os.environ.get("PROMTOOL") or shutil.which("promtool")


def promtool(*arguments: str, text: str = "") -> str:
    """What it says. Fails the test where it finds fault, skips it where there is no promtool."""
    if PROMTOOL is None:
        pytest.skip("there is no promtool: apt-get install prometheus, or see tests/telemetry/promtool.py")
    ended = subprocess.run([PROMTOOL, *arguments], input=text, text=True, capture_output=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


def check_metrics(text: str) -> None:
    """Fail the test where promtool finds anything in a scrape; skip it where there is no promtool."""
    assert promtool("check", "metrics", text=text) == ""
