"""What is read of single tokens, against the loop: whole texts read again in float64."""

import pytest
import torch
from torch import Tensor

from saegis_server.engine.api import Delta, Guard, Guarded, Reaction, SamplingParams
from saegis_server.engine.readouts import PromptRead, Readouts, TokenOutput
from saegis_server.engine.torch.site_reading import edited
from saegis_server.steering import rows
from saegis_server.steering.conditions import Condition, Literal, Scope
from saegis_server.steering.program import SiteProgram, SteeringProgram
from saegis_server.steering.rows import Phase
from saegis_server.steering.site import Site
from tests.engine import tiny
from tests.engine.serving import Answer
from tests.engine.test_activity import FIRST, SECOND, greedy, probe
from tests.steering import reference

EVERYTHING = Readouts(prompt=True, moves=True)
#: At the first site, of which features are watched; nothing is watched at the second.
WATCHED = (11, 12, 13)


def watched(seed: int) -> SteeringProgram:
    """Edits, a rule and a ban at two sites, with watches of what is edited, of what is banned and of another
    feature at the first."""
    one, two, three = (probe(100 * seed + number) for number in WATCHED)
    edits = rows.scale(one, 0.5, phase=Phase.PROMPT), rows.add(one, 0.7, phase=Phase.COMPLETION)
    first = SiteProgram(edits=edits, bans=(rows.ban(two, 0.5),), watches=(one, two, three))
    second = SiteProgram(rules=(rows.cap(probe(100 * seed + 20), 0.1),))
    return SteeringProgram({FIRST: first, SECOND: second})


def prompt_of(answer: Answer) -> PromptRead:
    """What is told of an answer's prompt: once, right before its first token."""
    places = [place for place, event in enumerate(answer.events) if isinstance(event, PromptRead)]
    first = next(place for place, event in enumerate(answer.events) if isinstance(event, Delta))
    assert places == [first - 1]
    found = answer.events[places[0]]
    assert isinstance(found, PromptRead)
    return found


def numbers_of_prompt(answer: Answer) -> list[list[float]]:
    """The same of each token of the prompt."""
    found = prompt_of(answer)
    columns = [
        column
        for each in found.watched
        for column in (each.before, each.after, each.set_to or (-1.0,) * len(each.before))
    ]
    return [list(row) for row in zip(*columns, *found.moves, strict=True)]


def numbers(token: TokenOutput) -> list[float]:
    """Before, after and what was set of each watch, and the moves; -1 where nothing was set."""
    values = [
        (each.before, each.after, -1.0 if each.set_to is None else each.set_to) for each in token.watched
    ]
    return [*(value for each in values for value in each), *token.moves]


def numbers_of(answer: Answer) -> list[list[float]]:
    """What is told of each token that was read, those of the prompt first: its last one is told twice."""
    return [*numbers_of_prompt(answer), *map(numbers, answer.outputs())]


def loop(program: SteeringProgram, prompt: list[int], read: list[int]) -> list[list[float]]:
    """The numbers of each token of a text by the loop: at the first site of watches, at both of moves."""
    found: list[list[float]] = [[] for _ in (*prompt, *read)]
    moved = {FIRST: [0.0] * len(found), SECOND: [0.0] * len(found)}

    def steer(site: Site, x: Tensor) -> Tensor:
        own, changed = program.sites[site], x.clone()
        for place in range(len(found)):
            clean, in_prompt = reference.vector(x[0, place]), place < len(prompt)
            steered = reference.settled(own, clean, in_prompt)
            changed[0, place] = torch.from_numpy(steered).to(x.dtype)
            moved[site][place] = float(((steered - clean) ** 2).sum() ** 0.5 / (clean**2).sum() ** 0.5)
            for each in own.watches:
                before = reference.read(each, clean)
                edits = [edit for edit in own.edits if edit.probe.key == each.key]
                set_to = [edit.sets(before) for edit in edits if reference.acts(edit, in_prompt)] or (
                    [before] if edits else [-1.0]
                )
                found[place] += [before, reference.read(each, steered), *set_to]
        return changed

    model = tiny.model()
    with edited(model, FIRST, lambda x: steer(FIRST, x)), edited(model, SECOND, lambda x: steer(SECOND, x)):
        model(torch.tensor([[*prompt, *read]]))
    return [[*own, moved[FIRST][place], moved[SECOND][place]] for place, own in enumerate(found)]


