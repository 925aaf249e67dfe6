"""GenerationService: passes requests to the engine, and its events or scores back to the client."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
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
    SamplingParams,
    SequenceFinished,
    moving_sites,
)
from saegis_server.engine.api import Score as Scored
from saegis_server.engine.readouts import Readouts
from saegis_server.engine.receipts import Receipt, Timings
from saegis_server.policy.decide.disclosure import receipt_counts
from saegis_server.policy.decide.uses import Use, UseOfRequest, beyond
from saegis_server.rpc.auth.identity import current_identity
from saegis_server.rpc.auth.roles import Role, needs, serves
from saegis_server.rpc.server.entrance import LONGEST_REQUEST_ID, usable_request_id
from saegis_server.rpc.server.logs import request_id
from saegis_server.rpc.server.threads import in_own_thread
from saegis_server.rpc.services.pictures import SeenPicture, at_places, placed, uses_of
from saegis_server.rpc.services.run import GENERATE, Governed, RequestSummary, Run, begun
from saegis_server.rpc.services.sae_sampler import SAESampler
from saegis_server.rpc.services.shared import Context, Servicer, Services
from saegis_server.rpc.wire import convert
from saegis_server.rpc.wire.mailbox import Mailbox, closing
from saegis_server.rpc.wire.problems import SlowReaderError
from saegis_server.rpc.wire.programs import RequestSteering, request_steering
from saegis_server.rpc.wire.prompts import PromptReader, begins_answer, check_length, check_size
from saegis_server.rpc.wire.sampling import sampling_params
from saegis_server.steering.program import SteeringError
from saegis_server.steering.site import Site
from saegis_server.telemetry.traces import (
    OPERATION,
    OWN_NAME,
    PROVIDER,
    REQUEST_MODEL,
    RESPONSE_MODEL,
    current_trace,
)

T = TypeVar("T")
#: Requests of more bytes than this are tokenized in a thread, so that the event loop goes on.
LONG_TEXT = 4096
#: How many numbers may be told of a prompt's tokens.
MOST_PROMPT_NUMBERS = 200_000
#: Answers of more tokens than this are assembled in a thread.
LONG_ANSWER = 512


@serves(pb.DESCRIPTOR.services_by_name["GenerationService"])
class GenerationServicer(Servicer, generation_pb2_grpc.GenerationServiceServicer):
    """Generates and scores text."""

    def __init__(self, services: Services) -> None:
        super().__init__(services)
        self._sampler = SAESampler(services)

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
        pieces, details, readings = convert.pieces(events), running.details, convert.prompt_readings
        return pb.GenerateResponse(
            request_id=request_id.get(),
            choices=await self._choices(pieces, details),
            usage=convert.usage(ended.usage, running.run.governed.decision),
            receipt=self._receipt(ended.receipt, ended.timings, running.run),
            **next((found for piece in pieces.values() if (found := readings(piece, details))), {}),
        )

    async def _choices(
        self, pieces: Mapping[int, convert.Piece], details: convert.TokenDetails
    ) -> list[pb.Choice]:
        """The choices of an answer; long ones are made in a thread, so that the event loop goes on."""

        def make() -> list[pb.Choice]:
            return [convert.choice(pieces[index], details) for index in sorted(pieces)]

        if sum(len(piece.tokens) for piece in pieces.values()) > LONG_ANSWER:
            return await in_own_thread(make)
        return make()

    @needs(Role.USE, large=True, further={"request.steering": Role.STEER})
    async def StreamGenerate(
        self, request: pb.StreamGenerateRequest, context: Context
    ) -> AsyncGenerator[pb.StreamGenerateResponse, None]:
        """Chunks as they come, then one closing message."""
        endings: dict[int, SequenceFinished] = {}
        async with self._running(request.request, context) as running:
            ended = None
            while ended is None:
                batch = await running.mailbox.get()
                ended = closing(batch)
                for index, piece in convert.pieces(batch).items():
                    if piece.finished:
                        endings[index] = piece.finished
                    yield pb.StreamGenerateResponse(chunk=convert.chunk(piece, running.details))
        yield pb.StreamGenerateResponse(
            complete=pb.GenerationComplete(
                request_id=request_id.get(),
                outcomes=[convert.outcome(endings[index]) for index in sorted(endings)],
                usage=convert.usage(ended.usage, running.run.governed.decision),
                receipt=self._receipt(ended.receipt, ended.timings, running.run),
            )
        )

    @needs(Role.INSPECT, large=True, further={"steering": Role.STEER, "unruled": Role.UNRULED})
    async def Score(self, request: pb.ScoreRequest, context: Context) -> pb.ScoreResponse:
        """How likely a text is. If the client leaves, the reading ends."""
        services = self.services
        tokens, pictures, kind = await self._prompt(request, opens_turn=False)
        check_length(tokens, kind, services.engine.max_length, completion=0)
        if request.steering.watches:
            raise FieldError("steering.watches", "Score reports no activations; watch with Generate")
        for name in ("read_prompt", "read_moves"):
            if getattr(request.steering, name):
                raise FieldError(
                    f"steering.{name}", "Score reports nothing of single tokens but how likely they are"
                )
        answered = 0
        if request.as_answer:
            if not begins_answer(request.chat):
                raise FieldError("as_answer", "needs a conversation whose last message is the assistant's")
            answered = await self._off_loop(
                request, services.prompts.prefilled, request, kind, tokens, placed(pictures)
            )
        steering = self._steering(request.steering)
        summary = self._summary("Score", tokens, _uses_of_score(request, services.prompts), pictures)
        async with services.governor.admit(summary, steering) as run:
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
                groups=governed.groups[: services.engine.most_groups],
                prefilled=answered,
                pictures=placed(pictures),
            )
            with _explained(kind, steering):
                reading = await self._submit(run, submit, Future.cancel)
                services.limiter.spend(current_identity(), "tokens", len(tokens))
            run.hand_over(reading.cancel)
            scored = await self._read(run, reading)
        return pb.ScoreResponse(
            request_id=request_id.get(),
            token_ids=tokens,
            logprobs=scored.logprobs,
            plain_logprobs=scored.plain_logprobs,
            divergences=scored.divergences,
            receipt=self._receipt(scored.receipt, scored.timings, run),
        )

    @asynccontextmanager
    async def _running(self, message: pb.GenerateRequest, context: Context) -> AsyncIterator["_Running"]:
        """Submit a request, which ends with the block at the latest."""
        services, engine, governor = self.services, self.services.engine, self.services.governor
        prompt, pictures, kind = await self._prompt(message, opens_turn=True)
        check_length(prompt, kind, engine.max_length, completion=1)
        prefilled = await self._off_loop(
            message, services.prompts.prefilled, message, kind, prompt, placed(pictures)
        )
        sampling = self._sampling(message, len(prompt))
        steering = self._steering(message.steering)
        summary = self._summary(GENERATE, prompt, _uses_of_generation(message, services.prompts), pictures)
        async with governor.admit(summary, steering) as run:
            governed = run.governed
            details = _details(sampling, steering, governed)
            _check_prompt_readings(len(prompt), steering.readouts, details)
            request = GenerationRequest(
                request_id=governed.id,
                prompt=prompt,
                sampling=sampling,
                program=governed.program,
                deadline=_deadline(context),
                guard=governed.guard,
                tenant=governed.tenant,
                principal=current_identity().name,
                prefilled=prefilled,
                groups=governed.groups[: engine.most_groups],
                readouts=steering.readouts,
                pictures=placed(pictures),
            )
            mailbox = Mailbox(services.unread_limit, lambda: run.end(SlowReaderError.__name__))

            def hear(events: list[Event]) -> None:
                """Record the end before the RPC receives it, and even if the RPC has gone."""
                if isinstance(events[-1], Closing):
                    run.ended(events[-1])
                mailbox.put(events)

            run.hand_over(partial(engine.cancel, governed.id))
            with _explained(kind, steering):
                submit = partial(engine.submit, request, services.limiter.metered(current_identity(), hear))
                await self._submit(run, submit, lambda _: engine.cancel(governed.id))
                services.limiter.spend(current_identity(), "tokens", len(prompt))
            if governor.is_outdated(governed):
                # When an urgent policy ended all requests, the engine may not have had this one yet.
                run.end()
            self._sampler.offer(prompt, placed(pictures))
            begun.get()(run)
            yield _Running(mailbox, details, run)

    async def _read(self, run: Run, reading: Future[Scored]) -> Scored:
        """Wait for a score. Raises NotServingError if an urgent policy has ended it."""
        governor = self.services.governor
        if governor.is_outdated(run.governed):
            # When an urgent policy ended all requests, the engine may not have had this one yet.
            run.end()
        try:
            return await asyncio.wrap_future(reading)
        except asyncio.CancelledError:
            if reading.cancelled():
                governor.require_current(run.governed)
            raise

    async def _submit(self, run: Run, submit: Callable[[], T], cancel: Callable[[T], object]) -> T:
        """Submit to the engine; with bans in a thread, since new bans take the engine milliseconds.

        `cancel` ends what was submitted if the client has gone meanwhile.
        """
        run.hand_over()
        try:
            if not any(site.held for site in run.governed.program.sites.values()):
                return submit()
            submitting = asyncio.ensure_future(self.services.before_running(submit))
            try:
                return await asyncio.shield(submitting)
            except asyncio.CancelledError:
                # The thread goes on, but what it submits has no reader any more.
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
        return request_steering(message, self.services.own_targets(), self.services.engine.capacity)

    def _summary(
        self,
        method: str,
        prompt: tuple[int, ...],
        uses: Iterable[UseOfRequest],
        pictures: Sequence[SeenPicture],
    ) -> RequestSummary:
        text = partial(self.services.prompts.decode, prompt, skip_special_tokens=False)
        used, recorded = (*uses, *uses_of(pictures)), tuple(each.recorded for each in pictures)
        return RequestSummary(method, request_id.get(), len(prompt), text, used, recorded)

    def _receipt(self, done: Receipt, timings: Timings, run: Run) -> pb.Receipt:
        return convert.receipt(done, timings, self.services.model.name, run)

    async def _prompt(
        self, message: pb.GenerateRequest | pb.ScoreRequest, opens_turn: bool
    ) -> tuple[tuple[int, ...], tuple[SeenPicture, ...], str]:
        """The prompt's tokens, its pictures and its kind; also checks the caller's request_id."""
        if message.HasField("request_id") and not usable_request_id(message.request_id):
            described = f"must have between 1 and {LONGEST_REQUEST_ID} printable characters"
            raise FieldError("request_id", described)
        prompts, kind = self.services.prompts, message.WhichOneof("prompt")
        operation = ("chat" if kind == "chat" else "text_completion") if opens_turn else "score"
        name = self.services.model.name
        told = {OPERATION: operation, PROVIDER: OWN_NAME, REQUEST_MODEL: name, RESPONSE_MODEL: name}
        current_trace.get().tell(told, f"{operation} {name}")
        check_size(message, kind, self.services.engine.max_length)
        looked = await self.services.pictures.look(message.chat, "chat") if kind == "chat" else ()
        shown = [each.shown for each in looked]
        read = await self._off_loop(message, prompts.see, message, kind, opens_turn, "", shown)
        return read.tokens, at_places(looked, read.pictures), str(kind)

    async def _off_loop(self, message: Message, work: Callable[..., T], *arguments: Any) -> T:
        """Run work on a prompt; in a thread if the message is long or a conversation.

        A chat template is a program that may be slow.
        """
        if message.WhichOneof("prompt") == "chat" or message.ByteSize() > LONG_TEXT:
            return await self.services.before_running(work, *arguments)
        return work(*arguments)


@dataclass(frozen=True, slots=True)
class _Running:
    """A submitted request: its mailbox, which token details it asked for, and its run."""

    mailbox: Mailbox
    details: convert.TokenDetails
    run: Run


@contextmanager
def _explained(kind: str, steering: RequestSteering) -> Iterator[None]:
    """Make the engine's errors name fields of the request; `kind` is the field of the prompt."""
    try:
        yield
    except SteeringError as error:
        raise steering.explain(error) from error
    except FieldError as error:
        if not error.field.startswith("prompt"):
            raise
        raise FieldError(kind, error.description) from error


