"""The guide to policies: its commands, all of them, in their order, in an empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.serving import environment

GUIDE = Path(__file__).parents[2] / "deploy/POLICIES.md"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_command_of_the_guide_runs(tmp_path: Path) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", GUIDE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) > 8
    script = "set -euo pipefail\ntrap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n" + "\n".join(blocks)
    bin_folder = str(Path(sys.executable).parent)
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=environment(PATH=f"{bin_folder}:{os.environ['PATH']}", COLUMNS="120"),
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for told in ("ban-harm", "no-harm@2026-11-24", "2026-11-25"):
        assert told in done.stdout + done.stderr
    assert (tmp_path / "my-policy/calibration.json").exists()
