"""The engine: one thread that admits requests, runs steps, and hands out tokens, readings and receipts."""

import logging
import secrets
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Sequenced
from concurrent.futures import Future
from typing import TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from saegis_server.engine.admission import AdmittedProgram
from saegis_server.engine.api import (
    AS_IT_IS,
    UNGUARDED,
    Baseline,
    Closing,
    DeadlineExceededError,
    DuplicateRequestError,
    EngineError,
    EngineStats,
    EngineStoppedError,
    FinishReason,
    FirstToken,
    GenerationRequest,
    Guard,
    Limits,
    NonFiniteLogitsError,
    Progress,
    QueueFullError,
    Score,
    Sink,
    SteeringDivergedError,
)
from saegis_server.engine.counts import Observed, RowGroup, Used
from saegis_server.engine.pictures import Placed
from saegis_server.engine.threads import compute_with
from saegis_server.engine.torch.activity import MOST_GROUPS
from saegis_server.engine.torch.admission import Admission
from saegis_server.engine.torch.build import graphs_compiled, make_ready
from saegis_server.engine.torch.guarding import Ending, Guarding
from saegis_server.engine.torch.jobs import Ended, Job, Jobs
from saegis_server.engine.torch.memory import device_memory, own_failure
from saegis_server.engine.torch.observing import MOST_OBSERVED
from saegis_server.engine.torch.prompt_reading import PromptReading
from saegis_server.engine.torch.rate import Rate
from saegis_server.engine.torch.request_guard import RequestGuard
from saegis_server.engine.torch.schedule import Schedule
from saegis_server.engine.torch.score import Reading, Scoring
from saegis_server.engine.torch.seeing import BLIND, Sight
from saegis_server.engine.torch.sequence import Running, Sequence, extent_of
from saegis_server.engine.torch.step import Step, StepOutput
from saegis_server.engine.torch.text import TextStream
from saegis_server.engine.torch.usage import UsageCounting
from saegis_server.fair import has_room
from saegis_server.steering.program import UNSTEERED, SteeringProgram
from saegis_server.steering.site import Site

T = TypeVar("T")
_LOG = logging.getLogger(__name__)
#: For so many tokens of a capture a step of running requests goes by before the next one.
TOKENS_FOR_A_STEP = 8


