"""The alarm against judging every token: what is read is scripted, and only what is judged differs."""

from collections.abc import Sequence as Sequenced
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saegis_server.engine.api import (
    FirstToken,
    GenerationRequest,
    Guard,
    Guarded,
    Reaction,
    Receipt,
    SamplingParams,
    admit,
)
from saegis_server.engine.torch.admission import Admission
from saegis_server.engine.torch.alarm import Alarms
from saegis_server.engine.torch.guarding import Guarding
from saegis_server.engine.torch.plan import Plan
from saegis_server.engine.torch.request_guard import RequestGuard
from saegis_server.engine.torch.sequence import Running, Sequence
from saegis_server.engine.torch.step import Step, StepOutput
from saegis_server.steering import rows
from saegis_server.steering.admitted import Room
from saegis_server.steering.conditions import AnyOf, Condition, Literal, Negation, Scope
from saegis_server.steering.judge import Judge
from saegis_server.steering.program import SiteProgram, SteeringProgram
from saegis_server.steering.table import Capacity
from tests.engine import guarded, tiny
from tests.engine.guarded import probe
from tests.steering.test_judge import LEVELS, READINGS, conditions
from tests.tiers import sized

SITE = next(iter(tiny.SITES))
PROMPT = 2
Row = tuple[float, ...]


class Text(NamedTuple):
    """What is read at each token of a prompt and an answer, and where a token is read again."""

    prompt: list[Row]
    answer: list[Row]
    again: Row


@dataclass
class Scripted:
    """Stands for a step: its slots only have alarms, and a token that is read again reads as `again` says."""

    again: dict[int, Row] = field(default_factory=dict)
    steered: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        alarms = Alarms.allocate(1, 4, READINGS + 1, "cpu")
        self.slots = SimpleNamespace(
            alarms=alarms,
            state=SimpleNamespace(counted=torch.zeros(1, 4, 3)),
            restart=lambda slot: None,
            take_back=lambda *_: None,
            steer=lambda slot, program: self.steered.append((slot, len(program[SITE].rules))),
        )

    def prefill(self, slot: int, *_: object, **__: object) -> StepOutput:
        return output([[self.again[slot]]])


def output(read: list[list[Row]], alarm: torch.Tensor | None = None) -> StepOutput:
    """A step's output for B rows of Q tokens, read [B][Q]."""
    values = torch.tensor(read, dtype=torch.float32)[None]
    every = torch.ones(len(read), dtype=torch.bool)
    nothing = torch.zeros(len(read), 2)
    watched = torch.zeros(1, len(read), 2, 2)
    tokens = torch.zeros(len(read), dtype=torch.int64)
    return StepOutput(
        tokens,
        every,
        nothing,
        None,
        watched,
        values,
        every if alarm is None else alarm,
        torch.zeros(1, len(read), 3),
    )


