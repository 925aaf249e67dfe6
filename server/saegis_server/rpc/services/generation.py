"""GenerationService: a request to the engine, the engine's events or score back to the client."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from google.protobuf.message import Message

from saegis.v1 import generation_pb2 as pb
from saegis.v1 import generation_pb2_grpc
from saegis.v1.steering_pb2 import Steering
from saegis_server.engine.api import (
    Closing,
    Event,
    FieldError,
    GenerationRequest,
    Receipt,
    RequestFinished,
    SamplingParams,
    SequenceFinished,
    Timings,
)
from saegis_server.engine.api import Score as Scored
from saegis_server.policy.decide.uses import Use, UseOfRequest, beyond
from saegis_server.rpc.auth.identity import current_identity
from saegis_server.rpc.auth.roles import Role, needs, serves
from saegis_server.rpc.server.interceptor import LONGEST_REQUEST_ID, request_id, usable_request_id
from saegis_server.rpc.server.threads import in_own_thread
from saegis_server.rpc.services.run import Asked, Governed, Run
from saegis_server.rpc.services.shared import Context, Servicer
from saegis_server.rpc.wire import convert
from saegis_server.rpc.wire.mailbox import Mailbox, closing
from saegis_server.rpc.wire.problems import SlowReaderError
from saegis_server.rpc.wire.programs import RequestSteering, request_steering
from saegis_server.rpc.wire.prompts import PromptReader, begins_answer, check_length, check_size
from saegis_server.rpc.wire.sampling import sampling_params
from saegis_server.steering.program import SteeringError

T = TypeVar("T")
#: Texts longer than this are tokenized in a thread, so that the event loop goes on.
LONG_TEXT = 4096
#: Answers of more tokens than this are put together in a thread.
LONG_ANSWER = 512


@serves(pb.DESCRIPTOR.services_by_name["GenerationService"])
class GenerationServicer(Servicer, generation_pb2_grpc.GenerationServiceServicer):
    """Generates and scores text."""

    @needs(Role.USE, large=True, further={"steering": Role.STEER})
    async def Generate(self, request: pb.GenerateRequest, context: Context) -> pb.GenerateResponse:
        """All completions at once."""
        async with self._running(request, context) as running:
            events: list[Event] = []
            ended = None
            while ended is None:
                batch = await running.mailbox.get()
                events += batch
                ended = closing(batch)
        found = convert.pieces(events)
        self._count(ended, {index: len(piece.tokens) for index, piece in found.items()})
        return pb.GenerateResponse(
            request_id=request_id.get(),
            choices=await self._choices(found, running.details),
            usage=convert.usage(ended.usage, running.governed.decision),
            receipt=self._receipt(ended.receipt, ended.timings, running.governed),
        )

    async def _choices(
        self, found: Mapping[int, convert.Piece], details: convert.TokenDetails
    ) -> list[pb.Choice]:
        """The choices of an answer; made in a thread where they are long, so that the event loop goes on."""

        def make() -> list[pb.Choice]:
            return [convert.choice(found[index], details) for index in sorted(found)]

        if sum(len(piece.tokens) for piece in found.values()) > LONG_ANSWER:
            return await in_own_thread(make)
        return make()

    @needs(Role.USE, large=True, further={"request.steering": Role.STEER})
    async def StreamGenerate(
        self, request: pb.StreamGenerateRequest, context: Context
    ) -> AsyncIterator[pb.StreamGenerateResponse]:
        """Pieces as they come, then one closing message."""
        endings: dict[int, SequenceFinished] = {}
        tokens: dict[int, int] = {}
        async with self._running(request.request, context) as running:
            ended = None
            while ended is None:
                batch = await running.mailbox.get()
                ended = closing(batch)
                for index, piece in convert.pieces(batch).items():
                    tokens[index] = tokens.get(index, 0) + len(piece.tokens)
                    if piece.finished:
                        endings[index] = piece.finished
                    yield pb.StreamGenerateResponse(chunk=convert.chunk(piece, running.details))
        self._count(ended, tokens)
        yield pb.StreamGenerateResponse(
            complete=pb.GenerationComplete(
                request_id=request_id.get(),
                outcomes=[convert.outcome(endings[index]) for index in sorted(endings)],
                usage=convert.usage(ended.usage, running.governed.decision),
                receipt=self._receipt(ended.receipt, ended.timings, running.governed),
            )
        )

    @needs(Role.INSPECT, large=True, further={"steering": Role.STEER, "unruled": Role.UNRULED})
    async def Score(self, request: pb.ScoreRequest, context: Context) -> pb.ScoreResponse:
        """How likely a text is. A client that leaves ends the reading."""
        services = self.services
        tokens, kind = await self._prompt(request, opens_turn=False)
        check_length(tokens, kind, services.engine.max_length, completion=0)
        if request.steering.watches:
            raise FieldError("steering.watches", "Score reports no activations; watch with Generate")
        steering = self._steering(request.steering)
        asked = self._asked("Score", tokens, _uses_of_score(request, services.prompts))
        async with services.governor.admit(asked, steering) as run:
            governed = run.governed
            score = services.engine.score
            submit = partial(
                score,
                tokens,
                governed.program,
                governed.guard,
                plain=governed.baseline,
                on_end=run.ended,
                tenant=governed.tenant,
            )
            with _explained(kind, steering):
                reading = await self._submit(run, submit, Future.cancel)
                services.limiter.spend(current_identity(), "tokens", len(tokens))
            run.hand_over(reading.cancel)
            found = await self._read(run, reading)
        return pb.ScoreResponse(
            request_id=request_id.get(),
            token_ids=tokens,
            logprobs=found.logprobs,
            plain_logprobs=found.plain_logprobs,
            divergences=found.divergences,
            receipt=self._receipt(found.receipt, found.timings, governed),
        )

    @asynccontextmanager
    async def _running(self, message: pb.GenerateRequest, context: Context) -> AsyncIterator["_Running"]:
        """Submit a request; however the block is left, the request does not run on."""
        services, engine, governor = self.services, self.services.engine, self.services.governor
        prompt, kind = await self._prompt(message, opens_turn=True)
        check_length(prompt, kind, engine.max_length, completion=1)
        given = await self._off_loop(message, services.prompts.given, message, kind, prompt)
        sampling = self._sampling(message, len(prompt))
        steering = self._steering(message.steering)
        asked = self._asked("Generate", prompt, _uses_of_generation(message, services.prompts))
        async with governor.admit(asked, steering) as run:
            governed = run.governed
            request = GenerationRequest(
                request_id=governed.id,
                prompt=prompt,
                sampling=sampling,
                program=governed.program,
                deadline=_deadline(context),
                guard=governed.guard,
                tenant=governed.tenant,
                principal=current_identity().name,
                prefilled=given,
            )
            mailbox = Mailbox(services.unread_limit, lambda: run.end(SlowReaderError.__name__))

            def hear(events: list[Event]) -> None:
                """Whatever comes of the RPC, the end is recorded, and before it is told."""
                if isinstance(events[-1], Closing):
                    run.ended(events[-1])
                mailbox.put(events)

            run.hand_over(partial(engine.cancel, governed.id))
            with _explained(kind, steering):
                submit = partial(engine.submit, request, services.limiter.metered(current_identity(), hear))
                await self._submit(run, submit, lambda _: engine.cancel(governed.id))
                services.limiter.spend(current_identity(), "tokens", len(prompt))
            if governor.is_outdated(governed):
                # What an urgent policy ended may not have been the engine's yet.
                run.end()
            details = convert.TokenDetails(request.sampling.logprobs is not None, steering.watches)
            yield _Running(mailbox, details, governed)

    async def _read(self, run: Run, reading: Future[Scored]) -> Scored:
        """A score, once the text is read. Raises NotServingError where an urgent policy has ended it."""
        governor = self.services.governor
        if governor.is_outdated(run.governed):
            # What an urgent policy ended may not have been the engine's yet.
            run.end()
        try:
            return await asyncio.wrap_future(reading)
        except asyncio.CancelledError:
            if reading.cancelled():
                governor.require_current(run.governed)
            raise

    async def _submit(self, run: Run, submit: Callable[[], T], cancel: Callable[[T], object]) -> T:
        """Submit to the engine; in a thread where there are bans, since new ones take it milliseconds.

        `cancel` takes back what was submitted for a client that has gone meanwhile.
        """
        run.hand_over()
        try:
            if not any(site.held for site in run.governed.program.sites.values()):
                return submit()
            submitting = asyncio.ensure_future(self.services.before_running(submit))
            try:
                return await asyncio.shield(submitting)
            except asyncio.CancelledError:
                # The thread goes on: what it submits has no reader any more.
                submitting.add_done_callback(partial(_cancel_orphan, run, cancel))
                raise
        except Exception:
            run.take_back()
            raise

    def _sampling(self, message: pb.GenerateRequest, prompt_tokens: int) -> SamplingParams:
        services = self.services
        room = services.engine.max_length - prompt_tokens
        sampling = sampling_params(message.sampling, services.model.vocab_size, room)
        if sampling.n > services.engine.limits.queue:
            raise FieldError(
                "sampling.n", f"at most {services.engine.limits.queue} completions fit the queue"
            )
        return sampling

    def _steering(self, message: Steering) -> RequestSteering:
        """A request's own edits and watches."""
        return request_steering(message, self.services.targets, self.services.engine.capacity)

    def _asked(self, method: str, prompt: tuple[int, ...], uses: Iterable[UseOfRequest]) -> Asked:
        text = partial(self.services.prompts.decode, prompt, skip_special_tokens=False)
        return Asked(method, request_id.get(), len(prompt), text, tuple(uses))

    def _receipt(self, done: Receipt, timings: Timings, governed: Governed) -> pb.Receipt:
        return convert.receipt(done, timings, self.services.model.name, governed)

    async def _prompt(
        self, message: pb.GenerateRequest | pb.ScoreRequest, opens_turn: bool
    ) -> tuple[tuple[int, ...], str]:
        """The prompt's tokens and its kind; also checks the caller's request_id."""
        if message.HasField("request_id") and not usable_request_id(message.request_id):
            described = f"must have between 1 and {LONGEST_REQUEST_ID} printable characters"
            raise FieldError("request_id", described)
        prompts, kind = self.services.prompts, message.WhichOneof("prompt")
        check_size(message, kind, self.services.engine.max_length)
        return await self._off_loop(message, prompts.read, message, kind, opens_turn), str(kind)

    async def _off_loop(self, message: Message, work: Callable[..., T], *arguments: Any) -> T:
        """Do what is done with a prompt, in a thread where it is long.

        So is what is done with a conversation: a template is a program, which may take its time.
        """
        if message.WhichOneof("prompt") == "chat" or message.ByteSize() > LONG_TEXT:
            return await self.services.before_running(work, *arguments)
        return work(*arguments)

    def _count(self, ended: RequestFinished, tokens: Mapping[int, int]) -> None:
        self.services.metrics.count_generation(ended, list(tokens.values()))


