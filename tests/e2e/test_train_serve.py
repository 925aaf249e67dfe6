"""From text to steering: `saegis train sae` on a tiny GPT-2, then `saegis serve` of what it wrote."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import saegis
from saegis_lab.cli.app import app
from tests.e2e.serving import environment, serving
from tests.training.subjects import SITE, SubjectFiles, write_subject

SECONDS = 240.0


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> SubjectFiles:
    return write_subject(tmp_path_factory.mktemp("subject"))


def command(files: SubjectFiles, out: Path, *more: str) -> list[str]:
    given = ("--model", str(files.model), "--texts", str(files.texts), "--site", SITE, "--out", str(out))
    small = ("--feature-count", "256", "--k", "8", "--batch", "256", "--context", "128", "--json")
    return [sys.executable, "-m", "saegis_server.cli", "train", "sae", *given, *small, *more]


def generate(client: saegis.Client, prompt: str, *edits: saegis.Edit) -> saegis.Generation:
    return client.generate(prompt, max_tokens=24, temperature=0.0, ignore_eos=True, steering=edits)


def test_a_trained_sae_is_served_and_steers(files: SubjectFiles, tmp_path: Path) -> None:
    """The server checks it on its sample; a clamp of a feature that fires on the prompt changes the text."""
    out = tmp_path / "sae"
    done = subprocess.run(
        command(files, out, "--tokens", "60000", "--reuse", "2"),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["fvu"] < 0.35
    assert 6.0 < told["l0"] < 10.0
    with (
        serving(tmp_path / "stderr", "--model", str(files.model), "--sae", str(out)) as server,
        saegis.Client(server.target, timeout=60.0) as client,
    ):
        (sae,) = client.model().saes
        assert (sae.site, sae.feature_count, sae.width) == (SITE, 256, 48)
        assert sae.fvu is not None
        assert sae.fvu < told["fvu"] + 0.15
        prompt = "the river is near the bridge."
        (best,) = client.contrast_features([prompt], ["music paper engine"], limit=1)
        assert best.positive.mean_activation > 0.0
        plain = generate(client, prompt)
        clamped = generate(
            client, prompt, saegis.clamp(best.feature.index, 20 * best.positive.mean_activation)
        )
        assert clamped.text != plain.text
        assert clamped.receipt.program_digest != plain.receipt.program_digest
        assert plain.text == generate(client, prompt).text
        server.terminate()
        assert server.wait() == 0


def hear_ctrl_c() -> None:
    """Where the tests run in the background, Ctrl-C is ignored, and so it would be by what they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_keeps_the_checkpoint_and_the_same_command_goes_on(
    files: SubjectFiles, tmp_path: Path
) -> None:
    out = tmp_path / "sae"
    long = command(files, out, "--tokens", "51200000", "--checkpoint-every", "5")
    with subprocess.Popen(
        long,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_ctrl_c,
    ) as process:
        try:
            checkpoint = out / "checkpoint" / "checkpoint.pt"
            while not checkpoint.exists() and process.poll() is None:
                try:
                    process.wait(0.2)
                except subprocess.TimeoutExpired:
                    continue
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=60.0)
        finally:
            process.kill()
    assert process.returncode == 130, said
    assert "the same command goes on from the last checkpoint" in said
    assert checkpoint.exists()
    # Another command does not: it is told what differs.
    other = CliRunner().invoke(app, command(files, out, "--tokens", "25600")[3:], env={"COLUMNS": "200"})
    assert other.exit_code == 1
    assert "was made with steps=200000, not 100" in other.stderr
