"""Redirects in every engine: alone and in company, in chunks and whole, they write what plain hooks write."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from saegis_server.engine.api import Guard, Guarded, Limits, Reaction, SamplingParams
from saegis_server.steering import rows
from saegis_server.steering.conditions import Condition, Scope
from saegis_server.steering.program import SiteProgram, SteeringError, SteeringProgram
from saegis_server.steering.rows import Edit, Phase, Probe, Redirection
from tests.engine import tiny
from tests.engine.guarded import READ_ONLY, SITES, late, probe
from tests.engine.hooked import differs, generate, hook_program
from tests.engine.naive import Naive
from tests.engine.serving import Serving

GREEDY = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
#: The first reads in chunks that no prompt of these tests fits in, the second whole.
CHUNKS = (Limits(prefill_chunk=5), Limits(prefill_chunk=256))
PROMPTS = [tiny.prompt_of(200 + seed, 11 + 4 * seed) for seed in range(6)]


def redirect(source: int, target: int, kind: str = "relu", phase: Phase = Phase.ALL) -> Edit:
    """From a random feature, or direction, to a random direction or, for odd ones, feature."""
    to = probe(target, "relu" if target % 2 else "direction")
    return rows.redirect(probe(source, kind), 4.0, Redirection(to, strength=0.5, threshold=0.1), phase=phase)


@cache
def programs() -> tuple[SteeringProgram, ...]:
    """Of a request; of an operator; with a request's edits against it; with bans behind it; all of it, with
    other rules, watches and phases; and at one site that another program leaves alone."""
    rules = (redirect(1, 2), redirect(3, 2, "jumprelu"), redirect(4, 5, "direction"))
    against = tuple(
        rows.add(Probe.direction(sign * row.target.write + 0.3 * probe(60 + place).write), 9.0)
        for place, row in enumerate(rules)
        for sign in (-1.0, 1.0)
        if row.target is not None
    )
    bans = (rows.ban(probe(7, "relu"), 1.0), rows.ban(probe(8)))
    others = (rows.add(probe(10), 2.0), rows.cap(probe(11, "relu"), 0.5), rows.clamp(probe(12), 1.0))
    phased = (redirect(1, 2, phase=Phase.PROMPT), redirect(3, 2, "jumprelu", Phase.COMPLETION))
    by_request = (redirect(1, 2), redirect(4, 5, "direction"), rows.clamp(probe(20, "gated"), 2.0))
    watches = (probe(1, "relu"), probe(2))
    return (
        SteeringProgram({SITES[1]: SiteProgram(edits=by_request)}),
        SteeringProgram({SITES[1]: SiteProgram(rules=rules)}),
        SteeringProgram({SITES[1]: SiteProgram(edits=against, rules=rules)}),
        SteeringProgram({SITES[1]: SiteProgram(rules=rules, bans=bans)}),
        SteeringProgram(
            {site: SiteProgram(against, (*phased, *others), bans, watches) for site in (SITES[0], SITES[2])}
        ),
        SteeringProgram({SITES[2]: SiteProgram(rules=phased, watches=watches)}),
    )


@cache
def hooked() -> list[tuple[list[int], torch.Tensor]]:
    """What Transformers' own `generate` writes under plain hooks."""
    model, found = tiny.model(), []
    for prompt, program in zip(PROMPTS, programs(), strict=True):
        handles = hook_program(model, program)
        found.append(generate(model, prompt, 16))
        for handle in handles:
            handle.remove()
    return found


@pytest.mark.parametrize("limits", CHUNKS, ids=("chunked", "whole"))
def test_alone_and_beside_each_other_they_write_what_hooks_write(serving: Serving, limits: Limits) -> None:
    with serving(tiny.model(), limits=limits) as engine:
        pairs = list(zip(PROMPTS, programs(), strict=True))
        alone = [engine.ask(prompt, GREEDY, program).wait().tokens() for prompt, program in pairs]
        asked = [engine.ask(prompt, GREEDY, program) for prompt, program in pairs]
        together = [answer.wait().tokens() for answer in asked]
        plain = [engine.ask(prompt, GREEDY).wait().tokens() for prompt in PROMPTS]
    for index, (tokens, gaps) in enumerate(hooked()):
        assert not differs(alone[index], tokens, gaps), f"program {index} alone"
        assert not differs(together[index], tokens, gaps), f"program {index} beside the others"
    assert sum(one != other for one, other in zip(alone, plain, strict=True)) >= 5


@pytest.mark.parametrize("scope", [Scope.TOKEN, Scope.PROMPT])
def test_a_redirect_with_a_condition_is_what_the_loop_says(serving: Serving, scope: Scope) -> None:
    """It comes amid the answer, or never; a request's edits are kept off it all the time."""
    prompt, _, condition, _ = late()
    rules = (redirect(1, 2), redirect(4, 2, "direction"))
    condition = Condition(condition.expression, scope, sticky=True)
    guard = Guard(
        (Guarded("p/redirect", condition, Reaction.EDIT, rows={SITES[1]: SiteProgram(rules=rules)}),)
    )
    edits = (rows.add(Probe.direction(probe(2).write + probe(60).write), 1.0),)
    program = SteeringProgram({**READ_ONLY.sites, SITES[1]: SiteProgram(edits=edits)})
    wanted = Naive(tiny.model(), prompt, program, guard, replace(GREEDY, max_tokens=30)).run()
    assert wanted.closest > 1e-4, "the case rests on rounding"
    assert bool(wanted.held[0]) is (scope is Scope.TOKEN)
    with serving(tiny.model(), limits=CHUNKS[0]) as engine:
        answer = engine.ask(prompt, replace(GREEDY, max_tokens=30), program, guard=guard).wait()
        (found,) = answer.finished.receipt.conditions
        assert answer.tokens() == wanted.tokens
        assert found.held_tokens == len(wanted.held[0])


def test_what_would_take_a_redirect_back_is_refused(serving: Serving) -> None:
    """An edit along the target, and a ban of it; beside a condition's redirect too."""
    target, rule = probe(2), redirect(1, 2)
    sites = (SiteProgram(edits=(rows.add(target, -5.0),)), SiteProgram(bans=(rows.ban(target),)))
    conditional = Guarded("p/redirect", late()[2], Reaction.EDIT, rows={SITES[1]: SiteProgram(rules=(rule,))})
    with serving(tiny.model()) as engine:
        for site, fault in zip(sites, ("moves only along", "oppose each other"), strict=True):
            with pytest.raises(SteeringError, match=fault):
                engine.ask([1], GREEDY, SteeringProgram({SITES[1]: replace(site, rules=(rule,))}))
            program = SteeringProgram({**READ_ONLY.sites, SITES[1]: site})
            with pytest.raises(SteeringError, match=fault):
                engine.ask([1], GREEDY, program, guard=Guard((conditional,)))
