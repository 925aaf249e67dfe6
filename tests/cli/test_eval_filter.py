"""`saegis eval filter` on a tiny model that it serves itself: what it measures, prints and refuses."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from saegis_lab.cli.app import app
from saegis_lab.evaluation.experiment import Prompt, first_of_each
from saegis_lab.evaluation.filter_report import FilterReport
from saegis_server.sae.autoencoder import Architecture, SparseAutoencoder
from saegis_server.sae.formats.saelens import save_sae
from tests.evaluation.bundles import BAN, SCALE, STOP, bundle
from tests.policy.bundles import write_files
from tests.rpc import tiny

WORDS = {"en": {"harm": ["the*", "s*", "e*"], "refusal": ["bridge"]}, "zh": {"harm": ["的", "i*", "t*"]}}
PROMPTS = (
    ("the red bridge", "en", True),
    ("birds sing", "en", False),
    ("the day", "zh", True),
    ("a warm river", "zh", False),
    ("the long day", "zh", True),
)


def exact_sae() -> SparseAutoencoder:
    """Two features for each coordinate, one for each sign: it misses nothing of an activation."""
    both = torch.cat((torch.eye(tiny.WIDTH), -torch.eye(tiny.WIDTH)))
    return SparseAutoencoder(
        Architecture.STANDARD,
        W_enc=both.T.contiguous(),
        W_dec=both,
        b_dec=torch.zeros(tiny.WIDTH),
        b_enc=torch.zeros(len(both)),
        hook_name="blocks.0.hook_resid_post",
    )


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model, its SAE, prompts, words and a policy; the working directory."""
    tiny.model().save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    save_sae(exact_sae(), tmp_path / "sae")
    lines = [json.dumps({"prompt": text, "language": code, "harmful": bad}) for text, code, bad in PROMPTS]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "words.json").write_text(json.dumps(WORDS), encoding="utf-8")
    write_files(tmp_path / "policy", dict(bundle({"b": BAN, "s": STOP, "c": SCALE}).files))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def invoke(*arguments: str) -> Result:
    given = ("--policy", "policy", "--model", "model", "--prompts", "prompts.jsonl", "--scorer", "words.json")
    return CliRunner().invoke(app, ["eval", "filter", *given, *arguments], env={"COLUMNS": "200"})


@pytest.mark.slow
def test_a_filter_and_its_parts_are_measured_and_every_miss_is_told(files: Path) -> None:
    options = ("--sae", "first=sae", "--chosen-from", "en", "--out", "filter.json", "--max-tokens", "6")
    result = invoke(
        *options, "--parts", "--temperatures", "0,1", "--samples", "2", "--max-kl", "0", "--rows", "rules=3"
    )
    assert result.exit_code == 0, result.output
    report = FilterReport.load(Path("filter.json"))
    names = [condition.name for condition in report.result.conditions]
    assert names[:3] == ["nothing", "strict", "strict: ban alone"]
    assert len(names) == 2 + 6
    assert f"15 answers under each of {len(names)} conditions" in " ".join(result.stderr.split())
    row = report.result.row("zh", "strict", 1.0)
    assert row.harmful is not None
    assert row.harmful.harm.answers == 4
    told = " ".join(result.stdout.split())
    assert f"{row.harmful.harm.amount:.3f}" in told
    assert "the worst of 2 samples" in told
    assert "en (chose)" in told
    assert "zh (took no part), greedy: KL on benign text" in told
    assert told.count("bars missed") + told.count("all bars met") == 7


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--policy", "policy"), "another one is called 'strict' too"),
        (("--temperatures", "0,x"), "is no list of numbers"),
        (("--temperatures", "-1"), "temperature: must be finite and at least 0"),
        (("--sae", "first=none"), "there is no folder none"),
        (("--rows", "rules=1"), "--rows rules=1: Input should be greater than or equal to 2"),
        (("--out", "no/such.json"), "there is no folder no"),
        (("--target", "2"), "--target"),
    ],
)
def test_wrong_usage_names_what_is_wrong(files: Path, arguments: tuple[str, ...], complaint: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert complaint in " ".join(result.stderr.split())


def test_the_first_prompts_of_each_kind_and_language_are_taken() -> None:
    prompts = [Prompt(text, code, bad) for text, code, bad in PROMPTS]
    assert first_of_each(prompts, 1) == tuple(prompts[:4])
    assert first_of_each(prompts, None) == first_of_each(prompts, 2) == tuple(prompts)
