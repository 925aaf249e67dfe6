"""Prefixes: equal programs share what was read of a prompt, others do not, and receipts count all of it."""

from dataclasses import replace

import pytest
import torch

from saegis_server.engine.api import GenerationRequest, RequestFinished, SamplingParams
from saegis_server.engine.counts import RowName
from saegis_server.engine.vllm import engine as engine_module
from saegis_server.steering import rows
from saegis_server.steering.program import SiteProgram, SteeringProgram
from saegis_server.steering.rows import Phase, Probe
from tests.engine import tiny
from tests.engine.in_vllm import HAS_VLLM, in_vllm
from tests.engine.on_plain_core import on_plain_core
from tests.engine.serving import Answer, Asked
from tests.tiers import sized

GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
SITE = tuple(tiny.SITES)[1]
PROMPT = tiny.prompt_of(3, 90)
make = in_vllm if HAS_VLLM else on_plain_core


def pushed(amount: float, phase: Phase = Phase.ALL) -> SteeringProgram:
    """Adds along a direction."""
    direction = torch.randn(tiny.WIDTH, generator=torch.Generator().manual_seed(1))
    edit = rows.add(Probe.direction(direction), amount, phase=phase)
    return SteeringProgram({SITE: SiteProgram(edits=(edit,))})


def asked(engine: Asked, program: SteeringProgram, prompt: list[int] = PROMPT) -> RequestFinished:
    """How a request ended."""
    return engine.ask(prompt, GREEDY, program).wait().finished


def grouped(engine: Asked, name: str, program: SteeringProgram) -> Answer:
    """A request whose rows are counted together."""
    (edit,) = program.sites[SITE].edits
    group = frozenset((RowName(SITE, "edits", edit.probe.key),))
    answer = Answer()
    engine.submit(GenerationRequest(name, tuple(PROMPT), GREEDY, program, groups=(group,)), answer)
    return answer.wait()


def test_equal_programs_share_and_their_receipts_are_whole() -> None:
    with make(tiny.model()) as engine:
        for program in (SteeringProgram(), pushed(3.0), pushed(3.0, Phase.PROMPT)):
            first, second = asked(engine, program), asked(engine, program)
            assert (first.usage.cached_tokens, second.usage.cached_tokens) == (0, 64)
            assert replace(second.usage, cached_tokens=0) == first.usage
            assert second.receipt.steered == first.receipt.steered
            for one, other in zip(first.receipt.sites, second.receipt.sites, strict=True):
                assert other.tokens_edited == one.tokens_edited
                assert other.mean_relative_norm == pytest.approx(one.mean_relative_norm, rel=1e-4)
                assert other.largest_relative_norm == pytest.approx(one.largest_relative_norm, rel=1e-4)


def test_what_is_counted_together_is_counted_where_a_prefix_is_shared() -> None:
    """Also where the first request counted other rows, and the second so has to read its prompt itself."""
    with make(tiny.model()) as engine:
        plain = asked(engine, pushed(2.0))
        own = [grouped(engine, name, pushed(2.0)).finished for name in ("first", "second")]
        assert plain.usage.cached_tokens == 0
        assert [done.receipt.acted[0] for done in own] == 2 * [(90, 7)]
        assert own[1].usage.cached_tokens == 64
        assert {done.usage.steered_tokens for done in (plain, *own)} == {97}


def test_other_programs_share_nothing_and_none_answers_wrongly() -> None:
    """Without the salt the second request would go on from what the first one left."""
    programs = [SteeringProgram(), *(pushed(4.0 * number) for number in range(1, sized(16, 4)))]
    with make(tiny.model()) as engine:
        together = [engine.ask(PROMPT, GREEDY, program).wait() for program in programs]
    assert [answer.finished.usage.cached_tokens for answer in together] == [0] * len(programs)
    for program, answer in zip(programs, together, strict=True):
        with make(tiny.model()) as engine:
            assert engine.ask(PROMPT, GREEDY, program).wait().tokens() == answer.tokens()
    assert len({tuple(answer.tokens()) for answer in together[:4]}) == 4


def test_without_the_salt_a_request_answers_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    """So the test above tries what it says."""
    with make(tiny.model()) as engine:
        right = engine.ask(PROMPT, GREEDY).wait().tokens()
    monkeypatch.setattr(engine_module, "salt_of", lambda running: "the same for all")
    with make(tiny.model()) as engine:
        engine.ask(PROMPT, GREEDY, pushed(12.0)).wait()
        wrong = engine.ask(PROMPT, GREEDY).wait()
    assert wrong.finished.usage.cached_tokens == 64
    assert wrong.tokens() != right


def test_where_rows_act_on_answers_alone_a_longer_prompt_shares_nothing_of_them() -> None:
    """What was an answer is a prompt in the next turn, where those rows do not act."""
    program = pushed(6.0, Phase.COMPLETION)
    with make(tiny.model()) as engine:
        sampling = replace(GREEDY, max_tokens=40)
        first = engine.ask(PROMPT[:40], sampling, program).wait()
        turn = [*PROMPT[:40], *first.tokens(), *PROMPT[:5]]
        second = engine.ask(turn, GREEDY, program).wait()
        assert second.finished.usage.cached_tokens == 0
    with make(tiny.model()) as engine:
        assert engine.ask(turn, GREEDY, program).wait().tokens() == second.tokens()


def test_the_next_turn_shares_the_answer_where_rows_act_on_all_tokens() -> None:
    program = pushed(3.0)
    with make(tiny.model()) as engine:
        first = engine.ask(PROMPT[:40], replace(GREEDY, max_tokens=40), program).wait()
        turn = [*PROMPT[:40], *first.tokens(), *PROMPT[:5]]
        second = engine.ask(turn, GREEDY, program).wait().finished
    assert second.usage.cached_tokens == 64
    assert second.usage.steered_tokens == len(turn) + 7
