"""The life of requests: how they end, what they are refused for, and that the books are kept."""

import random
import time

import pytest
import torch

from saegis_server.engine.api import (
    DeadlineExceededError,
    DuplicateRequestError,
    EngineStoppedError,
    FieldError,
    FinishReason,
    Limits,
    QueueFullError,
    SamplingParams,
)
from saegis_server.steering import rows
from saegis_server.steering.program import SiteProgram, SteeringError, SteeringProgram
from saegis_server.steering.site import Place, Site
from tests.engine import tiny
from tests.engine.hooked import generate, random_program
from tests.engine.serving import Serving
from tests.tiers import sized

GREEDY = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)


def greedy(**changes: object) -> SamplingParams:
    """Greedy parameters with changes."""
    values: dict[str, object] = {"temperature": 0.0, "max_tokens": 24, "ignore_eos": True, **changes}
    return SamplingParams(**values)  # type: ignore[arg-type]


def test_endings(serving: Serving) -> None:
    prompt = tiny.prompt_of(1, 10)
    with serving(tiny.model()) as engine:
        whole = engine.ask(prompt).wait()
        tokens = whole.tokens()
        assert whole.ending().reason is FinishReason.LENGTH
        fifth = tokens[4]
        first = tokens.index(fifth)
        stopped = engine.ask(prompt, greedy(stop_token_ids=(fifth,))).wait()
        assert stopped.tokens() == tokens[: first + 1]
        assert (stopped.ending().reason, stopped.ending().stop_token) == (FinishReason.STOP, fifth)
        held = engine.ask(prompt, greedy(stop_token_ids=(fifth,), min_tokens=first + 2)).wait()
        assert len(held.tokens()) > first + 1
        forced = engine.ask(prompt, greedy(logit_bias={33: 100.0}, max_tokens=3)).wait()
        assert forced.tokens() == [33, 33, 33]
        text = forced.text()[:1]
        cut = engine.ask(prompt, greedy(logit_bias={33: 100.0}, stop=(2 * text,))).wait()
        assert (cut.text(), cut.tokens(), cut.ending().stop_string) == ("", [33, 33], 2 * text)
        ended = engine.ask(prompt, greedy(logit_bias={tiny.EOS: 100.0}, ignore_eos=False)).wait()
        assert (ended.tokens(), ended.ending().reason) == ([tiny.EOS], FinishReason.STOP)
        full = engine.ask(tiny.prompt_of(2, 150), greedy(max_tokens=None)).wait()
        assert (len(full.tokens()), full.ending().reason) == (10, FinishReason.LENGTH)


def test_logprobs_are_those_of_a_plain_forward_pass(serving: Serving) -> None:
    model, prompt = tiny.model(), tiny.prompt_of(4, 9)
    tokens, _ = generate(model, prompt, 6)
    with torch.no_grad():
        logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    wanted = torch.log_softmax(logits.float(), -1)
    with serving(model) as engine:
        outputs = engine.ask(prompt, greedy(max_tokens=6, logprobs=4)).wait().outputs()
    for row, output in zip(wanted, outputs, strict=True):
        assert output.logprob == pytest.approx(float(row[output.token_id]), abs=1e-4)
        top = row.topk(4)
        assert [token for token, _ in output.alternatives] == top.indices.tolist()
        assert [value for _, value in output.alternatives] == pytest.approx(top.values.tolist(), abs=1e-4)


def test_a_seed_gives_the_same_texts_alone_and_in_company(serving: Serving) -> None:
    sampling = SamplingParams(n=3, seed=9, max_tokens=12, ignore_eos=True, top_p=0.95)
    with serving(tiny.model()) as engine:
        alone = engine.ask(tiny.prompt_of(5, 7), sampling).wait()
        others = [engine.ask(tiny.prompt_of(6 + seed, 7)) for seed in range(4)]
        beside = engine.ask(tiny.prompt_of(5, 7), sampling).wait()
        for other in others:
            other.wait()
    texts = [tuple(alone.tokens(index)) for index in range(3)]
    assert texts == [tuple(beside.tokens(index)) for index in range(3)]
    assert len(set(texts)) == 3
    assert alone.finished.usage.completion_tokens == 36


