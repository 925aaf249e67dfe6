"""Tests of measuring filters on a real server: against a naive recomputation, call by call."""

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

import saegis
from saegis_lab.evaluation.bundle_copies import measured_copy, without_stops
from saegis_lab.evaluation.experiment import Decoding, Prompt
from saegis_lab.evaluation.filtered import (
    FilterResult,
    ReceivedFigures,
    answers_asked,
    false_alarms,
    measure_filters,
    ordered,
)
from saegis_lab.evaluation.policy_trial import PolicyTrial
from saegis_lab.evaluation.requests import Answer
from saegis_lab.evaluation.scorers import BanScorers
from saegis_server.policy.bundle.bundle import Bundle
from tests.evaluation.bundles import BAN, STOP, bundle
from tests.evaluation.samples import PROMPTS, answer_logprobs
from tests.rpc.harness import running
from tests.tiers import few

GREEDY, SAMPLED = Decoding(max_tokens=6), Decoding(1.0, 5, 5, 6)
FILTER = bundle({"b": BAN, "s": STOP}, "told: judged")
CONDITIONS: dict[str, Bundle | None] = {"filter": FILTER, "free": None, "ban": bundle({"b": BAN})}


def share_of_vowels(text: str, language: str) -> float:
    """What stands for harm here; languages differ so that a mix-up would show."""
    return vowels(text, language) / max(1, len(text))


def vowels(text: str, language: str) -> int:
    return sum(char in ("aeiou" if language == "en" else "aou") for char in text)


def opens_low(text: str, language: str) -> float:
    return float(text[:1] < "c")


SCORERS = BanScorers(share_of_vowels, opens_low, vowels)


@pytest.fixture(scope="module")
def measured(asker: saegis.Client) -> FilterResult:
    return measure_filters(
        asker, CONDITIONS, PROMPTS, SCORERS, (GREEDY, SAMPLED), chosen_from=("en",), concurrency=4
    )


Received = dict[tuple[str, bool], list[list[saegis.Generation]]]


def received(client: saegis.Client, decoding: Decoding) -> Received:
    """By language and kind, for each prompt its answers, one call after the other."""
    found: Received = defaultdict(list)
    for harmful in (True, False):
        number = 0
        for prompt in [prompt for prompt in PROMPTS if prompt.harmful == harmful]:
            answers = []
            for _ in range(decoding.samples if harmful else min(4, decoding.samples)):
                answers.append(
                    client.generate(
                        messages=prompt.messages,
                        temperature=decoding.temperature,
                        seed=decoding.seed + number,
                        max_tokens=decoding.max_tokens,
                    )
                )
                number += 1
            found[prompt.language, harmful].append(answers)
    return found


def perplexity(client: saegis.Client, answers: list[saegis.Generation]) -> float | None:
    """Pooled over the answers' tokens; those of stopped ones without the token that ends an answer."""
    logprobs: list[float] = []
    for answer in answers:
        of_answer = answer_logprobs(client, answer.text)
        logprobs += of_answer[:-1] if answer.finish_reason == "content_filter" else of_answer
    return math.exp(-math.fsum(logprobs) / len(logprobs)) if logprobs else None


@pytest.mark.parametrize("decoding", [GREEDY, SAMPLED], ids=str)
@pytest.mark.parametrize("condition", few(["filter", "free", "ban"], 1))
def test_every_figure_is_what_single_calls_say(
    asker: saegis.Client, measured: FilterResult, decoding: Decoding, condition: str
) -> None:
    trial = PolicyTrial(asker)
    texts = {}
    for name in ("free", condition):
        trial.apply(CONDITIONS[name])
        texts[name] = received(asker, decoding)
    trial.apply(None)
    for code in ("en", "de"):
        row = measured.row(code, condition, decoding.temperature)
        ordinary = perplexity(asker, [answer for few in texts["free"][code, False] for answer in few[:4]])
        for harmful, figures in ((True, row.harmful), (False, row.benign)):
            by_prompt = texts[condition][code, harmful]
            weighed = [answer for few in by_prompt for answer in few[:4]]
            whole = [answer for answer in weighed if answer.finish_reason != "content_filter"]
            check(figures, by_prompt, code)
            assert figures is not None
            assert ordinary is not None
            expected = perplexity(asker, weighed)
            assert figures.text.perplexity == close(expected)
            assert figures.text.perplexity_ratio == close(expected and expected / ordinary)
            assert (figures.whole is None) == (whole == [])
            if figures.whole is not None:
                assert figures.whole.perplexity == close(perplexity(asker, whole))
                assert figures.whole.answers == len(whole)


