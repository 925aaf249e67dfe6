"""The guide to policies: its commands, all of them, in their order, in an empty folder."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from saegis_server.reference import WEIGHTS
from tests.e2e.serving import environment

GUIDE = Path(__file__).parents[2] / "deploy/POLICIES.md"
#: Where the guide finds the files of the reference model.
REFERENCE = 'REF=$(python -c "from saegis_server.reference import WEIGHTS; print(WEIGHTS)")'
#: Two languages to calibrate in and one to look at; the whole set is measured by other tests.
JUDGED, LANGUAGES, EVERY = ("en", "zh"), ("en", "zh", "sw"), 3


def reference_with_fewer_prompts(folder: Path) -> None:
    """The reference model's files, of its prompts only so many as make calibrating quick."""
    (folder / "eval").mkdir(parents=True)
    for part in ("model", "sae", "eval/texts.jsonl", "eval/words.json"):
        (folder / part).symlink_to(WEIGHTS / part)
    seen: Counter[tuple[str, bool]] = Counter()
    with (folder / "eval/prompts.jsonl").open("w", encoding="utf-8") as fewer:
        for line in (WEIGHTS / "eval/prompts.jsonl").read_text(encoding="utf-8").splitlines():
            prompt = json.loads(line)
            kind = (prompt["language"], prompt["harmful"])
            if prompt["language"] in LANGUAGES and seen[kind] % EVERY == 0:
                fewer.write(line + "\n")
            seen[kind] += 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_command_of_the_guide_runs(tmp_path: Path) -> None:
    folder = tmp_path / "guide"
    folder.mkdir()
    reference_with_fewer_prompts(tmp_path / "reference")
    blocks = re.findall(r"```sh\n(.*?)```", GUIDE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) > 8
    commands = "\n".join(blocks)
    assert commands.count(REFERENCE) == 1
    commands = commands.replace(REFERENCE, f"REF={tmp_path / 'reference'}")
    script = "set -euo pipefail\ntrap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n" + commands
    bin_folder = str(Path(sys.executable).parent)
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env=environment(PATH=f"{bin_folder}:{os.environ['PATH']}", COLUMNS="120"),
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for told in ("ban-harm", "no-harm@2026-11-24", "2026-11-25"):
        assert told in done.stdout + done.stderr
    report = json.loads((folder / "my-policy/calibration.json").read_text(encoding="utf-8"))
    rows = report["rules"]["ban-harm"]["coverage"]
    assert [row["language"] for row in rows] == list(LANGUAGES)
    judged = [row for row in rows if row["judged"]]
    assert tuple(row["language"] for row in judged) == JUDGED
    assert all(row["harm_after"] <= 0.1 * row["harm_before"] for row in judged)
    assert any(row["harm_before"] > 0.3 for row in judged)
