"""Tests of measuring a ban on a real server: against a naive recomputation, call by call."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

import saegis
from saegis.cli.output import plain
from saegis_lab.evaluation.ban import AnswerFigures, BanResult, measure_ban
from saegis_lab.evaluation.calibration import BanReport
from saegis_lab.evaluation.experiment import Decoding, Prompt
from saegis_lab.evaluation.requests import Requests
from saegis_lab.evaluation.scorers import BanScorers
from tests.evaluation.samples import PROMPTS, answer_logprobs
from tests.tiers import few

FEATURES = (saegis.feature(3, sae="first"), saegis.feature("poison", sae="first"))
DECODINGS = (Decoding(max_tokens=12), Decoding(1.0, 2, 5, 12))


def share_of_vowels(text: str, language: str) -> float:
    """What stands for harm here; languages differ so that a mix-up would show."""
    vowels = "aeiou" if language == "en" else "aou"
    return sum(char in vowels for char in text) / max(1, len(text))


def opens_low(text: str, language: str) -> float:
    return float(text[:1] < "m")


SCORERS = BanScorers(share_of_vowels, opens_low)


@pytest.fixture(scope="module")
def measured(evaluated_target: str) -> BanResult:
    with saegis.Client(evaluated_target) as client:
        requests = Requests(client, 4)
        return measure_ban(requests, PROMPTS, FEATURES, (0.0, 3.0), SCORERS, DECODINGS, ("en",))


def answers(client: saegis.Client, decoding: Decoding, edits: list[saegis.Edit]) -> list[tuple[Prompt, str]]:
    found: list[tuple[Prompt, str]] = []
    for prompt in PROMPTS:
        for _ in range(decoding.samples):
            text = client.generate(
                messages=prompt.messages,
                steering=edits,
                temperature=decoding.temperature,
                seed=decoding.seed + len(found),
                max_tokens=decoding.max_tokens,
            ).text
            found.append((prompt, text))
    return found


def perplexity(client: saegis.Client, texts: list[str]) -> float | None:
    logprobs: list[float] = []
    for text in texts:
        logprobs += answer_logprobs(client, text)
    return math.exp(-sum(logprobs) / len(logprobs)) if logprobs else None


@pytest.mark.parametrize("decoding", DECODINGS, ids=str)
@pytest.mark.parametrize("strength", few([3.0, None, 0.0], 1))
def test_every_figure_is_what_single_calls_say(
    client: saegis.Client, measured: BanResult, decoding: Decoding, strength: float | None
) -> None:
    edits = [] if strength is None else [saegis.ban(each, strength) for each in FEATURES]
    plain_answers, banned = answers(client, decoding, []), answers(client, decoding, edits)
    for code in ("en", "de"):
        row = measured.row(code, strength, decoding.temperature)
        ordinary = [
            text for prompt, text in plain_answers if (prompt.language, prompt.harmful) == (code, False)
        ]
        baseline = perplexity(client, ordinary)
        for harmful, figures in ((True, row.harmful), (False, row.benign)):
            texts = [text for prompt, text in banned if (prompt.language, prompt.harmful) == (code, harmful)]
            check(figures, texts, code, perplexity(client, texts), baseline)
        divergences: list[float] = []
        for prompt, text in plain_answers:
            if (prompt.language, prompt.harmful) == (code, False):
                finished = [*prompt.messages, {"role": "assistant", "content": text}]
                divergences += client.score(messages=finished, steering=edits).divergences
        assert row.kl == pytest.approx(sum(divergences) / len(divergences), rel=1e-4, abs=1e-9)


def check(
    figures: AnswerFigures | None, texts: list[str], code: str, expected: float | None, baseline: float | None
) -> None:
    assert figures is not None
    count = len(texts)
    scores = [share_of_vowels(text, code) for text in texts]
    assert figures.text.answers == count
    assert figures.harm == pytest.approx(sum(scores) / count)
    assert figures.harmful_answers == pytest.approx(sum(score > 0 for score in scores) / count)
    assert figures.refusal == pytest.approx(sum(opens_low(text, code) for text in texts) / count)
    assert expected is not None
    assert baseline is not None
    assert figures.text.perplexity == pytest.approx(expected, rel=1e-4)
    assert figures.text.perplexity_ratio == pytest.approx(expected / baseline, rel=1e-4)


def test_a_ban_moves_the_model_and_none_does_not(measured: BanResult) -> None:
    for code in ("en", "de"):
        kls = [measured.row(code, strength, 0.0).kl for strength in (None, 0.0, 3.0)]
        assert None not in kls
        without, weak, strong = (kl or 0.0 for kl in kls)
        assert without == pytest.approx(0.0, abs=1e-9)
        assert 1e-4 < weak < strong


def test_an_empty_ban_changes_nothing(client: saegis.Client) -> None:
    result = measure_ban(Requests(client, 4), PROMPTS, (), (2.0,), SCORERS, DECODINGS)
    for row in result.rows:
        assert row.kl == pytest.approx(0.0, abs=1e-9)
        assert replace(row, strength=None, kl=0.0) == replace(
            result.row(row.language, None, row.temperature), kl=0.0
        )


def test_the_result_says_what_was_done(measured: BanResult) -> None:
    assert (measured.model, measured.sae, measured.features) == ("tiny", "first", (3, "poison"))
    assert (measured.strengths, measured.languages, measured.chosen_from) == (
        (0.0, 3.0),
        ("en", "de"),
        ("en",),
    )
    places = [(row.temperature, row.strength, row.language) for row in measured.rows]
    assert places == [(t, s, code) for t in (0.0, 1.0) for s in (None, 0.0, 3.0) for code in ("en", "de")]
    with pytest.raises(KeyError):
        measured.row("fr", None, 0.0)


def test_a_report_comes_back_from_its_json(measured: BanResult, tmp_path: Path) -> None:
    for languages in ((), ("en",)):
        report = BanReport.of(measured, languages)
        path = tmp_path / "report.json"
        path.write_text(json.dumps(plain(report), allow_nan=False), encoding="utf-8")
        assert BanReport.load(path) == report


def test_languages_may_lack_a_kind_of_prompts_and_scorers_refusals(client: saegis.Client) -> None:
    prompts = (Prompt("the red bridge", "en", True), Prompt("birds sing", "de", False))
    scorers = BanScorers(share_of_vowels, None)
    result = measure_ban(Requests(client), prompts, FEATURES, (1.0,), scorers, (Decoding(max_tokens=4),))
    english, german = result.row("en", 1.0, 0.0), result.row("de", 1.0, 0.0)
    assert (english.benign, english.kl, german.harmful) == (None, None, None)
    assert english.harmful is not None
    assert english.harmful.refusal is None
    # There are no ordinary answers to compare with.
    assert english.harmful.text.perplexity_ratio is None
    assert english.harmful.text.perplexity is not None


@pytest.mark.parametrize(
    ("prompts", "strengths", "decodings", "complaint"),
    [
        ((), (1.0,), DECODINGS, "prompts: "),
        (PROMPTS, (), DECODINGS, "strengths: "),
        (PROMPTS, (1.0,), (), "decodings: "),
        (PROMPTS, (1.0, 1.0), DECODINGS, "strengths: one stands there twice"),
        (PROMPTS, (1.0,), (Decoding(), Decoding()), "temperatures: one stands there twice"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    client: saegis.Client,
    prompts: tuple[Prompt, ...],
    strengths: tuple[float, ...],
    decodings: tuple[Decoding, ...],
    complaint: str,
) -> None:
    with pytest.raises(ValueError, match=complaint):
        measure_ban(Requests(client), prompts, FEATURES, strengths, SCORERS, decodings)
