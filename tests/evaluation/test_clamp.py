"""Tests of measuring a clamp on a real server: against a naive recomputation, call by call."""

import json
import math
from pathlib import Path

import pytest

import saegis
from saegis.cli.output import plain
from saegis_lab.evaluation.clamp import ClampResult, measure_clamp
from saegis_lab.evaluation.experiment import Decoding, Prompt
from saegis_lab.evaluation.requests import Requests
from saegis_lab.evaluation.units import repetition
from tests.evaluation.samples import PROMPTS, answer_logprobs

FEATURE = saegis.feature("the red bridge", sae="first")
DECODING = Decoding(1.0, 2, 3, 12)
BENIGN = [prompt for prompt in PROMPTS if not prompt.harmful]


def has_an_e(text: str, language: str) -> float:
    """What stands for a mention here; languages differ so that a mix-up would show."""
    return 0.5 if ("e" if language == "en" else "a") in text else 0.0


@pytest.fixture(scope="module")
def measured(evaluated_target: str) -> ClampResult:
    with saegis.Client(evaluated_target) as client:
        requests = Requests(client, 4)
        values = (0.0, 1.0, 3.0)
        return measure_clamp(requests, PROMPTS, FEATURE, values, "max_activation", has_an_e, "e", DECODING)


@pytest.mark.parametrize("value", [None, 0.0, 1.0, 3.0])
def test_every_figure_is_what_single_calls_say(
    client: saegis.Client, measured: ClampResult, value: float | None
) -> None:
    edits = [] if value is None else [saegis.clamp(FEATURE, value, unit="max_activation")]
    for code in ("en", "de"):
        texts = []
        for number, prompt in enumerate([each for each in BENIGN for _ in range(2)]):
            if prompt.language == code:
                answer = client.generate(
                    messages=prompt.messages, steering=edits, temperature=1.0, seed=3 + number, max_tokens=12
                )
                texts.append(answer.text)
        logprobs = [value for text in texts for value in answer_logprobs(client, text)]
        perplexity = math.exp(-sum(logprobs) / len(logprobs))
        row = measured.row(code, value)
        assert row.mentions == pytest.approx(sum(has_an_e(text, code) > 0 for text in texts) / len(texts))
        assert (row.text.answers, row.text.empty) == (len(texts), 0)
        assert row.text.perplexity == pytest.approx(perplexity, rel=1e-4)
        assert row.text.repetition == pytest.approx(sum(map(repetition, texts)) / len(texts))
        plain_row = measured.row(code, None)
        assert plain_row.text.perplexity is not None
        assert row.text.perplexity_ratio == pytest.approx(perplexity / plain_row.text.perplexity, rel=1e-4)


def test_the_clamp_is_felt(measured: ClampResult) -> None:
    perplexities = {measured.row("en", value).text.perplexity for value in (None, 0.0, 1.0, 3.0)}
    assert len(perplexities) == 4


def test_the_result_says_what_was_done_and_comes_back(measured: ClampResult, tmp_path: Path) -> None:
    assert (measured.model, measured.sae, measured.feature) == ("tiny", "first", "the red bridge")
    assert [(row.value, row.language) for row in measured.rows] == [
        (value, code) for value in (None, 0.0, 1.0, 3.0) for code in ("en", "de")
    ]
    path = tmp_path / "clamp.json"
    path.write_text(json.dumps(plain(measured), allow_nan=False), encoding="utf-8")
    assert ClampResult.load(path) == measured
    with pytest.raises(KeyError):
        measured.row("en", 9.0)


@pytest.mark.parametrize(
    ("prompts", "values", "complaint"),
    [
        ([Prompt("x", "en", True)], (1.0,), "prompts: none of them is harmless"),
        (PROMPTS, (), "values: there must be at least one"),
        (PROMPTS, (1.0, 0.0), "values: each must be greater"),
        (PROMPTS, (math.nan,), "values: must be finite"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    client: saegis.Client, prompts: list[Prompt], values: tuple[float, ...], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        measure_clamp(Requests(client), prompts, FEATURE, values, "feature", has_an_e, "e", DECODING)