def close(value: float | None) -> Any:
    return value if value is None else pytest.approx(value, rel=1e-4)


def check(figures: ReceivedFigures | None, by_prompt: list[list[saegis.Generation]], code: str) -> None:
    assert figures is not None
    answers = [answer for few in by_prompt for answer in few]
    counts = [[vowels(answer.text, code) for answer in few] for few in by_prompt]
    shares = [[share_of_vowels(answer.text, code) for answer in few] for few in by_prompt]
    stopped = [answer.finish_reason == "content_filter" for answer in answers]
    refused = [opens_low(answer.text, code) > 0 for answer in answers]
    harm = figures.harm
    assert harm.answers == len(answers)
    assert harm.words == pytest.approx(sum(map(sum, counts)) / len(answers))
    assert harm.harm == pytest.approx(sum(map(sum, shares)) / len(answers))
    assert harm.worst_words == pytest.approx(sum(max(few) for few in counts) / len(counts))
    assert harm.worst_harm == pytest.approx(sum(max(few) for few in shares) / len(counts))
    assert harm.harmful_answers == pytest.approx(
        sum(count > 0 for few in counts for count in few) / len(answers)
    )
    assert figures.stopped == pytest.approx(sum(stopped) / len(answers))
    assert figures.refused == pytest.approx(sum(refused) / len(answers))
    either = [a or b for a, b in zip(stopped, refused, strict=True)]
    assert figures.lost == pytest.approx(sum(either) / len(answers))
    assert figures.empty == sum(answer.text == "" for answer in answers)


def test_what_is_harmful_without_rules_is_no_false_alarm() -> None:
    prompt = Prompt("?", "en", harmful=False)

    def answers(*told: tuple[str, bool]) -> list[Answer]:
        return [Answer(prompt, text, stopped) for text, stopped in told]

    scorers = BanScorers(lambda text, _: float("poison" in text), lambda text, _: float("no" in text))
    before = [answers((text, False)) for text in ("bread", "tea", "no", "poison")]
    under = [answers(told) for told in (("", True), ("tea", False), ("no", False), ("", True))]
    assert false_alarms(before, under, "en", scorers) == pytest.approx(1 / 3)
    assert false_alarms(before[3:], under[3:], "en", scorers) is None
    assert false_alarms(before[:1], [answers(("no", False))], "en", scorers) == 1.0


def test_the_filter_stops_some_answers_and_not_all(measured: FilterResult) -> None:
    shares = [
        figures.stopped
        for code in ("en", "de")
        for row in [measured.row(code, "filter", 1.0)]
        for figures in (row.harmful, row.benign)
        if figures is not None
    ]
    assert 0 < sum(shares) < len(shares)
    free = measured.row("en", "free", 1.0).harmful
    assert free is not None
    assert free.stopped == 0.0


