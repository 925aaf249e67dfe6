"""Receipts: tokens that were moved at any site, the prompt's once, and nothing where nothing was moved."""

import pytest
import torch

from saegis_server.engine.api import SamplingParams
from saegis_server.steering import rows
from saegis_server.steering.program import SiteProgram, SteeringProgram
from saegis_server.steering.rows import Edit, Phase, Probe
from tests.engine import tiny
from tests.engine.serving import Serving

GREEDY = SamplingParams(temperature=0.0, max_tokens=9, ignore_eos=True)
FIRST, SECOND = tuple(tiny.SITES)[:2]
VECTOR = torch.randn(tiny.WIDTH, generator=torch.Generator().manual_seed(1))


def added(phase: Phase) -> SiteProgram:
    return SiteProgram(edits=(rows.add(Probe.direction(VECTOR), 2.0, phase=phase),))


def never() -> Probe:
    """A feature that no token of these models wakes."""
    return Probe("never", VECTOR, VECTOR, gate_bias=-1e5, value_bias=-1e5)


def test_a_token_moved_at_one_site_counts_whatever_the_others_do(serving: Serving) -> None:
    """The prompt is moved at one site and the answer at another; each token counts once."""
    prompt = tiny.prompt_of(1, 11)
    apart = SteeringProgram({FIRST: added(Phase.PROMPT), SECOND: added(Phase.COMPLETION)})
    both = SteeringProgram({FIRST: added(Phase.ALL), SECOND: added(Phase.COMPLETION)})
    with serving(tiny.model()) as engine:
        for program in (apart, both):
            done = engine.ask(prompt, GREEDY, program).wait().finished
            # The last token of the answer is never fed.
            assert done.usage.steered_tokens == 11 + 8
            assert done.receipt.steered
        counted = [
            site.tokens_edited for site in engine.ask(prompt, GREEDY, apart).wait().finished.receipt.sites
        ]
        assert sorted(counted) == [8, 11]


def test_where_no_token_is_moved_nothing_was_steered(serving: Serving) -> None:
    """A ban, a gated clamp and a scale of what never fires."""
    prompt = tiny.prompt_of(2, 11)
    idle: tuple[Edit, ...] = (
        rows.ban(never(), 2.0),
        rows.clamp_if_active(never(), 5.0),
        rows.scale(never(), 3.0),
    )
    with serving(tiny.model()) as engine:
        plain = engine.ask(prompt, GREEDY).wait()
        for edit in idle:
            site = SiteProgram(bans=(edit,)) if edit is idle[0] else SiteProgram(edits=(edit,))
            program = SteeringProgram({FIRST: site})
            answer = engine.ask(prompt, GREEDY, program).wait()
            assert answer.tokens() == plain.tokens()
            receipt = answer.finished.receipt
            assert (receipt.steered, answer.finished.usage.steered_tokens) == (False, 0)
            assert [place.tokens_edited for place in receipt.sites] == [0]
            assert not engine.score(prompt, program).result(30).receipt.steered


def test_a_prompt_counts_once_however_many_completions_there_are(serving: Serving) -> None:
    prompt, many = tiny.prompt_of(3, 11), SamplingParams(n=3, seed=7, max_tokens=9, ignore_eos=True)
    program = SteeringProgram({FIRST: added(Phase.ALL), SECOND: added(Phase.PROMPT)})
    with serving(tiny.model()) as engine:
        done = engine.ask(prompt, many, program).wait().finished
    assert done.usage.steered_tokens == 11 + 3 * 8
    assert sorted(site.tokens_edited for site in done.receipt.sites) == [11, 11 + 3 * 8]


def test_how_far_tokens_are_moved_is_told_of_each_site(serving: Serving) -> None:
    """By 2 in one direction at the first site, and nowhere at the second: the largest 2/‖x‖ and the mean one,
    over the tokens moved, the prompt's once."""
    prompt, several = tiny.prompt_of(5, 11), SamplingParams(n=3, seed=7, max_tokens=9, ignore_eos=True)
    program = SteeringProgram({FIRST: added(Phase.ALL), SECOND: SiteProgram(bans=(rows.ban(never(), 1.0),))})
    with serving(tiny.model()) as engine:
        answer = engine.ask(prompt, several, program).wait()
        texts = [[*prompt, *answer.tokens(index)[:-1]] for index in range(3)]
        x = [engine.capture(text).result(60)[FIRST].to(torch.float64) for text in texts]
    moves = [2.0 / own.norm(dim=-1) for own in x]
    every = torch.cat([moves[0][:11], *(own[11:] for own in moves)])
    first, second = answer.finished.receipt.sites
    assert first.tokens_edited == len(every) == 11 + 3 * 8
    assert first.mean_relative_norm == pytest.approx(float(every.mean()), rel=1e-5)
    assert first.largest_relative_norm == pytest.approx(float(every.max()), rel=1e-5)
    assert first.mean_relative_norm < first.largest_relative_norm
    assert (second.mean_relative_norm, second.largest_relative_norm) == (0.0, 0.0)


def test_the_text_is_what_the_tokens_told_decode_to_wherever_it_ends(serving: Serving) -> None:
    """Also amid a character: the last piece has what was held back."""
    decoder = tiny.tokenizer()
    with serving(tiny.model()) as engine:
        cut = 0
        for length in range(1, 12):
            sampling = SamplingParams(seed=length, max_tokens=length, ignore_eos=True)
            answer = engine.ask(tiny.prompt_of(4, 8), sampling).wait()
            assert answer.text() == decoder.decode(answer.tokens())
            cut += answer.text().endswith("\ufffd")
    assert cut, "no answer ended amid a character"
