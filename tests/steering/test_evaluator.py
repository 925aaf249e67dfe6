"""The evaluator against a loop over tokens and expressions in plain Python."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saegis_server.steering.conditions import (
    AllOf,
    AnyOf,
    Condition,
    ConditionError,
    Expression,
    Literal,
    Negation,
    Scope,
    compile_conditions,
)
from saegis_server.steering.evaluator import ConditionRows, ConditionState, TextConditions, Where, evaluate
from saegis_server.steering.tokens import Spread, Tokens

READINGS = 4
#: Few values and thresholds, so that ties, and what holds nowhere or everywhere, are common.
VALUES = (-1.0, 0.0, 0.1, 1.0, 2.5)

literals = st.builds(Literal, st.integers(0, READINGS - 1), st.sampled_from(VALUES), st.booleans())
expressions: st.SearchStrategy[Expression] = st.recursive(
    literals,
    lambda parts: st.one_of(
        st.builds(AllOf, st.lists(parts, min_size=1, max_size=3).map(tuple)),
        st.builds(AnyOf, st.lists(parts, min_size=1, max_size=3).map(tuple)),
        st.builds(Negation, parts),
    ),
    max_leaves=6,
)
conditions = st.one_of(
    st.builds(
        Condition,
        expressions,
        st.sampled_from((Scope.PROMPT, Scope.TOKEN, Scope.ANSWER)),
        sticky=st.booleans(),
    ),
    st.builds(Condition, expressions, st.just(Scope.WINDOW), st.integers(1, 9), st.booleans()),
)
tokens = st.lists(st.lists(st.sampled_from(VALUES), min_size=READINGS, max_size=READINGS), max_size=12)


def over(expression: Expression, rows: list[list[float]]) -> bool:
    """Whether an expression holds over some tokens, by the largest or the least value of each reading."""
    match expression:
        case Literal(reading, threshold, above):
            values = [float(np.float32(row[reading])) for row in rows]
            return max(values) > threshold if above else min(values) < threshold
        case AllOf(parts):
            return all(over(part, rows) for part in parts)
        case AnyOf(parts):
            return any(over(part, rows) for part in parts)
        case Negation(part):
            return not over(part, rows)


def naive(condition: Condition, prompt: list[list[float]], answer: list[list[float]]) -> list[bool]:
    """Whether the condition holds at the end of the prompt and at each token of the answer."""
    found: list[bool] = []
    for end in range(len(prompt), len(prompt) + len(answer) + 1):
        text = [*prompt, *answer][:end]
        if condition.scope is Scope.PROMPT:
            holds = over(condition.expression, prompt)
        elif condition.scope is Scope.WINDOW:
            holds = over(condition.expression, text[-condition.window :])
        elif end == len(prompt) and condition.scope is Scope.ANSWER:
            holds = False
        elif end == len(prompt):
            holds = any(over(condition.expression, [row]) for row in prompt)
        else:
            holds = over(condition.expression, text[-1:])
        found.append(holds or (condition.sticky and any(found)))
    return found


def array(rows: list[list[float]]) -> Tensor:
    """Readings as the step gives them."""
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, READINGS)


#: A text: its prompt, its answer, and how many tokens are read at once.
texts = st.tuples(tokens.filter(bool), tokens, st.lists(st.integers(1, 11), max_size=4))


@settings(max_examples=400, deadline=None)
@given(st.lists(conditions, min_size=1, max_size=5), texts)
def test_agrees_with_the_loop_however_the_text_is_cut(
    wanted: list[Condition], text: tuple[list[list[float]], list[list[float]], list[int]]
) -> None:
    prompt, answer, cuts = text
    one = TextConditions(tuple(wanted), READINGS)
    every, found, start = [*prompt, *answer], [], 0
    for end in (*sorted({cut for cut in cuts if cut < len(every)}), len(every)):
        found.append(one.read(array(every[start:end]).double(), len(prompt)))
        start = end
    holds = torch.cat(found)
    assert not holds[: len(prompt) - 1].any()
    for place, condition in enumerate(wanted):
        assert holds[len(prompt) - 1 :, place].tolist() == naive(condition, prompt, answer), condition


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.lists(conditions, min_size=1, max_size=4), texts), min_size=2, max_size=4))
def test_texts_of_any_conditions_are_evaluated_together_as_alone(
    asked: list[tuple[list[Condition], tuple[list[list[float]], list[list[float]], list[int]]]],
) -> None:
    """In one table, step by step, as many tokens of each as it has left to read."""
    places = tuple((0, row) for row in range(READINGS))
    rows, state = ConditionRows.allocate(len(asked), 64), ConditionState.allocate(len(asked), 64)
    for slot, (wanted, _) in enumerate(asked):
        none = (False,) * len(wanted)
        rows.write(slot, compile_conditions(tuple(wanted), none, none, places, 64))
    read: list[list[int]] = [[] for _ in asked]
    found: list[list[Tensor]] = [[] for _ in asked]
    while True:
        now = []
        for slot, (_, (prompt, answer, cuts)) in enumerate(asked):
            done, length = len(read[slot]), len(prompt) + len(answer)
            size = cuts[done % len(cuts)] if cuts else 1
            now.append(range(done, min(done + size, length)))
            read[slot] += now[-1]
        slot_of = torch.tensor([slot for slot, some in enumerate(now) for _ in some], dtype=torch.int64)
        if not len(slot_of):
            break
        position = torch.tensor([place for some in now for place in some])
        answers = torch.tensor([len(prompt) for _, (prompt, _, _) in asked])[slot_of]
        values = torch.cat(
            [array([*p, *a])[list(some)] for some, (_, (p, a, _)) in zip(now, asked, strict=True)]
        )
        at = Where(position, answers, torch.ones_like(slot_of, dtype=torch.bool), torch.zeros_like(slot_of))
        verdict = evaluate(values[:, None], rows, state, Tokens.of(slot_of, position < answers), at)
        for slot in range(len(asked)):
            mine = (slot_of == slot).nonzero()[:, 0]
            if len(mine):
                found[slot].append(verdict.holds[mine])
                for kept, new in zip(state, (verdict.age, verdict.latched, verdict.in_prompt), strict=False):
                    kept[slot] = new[mine[-1]]
    for slot, (wanted, (prompt, answer, _)) in enumerate(asked):
        holds = torch.cat(found[slot])[len(prompt) - 1 :]
        for place, condition in enumerate(wanted):
            assert holds[:, place].tolist() == naive(condition, prompt, answer), condition


def test_a_reading_that_is_no_finite_number_cannot_be_evaluated() -> None:
    condition = (Condition(Negation(Literal(1, 0.0)), sticky=False),)
    one = TextConditions(condition, 2)
    assert one.read(torch.tensor([[0.0, -1.0]], dtype=torch.float64), 1).tolist() == [[True]]
    for odd in (math.nan, math.inf, -math.inf):
        with pytest.raises(ConditionError, match="no finite number"):
            one.read(torch.tensor([[0.0, odd]], dtype=torch.float64), 1)
    assert one.read(torch.tensor([[1e300, 1e300]], dtype=torch.float64), 1).tolist() == [[False]]
    with pytest.raises(ConditionError, match="there are 1"):
        TextConditions(condition, 1)


@pytest.mark.parametrize("threshold", [0.1, -0.1, 1e-45, -1e-45, 1e300, -1e300, 3.4028235e38, 0.0])
@pytest.mark.parametrize("above", [True, False])
def test_a_float32_reading_is_compared_with_the_threshold_itself(threshold: float, above: bool) -> None:
    near = np.float32(np.clip(threshold, -3.4e38, 3.4e38))
    levels = [near, np.nextafter(near, np.float32(-np.inf)), np.nextafter(near, np.float32(np.inf))]
    values = torch.tensor([*levels, math.inf, -math.inf, 0.0], dtype=torch.float32)
    rows, state = ConditionRows.allocate(1, 1), ConditionState.allocate(1, 1)
    condition = Condition(Literal(0, threshold, above), sticky=False)
    rows.write(0, compile_conditions((condition,), (False,), (False,), ((0, 0),), 1))
    position, nothing = torch.arange(len(values)), torch.zeros(1, dtype=torch.int64)
    tokens = Tokens(position < 0, Spread.ONE)
    at = Where(position, nothing, ~tokens.prompt, nothing)
    holds = evaluate(values[:, None, None], rows, state, tokens, at).holds[:, 0].tolist()
    exact = [value > threshold if above else value < threshold for value in values.double().tolist()]
    assert holds == exact


def test_what_there_is_no_room_for_is_refused_with_how_to_make_room() -> None:
    def compiled(*expressions: Expression, room: int = 2) -> None:
        made, none = tuple(Condition(each) for each in expressions), (False,) * len(expressions)
        compile_conditions(made, none, none, tuple((0, row) for row in range(32)), room)

    compiled(Literal(0, 1.0), Literal(1, 1.0))
    with pytest.raises(ConditionError, match=r"3 conditions; .* room for 2 .*--rows conditions=3"):
        compiled(*(Literal(row, 1.0) for row in range(3)))
    with pytest.raises(ConditionError, match=r"12 comparisons .*; .* room for 8 .*--rows conditions=3"):
        compiled(AllOf(tuple(Literal(row, 1.0) for row in range(12))))
    nested: Expression = Literal(0, 1.0)
    for level in range(1, 5):
        nested = (AllOf if level % 2 else AnyOf)((nested, Literal(level, 1.0)))
    compiled(nested, room=4)
    spread = AllOf(tuple(Literal(row, 1.0) for row in range(32)))
    for _ in range(2):
        spread = AllOf((Literal(0, 2.0), AnyOf((Literal(1, 2.0), spread, Negation(spread)))))
    with pytest.raises(ConditionError, match=r"too many levels|joins of conditions"):
        compiled(spread, room=8)


@pytest.mark.parametrize("threshold", [math.nan, math.inf, -math.inf])
def test_what_can_never_be_judged_is_no_condition(threshold: float) -> None:
    for expression in (
        Literal(0, threshold),
        AllOf((Negation(Literal(0, threshold)),)),
        AnyOf(()),
        AllOf(()),
    ):
        with pytest.raises(ValueError, match=r"judged|joins nothing"):
            Condition(expression)
    with pytest.raises(ValueError, match="judged"):
        Condition(Literal(-1, 0.0))
    for scope, window in ((Scope.WINDOW, 0), (Scope.TOKEN, 2), (Scope.PROMPT, 5)):
        with pytest.raises(ValueError, match=f"over {scope} cannot have a window of {window}"):
            Condition(Literal(0, 0.0), scope, window)
