"""Tests of measuring lists of edits on a real server: against a naive recomputation, call by call."""

import math

import pytest

import saegis
from saegis_lab.evaluation.experiment import Decoding, Prompt
from saegis_lab.evaluation.mentions import PLAIN, MentionRow, measure_mentions
from saegis_lab.evaluation.requests import Requests
from saegis_lab.evaluation.units import repetition
from tests.evaluation.samples import PROMPTS, answer_logprobs

TO = saegis.feature("the red bridge", sae="first")
TRIALS = {
    "clamped": [saegis.clamp(TO, 2.0, unit="max_activation")],
    "redirected": [saegis.redirect(saegis.feature(index, sae="first"), 4.0, to=TO) for index in (3, 5, 7, 9)],
}
BENIGN = [prompt for prompt in PROMPTS if not prompt.harmful]
DECODING = Decoding(max_tokens=12)


def has_an_e(text: str, language: str) -> float:
    return float(("e" if language == "en" else "a") in text)


def is_short(text: str, language: str) -> bool:
    """What stands for a text that reads well; languages differ so that a mix-up would show."""
    return len(text) < (40 if language == "en" else 30)


@pytest.fixture(scope="module")
def rows(evaluated_target: str) -> tuple[MentionRow, ...]:
    with saegis.Client(evaluated_target) as client:
        trials = list(TRIALS.items())
        return measure_mentions(Requests(client, 4), PROMPTS, trials, has_an_e, DECODING, is_short)


def test_every_row_is_what_single_calls_say(client: saegis.Client, rows: tuple[MentionRow, ...]) -> None:
    places = [(name, code) for name in (PLAIN, *TRIALS) for code in ("en", "de")]
    assert [(row.edits, row.language) for row in rows] == places
    plain_perplexity: dict[str, float] = {}
    for row in rows:
        texts = [
            client.generate(
                messages=prompt.messages,
                steering=TRIALS.get(row.edits, ()),
                temperature=0.0,
                max_tokens=12,
            ).text
            for prompt in BENIGN
            if prompt.language == row.language
        ]
        logprobs = [value for text in texts for value in answer_logprobs(client, text)]
        perplexity = math.exp(-sum(logprobs) / len(logprobs))
        ordinary = plain_perplexity.setdefault(row.language, perplexity)
        assert row.mentions == sum(has_an_e(text, row.language) for text in texts) / len(texts)
        assert row.reads_well == sum(is_short(text, row.language) for text in texts) / len(texts)
        assert row.text.perplexity_ratio == pytest.approx(perplexity / ordinary, rel=1e-4)
        assert row.text.repetition == pytest.approx(sum(map(repetition, texts)) / len(texts))


def test_the_edits_are_felt(rows: tuple[MentionRow, ...]) -> None:
    for code in ("en", "de"):
        assert len({row.text.perplexity for row in rows if row.language == code}) == 3


def test_without_a_check_of_the_text_none_is_told(client: saegis.Client) -> None:
    for row in measure_mentions(Requests(client), PROMPTS, [], has_an_e, DECODING):
        assert row.reads_well is None


def test_harmful_prompts_alone_are_refused(client: saegis.Client) -> None:
    with pytest.raises(ValueError, match=r"^prompts: none of them is harmless"):
        measure_mentions(Requests(client), [Prompt("x", "en", True)], [], has_an_e, DECODING)