def _details(sampling: SamplingParams, steering: RequestSteering, governed: Governed) -> convert.TokenDetails:
    """Which details of its tokens a request asks for. Raises FieldError for moves that a policy conceals."""
    moves: tuple[Site, ...] = ()
    if steering.readouts.moves:
        if not receipt_counts(governed.decision):
            raise FieldError("steering.read_moves", "a policy conceals how far tokens are moved")
        moves = moving_sites(governed.program, governed.guard)
    return convert.TokenDetails(sampling.logprobs is not None, steering.watches, moves)


def _check_prompt_readings(tokens: int, readouts: Readouts, details: convert.TokenDetails) -> None:
    """Raise FieldError for more numbers of a prompt's tokens than one message should have."""
    numbers = tokens * (3 * len(details.watches) + len(details.moves)) if readouts.prompt else 0
    if numbers > MOST_PROMPT_NUMBERS:
        raise FieldError(
            "steering.read_prompt",
            f"{numbers} numbers would be read of {tokens} tokens; at most {MOST_PROMPT_NUMBERS} are told",
        )


def _deadline(context: Context) -> float | None:
    """The deadline of a call on the monotonic clock, in seconds; None if it has none."""
    left = context.time_remaining()
    return None if left is None else time.monotonic() + left


def _cancel_orphan(run: Run, cancel: Callable[[T], object], submitted: asyncio.Future[T]) -> None:
    """Cancel what was submitted for a client that has gone, or take it back if the engine refused it."""
    if submitted.cancelled() or submitted.exception() is not None:
        run.take_back()
    else:
        cancel(submitted.result())


def _uses_of_generation(message: pb.GenerateRequest, prompts: PromptReader) -> Iterator[UseOfRequest]:
    """The uses of a request of Generate or StreamGenerate, with field paths from GenerateRequest."""
    yield from _uses_of_prompt(message, prompts)
    if begins_answer(message.chat):
        yield UseOfRequest(Use.PREFILL, f"chat.messages[{len(message.chat.messages) - 1}]")
    if message.steering.read_moves:
        yield UseOfRequest(Use.MOVES, "steering.read_moves")
    sampling = message.sampling
    if sampling.logit_bias:
        yield UseOfRequest(Use.LOGIT_BIAS, "sampling.logit_bias")
    for use in (Use.N, Use.TEMPERATURE):
        # Unset means 1.
        if sampling.HasField(use.value):
            use_of_request = beyond(use, float(getattr(sampling, use.value)), f"sampling.{use.value}")
            if use_of_request is not None:
                yield use_of_request


def _uses_of_score(message: pb.ScoreRequest, prompts: PromptReader) -> Iterator[UseOfRequest]:
    """The uses of a request of Score. A text that is only read never prefills an answer."""
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