@pytest.mark.parametrize("completions", [1, 2])
def test_every_token_reads_as_the_loop_says(completions: int) -> None:
    """Of a prompt of several chunks, told once however many completions there are, and of each answer."""
    prompt, program = tiny.prompt_of(4, 37), watched(4)
    sampling = SamplingParams(n=completions, seed=3, max_tokens=9, ignore_eos=True)
    with tiny.RunningEngine(tiny.step(tiny.model())) as engine:
        answer = engine.ask(prompt, sampling, program, readouts=EVERYTHING).wait()
    of_prompt = torch.tensor(numbers_of_prompt(answer))
    for index in range(completions):
        wanted = torch.tensor(loop(program, prompt, answer.tokens(index)[:-1]))
        of_answer = torch.tensor([numbers(token) for token in answer.outputs(index)])
        torch.testing.assert_close(of_prompt, wanted[: len(prompt)], rtol=1e-3, atol=1e-4)
        # An answer's token is read at the position before it.
        torch.testing.assert_close(of_answer, wanted[len(prompt) - 1 :], rtol=1e-3, atol=1e-4)
    assert bool((of_prompt[:, -2:] > 0.0).any(0).all()), "tokens are moved at both sites"


def test_a_prompt_that_is_read_again_is_told_as_it_was_read_last() -> None:
    """A cap comes in force at the end of the prompt, and then from its start."""
    prompt, read = tiny.prompt_of(3, 40), probe(1, "direction")
    guarded = SteeringProgram({FIRST: SiteProgram(guards=(read,), watches=(read,))})
    capped = {FIRST: SiteProgram(rules=(rows.cap(read, -1.0),))}
    condition = Condition(Literal(0, -1e5), Scope.PROMPT)
    guard = Guard((Guarded("p/r", condition, Reaction.EDIT, rows=capped),))
    with tiny.RunningEngine(tiny.step(tiny.model())) as engine:
        answer = engine.ask(prompt, greedy(4), guarded, guard=guard, readouts=EVERYTHING).wait()
    found = prompt_of(answer)
    (values,), (moves,) = found.watched, found.moves
    assert len(values.before) == len(values.after) == len(moves) == len(prompt)
    assert max(values.before) > -1.0
    assert max(values.after) <= -1.0 + 1e-4
    assert [move > 0.0 for move in moves] == [value > -1.0 for value in values.before]


def test_of_a_refused_prompt_nothing_is_told() -> None:
    prompt, read = tiny.prompt_of(3, 40), probe(1, "direction")
    guarded = SteeringProgram({FIRST: SiteProgram(guards=(read,), watches=(read,))})
    guard = Guard((Guarded("p/r", Condition(Literal(0, -1e5), Scope.PROMPT), Reaction.REFUSE),))
    with tiny.RunningEngine(tiny.step(tiny.model())) as engine:
        answer = engine.ask(prompt, greedy(4), guarded, guard=guard, readouts=EVERYTHING).wait()
    assert answer.events == [answer.failed]


def test_nothing_is_told_that_was_not_asked_for() -> None:
    prompt, program = tiny.prompt_of(4, 20), watched(4)
    with tiny.RunningEngine(tiny.step(tiny.model())) as engine:
        answer = engine.ask(prompt, greedy(4), program).wait()
        alone = engine.ask(prompt, greedy(4), program, readouts=Readouts(moves=True)).wait()
    assert not any(isinstance(event, PromptRead) for event in (*answer.events, *alone.events))
    assert not any(token.moves for token in answer.outputs())
    assert all(len(token.moves) == 2 for token in alone.outputs())
    assert answer.tokens() == alone.tokens()
    assert answer.finished.receipt == alone.finished.receipt