@dataclass(frozen=True, slots=True)
class _Running:
    """A submitted request: where its events come, what it wants told of them, what it runs under."""

    mailbox: Mailbox
    details: convert.TokenDetails
    governed: Governed


@contextmanager
def _explained(kind: str, steering: RequestSteering) -> Iterator[None]:
    """Let the engine's refusals name the request's own fields; `kind` is the prompt's."""
    try:
        yield
    except SteeringError as error:
        raise steering.explain(error) from error
    except FieldError as error:
        if not error.field.startswith("prompt"):
            raise
        raise FieldError(kind, error.description) from error


def _deadline(context: Context) -> float | None:
    """Until when a call's answer is waited for, on the monotonic clock."""
    left = context.time_remaining()
    return None if left is None else time.monotonic() + left


def _cancel_orphan(run: Run, cancel: Callable[[T], object], submitted: asyncio.Future[T]) -> None:
    """Take back what was submitted for a client that has gone; nothing where it was refused."""
    if submitted.cancelled() or submitted.exception() is not None:
        run.take_back()
    else:
        cancel(submitted.result())


def _uses_of_generation(message: pb.GenerateRequest, prompts: PromptReader) -> Iterator[UseOfRequest]:
    """The uses of a request of Generate or StreamGenerate, with field paths from GenerateRequest."""
    yield from _uses_of_prompt(message, prompts)
    if begins_answer(message.chat):
        yield UseOfRequest(Use.PREFILL, f"chat.messages[{len(message.chat.messages) - 1}]")
    sampling = message.sampling
    if sampling.logit_bias:
        yield UseOfRequest(Use.LOGIT_BIAS, "sampling.logit_bias")
    for use in (Use.N, Use.TEMPERATURE):
        # What is unset is 1.
        if sampling.HasField(use.value):
            asked = beyond(use, float(getattr(sampling, use.value)), f"sampling.{use.value}")
            if asked is not None:
                yield asked


def _uses_of_score(message: pb.ScoreRequest, prompts: PromptReader) -> Iterator[UseOfRequest]:
    """The uses of a request of Score; a text that is only read has no turn that would be continued."""
    yield UseOfRequest(Use.SCORE)
    if message.unruled:
        yield UseOfRequest(Use.UNRULED, "unruled")
    yield from _uses_of_prompt(message, prompts)


def _uses_of_prompt(
    message: pb.GenerateRequest | pb.ScoreRequest, prompts: PromptReader
) -> Iterator[UseOfRequest]:
    kind = message.WhichOneof("prompt")
    if kind in ("text", "token_ids") and prompts.has_chat_template:
        yield UseOfRequest(Use(kind), kind)
