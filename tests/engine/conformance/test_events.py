"""The contract of events: their order, that the receipt comes last and once, and what is watched."""

import threading
from collections.abc import Sequence

import pytest
import torch

from saegis_server.engine.api import (
    Delta,
    DuplicateRequestError,
    Event,
    GenerationRequest,
    RequestFailed,
    RequestFinished,
    SamplingParams,
    SequenceFinished,
)
from saegis_server.steering import rows
from saegis_server.steering.program import SiteProgram, SteeringProgram
from saegis_server.steering.rows import Phase, Probe
from saegis_server.steering.site import Site
from tests.engine import tiny
from tests.engine.hooked import destructive, random_program
from tests.engine.serving import Answer, Serving

SAMPLED = SamplingParams(n=3, seed=3, max_tokens=9, ignore_eos=True)
SITE = Site.parse("layers.1.resid_post")


class Batches(Answer):
    """Also keeps the lists in which the events came, and on which threads."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[Event]] = []
        self.threads: set[int] = set()

    def __call__(self, events: list[Event]) -> None:
        self.batches.append(list(events))
        self.threads.add(threading.get_ident())
        super().__call__(events)


def orderly(events: Sequence[Event], sequences: int, cut_off: bool) -> None:
    """Each sequence's deltas, then its end, unless an error cut it off; last, what ended the request."""
    assert isinstance(events[-1], RequestFailed if cut_off else RequestFinished)
    ended: set[int] = set()
    for event in events[:-1]:
        assert isinstance(event, Delta | SequenceFinished)
        assert event.index in range(sequences)
        assert event.index not in ended, "nothing comes of a sequence that has ended"
        if isinstance(event, SequenceFinished):
            ended.add(event.index)
    assert cut_off or ended == set(range(sequences))


@pytest.mark.parametrize("fails", [False, True])
def test_events_come_in_order_and_the_receipt_last(fails: bool, serving: Serving) -> None:
    program = destructive(Phase.COMPLETION) if fails else random_program(4, 9)
    heard = [Batches() for _ in range(4)]
    with serving(tiny.model(), max_running=5) as engine:
        for index, answer in enumerate(heard):
            prompt = tuple(tiny.prompt_of(index, 7))
            engine.submit(GenerationRequest(f"{index}", prompt, SAMPLED, program), answer)
        for answer in heard:
            answer.wait()
        # What would come after the end would have come by now.
        engine.ask([1, 2]).wait()
        for answer in heard:
            assert all(answer.batches), "no list is empty"
            assert threading.get_ident() not in answer.threads
            orderly(answer.events, SAMPLED.n, cut_off=fails)
            done = answer.failed.done if fails else answer.finished
            told = [len(answer.tokens(index)) for index in range(SAMPLED.n)]
            assert done.usage.completion_tokens == sum(told)
            assert done.usage.prompt_tokens == 7
            assert done.receipt.program_digest == program.digest
            assert [site.site for site in done.receipt.sites] == list(program.sites)
            assert min(done.timings.queue, done.timings.prefill, done.timings.decode) >= 0.0


def test_an_id_is_free_again_once_its_end_is_told(serving: Serving) -> None:
    """Also to the sink that hears it."""
    again = Answer()
    with serving(tiny.model()) as engine:
        request = GenerationRequest("same", (1, 2, 3), SAMPLED)

        class Repeats(Answer):
            def __call__(self, events: list[Event]) -> None:
                if isinstance(events[-1], RequestFinished):
                    engine.submit(request, again)
                super().__call__(events)

        first = Repeats()
        engine.submit(request, first)
        with pytest.raises(DuplicateRequestError):
            engine.submit(request, Answer())
        first.wait()
        again.wait()
    assert [again.tokens(index) for index in range(3)] == [first.tokens(index) for index in range(3)]


def test_what_is_watched_is_what_is_there_before_and_after(serving: Serving) -> None:
    """At the position from which each token was predicted, in prompt and answer."""
    direction = torch.randn(tiny.WIDTH, generator=torch.Generator().manual_seed(2))
    probe, model, prompt = Probe.direction(direction), tiny.model(), tiny.prompt_of(5, 9)
    program = SteeringProgram({SITE: SiteProgram(edits=(rows.add(probe, 2.0),), watches=(probe,))})
    watching = SteeringProgram({SITE: SiteProgram(watches=(probe,))})
    few = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
    with serving(model) as engine:
        plain = engine.ask(prompt, few, watching).wait()
        captured = engine.capture(prompt + plain.tokens()).result(30)[SITE]
        wanted = (captured.float() @ probe.read)[len(prompt) - 1 : -1].tolist()
        found = [output.watched for output in plain.outputs()]
        assert [one.before for (one,) in found] == pytest.approx(wanted, abs=1e-4)
        assert [one.after for (one,) in found] == pytest.approx(wanted, abs=1e-4)
        moved = engine.ask(prompt, few, program).wait()
    for output in moved.outputs():
        (one,) = output.watched
        assert one.after - one.before == pytest.approx(2.0, abs=1e-3)
        assert one.set_to == pytest.approx(one.after, abs=1e-3)


def test_what_an_engine_says_of_itself(serving: Serving) -> None:
    with serving(tiny.model()) as asked:
        engine = asked.engine
        assert set(engine.sites) == set(tiny.SITES)
        assert (engine.max_length, engine.error) == (160, None)
        assert asked.ask(tiny.prompt_of(1, 5)).wait().finished.reasons
        stats = engine.stats()
        assert (stats.max_running, stats.queue_limit) == (8, engine.limits.queue)
        assert stats.steps > 0
        assert stats.recompilations == 0
