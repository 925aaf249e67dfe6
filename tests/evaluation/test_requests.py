"""Tests of an evaluation's requests: against the same calls made one by one."""

import math

import pytest

import saegis
from saegis_lab.evaluation.experiment import Decoding
from saegis_lab.evaluation.requests import Answer, Requests, Total
from tests.evaluation.samples import PROMPTS
from tests.rpc import tiny

EDITS = (saegis.ban(saegis.feature(3, sae="first"), 2.0),)
SAMPLED = Decoding(temperature=1.0, samples=3, seed=11, max_tokens=8)


def test_answers_are_those_of_single_calls_in_order(client: saegis.Client) -> None:
    told: list[tuple[str, int, int]] = []
    requests = Requests(client, 4, lambda *stage: told.append(stage))
    answers = requests.answers(PROMPTS, EDITS, SAMPLED, "answers")
    expected: list[Answer] = []
    for prompt in PROMPTS:
        for _ in range(3):
            alone = client.generate(
                messages=[{"role": "user", "content": prompt.prompt}],
                steering=EDITS,
                temperature=1.0,
                max_tokens=8,
                seed=11 + len(expected),
            )
            expected.append(Answer(prompt, alone.text))
    assert answers == expected
    assert len({answer.text for answer in answers}) > 5
    assert told == [("answers", done, 15) for done in range(16)]


def test_likelihoods_are_of_the_answer_to_an_empty_message_and_unsteered(client: saegis.Client) -> None:
    texts = [tiny.TEXT, "", "birds"]
    found = Requests(client, 2).likelihoods(texts, "perplexity")
    assert found[1] is None
    for text, total in ((texts[0], found[0]), (texts[2], found[2])):
        conversation = [{"role": "user", "content": ""}, {"role": "assistant", "content": text}]
        opening = len(client.tokenize(messages=conversation[:1]).token_ids)
        score = client.score(messages=conversation)
        assert total is not None
        assert total.tokens == len(score.token_ids) - opening
        assert total.nats == pytest.approx(-sum(score.plain_logprobs[opening - 1 :]), rel=1e-5)


def test_divergences_are_of_the_finished_conversation(client: saegis.Client) -> None:
    answers = [Answer(prompt, "The river runs.") for prompt in PROMPTS]
    found = Requests(client, 3).divergences(answers, EDITS, "divergence")
    for prompt, total in zip(PROMPTS, found, strict=True):
        messages = [
            {"role": "user", "content": prompt.prompt},
            {"role": "assistant", "content": "The river runs."},
        ]
        score = client.score(messages=messages, steering=EDITS, as_answer=True)
        assert total.mean == pytest.approx(score.divergence, rel=1e-5)
        assert total.mean is not None
        assert total.mean > 1e-4


def test_a_call_that_fails_ends_the_work(client: saegis.Client) -> None:
    wrong = (saegis.ban(saegis.feature(10**6, sae="first")),)
    with pytest.raises(saegis.SaegisError, match="feature"):
        Requests(client, 2).answers(PROMPTS, wrong, SAMPLED, "answers")


def test_the_only_sae_is_named_and_no_other(client: saegis.Client) -> None:
    requests = Requests(client)
    assert requests.model_id == "tiny"
    assert requests.sae_id("second") == "second"
    # The tiny server has three.
    assert requests.sae_id("") == ""


def test_a_concurrency_of_none_is_refused(client: saegis.Client) -> None:
    with pytest.raises(ValueError, match="concurrency"):
        Requests(client, 0)


def test_totals_are_pooled_over_tokens() -> None:
    pooled = Total.pooled([Total(6.0, 2), None, Total(1.0, 5)])
    assert pooled == Total(7.0, 7)
    assert pooled.perplexity == pytest.approx(math.e)
    assert Total.pooled([None]).mean is None
    assert Total().perplexity is None
    assert Total(1e6, 1).perplexity is not None
