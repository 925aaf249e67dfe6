"""At how many tokens groups of rows act, against the loop: whole texts read again in float64."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from saegis_server.engine.api import (
    UNGUARDED,
    GenerationRequest,
    Guard,
    Guarded,
    Reaction,
    SamplingParams,
    rows_of,
)
from saegis_server.engine.counts import Acted, RowGroup, RowName
from saegis_server.engine.torch.site_reading import edited
from saegis_server.steering import rows
from saegis_server.steering.conditions import Condition, Literal, Scope
from saegis_server.steering.program import SiteProgram, SteeringProgram
from saegis_server.steering.rows import Norm, Probe
from saegis_server.steering.site import Site
from tests.engine import tiny
from tests.engine.serving import Answer
from tests.steering import cases, reference

FIRST, SECOND = list(tiny.SITES)[:2]
Programs = Mapping[Site, SiteProgram]


def probe(seed: int, kind: str = "relu") -> Probe:
    """A random probe."""
    return cases.random_probe(torch.Generator().manual_seed(seed), tiny.WIDTH, kind, Norm.NONE, f"{seed}")


def program(seed: int) -> SteeringProgram:
    """Edits, rules and bans at two sites, of features that are active at about half of the tokens."""
    made = {}
    for place, site in enumerate((FIRST, SECOND)):
        one, two, three, four = (probe(100 * seed + 10 * place + number) for number in range(4))
        made[site] = SiteProgram(
            edits=(rows.scale(one, 0.5), rows.add(two, 0.3, phase=rows.Phase.COMPLETION)),
            rules=(rows.cap(three, 0.1),),
            bans=(rows.ban(four, 0.5),),
        )
    return SteeringProgram(made)


def groups_of(asked: SteeringProgram, guard: Guard = UNGUARDED) -> tuple[RowGroup, ...]:
    """Every row by itself, all of each stage at both sites, and all of them."""
    every = [name for name, _ in rows_of(asked, guard)]
    by_stage = [
        frozenset(name for name in every if name.stage == stage) for stage in ("edits", "rules", "bans")
    ]
    return (*(frozenset((name,)) for name in every), *by_stage, frozenset(every))


def acting_rows(
    prompt: Sequence[int], read: Sequence[int], programs: Sequence[Programs], every: Programs
) -> list[set[RowName]]:
    """Which rows act at each token of a text, each token under a program of its own."""
    found: list[set[RowName]] = [set() for _ in programs]

    def steer(site: Site, x: Tensor) -> Tensor:
        changed = x.clone()
        for token, by_site in enumerate(programs):
            if (own := by_site.get(site)) is None:
                continue
            clean, in_prompt = reference.vector(x[0, token]), token < len(prompt)
            for stage, acts in reference.acting(own, clean, in_prompt, every.get(site)).items():
                for row, truth in zip(getattr(own, stage), acts, strict=True):
                    if truth:
                        found[token].add(RowName(site, stage, row.probe.key, row.when))
            steered = reference.settled(own, clean, in_prompt, every.get(site))
            changed[0, token] = torch.from_numpy(steered).to(x.dtype)
        return changed

    model = tiny.model()
    with edited(model, FIRST, lambda x: steer(FIRST, x)), edited(model, SECOND, lambda x: steer(SECOND, x)):
        model(torch.tensor([[*prompt, *read]]))
    return found


def counted(groups: Sequence[RowGroup], acting: Sequence[set[RowName]], prompt: int) -> list[Acted]:
    """At how many of the prompt's tokens and of those after it each group acts."""
    return [
        Acted(
            sum(not group.isdisjoint(at) for at in acting[:prompt]),
            sum(not group.isdisjoint(at) for at in acting[prompt:]),
        )
        for group in groups
    ]


def ask(engine: tiny.RunningEngine, prompt: list[int], sampling: SamplingParams, **fields: object) -> Answer:
    """Submit a request with groups."""
    answer = Answer()
    request = GenerationRequest(f"r{id(answer)}", tuple(prompt), sampling, **fields)  # type: ignore[arg-type]
    engine.submit(request, answer)
    return answer


def greedy(tokens: int, n: int = 1) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, n=n)