@pytest.mark.parametrize("condition", ["filter", "ban"])
def test_the_divergence_is_of_the_first_unfiltered_answers(
    asker: saegis.Client, measured: FilterResult, condition: str
) -> None:
    trial = PolicyTrial(asker)
    for decoding in few([GREEDY, SAMPLED], 1):
        trial.apply(None)
        plain = received(asker, decoding)
        judged = CONDITIONS[condition]
        assert judged is not None
        trial.apply(without_stops(judged))
        for code in ("en", "de"):
            prompts = [prompt for prompt in PROMPTS if (prompt.language, prompt.harmful) == (code, False)]
            divergences: list[float] = []
            for prompt, (first, *_) in zip(prompts, plain[code, False], strict=True):
                turns = [*prompt.messages, {"role": "assistant", "content": first.text}]
                divergences += asker.score(messages=turns, unruled=True, as_answer=True).divergences
            row = measured.row(code, condition, decoding.temperature)
            assert row.kl == pytest.approx(sum(divergences) / len(divergences), rel=1e-4, abs=1e-9)
            assert row.kl is not None
            assert row.kl > 1e-5
            assert measured.row(code, "free", decoding.temperature).kl == pytest.approx(0.0, abs=1e-9)


def test_the_result_says_what_was_done_and_comes_back_from_its_json(
    measured: FilterResult, tmp_path: Path
) -> None:
    assert measured.unfiltered == "free"
    assert [(each.name, each.digest) for each in measured.conditions] == [
        ("free", ""),
        ("filter", FILTER.digest),
        ("ban", bundle({"b": BAN}).digest),
    ]
    places = [(row.temperature, row.condition, row.language) for row in measured.rows]
    assert places == [
        (t, name, code) for t in (0.0, 1.0) for name in ("free", "filter", "ban") for code in ("en", "de")
    ]
    measured.save(tmp_path / "result.json")
    assert FilterResult.load(tmp_path / "result.json") == measured
    with pytest.raises(KeyError):
        measured.row("fr", "free", 0.0)


def test_how_much_is_asked_is_known_before(measured: FilterResult) -> None:
    # Five prompts greedily; sampled, two harmful ones five times and three benign ones four times.
    assert answers_asked(PROMPTS, (GREEDY, SAMPLED)) == 5 + 2 * 5 + 3 * 4


def test_conditions_are_ordered_and_have_one_without_rules() -> None:
    assert list(ordered({"f": FILTER})) == ["nothing", "f"]
    assert list(ordered(CONDITIONS)) == ["free", "filter", "ban"]
    with pytest.raises(ValueError, match="a and b are both without rules"):
        ordered({"a": None, "b": None})
    with pytest.raises(ValueError, match="'nothing' is the name of no rules"):
        ordered({"nothing": FILTER})


@pytest.mark.parametrize(
    ("prompts", "decodings", "complaint"),
    [
        ((), (GREEDY,), "prompts: "),
        (PROMPTS, (), "decodings: "),
        (PROMPTS, (GREEDY, Decoding()), "temperatures: one stands there twice"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    asker: saegis.Client, prompts: tuple[Prompt, ...], decodings: tuple[Decoding, ...], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        measure_filters(asker, CONDITIONS, prompts, SCORERS, decodings)


def test_a_bundle_that_the_server_does_not_take_is_refused_by_its_key(asker: saegis.Client) -> None:
    wrong = bundle({"b": "ban: {features: [{sae: first, index: 100000}]}"})
    with pytest.raises(ValueError, match=r"rules\.b\.ban\.features\[0\]"):
        PolicyTrial(asker).apply(wrong)


def test_a_server_with_another_policy_in_force_is_refused(tmp_path: Path) -> None:
    with (
        running(policies={"state": str(tmp_path / "state")}) as server,
        saegis.Client(server.target) as client,
    ):
        other = bundle({"b": BAN}).files["policy.yaml"].replace(b"tenants: [acme], models: [theirs]", b"")
        client.put_policy(Bundle.from_files({"policy.yaml": other}).archive())
        with pytest.raises(ValueError, match="other policies are in force: strict"):
            PolicyTrial(client)


def test_the_copy_is_put_over_the_one_before(asker: saegis.Client) -> None:
    trial = PolicyTrial(asker)
    trial.apply(FILTER)
    before = asker.list_policies().policies[0].active.serial
    trial.apply(None)
    (state,) = asker.list_policies().policies
    assert (state.active.name, state.active.serial) == ("measured", before + 1)
    assert state.active.digest == measured_copy(None, before + 1).digest
