"""Random guarded requests, whose conditions come to hold in the prompt, amid the answer, or never."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch

from saegis_server.engine.api import UNGUARDED, FinishReason, Guard, Guarded, Reaction, SamplingParams
from saegis_server.steering import rows
from saegis_server.steering.conditions import AllOf, AnyOf, Condition, Expression, Literal, Negation, Scope
from saegis_server.steering.program import SiteProgram, SteeringProgram
from saegis_server.steering.rows import Norm, Phase
from saegis_server.steering.site import Site
from tests.engine import tiny
from tests.engine.naive import Naive
from tests.engine.serving import Answer
from tests.steering import cases

SITES = list(tiny.SITES)
#: Readings at each site.
GUARDS = 2


@dataclass(frozen=True)
class Case:
    """A request to answer."""

    prompt: list[int]
    program: SteeringProgram
    guard: Guard
    sampling: SamplingParams

    def naive(self) -> Naive:
        """What it comes to by the loop."""
        return Naive(tiny.model(), self.prompt, self.program, self.guard, self.sampling).run()


def probe(seed: int, kind: str = "direction") -> rows.Probe:
    """A random probe."""
    return cases.random_probe(torch.Generator().manual_seed(seed), tiny.WIDTH, kind, Norm.NONE, f"{seed}")


def watched_program(seed: int, edits: int) -> SteeringProgram:
    """Some edits, some watches, and GUARDS readings at every site."""
    chance, sites = random.Random(seed), {}
    for place, site in enumerate(SITES):
        made = [
            rows.add(probe(1000 * seed + 10 * place + row), chance.uniform(-2, 2)) for row in range(edits)
        ]
        read = [
            probe(1000 * seed + 10 * place + 5 + row, chance.choice(("relu", "direction")))
            for row in range(GUARDS)
        ]
        watches = tuple(probe(1000 * seed + 10 * place + 8 + row) for row in range(place))
        sites[site] = SiteProgram(tuple(made), watches=watches, guards=tuple(read))
    return SteeringProgram(sites)


def random_case(seed: int) -> Case:
    """A case whose thresholds lie between the values that its readings take without conditions."""
    chance = random.Random(seed)
    prompt = tiny.prompt_of(seed, chance.randint(1, 14))
    sampling = SamplingParams(temperature=0.0, max_tokens=14, ignore_eos=True)
    if seed % 3 == 0:
        sampling = replace(sampling, temperature=0.8, seed=seed, frequency_penalty=0.7)
    program = watched_program(seed, seed % 3)
    plain = Naive(tiny.model(), prompt, program, UNGUARDED, sampling).run()
    conditions = []
    for place in range(chance.randint(1, 4)):
        reaction = chance.choice((*[Reaction.EDIT] * 6, Reaction.STOP, Reaction.RECORD))
        scope = chance.choice((Scope.TOKEN, Scope.ANSWER, Scope.WINDOW, Scope.PROMPT))
        window = chance.randint(2, 6) if scope is Scope.WINDOW else 1
        expression = _expression(chance, plain, chance.randint(0, 2))
        condition = Condition(expression, scope, window, chance.random() < 0.5)
        reads = 0 if scope is Scope.PROMPT else max(condition.readings) // GUARDS
        added = _rows(chance, seed, place, SITES[reads:]) if reaction is Reaction.EDIT else {}
        conditions.append(Guarded(f"policy/{place}", condition, reaction, rows=added))
    return Case(prompt, program, Guard(tuple(conditions)), sampling)


def _expression(chance: random.Random, plain: Naive, depth: int) -> Expression:
    if depth == 0:
        return _literal(chance, plain, chance.randrange(GUARDS * len(SITES)))
    parts = tuple(_expression(chance, plain, depth - 1) for _ in range(chance.randint(1, 2)))
    return chance.choice((AllOf(parts), AnyOf(parts), Negation(parts[0])))


def _literal(chance: random.Random, plain: Naive, reading: int) -> Literal:
    """One that holds at some token: mostly of the answer, and at none of the prompt."""
    above = chance.random() < 0.7
    values = [row[reading] if above else -row[reading] for row in plain.values]
    length = len(plain.prompt)
    highest = max(values[:length])
    later = [value for value in values[length:] if value > highest]
    if later and chance.random() < 0.8:
        level = (highest + chance.choice(later)) / 2.0
    else:
        ordered = sorted(set(values))
        place = chance.randrange(len(ordered))
        level = ordered[place] - 0.5 * (ordered[place] - ordered[place - 1] if place else 0.2)
    return Literal(reading, level if above else -level, above)


def _rows(chance: random.Random, seed: int, place: int, sites: list[Site]) -> dict[Site, SiteProgram]:
    """Rules at a site or two, of one phase or all; the first condition of a case may ban instead."""
    key = 1_000_000 + 1000 * seed + 10 * place
    if place == 0 and chance.random() < 0.4:
        return {chance.choice(sites): SiteProgram(bans=(rows.ban(probe(key, "relu"), 3.0),))}
    phase = chance.choice((Phase.ALL, Phase.ALL, Phase.PROMPT, Phase.COMPLETION))
    return {
        site: SiteProgram(rules=(rows.add(probe(key + row), 6.0, phase=phase),))
        for row, site in enumerate(chance.sample(sites, chance.randint(1, min(2, len(sites)))))
    }


def always(name: str, reaction: Reaction, **values: object) -> Guarded:
    """A condition on the first reading that holds at every token."""
    return Guarded(name, Condition(Literal(0, -1e6), sticky=False), reaction, **values)  # type: ignore[arg-type]


#: A request that reads a little and is steered by nobody.
READ_ONLY = SteeringProgram({SITES[0]: SiteProgram(guards=(probe(77),))})

_LONG = SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True)


@cache
def answered(seed: int) -> tuple[Case, Naive]:
    """A random case and what the loop makes of it."""
    case = random_case(seed)
    return case, case.naive()


def agrees(answer: Answer, case: Case, wanted: Naive) -> None:
    """The tokens that are told, the ending, and the receipt's conditions and peaks."""
    assert wanted.closest > 1e-4, "the case rests on rounding"
    assert answer.tokens() == wanted.told
    reason = {"length": FinishReason.LENGTH, "stopped": FinishReason.CONTENT_FILTER}[wanted.ended]
    assert answer.ending().reason is reason
    receipt, usage = answer.finished.receipt, answer.finished.usage
    assert usage.completion_tokens == len(wanted.told)
    for found, each, held in zip(receipt.conditions, case.guard.conditions, wanted.held, strict=True):
        assert (found.name, found.held_tokens) == (each.name, len(held))
        assert found.first_token == (held[0] if held else None)
    assert receipt.guard_peaks == pytest.approx(wanted.peaks, abs=1e-4, rel=1e-4)
    assert all(len(output.watched) == 3 for output in answer.outputs()), "guards are not told"


