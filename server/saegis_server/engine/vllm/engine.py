"""The engine: one thread that gives texts to vLLM, steps it, and hands out tokens, readings and receipts."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
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
    FieldError,
    FinishReason,
    FirstToken,
    GenerationRequest,
    Guard,
    Limits,
    NonFiniteLogitsError,
    Progress,
    QueueFullError,
    SamplingParams,
    Score,
    Sink,
    SteeringDivergedError,
    rows_of,
)
from saegis_server.engine.counts import Observed, RowGroup, Used
from saegis_server.engine.pictures import Placed
from saegis_server.engine.threads import compute_with
from saegis_server.engine.torch.activity import MOST_GROUPS
from saegis_server.engine.torch.admission import Admission
from saegis_server.engine.torch.conditions import Outcome
from saegis_server.engine.torch.guarding import Ending, Guarding
from saegis_server.engine.torch.jobs import Ended, Job, Jobs
from saegis_server.engine.torch.observing import MOST_OBSERVED
from saegis_server.engine.torch.rate import Rate
from saegis_server.engine.torch.request_guard import RequestGuard
from saegis_server.engine.torch.sequence import Running, Sequence
from saegis_server.engine.torch.text import TextStream
from saegis_server.engine.vllm.draws import Draw
from saegis_server.engine.vllm.judged import CoreSlots
from saegis_server.engine.vllm.orders import Books, Order, Told, Wanted
from saegis_server.engine.vllm.prefixes import Prefixes, Recording, Shared
from saegis_server.engine.vllm.readings import Reader, Reading, Scoring, captured
from saegis_server.engine.vllm.seats import Seats
from saegis_server.engine.vllm.served import Served
from saegis_server.fair import has_room
from saegis_server.steering.program import UNSTEERED, SteeringProgram
from saegis_server.steering.rows import Phase
from saegis_server.steering.site import Site

T = TypeVar("T")
_LOG = logging.getLogger(__name__)
#: The highest temperature that vLLM samples at.
HOTTEST = 2.0


class VllmEngine:
    """Runs requests on vLLM; see the protocol `Engine` for what is not said here."""

    def __init__(
        self,
        served: Served,
        tokenizer: PreTrainedTokenizerFast,
        eos_token_ids: Sequenced[int],
        max_running: int,
        limits: Limits | None = None,
        first_token: FirstToken | None = None,
    ) -> None:
        """At most `max_running` sequences run at once; what is served must have a slot for each of them."""
        self.served, self.tokenizer, self.limits = served, tokenizer, limits or Limits()
        self.first_token = first_token or FirstToken()
        self.eos_token_ids = frozenset(eos_token_ids)
        self.max_running, self.max_length = max_running, served.max_length
        self.capacity, self.sites = served.room.capacity, served.room.sites
        self.error: BaseException | None = None
        self._core = served.core
        self._admission = Admission(served)
        fair = self.limits
        self._seats = Seats(max_running, kept=fair.fair_slots, kept_seconds=fair.fair_seconds)
        self._guarding = Guarding(CoreSlots(served.core))
        self._reader, self._jobs = Reader(served.core, served.count), Jobs()
        self._in_flight: set[str] = set()
        self._active: dict[str, Running] = {}
        self._submitted: deque[Running] = deque()
        self._cancelled: deque[str] = deque()
        self._waiting: Counter[tuple[str, str]] = Counter()
        #: The sequences that vLLM runs, by the ids that they have there.
        self._names: dict[str, Sequence] = {}
        self._prefixes = Prefixes(served.block)
        self._recording: dict[Sequence, Recording] = {}
        self._shared: dict[Sequence, Shared] = {}
        self._made = self._steps = 0
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
        """Whether vLLM's compiler made its forward pass."""
        return self.served.compiled

    def warm_up(self, progress: Progress) -> None:
        """Prove at each site, in what is served, that steering is exact. Raises CanaryError."""
        self.served.prove(progress)

    def start(self) -> None:
        """Start the engine's thread."""
        self._thread.start()

    def submit(self, request: GenerationRequest, on_events: Sink) -> None:
        """Queue a request; `on_events` gets its events."""
        sampling = request.sampling
        if sampling.temperature > HOTTEST:
            told = f"must be at most {HOTTEST:g} on the vLLM engine, not {sampling.temperature:g}"
            raise FieldError("sampling.temperature", told)
        ends = frozenset() if sampling.ignore_eos else self.eos_token_ids
        stops = frozenset(sampling.stop_token_ids) | ends
        admitted = self._admission.generation(request, stops)
        guard = self._guard(request.prompt, admitted, request.guard)
        seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        unmoved = self.first_token.unmoved(request.prompt, request.program)
        running = Running(request, admitted, seed, on_events, guard, unmoved)
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
            running.sequences.append(Sequence(running, index, stops, self.eos_token_ids, limit, text))
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
            if rank is not None and (each.site, rank.dictionary) not in self.served.room.ranked:
                raise ValueError(
                    f"the SAE of {each.probe.name}, which decides by rank, is not at {each.site}"
                )
        with self._wake:
            self._to_observe = tuple(features)

    def take_usage(self) -> dict[str, Used]:
        """Nothing: this engine does not count how the features of whole dictionaries are used."""
        return {}

    def cancel(self, request_id: str) -> None:
        """Abort a request; its sequences end with FinishReason.ABORT. Unknown ids are ignored."""
        with self._wake:
            self._cancelled.append(request_id)
            self._wake.notify()

    def capture(
        self, tokens: Sequenced[int], tenant: str = "", pictures: Sequenced[Placed] = ()
    ) -> Future[dict[Site, Tensor]]:
        """The clean activations [T, d] of a text at every site. Raises FieldError for pictures."""
        self._admission.check_pictures(tokens, pictures)
        if len(tokens) > self.max_length:
            raise FieldError("tokens", f"{len(tokens)} are more than the {self.max_length} that fit")
        job = captured(self._reader, list(tokens), self.served.vocabulary)
        return self._add_job(job, tenant)

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
    ) -> Future[Score]:
        """How likely a text is, steered by a program and plainly, both read side by side. Raises FieldError
        for pictures."""
        self._admission.check_pictures(tokens, pictures)
        steered = self._reading(1, tokens, prefilled, program, guard, groups)
        other = self._reading(0, tokens, prefilled, *plain)
        scoring = Scoring(tokens, steered, other, self.sites, on_end)
        return self._add_job(scoring.job(), tenant, scoring.ended)

    def _reading(
        self,
        place: int,
        tokens: Sequenced[int],
        prefilled: int,
        program: SteeringProgram,
        guard: Guard,
        groups: tuple[RowGroup, ...] = (),
    ) -> Reading:
        admitted = self._admission.text(tokens, prefilled, program, guard)
        watching, unmoved = self._guard(tokens, admitted, guard), self.first_token.unmoved(tokens, program)
        return Reading(self._reader, place, tokens, admitted, watching, unmoved, groups, prefilled)

    def _guard(self, tokens: Sequenced[int], admitted: AdmittedProgram, guard: Guard) -> RequestGuard | None:
        """The guard of a text; None where there is nothing to judge."""
        if admitted.compiled is None:
            return None
        return RequestGuard(admitted, self.first_token.unread(tokens, guard), guard.hold_back)

    def _add_job(self, job: Job[T], tenant: str, ended: Ended | None = None) -> Future[T]:
        with self._wake:
            self._require_running()
            if not self._jobs_have_room(tenant):
                self._jobs.drop_cancelled()
            if not self._jobs_have_room(tenant):
                raise QueueFullError(len(self._jobs), retry_after=1.0)
            self._wake.notify()
            return self._jobs.add(job, tenant, ended)

    def _jobs_have_room(self, tenant: str) -> bool:
        """Whether a tenant may queue one more, be it a score or a capture."""
        own = self._jobs.count(tenant)
        return has_room(len(self._jobs), own, 1, self.limits.queue, self.limits.fair_share)

    def _require_running(self) -> None:
        if self._stopping or self.error is not None:
            raise EngineStoppedError("the engine is not running")

    def stats(self) -> EngineStats:
        """What the engine is doing now."""
        return EngineStats(
            running=len(self._seats.running),
            waiting=self._waiting.total(),
            used_tokens=self._seats.used_tokens,
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
        self.served.close()

    # -- the engine's thread --------------------------------------------------------------------------

    def _run(self) -> None:
        compute_with(self._cpu_threads)
        try:
            while self._take_inbox():
                self._jobs.advance()
                self._drop_expired()
                while (sequence := self._seats.take()) is not None:
                    self._begin(sequence)
                if len(self._core):
                    self._step()
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
                if not self._seats.idle:
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
            self._seats.waiting.extend(running.sequences)
        for request_id in cancelled:
            if (request := self._active.get(request_id)) is not None:
                self._abort(request)
        return not stopping

    def _observe(self, features: Sequenced[Observed]) -> None:
        """Observe these features; what was counted in a place that is another's now is forgotten."""
        for site, place in self._core.observe(features):
            for running in self._active.values():
                running.observed.forget(site, place)
                for sequence in running.sequences:
                    if (kept := sequence.prompt_observed) is not None and place < kept.shape[1]:
                        kept[site, place] = 0.0

    def _drop_expired(self) -> None:
        for running in [request for request in self._active.values() if request.expired]:
            self._fail(running, DeadlineExceededError("the deadline passed"))

    def _begin(self, sequence: Sequence) -> None:
        """Give a sequence to vLLM."""
        running, sequence.loaded = sequence.running, True
        with self._wake:
            self._waiting[sequence.caller] -= 1
        if running.began is None:
            running.began = time.monotonic()
        salt, shares = salt_of(running), shares_prefix(running)
        records = shares and bool(running.rows.steer or running.request.groups)
        if records:
            key = f"{salt} {_told_groups(running.request.groups)}"
            self._recording[sequence] = Recording(self._prefixes, key, sequence.prompt)
        name, order = self._named(sequence), self._order(sequence, records)
        try:
            self._core.add(name, sequence.prompt, _for_vllm(sequence), order, salt, shares)
        except ValueError as error:
            self._fail(running, EngineError(f"vLLM does not take the request: {error}"))

    def _order(self, sequence: Sequence, records: bool) -> Order:
        """How a sequence is steered and read. records: whether what is done at its tokens is told."""
        running = sequence.running
        request, guard, sampling = running.request, running.guard, running.request.sampling
        return Order(
            sequence.slot,
            running.program,
            running.rows,
            sequence.answer_start,
            running.admitted.compiled,
            request.groups,
            running.unmoved,
            0 if guard is None else guard.unread,
            self.first_token.left_out(sequence.prompt),
            sampling.min_tokens,
            tuple(sorted(sequence.stops)) if sampling.min_tokens else (),
            _draw(sequence),
            Wanted(
                request.readouts.prompt,
                sampling.logprobs is not None,
                record=records,
                moves=bool(running.readings.moving),
            ),
        )

    def _named(self, sequence: Sequence) -> str:
        """A name of its own in vLLM."""
        self._made += 1
        name = f"text-{self._made}"
        self._names[name] = sequence
        return name

    def _step(self) -> None:
        told, chosen = self._core.step()
        self._steps += 1
        self._rate.add(len(chosen))
        undecodable: list[Running] = []
        for each in told:
            sequence = self._names.get(each.request_id)
            if sequence is None:
                self._reader.take(each)
            elif not sequence.finished:
                self._hand_out(sequence, each, chosen.get(each.request_id), undecodable)
        for running in undecodable:
            self._fail(running, EngineError("the answer's tokens could not be decoded"))
        for name, sequence in list(self._names.items()):
            if sequence.finished:
                self._retire(name, sequence)

    def _hand_out(
        self, sequence: Sequence, told: Told, token: int | None, undecodable: list[Running]
    ) -> None:
        """Give a sequence what a step gave for it."""
        running = sequence.running
        if not self._recorded(sequence, told):
            self._read_again(told.request_id, sequence)
            return
        if sequence.generated == 0:
            self._read_on(sequence, told)
        if not told.finite:
            self._diverged(sequence)
            return
        if (outcome := Outcome(told.outcome)) is not Outcome.GOES_ON:
            if outcome is Outcome.AGAIN:
                self._read_again(told.request_id, sequence)
                return
            ending = self._guarding.ending(sequence, outcome, told=sequence.generated > 0)
            self._end(sequence, ending)
            return
        if token is None:
            return
        if sequence.generated == 0 and running.request.sampling.n > 1:
            books = self._books(sequence)
            sequence.prompt_counts = books.counts
            sequence.prompt_activity, sequence.prompt_observed = books.activity, books.observed
        if (recording := self._recording.get(sequence)) is not None:
            recording.wrote(token)
        try:
            sequence.take(token, told.logprobs, self._watched(sequence, told), self._moves(sequence, told))
        except Exception:
            _LOG.exception("request %s is dropped: no text", running.request.request_id)
            undecodable.append(running)

    def _recorded(self, sequence: Sequence, told: Told) -> bool:
        """Remember what was done at the tokens of a step; False where that is not known of those that a text
        need not read, so that it has to."""
        recording = self._recording.get(sequence)
        if recording is None or told.record is None:
            return True
        if sequence.read == 0 and told.start > 0:
            known = recording.begin_behind(told.start)
            if known is None:
                self._recording[sequence] = recording.anew()
                return False
            self._shared[sequence] = Shared(known, len(self.sites), sequence.answer_start)
        recording.add(told.start, told.record)
        return True

    def _read_on(self, sequence: Sequence, told: Told) -> None:
        """More of a prompt has been read."""
        running = sequence.running
        if sequence.read == 0 and sequence.index == 0:
            running.cached_tokens = told.start  # others share what this one reads
        sequence.read = told.start + told.length
        if running.reads_prompt:
            watched, moved = told.watched, told.moved
            if watched is None or moved is None:
                watched = torch.zeros(len(self.sites), told.length, running.rows.watches, 2)
                moved = torch.zeros(len(self.sites), told.length)
            sequence.prompt_readings.add(self.sites, watched, moved)

    def _read_again(self, name: str, sequence: Sequence) -> None:
        """Rows have come in force for a prompt: it is read again from its start."""
        del self._names[name]
        other = self._named(sequence)
        salt = f"{salt_of(sequence.running)} {other}"
        self._core.add_again(name, other, sequence.prompt, _for_vllm(sequence), salt)
        sequence.read = 0
        sequence.prompt_readings.clear()

    def _watched(self, sequence: Sequence, told: Told) -> list[list[list[float]]] | None:
        """The watches of a sequence at its last token, [sites][watches][before, after]."""
        if not sequence.running.readings.watches or told.watched is None:
            return None
        last = told.watched[:, -1].tolist()
        by_site = dict(zip(self.sites, last, strict=True))
        return [by_site[site][: len(rows.watches)] for site, rows in sequence.running.program.items()]

    def _moves(self, sequence: Sequence, told: Told) -> tuple[float, ...]:
        """How far its last token was moved at each site that it asks for."""
        moving = sequence.running.readings.moving
        if told.moved is None:
            return tuple(0.0 for _ in moving)
        return tuple(float(told.moved[self.sites.index(site), -1]) for site in moving)

    def _end(self, sequence: Sequence, ending: Ending) -> None:
        """End a sequence whose token a condition keeps from being told, or fail its request."""
        if isinstance(ending, EngineError):
            self._fail(sequence.running, ending)
        else:
            sequence.finish(ending)

    def _diverged(self, sequence: Sequence) -> None:
        if self._guarding.steers(sequence):
            message = (
                f"the request's edits drove the activations beyond all bounds at token {sequence.length}"
            )
            self._fail(sequence.running, SteeringDivergedError(message))
        else:
            message = f"the model's logits are not finite at token {sequence.length}"
            self._fail(sequence.running, NonFiniteLogitsError(message))

    # -- endings --------------------------------------------------------------------------------------

    def _retire(self, name: str | None, sequence: Sequence) -> None:
        """Take a finished sequence out of its slot, and end its request with the last one."""
        running = sequence.running
        self._add_up(sequence)
        if name is not None:
            del self._names[name]
            self._core.drop(name)
        elif not sequence.loaded:
            with self._wake:
                self._waiting[sequence.caller] -= 1
        self._seats.remove(sequence)
        self._recording.pop(sequence, None)
        self._shared.pop(sequence, None)
        running.left -= 1
        if running.left == 0:
            running.close()

    def _add_up(self, sequence: Sequence) -> None:
        """Add what was done to a sequence to what was done to its request."""
        if not (sequence.loaded and sequence.slot >= 0):
            return
        self._guarding.leave(sequence)
        running, books = sequence.running, self._books(sequence)
        running.tally.add(self.sites, books.counts, sequence.prompt_counts or books.counts)
        if running.request.groups:
            shared = sequence.prompt_activity
            running.activity.add(books.activity, books.activity if shared is None else shared)
        if books.observed.shape[1]:
            shared = sequence.prompt_observed
            running.observed.add(books.observed, books.observed if shared is None else shared)
            running.as_firing = self._core.firing

    def _books(self, sequence: Sequence) -> Books:
        """What was counted for a sequence, with what was done where it begins behind a known prefix."""
        books, shared = self._core.books(sequence.slot), self._shared.get(sequence)
        if shared is None:
            return books
        activity = books.activity + shared.activity
        return books._replace(counts=shared.beside(books.counts), activity=activity)

    def _abort(self, running: Running) -> None:
        for sequence in running.sequences:
            if not sequence.finished:
                sequence.finish(FinishReason.ABORT)
        self._retire_all(running)

    def _fail(self, running: Running, error: EngineError) -> None:
        running.fail(error)
        for sequence in running.sequences:
            sequence.finished = True
        self._retire_all(running)

    def _retire_all(self, running: Running) -> None:
        """Take the sequences of a request out, all of which are finished."""
        names = {sequence: name for name, sequence in self._names.items() if sequence.running is running}
        for sequence in running.sequences:
            if sequence in names or (not sequence.loaded and sequence in self._seats.waiting):
                self._retire(names.get(sequence), sequence)

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
                # A core that has failed may tell no more what was counted.
                _LOG.exception("request %s: what was done to it is not known", running.request.request_id)
            running.close()
        self._jobs.fail(error)
        for name in list(self._names):
            self._drop_quietly(name)
        self._seats.clear()
        self._deliver()

    def _drop_quietly(self, name: str) -> None:
        """Take a text out of a core that may have failed."""
        del self._names[name]
        try:
            self._core.drop(name)
        except Exception:
            _LOG.exception("a text could not be taken out of vLLM")


def _draw(sequence: Sequence) -> Draw | None:
    """By what a sequence's tokens are drawn where its request has a seed."""
    sampling = sequence.running.request.sampling
    if sampling.seed is None or sampling.temperature == 0.0:
        return None
    return Draw(sampling, sequence.seed, tuple(sorted(sequence.stops)))


def _for_vllm(sequence: Sequence) -> SamplingParams:
    """By what vLLM chooses a sequence's tokens. Where the worker draws them it takes the likeliest, as its
    own choice is not told."""
    return sequence.running.request.sampling if _draw(sequence) is None else SamplingParams(temperature=0.0)


def _told_groups(groups: tuple[RowGroup, ...]) -> str:
    """What names groups of rows, in their order."""
    return ";".join(",".join(sorted(" ".join(map(str, row)) for row in group)) for group in groups)


def salt_of(running: Running) -> str:
    """What names all that acts on a request's tokens: only texts of one salt share what was read of them.

    Rows that act on prompts or answers alone, and conditions, make a token something else by where the answer
    begins.
    """
    edits = [edit for _, edit in rows_of(running.request.program, running.request.guard)]
    split = running.guard is not None or any(edit.phase is not Phase.ALL for edit in edits)
    where = f" {running.request.answer_start}" if split else ""
    return f"{running.admitted.digest} {running.unmoved}{where}"


def shares_prefix(running: Running) -> bool:
    """Whether a request may begin behind what is known of its prompt: not where what is read at the prompt's
    tokens is to be told or judged."""
    return running.guard is None and not running.request.readouts.prompt