class Player:
    """Plays texts, which all have the same guard, with their alarms or judging `every` token."""

    def __init__(self, guard: Guard, texts: Sequenced[Text], every: bool) -> None:
        self.step, self.every, self.texts = Scripted(), every, texts
        self.guarding = Guarding(cast(Step, self.step))
        program = {SITE: SiteProgram(guards=tuple(probe(index) for index in range(READINGS)))}
        asked, room = SteeringProgram(program), Room((SITE,), tiny.WIDTH, Capacity())
        admitted = admit(asked, guard, room)
        self.guard = RequestGuard(Plan(guard, admitted.rows, room))
        request = GenerationRequest("r", (0,) * PROMPT, SamplingParams(temperature=0.0), asked, guard=guard)
        running = Running(request, admitted, 0, lambda _: None, self.guard)
        none: frozenset[int] = frozenset()
        made = [Sequence(running, index, none, none, 99, cast(Any, None)) for index in range(len(texts))]
        self.running: list[Sequence] = []
        self.told: list[object] = []
        for sequence in made:
            sequence.slot = len(self.running)
            self._read_prompt(sequence)

    def _read_prompt(self, sequence: Sequence) -> None:
        text = self.texts[sequence.index]
        self.step.again[sequence.slot] = text.again
        self.guarding.enter(sequence)
        ending = None
        while sequence.read == 0 and ending is None:
            sequence.read = PROMPT
            ending = self.guarding.after_chunk(sequence, output([text.prompt]), PROMPT, True)
        if ending is not None:
            self.told.append(("prompt", sequence.index, repr(ending)))
            self.guarding.leave(sequence)
            return
        sequence.generated = 1
        self.running.append(sequence)

    def decode(self) -> None:
        """A token for each that runs."""
        read = [[self.texts[each.index].answer[each.generated - 1]] for each in self.running]
        alarms: Alarms = self.step.slots.alarms
        positions = torch.tensor([sequence.length for sequence in self.running])
        live = torch.ones(len(read), dtype=torch.bool)
        raised = alarms.raised(torch.tensor(read, dtype=torch.float32)[None, :, 0], positions, live)
        found = output(read, torch.ones_like(raised) if self.every else raised)
        endings = self.guarding.after_decode(self.running, found, False)
        self.told.append({self.running[row].index: repr(ending) for row, ending in endings.items()})
        for row in sorted(endings, reverse=True):
            self._end(row)
        for sequence in self.running:
            sequence.generated += 1
        self.told.append([each.seat.panel.on[each.seat.row].tolist() for each in self.running if each.seat])

    def _end(self, row: int) -> None:
        """Take a sequence out; the last one gets its slot."""
        self.guarding.leave(self.running[row])
        last = self.running.pop()
        if row < len(self.running):
            self.step.slots.alarms.move(last.slot, row)
            self.step.again[row] = self.step.again[last.slot]
            self.running[row], last.slot = last, row

    def play(self) -> tuple[object, ...]:
        """What was told of every token, what was put in force, and what the conditions came to."""
        for _ in range(min(len(text.answer) for text in self.texts)):
            if self.running:
                self.decode()
        while self.running:
            self._end(len(self.running) - 1)
        assert self.guarding.idle
        receipt = self.guard.complete(Receipt("", False, ()))
        return self.told, self.step.steered, receipt.conditions, np.array(receipt.guard_peaks).tolist()


def near(level: float) -> tuple[float, ...]:
    """A level as it is read, and its neighbours."""
    value = np.float32(level)
    return (
        float(np.nextafter(value, np.float32(-9))),
        float(value),
        float(np.nextafter(value, np.float32(9))),
    )


readings = st.sampled_from([value for level in LEVELS for value in near(level)])
#: Tokens that repeat one another, so that many are quiet.
rows_of = st.tuples(*[readings] * READINGS)
runs = st.lists(st.tuples(rows_of, st.integers(1, 9)), min_size=2, max_size=4).map(
    lambda parts: [row for row, times in parts for _ in range(times)]
)
unreadable = st.tuples(st.integers(0, 99), st.integers(0, READINGS - 1)) | st.none()


def broken(text: Text, at: tuple[int, int] | None) -> Text:
    """The text with a reading of its answer that is no number."""
    if at is not None and at[0] < len(text.answer):
        text.answer[at[0]] = (*text.answer[at[0]][: at[1]], float("nan"), *text.answer[at[0]][at[1] + 1 :])
    return text


texts = st.builds(
    broken, st.builds(Text, st.lists(rows_of, min_size=PROMPT, max_size=PROMPT), runs, rows_of), unreadable
)
ADDED = {SITE: SiteProgram(rules=(rows.add(probe(90), 1.0),))}


def guard_of(made: Sequenced[tuple[Condition, Reaction]]) -> Guard:
    """A guard of conditions; those that edit all add a row."""
    return Guard(
        tuple(
            Guarded(f"p/{place}", condition, reaction, rows=ADDED if reaction is Reaction.EDIT else {})
            for place, (condition, reaction) in enumerate(made)
        )
    )


reactions = st.sampled_from((Reaction.RECORD, Reaction.RECORD, Reaction.EDIT, Reaction.EDIT, Reaction.STOP))
guards = st.lists(st.tuples(conditions, reactions), min_size=1, max_size=4).map(guard_of)


@settings(max_examples=sized(300, 80), deadline=None)
@given(guards, st.lists(texts, min_size=1, max_size=3))
def test_alarms_give_what_judging_every_token_gives(guard: Guard, read: list[Text]) -> None:
    wanted = Player(guard, read, every=True).play()
    assert repr(Player(guard, read, every=False).play()) == repr(wanted)


def judged(
    monkeypatch: pytest.MonkeyPatch, condition: Condition, answer: list[Row]
) -> tuple[list[int], tuple[object, ...]]:
    """At which tokens of an answer a condition is judged, and what it comes to."""
    played = Player(
        guard_of([(condition, Reaction.RECORD)]),
        [Text([(0.0,) * READINGS] * PROMPT, answer, answer[0])],
        False,
    )
    found: list[int] = []
    original = Judge.read_tokens

    def read_tokens(*arguments: Any) -> Any:
        found.append(played.running[0].generated - 1)
        return original(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Judge, "read_tokens", read_tokens)
        return found, played.play()


