"""The judge against a loop over tokens and expressions in plain Python."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from saegis_server.steering.conditions import AllOf, AnyOf, Condition, Expression, Literal, Negation, Scope
from saegis_server.steering.judge import Judge, Standing, UnreadableError, judge_of

READINGS = 4
#: Few values and thresholds, so that ties, and what holds nowhere or everywhere, are common.
LEVELS = (-1.0, 0.0, 0.1, 1.0, 2.5)

literals = st.builds(Literal, st.integers(0, READINGS - 1), st.sampled_from(LEVELS), st.booleans())
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
    st.builds(Condition, expressions, st.sampled_from((Scope.PROMPT, Scope.TOKEN)), sticky=st.booleans()),
    st.builds(Condition, expressions, st.just(Scope.WINDOW), st.integers(1, 9), st.booleans()),
)
tokens = st.lists(st.lists(st.sampled_from(LEVELS), min_size=READINGS, max_size=READINGS), max_size=12)


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
        elif end == len(prompt):
            holds = any(over(condition.expression, [row]) for row in prompt)
        else:
            holds = over(condition.expression, text[-1:])
        found.append(holds or (condition.sticky and any(found)))
    return found


def array(rows: list[list[float]]) -> NDArray[np.float32]:
    """Readings as the step gives them."""
    return np.array(rows, dtype=np.float32).reshape(-1, READINGS)


@settings(max_examples=400, deadline=None)
@given(
    st.lists(conditions, min_size=1, max_size=5),
    tokens.filter(bool),
    tokens,
    st.lists(st.integers(1, 11), max_size=4),
)
def test_agrees_with_the_loop_however_the_prompt_is_cut(
    wanted: list[Condition], prompt: list[list[float]], answer: list[list[float]], cuts: list[int]
) -> None:
    judge = Judge(wanted)
    standing = judge.start()
    ends = sorted({cut for cut in cuts if cut < len(prompt)} | {len(prompt)})
    for start, end in zip([0, *ends], ends, strict=False):
        holds, standing = judge.read_prompt(standing, array(prompt[start:end]), last=end == len(prompt))
        assert end == len(prompt) or not holds.any()
    found = [holds[0]]
    for row in array(answer):
        holds, standing = judge.read_tokens(standing, row[None])
        found.append(holds[0])
    for place, condition in enumerate(wanted):
        assert [bool(each[place]) for each in found] == naive(condition, prompt, answer), condition


@settings(max_examples=60, deadline=None)
@given(
    st.lists(conditions, min_size=1, max_size=4),
    st.lists(tokens.filter(bool), min_size=1, max_size=5),
    tokens,
)
def test_texts_that_are_judged_together_are_judged_as_alone(
    wanted: list[Condition], prompts: list[list[list[float]]], answer: list[list[float]]
) -> None:
    judge = Judge(wanted)
    alone = [judge.read_prompt(judge.start(), array(prompt))[1] for prompt in prompts]
    together = Standing(*(np.concatenate(parts) for parts in zip(*alone, strict=True)))
    for row in array(answer):
        values = np.stack([row + np.float32(shift) for shift in range(len(prompts))])
        holds, together = judge.read_tokens(together, values)
        for place, standing in enumerate(alone):
            own, alone[place] = judge.read_tokens(standing, values[place : place + 1])
            assert np.array_equal(holds[place], own[0])


def test_a_reading_that_is_no_number_cannot_be_judged() -> None:
    judge = Judge([Condition(Negation(Literal(1, 0.0)), sticky=False)])
    holds, standing = judge.read_prompt(judge.start(), np.array([[math.nan, -1.0]]))
    assert holds.tolist() == [[True]], "nothing looks at reading 0"
    with pytest.raises(UnreadableError, match="no number"):
        judge.read_tokens(standing, np.array([[0.0, math.nan]]))
    with pytest.raises(UnreadableError, match="1 readings"):
        judge.read_tokens(standing, np.array([[0.0]]))
    with pytest.raises(UnreadableError, match="no number"):
        judge.read_prompt(judge.start(), np.array([[0.0, 0.0], [0.0, math.nan], [0.0, 0.0]]))
    assert judge.read_tokens(standing, np.array([[math.inf, math.inf]]))[0].tolist() == [[False]]


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


def test_equal_conditions_have_the_same_judge() -> None:
    made = [(Condition(AllOf((Literal(0, 1.0), Literal(2, 3.0, False)))),) for _ in range(2)]
    assert judge_of(made[0]) is judge_of(made[1])
    assert made[0][0].readings == {0, 2}
    nobody = Judge(())
    assert nobody.read_prompt(nobody.start(), array([[0.0] * READINGS]))[0].shape == (1, 0)