@pytest.mark.parametrize("seed", range(3))
def test_groups_act_where_the_loop_says(seed: int) -> None:
    """Three different programs in one batch, with prompts of several chunks."""
    programs = [program(10 * seed + number) for number in range(3)]
    prompts = [tiny.prompt_of(10 * seed + number, 5 + 13 * number) for number in range(3)]
    with tiny.RunningEngine(tiny.step(tiny.model())) as engine:
        answers = [
            ask(engine, prompt, greedy(8 + 4 * number), program=asked, groups=groups_of(asked))
            for number, (prompt, asked) in enumerate(zip(prompts, programs, strict=True))
        ]
        for answer in answers:
            answer.wait()
    for answer, prompt, asked in zip(answers, prompts, programs, strict=True):
        read = answer.tokens()[:-1]
        acting = acting_rows(prompt, read, [asked.sites] * (len(prompt) + len(read)), asked.sites)
        assert list(answer.finished.receipt.acted) == counted(groups_of(asked), acting, len(prompt))
        assert all(total.prompt + total.answer > 0 for total in answer.finished.receipt.acted[-4:])


def test_a_prompt_counts_once_however_many_answers_it_has() -> None:
    asked, prompt = program(7), tiny.prompt_of(7, 20)
    with tiny.RunningEngine(tiny.step(tiny.model())) as engine:
        one, three = (
            ask(engine, prompt, greedy(6, n), program=asked, groups=groups_of(asked)).wait() for n in (1, 3)
        )
    alone, together = one.finished.receipt.acted, three.finished.receipt.acted
    assert [each.prompt for each in together] == [each.prompt for each in alone]
    assert [each.answer for each in together] == [3 * each.answer for each in alone]
    assert alone[-1].answer > 0


def test_rows_of_a_condition_act_while_it_holds() -> None:
    """A ban that is in force while a direction reads above what it reads at half of the answer's tokens."""
    prompt, reading, banned = tiny.prompt_of(3, 9), probe(1, "direction"), probe(2)
    condition = Condition(Literal(0, 0.4), Scope.ANSWER, sticky=False)
    added = {SECOND: SiteProgram(bans=(rows.ban(banned, 1.0),))}
    guard = Guard((Guarded("p/r", condition, Reaction.EDIT, rows=added),))
    asked = SteeringProgram({FIRST: SiteProgram(guards=(reading,))})
    groups = groups_of(asked, guard)
    with tiny.RunningEngine(tiny.step(tiny.model())) as engine:
        answer = ask(engine, prompt, greedy(24), program=asked, guard=guard, groups=groups).wait()
    (held,) = answer.finished.receipt.conditions
    read = answer.tokens()[:-1]
    ruled = {SECOND: replace(added[SECOND], bans=(replace(added[SECOND].bans[0], when=1),))}
    values = clean_readings([*prompt, *read], reading)
    holds = [token >= len(prompt) and value > 0.4 for token, value in enumerate(values)]
    acting = acting_rows(prompt, read, [ruled if truth else {} for truth in holds], ruled)
    assert 0 < sum(holds) == held.held_tokens < len(read)
    assert list(answer.finished.receipt.acted) == counted(groups, acting, len(prompt))
    assert answer.finished.receipt.acted[-1].answer > 0


def clean_readings(tokens: Sequence[int], read: Probe) -> list[float]:
    """What a probe reads at the first site, which nothing before it changes."""
    found: list[float] = []

    def show(x: Tensor) -> Tensor:
        found.extend(reference.read(read, reference.vector(token)) for token in x[0])
        return x

    model = tiny.model()
    with edited(model, FIRST, show):
        model(torch.tensor([list(tokens)]))
    return found


def test_a_cancelled_request_tells_what_acted_until_then() -> None:
    asked, prompt = program(9), tiny.prompt_of(9, 20)
    with tiny.RunningEngine(tiny.step(tiny.model())) as engine:
        answer = Answer()
        groups = groups_of(asked)
        engine.submit(GenerationRequest("r", tuple(prompt), greedy(130), asked, groups=groups), answer)
        while not answer.tokens():
            pass
        engine.cancel("r")
        answer.wait()
    read = answer.tokens()
    acting = acting_rows(prompt, read, [asked.sites] * (len(prompt) + len(read)), asked.sites)
    for found, least, most in zip(
        answer.finished.receipt.acted,
        counted(groups, acting[:-1], len(prompt)),
        counted(groups, acting, len(prompt)),
        strict=True,
    ):
        assert found.prompt == most.prompt
        assert least.answer <= found.answer <= most.answer
