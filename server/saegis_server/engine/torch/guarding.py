"""Guarding: conditions judged within the step in which they become true, before any of its tokens is told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saegis_server.engine.api import (
    EngineError,
    FinishReason,
    NonFiniteLogitsError,
    Reaction,
    SteeringDivergedError,
)
from saegis_server.engine.torch.memory import own_failure
from saegis_server.engine.torch.panel import Panel, Seat
from saegis_server.engine.torch.request_guard import RequestGuard
from saegis_server.engine.torch.sequence import RowCounts, Sequence, extent_of
from saegis_server.engine.torch.step import SMALLEST, Step, StepOutput
from saegis_server.steering.judge import Standing, Truths
from saegis_server.steering.program import SteeringError

#: How a condition ends a sequence, or fails its request.
Ending = FinishReason | EngineError


class _Decoded(NamedTuple):
    """A decode step to be judged: its sequences and their output, its readings, and how sequences end."""

    sequences: list[Sequence]
    output: StepOutput
    sampled: bool
    read: NDArray[np.float32]
    endings: dict[int, Ending]


class Guarding:
    """Judges every sequence that has a guard, and takes steps again where further rows come in force."""

    def __init__(self, step: Step) -> None:
        self._step, self._alarms = step, step.slots.alarms
        self._panels: dict[object, Panel] = {}

    @property
    def idle(self) -> bool:
        """Whether no sequence with a guard holds a slot."""
        return not self._panels

    def enter(self, sequence: Sequence) -> None:
        """A sequence has got its slot."""
        if (guard := sequence.running.guard) is None:
            return
        plan = guard.plan
        if plan.key not in self._panels:
            self._panels[plan.key] = Panel(plan)
        sequence.seat = self._panels[plan.key].enter()
        self._alarms.begin(sequence.slot)

    def leave(self, sequence: Sequence) -> None:
        """A sequence gives its slot back; what came of its conditions goes to its request."""
        guard, seat = sequence.running.guard, sequence.seat
        if guard is None or seat is None:
            return
        panel, row, sequence.seat = seat.panel, seat.row, None
        panel.catch_up(np.array([row]), np.array([sequence.length]))
        peaks = self._alarms.peaks_of(sequence.slot, panel.plan.places)
        guard.add(panel.held[row], panel.first[row], np.maximum(panel.peaks[row], peaks))
        panel.leave(seat)
        if panel.empty:
            del self._panels[panel.plan.key]

    def clear(self) -> None:
        """Forget every sequence: the engine is at its end."""
        self._panels.clear()

    # -- prompts --------------------------------------------------------------------------------------

    def after_chunk(self, sequence: Sequence, output: StepOutput, count: int, last: bool) -> Ending | None:
        """Judge the next `count` tokens of a prompt; its conditions come to hold with the `last` ones.

        Where further rows come in force, the sequence is left with nothing read, to be read again with them.
        """
        guard, seat = _of(sequence)
        panel, row, plan = seat.panel, seat.row, guard.plan
        skipped = max(0, guard.unread - (sequence.read - count))
        values = plan.of_chunk(output.read.cpu().numpy(), count)[skipped:]
        if np.isnan(values).any():
            return _unreadable(sequence)
        found = np.zeros((1, len(plan.conditions)), dtype=np.bool_)
        if len(values):  # of a prompt of which nothing is read nothing holds
            panel.peaks[row] = np.maximum(panel.peaks[row], values.max(0))
            found, standing = panel.judge.read_prompt(panel.standing.of(slice(row, row + 1)), values, last)
            panel.remember(row, standing)
        if not last:
            return None
        holds = found[0] | seat.carried
        wanted = panel.on[row] | (holds & plan.edits)
        ends = (holds & plan.ends).any()
        if not ends and (wanted != panel.on[row]).any():
            seat.carried, panel.on[row] = holds, wanted
            panel.remember(row, panel.judge.latch(panel.judge.start(), holds[None]))
            self._step.slots.restart(sequence.slot)
            sequence.read = 0
            return self._steer(sequence, wanted)
        panel.count(np.array([row]), holds[None], np.array([-1]), np.array([sequence.read]))
        return (plan.refusal(holds, Reaction.REFUSE) or FinishReason.CONTENT_FILTER) if ends else None

    def after_given(self, sequence: Sequence, output: StepOutput, sampled: bool) -> Ending | None:
        """Judge the next token of the answer that the request itself gives, the only row of `output`, which
        is replaced where the step is taken again.

        Nothing has been told yet, so that what refuses a prompt refuses here too.
        """
        _, seat = _of(sequence)
        panel, row, read = seat.panel, seat.row, output.read.cpu().numpy()
        values = panel.plan.of_tokens(read, np.array([0]))
        panel.peaks[row] = np.fmax(panel.peaks[row], values[0])
        decoded = _Decoded([sequence], output, sampled, read, {})
        self._judge(panel, np.array([0]), decoded)
        return decoded.endings.get(0)

    # -- answers --------------------------------------------------------------------------------------

    def after_decode(
        self, sequences: list[Sequence], output: StepOutput, sampled: bool
    ) -> Mapping[int, Ending]:
        """Judge the token that each sequence was fed, where it raised the alarm; row i of the output is the
        i-th sequence's.

        Rows of the output whose step was taken again are replaced. Returns how conditions end sequences.
        """
        panels: dict[Panel, list[int]] = {}
        for row, alarm in zip(range(len(sequences)), output.alarm.tolist(), strict=False):
            if alarm and (seat := sequences[row].seat) is not None:
                panels.setdefault(seat.panel, []).append(row)
        if not panels:
            return {}
        decoded = _Decoded(sequences, output, sampled, output.read.cpu().numpy(), {})
        for panel, rows in panels.items():
            self._judge(panel, np.array(rows), decoded)
        return decoded.endings

    def _judge(self, panel: Panel, rows: NDArray[np.intp], decoded: _Decoded) -> None:
        """Judge the rows of the output whose sequences are in this panel."""
        plan, values = panel.plan, panel.plan.of_tokens(decoded.read, rows)
        if np.isnan(values).any():
            bad = np.asarray(np.isnan(values).any(1))
            for row in rows[bad].tolist():
                decoded.endings[row] = _unreadable(decoded.sequences[row])
            rows, values = rows[~bad], values[~bad]
        own = [decoded.sequences[row] for row in rows.tolist()]
        seats = np.array([_of(sequence)[1].row for sequence in own], dtype=np.intp)
        tokens = np.array([sequence.length - sequence.answer_start for sequence in own], dtype=np.int64)
        length = np.array([sequence.length for sequence in own], dtype=np.int64)
        panel.catch_up(seats, length)
        before = panel.standing.of(seats)
        holds, standing = panel.judge.read_tokens(before, values)
        panel.remember(seats, standing)
        acts = (((holds & plan.edits) != panel.on[seats]) | (holds & plan.ends)).any(1)
        for place in np.flatnonzero(acts).tolist():
            past = before.of(slice(place, place + 1))
            try:
                holds[place], ending = self._settle(int(rows[place]), decoded, holds[place], past)
            except Exception as error:
                ending = own_failure(error)
            if ending is not None:
                decoded.endings[int(rows[place])] = ending
        panel.count(seats, holds, tokens, length + 1)
        # After an action the next token is judged anyway: what held in one of the tries may hold no more.
        quiet = panel.judge.quiet(panel.standing.of(seats))
        due = length + np.where(acts, 1, quiet.tokens)
        self._alarms.wait([sequence.slot for sequence in own], plan.places, quiet, due)

    def _settle(
        self, row: int, decoded: _Decoded, holds: Truths, before: Standing
    ) -> tuple[Truths, Ending | None]:
        """Act on what holds at a row's token: end its sequence, or take its step again with further rows.

        That may make further conditions hold; each brings in its rows at most once, so this ends. `before`:
        its standing before the token. Returns what held in any of the tries, and how the sequence ends.
        """
        sequence, output, sampled = decoded.sequences[row], decoded.output, decoded.sampled
        guard, seat = _of(sequence)
        panel, at, plan = seat.panel, seat.row, guard.plan
        on, counted = panel.on[at].copy(), output.counted[:, row]
        while (holds & plan.edits & ~on).any() and not (holds & plan.ends).any():
            on = on | (holds & plan.edits)
            if (failure := self._steer(sequence, on)) is not None:
                return holds, failure
            again = self._retake(sequence, int(output.tokens[row]), counted, sampled)
            sampled = again.logprobs is not None
            _replace(output, row, again)
            if not bool(again.finite[0]):
                return holds, None  # which fails it wherever it comes from
            values = plan.of_chunk(again.read.cpu().numpy(), 1)
            if np.isnan(values).any():
                return holds, _unreadable(sequence)
            panel.peaks[at] = np.maximum(panel.peaks[at], values[0])
            more, standing = panel.judge.read_tokens(panel.judge.latch(before, holds[None]), values)
            panel.remember(at, standing)
            holds = holds | more[0]
        if (holds & plan.ends).any():
            told = sequence.generated > 0
            refusal = None if told else plan.refusal(holds, Reaction.REFUSE)
            return holds, refusal or FinishReason.CONTENT_FILTER
        panel.on[at] = wanted = holds & plan.edits
        return holds, self._steer(sequence, wanted) if (wanted != on).any() else None

    def _retake(self, sequence: Sequence, token: int, counted: Tensor, sampled: bool) -> StepOutput:
        """Take the last step again for one sequence, which chose `token`, as if it had not been.

        counted: float32 [sites + 1, COUNTED], before that step.
        """
        slots, position = self._step.slots, sequence.length
        slots.take_back(sequence.slot, token, counted, sampled)
        extent = extent_of(1, max(position + 1, SMALLEST), [sequence])
        own = sampled and sequence.samples
        fed = [sequence.last_token]
        return self._step.prefill(sequence.slot, fed, position, extent, own, answer=position)

    def _steer(self, sequence: Sequence, on: Truths) -> Ending | None:
        """Put the rows of the conditions `on` in force; the failure of the request where that cannot be."""
        guard, _ = _of(sequence)
        try:
            program = guard.plan.program(on)
        except SteeringError:
            return guard.plan.unsteerable(on)
        self._step.slots.steer(sequence.slot, program)
        sequence.rows = RowCounts.of(program)
        return None


def _of(sequence: Sequence) -> tuple[RequestGuard, Seat]:
    """A sequence's guard and seat. Raises RuntimeError if it has none."""
    if sequence.running.guard is None or sequence.seat is None:
        raise RuntimeError("a sequence without a guard is judged")
    return sequence.running.guard, sequence.seat


def _unreadable(sequence: Sequence) -> EngineError:
    """The failure of a request whose conditions cannot be judged."""
    message = f"a guard's reading is no number at token {sequence.length}, so its conditions cannot be judged"
    return SteeringDivergedError(message) if sequence.rows.steer else NonFiniteLogitsError(message)


@torch.inference_mode()
def _replace(output: StepOutput, row: int, again: StepOutput) -> None:
    """Let a row of a decode step's output be that of a step of its own."""
    output.tokens[row], output.finite[row] = again.tokens[0], again.finite[0]
    output.logits[row] = again.logits[0]
    if output.logprobs is not None and again.logprobs is not None:
        output.logprobs[row] = again.logprobs[0]
    kept = min(output.watched.shape[2], again.watched.shape[2])
    output.watched[:, row, :kept] = again.watched[:, 0, :kept]
