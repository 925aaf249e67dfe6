"""The whole benchmark, each part of it at a size of seconds: what it measures is there, and told."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from saegis_lab.bench import faces, loads, run, sight, subjects
from saegis_lab.cli.app import app
from saegis_server.engine.api import SamplingParams
from saegis_server.reference import MODEL
from tests.e2e.serving import write_tiny_files
from tests.rpc import tiny

TOKENS, WIDTHS = 4, (1024, 16384, 2048)


def told(what: str, done: int, total: int) -> None:
    """Progress that nobody looks at."""


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model in place of the random one, few requests of few tokens, and nothing compiled."""
    monkeypatch.setattr(subjects, "random_llama", lambda device: subjects._subject("tiny", tiny.model()))
    monkeypatch.setattr(loads, "NEW_TOKENS", TOKENS)
    greedy = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True)
    monkeypatch.setattr(loads, "_GREEDY", greedy)
    for module in (run, sight):
        monkeypatch.setattr(module, "CONCURRENT", 2)
        monkeypatch.setattr(module, "OPERATING_ROUNDS", 1)
        monkeypatch.setattr(module, "warm_step", partial(loads.warm_step, compiled=False))
    for name, value in {"MANY": 4, "DIFFERENT": (1, 2), "AT_ONCE": (1, 2), "WIDTHS": WIDTHS}.items():
        monkeypatch.setattr(run, name, value)


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_every_part_of_a_model_is_measured_and_told_in_both_forms(tmp_path: Path) -> None:
    table = tmp_path / "table.md"
    given = ["bench", "--only", "random", "--rounds", "1", "--json", "--markdown", str(table)]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert f"torch {torch.__version__}" in answer["machine"]
    rows = answer["ratios"]
    whats = [row["what"] for row in rows]
    assert len(set(zip(whats, [row["against"] for row in rows], strict=True))) == len(rows) == 15
    for begins in ("2 × 8 rows", "4 × 8 rows", "32 features", "all features", "1 request at", "2 texts"):
        assert any(what.startswith(begins) for what in whats), begins
    for row in rows:
        assert row["subject"] == "tiny, 0.0 M"
        assert min(row["ours"], row["theirs"], row["low"]) > 0.0
        assert row["low"] <= row["ratio"] <= row["high"]
    assert table.read_text(encoding="utf-8").count("\n| tiny") == len(rows)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_both_faces_of_a_server_of_its_own_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"ANSWER_TOKENS": 24, "STREAMS": 2, "ROUNDS": 2}.items():
        monkeypatch.setattr(faces, name, value)
    options = (*write_tiny_files(tmp_path).options, "--compile", "never")
    (beside,) = faces.faces("tiny", 1, told, further=options)
    assert (beside.against, beside.unit, beside.bar) == ("gRPC", "ms", "≤ 1.1")
    assert min(beside.ours, beside.theirs) > 0.0


def test_a_subject_makes_fresh_copies_of_its_model() -> None:
    reference = subjects.reference_subject(str(MODEL))
    assert reference.title == "reference model, 2.0 M"
    first, second = reference.make(), reference.make()
    own, other = next(first.parameters()), next(second.parameters())
    assert own.data_ptr() != other.data_ptr()
    assert torch.equal(own, other)


def test_the_random_model_is_the_same_every_time() -> None:
    one, other = (subjects.random_llama().make() for _ in range(2))
    assert subjects.random_llama().title == "random Llama, 28.3 M"
    assert all(map(torch.equal, one.parameters(), other.parameters()))
