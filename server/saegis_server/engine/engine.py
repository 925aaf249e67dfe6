"""The engine: one thread that admits requests, runs steps, and hands out tokens, readings and receipts."""

import logging
import secrets
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping
from collections.abc import Sequence as Sequenced
from concurrent.futures import Future
from typing import TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from saegis_server.engine.admission import Admission
from saegis_server.engine.fair import has_room
from saegis_server.engine.guard import UNGUARDED, Guard
from saegis_server.engine.guarding import Ending, Guarding
from saegis_server.engine.jobs import Job, Jobs, at_once
from saegis_server.engine.load import EngineStats, Limits, Rate
from saegis_server.engine.requests import (
    DeadlineExceededError,
    DuplicateRequestError,
    EngineError,
    EngineStoppedError,
    FinishReason,
    GenerationRequest,
    NonFiniteLogitsError,
    QueueFullError,
    RefusedByPolicyError,
    SteeringDivergedError,
)
from saegis_server.engine.schedule import Schedule
from saegis_server.engine.score import Score, Scoring
from saegis_server.engine.sequence import Running, Sequence, Sink, extent_of
from saegis_server.engine.sites import Site
from saegis_server.engine.step import SMALLEST, Step, StepOutput
from saegis_server.engine.text import TextStream
from saegis_server.steering.program import UNSTEERED, SteeringProgram

T = TypeVar("T")
_LOG = logging.getLogger(__name__)


