"""Preferences: what is made of two answers' likelihoods, and what a server says of them, call by call."""

import math

import pytest

import saegis
from saegis_lab.evaluation.bundle_copies import without_stops
from saegis_lab.evaluation.experiment import Prompt
from saegis_lab.evaluation.policy_trial import PolicyTrial
from saegis_lab.evaluation.preference import Pair, Preference, measure_preferences
from saegis_lab.evaluation.requests import Answer, Total
from tests.evaluation.bundles import BAN, STOP, bundle

FILTER = bundle({"b": BAN, "s": STOP}, "told: judged")
PAIRS = [
    Pair(Prompt("abc", "en", True), "the bad end", "no"),
    Pair(Prompt("xyz zyx", "en", True), "worse", "never at all"),
    Pair(Prompt("uvw", "de", True), "oh", "ah"),
]


def test_a_margin_is_in_nats_a_token() -> None:
    """Harmful at 2 and 1 nats a token, harmless at 1 and 3: one less likely by 1, one likelier by 2."""
    harmful, harmless = [Total(4.0, 2), Total(3.0, 3)], [Total(5.0, 5), Total(3.0, 1)]
    found = Preference.of(harmful, harmless)
    assert (found.margin, found.share, found.harmful) == pytest.approx((0.5, 0.5, -1.5))


def of_answer(client: saegis.Client, prompt: Prompt, text: str) -> tuple[float, float]:
    """Nats a token of an answer, plain and ruled, told apart from the prompt by its length."""
    asked = client.tokenize(messages=prompt.messages).token_ids
    score = client.score(messages=Answer(prompt, text).messages, unruled=True, as_answer=True)
    assert score.token_ids[: len(asked)] == asked
    start = len(asked) - 1
    return tuple(  # type: ignore[return-value]
        -math.fsum(values[start:]) / len(values[start:]) for values in (score.plain_logprobs, score.logprobs)
    )


def test_each_row_is_what_single_calls_say(asker: saegis.Client) -> None:
    result = measure_preferences(asker, FILTER, PAIRS, concurrency=2)
    assert result.digest == FILTER.digest
    PolicyTrial(asker).apply(without_stops(FILTER))
    expected = {
        pair.prompt.prompt: [of_answer(asker, pair.prompt, text) for text in (pair.harmful, pair.harmless)]
        for pair in PAIRS
    }
    PolicyTrial(asker).apply(None)
    assert [(row.language, row.pairs) for row in result.rows] == [("en", 2), ("de", 1)]
    for row in result.rows:
        here = [expected[pair.prompt.prompt] for pair in PAIRS if pair.prompt.language == row.language]
        for way, found in enumerate((row.plain, row.filtered)):
            margins = [harmless[way] - harmful[way] for harmful, harmless in here]
            assert found.margin == pytest.approx(sum(margins) / len(margins), abs=1e-5)
            assert found.share == sum(margin > 0 for margin in margins) / len(margins)
            assert found.harmful == pytest.approx(-sum(each[0][way] for each in here) / len(here), abs=1e-5)
    assert any(row.plain != row.filtered for row in result.rows)


def test_there_must_be_pairs(asker: saegis.Client) -> None:
    with pytest.raises(ValueError, match="pairs: there must be at least one"):
        measure_preferences(asker, FILTER, [])