def literal(answer: Sequence[float], token: int) -> Condition:
    """A condition on the first reading that holds first at a token of an answer, by its values there."""
    level = max(answer[:token])
    assert answer[token] > level + 1e-3
    return Condition(Literal(0, (level + answer[token]) / 2.0), sticky=False)


def rising(prompt: list[int]) -> tuple[list[float], int]:
    """The first reading at the tokens of a plain answer, and a token after the third with the largest yet."""
    run = Naive(tiny.model(), prompt, READ_ONLY, Guard(), _LONG).run()
    values = [row[0] for row in run.values]
    in_prompt, answer = max(values[: len(prompt)]), values[len(prompt) :]
    for token in range(3, len(answer)):
        if answer[token] > max(in_prompt, *answer[:token]) + 1e-3:
            return [in_prompt, *answer], token
    raise AssertionError("choose another prompt")


@cache
def late() -> tuple[list[int], list[int], Condition, int]:
    """A prompt, its plain answer, and a condition that holds first at a token of it."""
    for seed in range(50):
        prompt = tiny.prompt_of(seed, 6)
        try:
            values, token = rising(prompt)
        except AssertionError:
            continue
        answer = Naive(tiny.model(), prompt, READ_ONLY, Guard(), _LONG).run().tokens
        return prompt, answer, literal(values, token + 1), token
    raise AssertionError("no prompt will do")


def flickering() -> tuple[SteeringProgram, Guard]:
    """A request whose rows come and go, for half of its tokens or so."""
    added = {SITES[1]: SiteProgram(rules=(rows.add(probe(5), 4.0),))}
    condition = Condition(Literal(0, 0.0), sticky=False)
    edit = Guarded("p/edit", condition, Reaction.EDIT, rows=added)
    return READ_ONLY, Guard((edit, always("p/count", Reaction.RECORD)))