class Engine:
    """Runs requests on a step. All public methods may be called from any thread."""

    def __init__(
        self,
        step: Step,
        tokenizer: PreTrainedTokenizerFast,
        eos_token_ids: Sequenced[int],
        max_running: int,
        limits: Limits | None = None,
    ) -> None:
        """At most `max_running` sequences run at once; the step must have a slot for each of them."""
        self.step, self.tokenizer, self.limits = step, tokenizer, limits or Limits()
        self.eos_token_ids = frozenset(eos_token_ids)
        self.max_running, self.max_length = max_running, step.slots.max_length
        self.capacity, self.sites, self.compiled = step.slots.capacity, step.sites, step.compiled
        self.error: BaseException | None = None
        self._admission, self._schedule = Admission(step), Schedule(max_running, step.slots.move)
        self._guarding = Guarding(step)
        self._in_flight: set[str] = set()
        self._active: dict[str, Running] = {}
        self._submitted: deque[Running] = deque()
        self._cancelled: deque[str] = deque()
        self._jobs = Jobs()
        self._waiting: Counter[str] = Counter()
        self._steps = 0
        self._rate = Rate()
        self._stopping = False
        self._cpu_threads = torch.get_num_threads()
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="saegis-engine", daemon=True)

    # -- from any thread ------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the engine's thread."""
        self._thread.start()

    def submit(self, request: GenerationRequest, on_events: Sink) -> None:
        """Queue a request; `on_events` gets its events, on the engine's thread, and must not block.

        Raises FieldError or SteeringError for what cannot be run, DuplicateRequestError, QueueFullError,
        EngineStoppedError. Bans that were not seen before are worked out here, which takes milliseconds.
        """
        program, guard = self._admission.generation(request)
        sampling = request.sampling
        seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        running = Running(request, program, seed, on_events, guard)
        stops = frozenset(sampling.stop_token_ids) | (
            frozenset() if sampling.ignore_eos else self.eos_token_ids
        )
        room = self.max_length - len(request.prompt)
        limit = min(room, sampling.max_tokens or room)
        for index in range(sampling.n):
            text = TextStream(
                self.tokenizer,
                request.prompt,
                sampling.stop,
                keep_stop=sampling.include_stop_str_in_output,
                skip_special_tokens=sampling.skip_special_tokens,
            )
            running.sequences.append(Sequence(running, index, stops, limit, text))
        with self._wake:
            self._require_running()
            if request.request_id in self._in_flight:
                raise DuplicateRequestError(f"request {request.request_id!r} is in flight")
            waiting, own = self._waiting.total(), self._waiting[request.tenant]
            if not has_room(waiting, own, sampling.n, self.limits.queue):
                raise QueueFullError(waiting, retry_after=1.0)
            self._waiting[request.tenant] += sampling.n
            self._in_flight.add(request.request_id)
            self._submitted.append(running)
            self._wake.notify()

    def cancel(self, request_id: str) -> None:
        """Abort a request; its sequences end with FinishReason.ABORT. Unknown ids are ignored."""
        with self._wake:
            self._cancelled.append(request_id)
            self._wake.notify()

    def capture(self, tokens: Sequenced[int], tenant: str = "") -> "Future[dict[Site, Tensor]]":
        """The clean activations [T, d] of a text at every site, between two steps.

        Raises QueueFullError, EngineStoppedError.
        """
        return self._add_job(at_once(lambda: self.step.capture(list(tokens))), tenant)

    def score(
        self,
        tokens: Sequenced[int],
        program: SteeringProgram = UNSTEERED,
        guard: Guard = UNGUARDED,
        tenant: str = "",
    ) -> "Future[Score]":
        """How likely a text is, steered by a program and not, read chunk by chunk between steps.

        The text is steered and judged as a prompt, so edits of the completion act nowhere, and what would
        stop an answer refuses the text. Cancelling the future ends the reading. Raises FieldError or
        SteeringError for what cannot be scored, QueueFullError, EngineStoppedError; the future,
        SteeringDivergedError, NonFiniteLogitsError or RefusedByPolicyError. New bans take milliseconds here,
        as in `submit`.
        """
        rows, judged = self._admission.text(tokens, program, guard)
        chunk = self.limits.prefill_chunk
        return self._add_job(Scoring(self.step, tokens, program, rows, chunk, judged).job(), tenant)

    def _add_job(self, job: Job[T], tenant: str) -> "Future[T]":
        with self._wake:
            self._require_running()
            if not self._jobs_have_room(tenant):
                self._jobs.drop_cancelled()
            if not self._jobs_have_room(tenant):
                raise QueueFullError(len(self._jobs), retry_after=1.0)
            self._wake.notify()
            return self._jobs.add(job, tenant)

    def _jobs_have_room(self, tenant: str) -> bool:
        return has_room(len(self._jobs), self._jobs.count(tenant), 1, self.limits.queue)

    def _require_running(self) -> None:
        if self._stopping or self.error is not None:
            raise EngineStoppedError("the engine is not running")

    def stats(self) -> EngineStats:
        """What the engine is doing now."""
        schedule = self._schedule
        return EngineStats(
            running=len(schedule.running) + (schedule.reading is not None),
            waiting=self._waiting.total(),
            used_tokens=schedule.used_tokens,
            max_total_tokens=self.max_running * self.max_length,
            tokens_per_second=self._rate.per_second(),
            max_running=self.max_running,
            queue_limit=self.limits.queue,
            steps=self._steps,
        )

    def stop(self) -> None:
        """Fail what is in flight with EngineStoppedError and end the thread."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.ident is None:
            self._fail_all(EngineStoppedError("the server is stopping"))
        elif self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    # -- the engine's thread --------------------------------------------------------------------------

    def _run(self) -> None:
        # A compiled step is made for one number of threads, and a new thread may start with another.
        torch.set_num_threads(self._cpu_threads)
        try:
            while self._take_inbox():
                self._jobs.advance()
                self._drop_expired()
                self._read_prompts()
                self._decode()
                self._deliver()
            self._fail_all(EngineStoppedError("the server is stopping"))
        except BaseException as error:
            self.error = error
            self._fail_all(EngineStoppedError("the engine has failed"))
            raise

    def _take_inbox(self) -> bool:
        """Wait until there is something to do and take it over; False when the engine is to stop."""
        with self._wake:
            while not (self._stopping or self._submitted or self._cancelled or self._jobs):
                if not self._schedule.idle:
                    break
                self._wake.wait()
            submitted, self._submitted = self._submitted, deque()
            cancelled, self._cancelled = self._cancelled, deque()
            stopping = self._stopping
        for running in submitted:
            self._active[running.request.request_id] = running
            self._schedule.waiting.extend(running.sequences)
        for request_id in cancelled:
            if (found := self._active.get(request_id)) is not None:
                self._abort(found)
        return not stopping

    def _drop_expired(self) -> None:
        for running in [one for one in self._active.values() if one.expired]:
            self._fail(running, DeadlineExceededError("the deadline passed"))

    def _read_prompts(self) -> None:
        """Read prompts, up to a bound, so that those who are decoding do not wait long."""
        left = self.limits.prefill_between_steps
        while left > 0 and (sequence := self._schedule.admit()) is not None:
            if not sequence.loaded:
                self._load(sequence)
            left -= self._read_chunk(sequence)

    def _load(self, sequence: Sequence) -> None:
        running, sequence.loaded = sequence.running, True
        with self._wake:
            self._waiting[sequence.tenant] -= 1
        if running.admitted is None:
            running.admitted = time.monotonic()
        sampling = running.request.sampling
        self.step.slots.load(
            sequence.slot, sequence.prompt, sampling, sequence.seed, sequence.stops, running.program
        )
        self._guarding.enter(sequence)

    def _read_chunk(self, sequence: Sequence) -> int:
        """Read the next chunk of a prompt; with its last one the first token is there. Returns its length.

        A condition that comes to hold in it may leave the prompt to be read again, with further rows.
        """
        start = sequence.prefilled
        chunk = list(sequence.prompt[start : start + self.limits.prefill_chunk])
        last = start + len(chunk) == len(sequence.prompt)
        sampled = last and not sequence.running.request.sampling.is_plain_greedy
        length = max(start + len(chunk), SMALLEST)
        output = self.step.prefill(sequence.slot, chunk, start, extent_of(1, length, [sequence]), sampled)
        self._steps += 1
        sequence.prefilled += len(chunk)
        finite, ending = bool(output.finite[0]), None
        if finite and sequence.seat is not None:
            ending = self._guarding.after_chunk(sequence, output, len(chunk), last)
            last = last and sequence.prefilled > 0
        if last or ending is not None or not finite:
            self._schedule.start_running()
            self._hand_out([sequence], output, {} if ending is None else {0: ending})
        return len(chunk)

    def _decode(self) -> None:
        running = list(self._schedule.running)
        if not running:
            return
        length = max(sequence.length for sequence in running) + 1
        sampled = any(not sequence.running.request.sampling.is_plain_greedy for sequence in running)
        output = self.step.decode(extent_of(len(running), length, running), len(running), sampled)
        self._steps += 1
        endings = {} if self._guarding.idle else self._guarding.after_decode(running, output, sampled)
        self._hand_out(running, output, endings)

    def _hand_out(self, sequences: list[Sequence], output: StepOutput, endings: Mapping[int, Ending]) -> None:
        """Give each sequence its token; row i of the output is the i-th sequence's.

        endings: how conditions end some of the rows, whose tokens nobody is told.
        """
        tokens, finite = output.tokens.tolist(), output.finite.tolist()
        watching = any(sequence.running.watches for sequence in sequences)
        watched = output.watched.tolist() if watching else None
        self._rate.add(len(sequences))
        undecodable: list[Running] = []
        for row, sequence in enumerate(sequences):
            if not finite[row] or sequence.finished or row in endings:
                continue
            logprobs = None if output.logprobs is None else output.logprobs[row]
            readings = None if watched is None else self._readings(sequence, row, watched)
            try:
                sequence.take(tokens[row], logprobs, readings)
            except Exception:
                _LOG.exception("request %s is dropped: no text", sequence.running.request.request_id)
                undecodable.append(sequence.running)
        # Only now: taking a sequence out moves others, whose lengths must count this token.
        for running in undecodable:
            self._fail(running, EngineError("the answer's tokens could not be decoded"))
        for row, sequence in enumerate(sequences):
            if not finite[row] and not sequence.finished:
                self._diverged(sequence)
            elif not sequence.finished and (ending := endings.get(row)) is not None:
                self._end(sequence, ending)
            elif sequence.finished and sequence.slot >= 0:
                self._retire(sequence)

    def _readings(
        self, sequence: Sequence, row: int, watched: list[list[list[list[float]]]]
    ) -> list[list[list[float]]]:
        program = sequence.running.program
        order = {site: index for index, site in enumerate(self.sites)}
        return [watched[order[site]][row][: len(rows.watches)] for site, rows in program.items()]

    def _end(self, sequence: Sequence, ending: Ending) -> None:
        """End a sequence whose token a condition keeps from being told, or fail its request."""
        if isinstance(ending, EngineError):
            self._fail(sequence.running, ending, poisoned=not isinstance(ending, RefusedByPolicyError))
        else:
            sequence.finish(ending)
            self._retire(sequence)

    def _diverged(self, sequence: Sequence) -> None:
        running = sequence.running
        error: EngineError
        if sequence.rows.steer:
            message = (
                f"the request's edits drove the activations beyond all bounds at token {sequence.length}"
            )
            error = SteeringDivergedError(message)
        else:
            error = NonFiniteLogitsError(f"the model's logits are not finite at token {sequence.length}")
        self._fail(running, error, poisoned=True)

    # -- endings --------------------------------------------------------------------------------------

    def _retire(self, sequence: Sequence, poisoned: bool = False) -> None:
        """Take a finished sequence out of its slot, and end its request with the last one."""
        running, slots = sequence.running, self.step.slots
        self._guarding.leave(sequence)
        if sequence.slot >= 0:
            running.tally.add(self.sites, slots.counts(sequence.slot))
            if poisoned:
                slots.release(sequence.slot, poisoned=True)
            empty = self._schedule.remove(sequence)
            if empty is not None:
                slots.release(empty)
        else:
            self._schedule.remove(sequence)
            with self._wake:
                self._waiting[sequence.tenant] -= 1
        running.left -= 1
        if running.left == 0:
            running.close()

    def _abort(self, running: Running) -> None:
        for sequence in running.sequences:
            if not sequence.finished:
                sequence.finish(FinishReason.ABORT)
                self._retire(sequence)

    def _fail(self, running: Running, error: EngineError, poisoned: bool = False) -> None:
        running.fail(error)
        for sequence in running.sequences:
            if not sequence.finished:
                sequence.finished = True
                self._retire(sequence, poisoned)

    def _deliver(self) -> None:
        for request_id, running in list(self._active.items()):
            if running.closed:
                del self._active[request_id]
                with self._wake:
                    self._in_flight.discard(request_id)
            if running.events:
                events, running.events = running.events, []
                try:
                    running.sink(events)
                except Exception:
                    _LOG.exception("request %s is dropped: its sink failed", request_id)
                    self.cancel(request_id)

    def _fail_all(self, error: EngineError) -> None:
        with self._wake:
            self._stopping = True
            self._waiting.clear()
            submitted, self._submitted = self._submitted, deque()
        self._active |= {running.request.request_id: running for running in submitted}
        for running in self._active.values():
            running.fail(error)
        self._schedule.clear()
        self._guarding.clear()
        self._jobs.fail(error)
        self._deliver()