class TorchEngine:
    """Runs requests on a step; see the protocol `Engine` for what is not said here."""

    def __init__(
        self,
        step: Step,
        tokenizer: PreTrainedTokenizerFast,
        eos_token_ids: Sequenced[int],
        max_running: int,
        limits: Limits | None = None,
        first_token: FirstToken | None = None,
        must_compile: bool = False,
        usage: UsageCounting | None = None,
        batch_invariant: bool = False,
    ) -> None:
        """At most `max_running` sequences run at once; the step must have a slot for each of them.

        must_compile: whether a step that cannot be compiled ends the warm-up, and does not run eagerly.
        usage: counts how features are used; the step must keep what it reads. batch_invariant: whether each
        sequence takes steps of its own, so that no bit of its answer depends on what runs beside it.
        """
        self.step, self.tokenizer, self.limits = step, tokenizer, limits or Limits()
        self.first_token = first_token or FirstToken()
        self.eos_token_ids = frozenset(eos_token_ids)
        self.max_running, self.max_length = max_running, step.slots.max_length
        self.capacity, self.sites = step.slots.capacity, step.sites
        self.error: BaseException | None = None
        eyes = step.eyes
        self._admission = Admission(step.slots, None if eyes is None else eyes.placeholder_id)
        fair = self.limits
        self._schedule = Schedule(
            max_running, step.slots.move, kept=fair.fair_slots, kept_seconds=fair.fair_seconds
        )
        self._guarding = Guarding(step.slots)
        self._reading = PromptReading(
            step, self._guarding, self.limits.prefill_chunk, self.first_token, usage
        )
        self._in_flight: set[str] = set()
        self._active: dict[str, Running] = {}
        self._submitted: deque[Running] = deque()
        self._cancelled: deque[str] = deque()
        # Apart from each other, as a capture that waits for steps to pass keeps no score from being read.
        self._scores, self._captures = self._jobs = Jobs(), Jobs()
        self._waiting: Counter[tuple[str, str]] = Counter()
        self._must_compile, self._usage, self._batch_invariant = must_compile, usage, batch_invariant
        self._graphs: int | None = None
        self._steps = 0
        self._next_capture = 0
        self._rate = Rate()
        self._to_observe: tuple[Observed, ...] | None = None
        self._stopping = False
        self._cpu_threads = torch.get_num_threads()
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="saegis-engine", daemon=True)

    # -- from any thread ------------------------------------------------------------------------------

    @property
    def most_groups(self) -> int:
        """How many groups of rows a request may have counted."""
        return MOST_GROUPS

    @property
    def compiled(self) -> bool:
        """Whether its step is compiled."""
        return self.step.compiled

    def warm_up(self, progress: Progress) -> None:
        """Compile the step, or run it eagerly where it cannot be compiled, and run the canary.

        Raises CanaryError, and NotCompiledError where it must be compiled and cannot be.
        """
        make_ready(self.step, progress, self._must_compile, self._usage)
        self._graphs = graphs_compiled() if self.compiled else None

    def start(self) -> None:
        """Start the engine's thread."""
        self._thread.start()

    def submit(self, request: GenerationRequest, on_events: Sink) -> None:
        """Queue a request; `on_events` gets its events."""
        sampling = request.sampling
        stops = frozenset(sampling.stop_token_ids) | (
            frozenset() if sampling.ignore_eos else self.eos_token_ids
        )
        admitted = self._admission.generation(request, stops)
        guard = self._guard(request.prompt, admitted, request.guard)
        seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        unmoved = self.first_token.unmoved(request.prompt, request.program)
        sight = self._sight(request.pictures)
        running = Running(request, admitted, seed, on_events, guard, unmoved, sight)
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
            sequence = Sequence(running, index, stops, self.eos_token_ids, limit, text)
            running.sequences.append(sequence)
        with self._wake:
            self._require_running()
            if request.request_id in self._in_flight:
                raise DuplicateRequestError(f"request {request.request_id!r} is in flight")
            waiting, caller = self._waiting.total(), (request.tenant, request.principal)
            most, share = self.limits.queue, self.limits.fair_share
            if not has_room(waiting, self._waiting[caller], sampling.n, most, share):
                raise QueueFullError(waiting, retry_after=1.0)
            self._waiting[caller] += sampling.n
            self._in_flight.add(request.request_id)
            self._submitted.append(running)
            self._wake.notify()

    def observe(self, features: Sequenced[Observed]) -> None:
        """Observe these features from the next step on, in place of those before."""
        for site, count in Counter(each.site for each in features).items():
            if site not in self.sites:
                raise ValueError(f"{site} is not a site of this engine")
            if count > MOST_OBSERVED:
                raise ValueError(
                    f"{count} features are to be observed at {site}; there is room for {MOST_OBSERVED}"
                )
        for each in features:
            rank = each.probe.rank
            if rank is not None and (each.site, rank.dictionary) not in self.step.slots.room.ranked:
                raise ValueError(
                    f"the SAE of {each.probe.name}, which decides by rank, is not at {each.site}"
                )
        with self._wake:
            self._to_observe = tuple(features)

    def take_usage(self) -> dict[str, Used]:
        """How the features of each dictionary were used since this was last called, by its name."""
        return {} if self._usage is None else self._usage.take()

    def cancel(self, request_id: str) -> None:
        """Abort a request; its sequences end with FinishReason.ABORT. Unknown ids are ignored."""
        with self._wake:
            self._cancelled.append(request_id)
            self._wake.notify()

    def capture(
        self, tokens: Sequenced[int], tenant: str = "", pictures: Sequenced[Placed] = ()
    ) -> "Future[dict[Site, Tensor]]":
        """The clean activations [T, d] of a text at every site, read between two steps."""
        self._admission.check_pictures(tokens, pictures)
        return self._add_job(self._captures, self._captured(list(tokens), self._sight(pictures)), tenant)

    def _sight(self, pictures: Sequenced[Placed]) -> Sight:
        return Sight(self.step.eyes, pictures) if pictures else BLIND

    def _captured(self, tokens: list[int], sight: Sight) -> Job[dict[Site, Tensor]]:
        """A capture, which waits while requests run until as many steps have passed since the one before as
        that one was long: a text of a thousand tokens then delays less than one step in a hundred."""
        while self._schedule.running and self._steps < self._next_capture:
            yield
        self._next_capture = self._steps + len(tokens) // TOKENS_FOR_A_STEP
        return self.step.capture(tokens, sight.within(0, len(tokens)))

    def score(
        self,
        tokens: Sequenced[int],
        program: SteeringProgram = UNSTEERED,
        guard: Guard = UNGUARDED,
        plain: Baseline = AS_IT_IS,
        on_end: Callable[[Closing], None] | None = None,
        tenant: str = "",
        groups: tuple[RowGroup, ...] = (),
        prefilled: int = 0,
        pictures: Sequenced[Placed] = (),
    ) -> "Future[Score]":
        """How likely a text is, steered by a program and plainly, read chunk by chunk between steps."""
        self._admission.check_pictures(tokens, pictures)
        sight = self._sight(pictures)
        steered = self._text(tokens, prefilled, sight, program, guard, groups)
        other = self._text(tokens, prefilled, sight, *plain)
        scoring = Scoring(tokens, steered, other, self.limits.prefill_chunk, on_end, prefilled)
        return self._add_job(self._scores, scoring.job(), tenant, scoring.ended)

    def _text(
        self,
        tokens: Sequenced[int],
        prefilled: int,
        sight: Sight,
        program: SteeringProgram,
        guard: Guard,
        groups: tuple[RowGroup, ...] = (),
    ) -> Reading:
        admitted = self._admission.text(tokens, prefilled, program, guard)
        watching = self._guard(tokens, admitted, guard)
        unmoved = self.first_token.unmoved(tokens, program)
        return Reading(self.step, admitted, watching, len(tokens), unmoved, groups, prefilled, sight)

    def _guard(self, tokens: Sequenced[int], admitted: AdmittedProgram, guard: Guard) -> RequestGuard | None:
        """The guard of a text; None where there is nothing to judge."""
        if admitted.compiled is None:
            return None
        return RequestGuard(admitted, self.first_token.unread(tokens, guard), guard.hold_back)

    def _add_job(self, jobs: Jobs, job: Job[T], tenant: str, ended: Ended | None = None) -> "Future[T]":
        with self._wake:
            self._require_running()
            if not self._jobs_have_room(tenant):
                for each in self._jobs:
                    each.drop_cancelled()
            if not self._jobs_have_room(tenant):
                raise QueueFullError(sum(map(len, self._jobs)), retry_after=1.0)
            self._wake.notify()
            return jobs.add(job, tenant, ended)

    def _jobs_have_room(self, tenant: str) -> bool:
        """Whether a tenant may queue one more, be it a score or a capture."""
        waiting, own = sum(map(len, self._jobs)), sum(jobs.count(tenant) for jobs in self._jobs)
        return has_room(waiting, own, 1, self.limits.queue, self.limits.fair_share)

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
            recompilations=0 if self._graphs is None else graphs_compiled() - self._graphs,
            **device_memory(self.step.device),
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
        compute_with(self._cpu_threads)
        try:
            while self._take_inbox():
                for jobs in self._jobs:
                    jobs.advance()
                self._drop_expired()
                self._read_prompts()
                self._decode_one_by_one() if self._batch_invariant else self._decode()
                self._deliver()
                if self._schedule.idle:
                    self._flush_usage()
                elif self._usage is not None:
                    self._usage.advance()
            self._flush_usage()
            self._fail_all(EngineStoppedError("the server is stopping"))
        except BaseException as error:
            self.error = error
            self._fail_all(EngineStoppedError("the engine has failed"))
            raise

    def _flush_usage(self) -> None:
        if self._usage is not None:
            self._usage.flush()

    def _take_inbox(self) -> bool:
        """Wait until there is something to do and take it over; False when the engine is to stop."""
        with self._wake:
            while not (self._stopping or self._submitted or self._cancelled or any(self._jobs)):
                if not self._schedule.idle:
                    break
                self._wake.wait()
            submitted, self._submitted = self._submitted, deque()
            cancelled, self._cancelled = self._cancelled, deque()
            observed, self._to_observe = self._to_observe, None
            stopping = self._stopping
        if observed is not None:
            self._observe(observed)
        for running in submitted:
            self._active[running.request.request_id] = running
            self._schedule.waiting.extend(running.sequences)
        for request_id in cancelled:
            if (request := self._active.get(request_id)) is not None:
                self._abort(request)
        return not stopping

    def _observe(self, features: Sequenced[Observed]) -> None:
        """Observe these features; what was counted in a place that is another's now is forgotten."""
        for site, place in self.step.slots.observing.observe(features):
            for running in self._active.values():
                running.observed.forget(site, place)
                for sequence in running.sequences:
                    if (kept := sequence.prompt_observed) is not None and place < kept.shape[1]:
                        kept[site, place] = 0.0

    def _drop_expired(self) -> None:
        for running in [request for request in self._active.values() if request.expired]:
            self._fail(running, DeadlineExceededError("the deadline passed"))

    def _read_prompts(self) -> None:
        """Read prompts, up to a bound, so that those who are decoding do not wait long."""
        left = self.limits.prefill_between_steps
        while left > 0 and (sequence := self._schedule.admit()) is not None:
            try:
                left -= self._read_on(sequence)
            except Exception as error:
                self._fail(sequence.running, own_failure(error))

    def _read_on(self, sequence: Sequence) -> int:
        """Read the next tokens of a prompt; with its last one the first token is there. Returns the cost."""
        if not sequence.loaded:
            running, sequence.loaded = sequence.running, True
            with self._wake:
                self._waiting[sequence.caller] -= 1
            if running.began is None:
                running.began = time.monotonic()
            self._reading.load(sequence)
        progress = self._reading.advance(sequence)
        self._steps += 1
        if progress.output is not None:
            if sequence.running.request.sampling.n > 1:
                sequence.prompt_counts = self.step.slots.counts(sequence.slot)
                sequence.prompt_activity = self.step.slots.activity.result(sequence.slot)
                sequence.prompt_observed = self.step.slots.observing.result(sequence.slot)
            self._schedule.start_running()
            endings = {} if progress.ending is None else {0: progress.ending}
            self._hand_out([sequence], progress.output, endings)
        return progress.cost

    def _decode(self) -> None:
        while running := list(self._schedule.running):
            length = max(sequence.length for sequence in running) + 1
            sampled = any(sequence.samples for sequence in running)
            self.step.slots.remember()
            try:
                extent = extent_of(len(running), length, running, self.step.slots.observing.used)
                output = self.step.decode(extent, len(running), sampled)
            except Exception as error:
                self._make_room(running, own_failure(error))
                continue
            if self._usage is not None:
                self._usage.count(self.step, output, len(running))
            self._steps += 1
            self._hand_out(running, output, self._guarding.after_decode(running, output))
            return

    def _decode_one_by_one(self) -> None:
        """One token for each sequence that runs, each in a step whose shape is that sequence's alone."""
        for sequence in list(self._schedule.running):
            if sequence.slot < 0:  # its request has failed or ended with another of its sequences
                continue
            self.step.slots.remember()
            try:
                output = self._reading.write_on(sequence)
            except Exception as error:
                self._make_room(list(self._schedule.running), own_failure(error))
                continue
            if self._usage is not None:
                self._usage.count(self.step, output, 1)
            self._steps += 1
            self._hand_out([sequence], output, self._guarding.after_decode([sequence], output))

    def _make_room(self, running: list[Sequence], failure: EngineError) -> None:
        """After a step that found no memory, go back before it and fail the request that came last."""
        lengths = [sequence.length for sequence in running]
        self.step.slots.rewind([sequence.last_token for sequence in running], lengths)
        requests = (sequence.running for sequence in running)
        self._fail(max(requests, key=lambda request: request.began or 0.0), failure)

    def _hand_out(self, sequences: list[Sequence], output: StepOutput, endings: Mapping[int, Ending]) -> None:
        """Give each sequence its token; row i of the output is the i-th sequence's.

        endings: how conditions end some of the rows, whose tokens nobody is told.
        """
        tokens, finite = output.tokens.tolist(), output.finite.tolist()
        watching = any(sequence.running.readings.watches for sequence in sequences)
        watched = output.watched[:, :, -1].tolist() if watching else None
        moving = any(sequence.running.readings.moving for sequence in sequences)
        moved = output.moved[:, :, -1].tolist() if moving else []
        self._rate.add(len(sequences))
        undecodable: list[Running] = []
        for row, sequence in enumerate(sequences):
            if not finite[row] or sequence.finished or row in endings:
                continue
            logprobs = None if output.logprobs is None else output.logprobs[row]
            readings = None if watched is None else self._readings(sequence, row, watched)
            try:
                moves = tuple(moved[self.sites.index(site)][row] for site in sequence.running.readings.moving)
                sequence.take(tokens[row], logprobs, readings, moves)
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
            self._fail(sequence.running, ending)
        else:
            sequence.finish(ending)
            self._retire(sequence)

    def _diverged(self, sequence: Sequence) -> None:
        running = sequence.running
        error: EngineError
        if self._guarding.steers(sequence):
            message = (
                f"the request's edits drove the activations beyond all bounds at token {sequence.length}"
            )
            error = SteeringDivergedError(message)
        else:
            error = NonFiniteLogitsError(f"the model's logits are not finite at token {sequence.length}")
        self._fail(running, error)

    # -- endings --------------------------------------------------------------------------------------

    def _retire(self, sequence: Sequence) -> None:
        """Take a finished sequence out of its slot, and end its request with the last one."""
        running, slots = sequence.running, self.step.slots
        self._add_up(sequence)
        if sequence.slot >= 0:
            empty = self._schedule.remove(sequence)
            if empty is not None:
                slots.release(empty)
        else:
            self._schedule.remove(sequence)
            with self._wake:
                self._waiting[sequence.caller] -= 1
        running.left -= 1
        if running.left == 0:
            running.close()

    def _add_up(self, sequence: Sequence) -> None:
        """Add what was done to a sequence to what was done to its request."""
        self._guarding.leave(sequence)
        if sequence.loaded and sequence.slot >= 0:
            counts = self.step.slots.counts(sequence.slot)
            sequence.running.tally.add(self.sites, counts, sequence.prompt_counts or counts)
            if sequence.running.request.groups:
                activity, of_prompt = self.step.slots.activity.result(sequence.slot), sequence.prompt_activity
                sequence.running.activity.add(activity, activity if of_prompt is None else of_prompt)

            self._add_observed(sequence)

    def _add_observed(self, sequence: Sequence) -> None:
        """Add what was counted of the observed features."""
        observing, running = self.step.slots.observing, sequence.running
        if not observing.used:
            return
        counts, of_prompt = observing.result(sequence.slot), sequence.prompt_observed
        running.observed.add(counts, counts if of_prompt is None else of_prompt)
        running.as_firing = observing.firing

    def _abort(self, running: Running) -> None:
        for sequence in running.sequences:
            if not sequence.finished:
                sequence.finish(FinishReason.ABORT)
                self._retire(sequence)

    def _fail(self, running: Running, error: EngineError) -> None:
        running.fail(error)
        for sequence in running.sequences:
            if not sequence.finished:
                sequence.finished = True
                self._retire(sequence)

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
            try:
                for sequence in running.sequences:
                    self._add_up(sequence)
            except Exception:
                # A device that has failed may tell no more what was counted.
                _LOG.exception("request %s: what was done to it is not known", running.request.request_id)
            running.close()
        self._schedule.clear()
        for jobs in self._jobs:
            jobs.fail(error)
        self._deliver()