def test_completions_of_a_seed_are_not_those_of_the_next(serving: Serving) -> None:
    """The first one is what the seed gives alone; the others have streams of their own."""
    prompt = tiny.prompt_of(5, 7)
    with serving(tiny.model()) as engine:

        def texts(seed: int, n: int) -> list[tuple[int, ...]]:
            sampling = SamplingParams(n=n, seed=seed, max_tokens=12, ignore_eos=True)
            answer = engine.ask(prompt, sampling).wait()
            return [tuple(answer.tokens(index)) for index in range(n)]

        seeds = (0, 9, 10, 11, 2**63 - 1, 2**63, 2**64 - 1)
        found = {seed: texts(seed, 4) for seed in seeds}
        assert all(found[seed][:1] == texts(seed, 1) for seed in seeds)
    every = [text for several in found.values() for text in several]
    assert len(set(every)) == len(every)


def test_no_token_left_to_choose_is_refused(serving: Serving) -> None:
    """Every token ends the text, and none may before so many are written."""
    stops = tuple(range(tiny.VOCABULARY))
    with serving(tiny.model()) as engine:
        for given, ignore_eos in ((stops, True), (stops[: tiny.EOS] + stops[tiny.EOS + 1 :], False)):
            sampling = SamplingParams(min_tokens=2, max_tokens=4, stop_token_ids=given, ignore_eos=ignore_eos)
            with pytest.raises(FieldError, match="every token of the vocabulary ends the text") as refused:
                engine.ask([1, 2], sampling)
            assert refused.value.field == "sampling.min_tokens"
        for fewer in (greedy(stop_token_ids=stops), greedy(stop_token_ids=stops[1:], min_tokens=3)):
            answer = engine.ask([1, 2], fewer).wait()
            assert answer.tokens()[:-1] == [0] * fewer.min_tokens


def test_refusals_name_the_field(serving: Serving) -> None:
    engine = serving(tiny.model(), limits=Limits(queue=2, prefill_chunk=16))
    for prompt, field in (([], "prompt"), ([1] * 160, "prompt"), ([1, 9999], "prompt[1]")):
        with pytest.raises(FieldError) as error:
            engine.ask(prompt)
        assert error.value.field == field
    with pytest.raises(FieldError, match=r"logit_bias\[0\]"):
        engine.ask([1], greedy(logit_bias={9999: 1.0}))
    probe = rows.Probe.direction(torch.ones(tiny.WIDTH))
    elsewhere = SteeringProgram({Site(0, Place.RESID_POST): SiteProgram(edits=(rows.add(probe, 1.0),))})
    with pytest.raises(SteeringError, match="not a site of this server"):
        engine.ask([1], program=elsewhere)
    engine.ask([1], request_id="same")
    with pytest.raises(DuplicateRequestError):
        engine.ask([1], request_id="same")
    with pytest.raises(QueueFullError):
        engine.ask([1], greedy(n=2))
    engine.start()
    engine.stop()
    with pytest.raises(EngineStoppedError):
        engine.ask([1])


def test_cancelled_and_expired_requests_leave_at_once(serving: Serving) -> None:
    with serving(tiny.model(), max_running=2) as engine:
        running = [engine.ask([1, 2], greedy(max_tokens=150)) for _ in range(2)]
        late = engine.ask([1, 2], deadline=time.monotonic() + 0.01)
        waiting = engine.ask([1, 2], request_id="waiting")
        engine.cancel("waiting")
        engine.cancel("unknown")
        assert waiting.wait().ending().reason is FinishReason.ABORT
        assert isinstance(late.wait().failed.error, DeadlineExceededError)
        assert late.tokens() == []
        engine.cancel("request-1")
        assert running[0].wait().ending().reason is FinishReason.ABORT
        assert len(running[1].wait().tokens()) == 150


def test_hundreds_of_random_requests_all_end_and_the_books_are_kept(serving: Serving) -> None:
    chance = random.Random(0)
    with serving(tiny.model(), max_running=5) as engine:
        answers = []
        for index in range(sized(200, 80)):
            sampling = SamplingParams(
                temperature=chance.choice((0.0, 1.0)),
                n=chance.choice((1, 1, 3)),
                max_tokens=chance.randint(1, 9),
            )
            program = random_program(index, index % 7)
            name = f"{index}"
            answers.append(engine.ask(tiny.prompt_of(index, chance.randint(1, 40)), sampling, program, name))
            if chance.random() < 0.2:
                engine.cancel(f"{chance.randint(0, index)}")
            if index % 40 == 39:
                for answer in answers:
                    answer.wait()
        assert all(answer.wait().finished for answer in answers)