def test_only_what_changes_something_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first token, each that crosses a threshold, and those at which a window has passed by one."""
    low, high = (0.0,) * READINGS, (5.0,) * READINGS
    answer = [low] * 4 + [high] * 3 + [low] * 9
    over = Condition(AnyOf((Literal(0, 1.0), Literal(1, 1e6))), sticky=False)
    found, (_, _, receipts, peaks) = judged(monkeypatch, over, answer)
    assert found == [0, 4, 7]
    assert [(each.held_tokens, each.first_token) for each in cast(Any, receipts)] == [(3, 4)]
    assert peaks == [5.0] * READINGS
    lately = Condition(Negation(Literal(0, 1.0)), Scope.WINDOW, 4, sticky=False)
    found, (_, _, receipts, _) = judged(monkeypatch, lately, answer)
    assert found == [0, 4, 7, 10]
    # In the prompt, until a high token is among the last four, and after it is not.
    assert [(each.held_tokens, each.first_token) for each in cast(Any, receipts)] == [(1 + 4 + 6, -1)]


def test_a_threshold_itself_is_quiet_and_its_neighbour_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for threshold in (0.1, 0.0, -2.5, 1e-42):
        beneath, at, beyond = near(threshold)
        under = at if at <= threshold else beneath
        quiet, loud = (under,) * READINGS, (float(np.nextafter(np.float32(under), np.float32(9))),) * READINGS
        assert loud[0] in (at, beyond)
        found, _ = judged(monkeypatch, Condition(Literal(0, threshold)), [quiet] * 3 + [loud] * 2)
        assert found == [0, 3]


def test_no_threshold_is_out_of_reach() -> None:
    """Those beyond what a float32 holds too."""
    judge = Judge([Condition(Literal(0, 1e300)), Condition(Literal(1, -1e300, above=False))])
    _, standing = judge.read_tokens(judge.start(), np.zeros((1, 2), dtype=np.float32))
    quiet = judge.quiet(standing)
    largest = np.finfo(np.float32).max
    assert (quiet.low.tolist(), quiet.high.tolist()) == ([[-np.inf, -largest]], [[largest, np.inf]])


def test_the_engine_answers_alike_whether_alarms_or_every_token_are_heard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Random requests together, in few slots: every event of every one, to the last bit of what was read."""
    cases = [guarded.random_case(seed) for seed in (4, 6, 8, 15, 16, 25, 27, 33)]
    told = []
    for every in (False, True):
        if every:
            monkeypatch.setattr(Alarms, "raised", lambda alarms, read, *_: _raise_all(alarms, read))
        engine = tiny.RunningEngine(tiny.step(tiny.model(), slots=3), max_running=3)
        asked = [
            engine.ask(case.prompt, case.sampling, case.program, guard=case.guard)
            for case in (*cases, *cases)
        ]
        with engine:
            answers = [answer.wait() for answer in asked]
        told.append([(answer.outputs(), answer.ending(), answer.finished.receipt) for answer in answers])
    assert told[0] == told[1]


def _raise_all(alarms: Alarms, read: torch.Tensor) -> torch.Tensor:
    """All alarms, the peaks being kept."""
    _, batch, count = read.shape
    peaks = alarms.peaks[:, :batch, :count]
    peaks.copy_(torch.maximum(peaks, read))
    return torch.ones(batch, dtype=torch.bool)


def test_what_was_admitted_once_has_its_plan_ready() -> None:
    step = tiny.step(tiny.model())
    admission = Admission(step, FirstToken())
    case = guarded.random_case(16)
    request = GenerationRequest("r", tuple(case.prompt), case.sampling, case.program, guard=case.guard)
    (rows, first), (again, second) = admission.generation(request, ()), admission.generation(request, ())
    assert first is not None
    assert second is not None
    assert (again, second.plan) == (rows, first.plan)
    assert first is not second, "what conditions come to is each request's own"
    other = guarded.random_case(16)
    request = GenerationRequest("r", tuple(case.prompt), case.sampling, case.program, guard=other.guard)
    _, third = admission.generation(request, ())
    assert third is not None
    assert third.plan is first.plan, "equal guards beside equal programs are admitted once"
