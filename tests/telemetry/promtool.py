"""promtool, Prometheus's own checker, where this machine has it."""

import os
import shutil
import subprocess

import pytest

#: Its path; SAEGIS_PROMTOOL names one that is not installed, such as one that dpkg -x has unpacked.
PROMTOOL = os.environ.get("SAEGIS_PROMTOOL") or shutil.which("promtool")


def check_metrics(text: str) -> None:
    """Fail the test where promtool finds anything in a scrape; skip it where there is no promtool."""
    if PROMTOOL is None:
        pytest.skip("there is no promtool: apt-get install prometheus, or see tests/telemetry/promtool.py")
    found = subprocess.run([PROMTOOL, "check", "metrics"], input=text, text=True, capture_output=True)
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")
