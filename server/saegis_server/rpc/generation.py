"""GenerationService: a request to the engine, the engine's events or score back to the client."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, TypeVar

import grpc

from saegis.v1 import generation_pb2 as pb
from saegis.v1 import generation_pb2_grpc
from saegis_server.engine.requests import (
    DuplicateRequestError,
    Event,
    FieldError,
    GenerationRequest,
    RequestFinished,
)
from saegis_server.rpc import convert
from saegis_server.rpc.interceptor import LONGEST_REQUEST_ID, request_id, usable_request_id
from saegis_server.rpc.mailbox import Mailbox, closing
from saegis_server.rpc.problems import InFlightError
from saegis_server.rpc.programs import RequestSteering, request_steering
from saegis_server.rpc.prompts import check_length
from saegis_server.rpc.sampling import sampling_params
from saegis_server.rpc.services import Services
from saegis_server.steering.program import SteeringError, SteeringProgram

T = TypeVar("T")
_Context = grpc.aio.ServicerContext[Any, Any]
#: Texts longer than this are tokenized in a thread, so that the event loop goes on.
LONG_TEXT = 4096


class GenerationServicer(generation_pb2_grpc.GenerationServiceServicer):
    """Generates and scores text. Errors are exceptions, which the interceptor maps."""

    def __init__(self, services: Services) -> None:
        self.services = services

    async def Generate(self, request: pb.GenerateRequest, context: _Context) -> pb.GenerateResponse:
        """All completions at once."""
        async with self._running(request, context) as (mailbox, details):
            events: list[Event] = []
            ended = None
            while ended is None:
                batch = await mailbox.get()
                events += batch
                ended = closing(batch)
        found = convert.pieces(events)
        self._count(ended, {index: len(piece.tokens) for index, piece in found.items()})
        return pb.GenerateResponse(
            request_id=request_id.get(),
            choices=[convert.choice(found[index], details) for index in sorted(found)],
            usage=convert.usage(ended.usage),
            receipt=convert.receipt(ended.receipt, ended.timings, self.services.model.name),
        )

    async def StreamGenerate(
        self, request: pb.StreamGenerateRequest, context: _Context
    ) -> AsyncIterator[pb.StreamGenerateResponse]:
        """Pieces as they come, then one closing message."""
        outcomes: dict[int, pb.Outcome] = {}
        tokens: dict[int, int] = {}
        async with self._running(request.request, context) as (mailbox, details):
            ended = None
            while ended is None:
                batch = await mailbox.get()
                ended = closing(batch)
                for index, piece in convert.pieces(batch).items():
                    tokens[index] = tokens.get(index, 0) + len(piece.tokens)
                    if piece.finished:
                        outcomes[index] = convert.outcome(piece.finished)
                    yield pb.StreamGenerateResponse(chunk=convert.chunk(piece, details))
        self._count(ended, tokens)
        yield pb.StreamGenerateResponse(
            complete=pb.GenerationComplete(
                request_id=request_id.get(),
                outcomes=[outcomes[index] for index in sorted(outcomes)],
                usage=convert.usage(ended.usage),
                receipt=convert.receipt(ended.receipt, ended.timings, self.services.model.name),
            )
        )

    async def Score(self, request: pb.ScoreRequest, context: _Context) -> pb.ScoreResponse:
        """How likely a text is. A client that leaves ends the reading."""
        services = self.services
        tokens, kind = await self._prompt(request, opens_turn=False)
        check_length(tokens, kind, services.engine.max_length, completion=0)
        if request.steering.watches:
            raise FieldError("steering.watches", "Score reports no activations; watch with Generate")
        steering = request_steering(request.steering, services.targets, services.engine.capacity)
        with _explained(kind, steering):
            submit = partial(services.engine.score, tokens, steering.program)
            reading = await self._submit(steering.program, submit, Future.cancel)
        found = await asyncio.wrap_future(reading)
        return convert.score(found, tokens, request_id.get(), services.model.name)

    @asynccontextmanager
    async def _running(
        self, message: pb.GenerateRequest, context: _Context
    ) -> AsyncIterator[tuple[Mailbox, convert.TokenDetails]]:
        """Submit a request; however the block is left, the request does not run on."""
        engine = self.services.engine
        request, steering = await self._translate(message, context)
        name = request.request_id
        mailbox = Mailbox(self.services.unread_limit, lambda: engine.cancel(name))
        with _explained(str(message.WhichOneof("prompt")), steering):
            submit = partial(engine.submit, request, mailbox.put)
            await self._submit(request.program, submit, lambda _: engine.cancel(name))
        try:
            yield mailbox, convert.TokenDetails(request.sampling.logprobs is not None, steering.watches)
        finally:
            # Once it has ended, another request may go by the same name.
            if not mailbox.ended:
                engine.cancel(name)

    async def _submit(
        self, program: SteeringProgram, submit: Callable[[], T], cancel: Callable[[T], object]
    ) -> T:
        """Submit to the engine; in a thread where there are bans, since new ones take it milliseconds.

        `cancel` takes back what was submitted for a client that has gone meanwhile.
        """
        if not any(site.bans for site in program.sites.values()):
            return submit()
        submitting = asyncio.ensure_future(self.services.in_thread(submit))
        try:
            return await asyncio.shield(submitting)
        except asyncio.CancelledError:
            # The thread goes on: what it submits has no reader any more.
            submitting.add_done_callback(partial(_cancel_orphan, cancel))
            raise

    async def _translate(
        self, message: pb.GenerateRequest, context: _Context
    ) -> tuple[GenerationRequest, RequestSteering]:
        services = self.services
        prompt, kind = await self._prompt(message, opens_turn=True)
        max_length = services.engine.max_length
        check_length(prompt, kind, max_length, completion=1)
        sampling = sampling_params(message.sampling, services.model.vocab_size, max_length - len(prompt))
        if sampling.n > services.engine.limits.queue:
            raise FieldError(
                "sampling.n", f"at most {services.engine.limits.queue} completions fit the queue"
            )
        steering = request_steering(message.steering, services.targets, services.engine.capacity)
        left = context.time_remaining()
        deadline = None if left is None else time.monotonic() + left
        return GenerationRequest(request_id.get(), prompt, sampling, steering.program, deadline), steering

    async def _prompt(
        self, message: pb.GenerateRequest | pb.ScoreRequest, opens_turn: bool
    ) -> tuple[tuple[int, ...], str]:
        """The prompt's tokens and its kind; also checks the caller's request_id."""
        if message.HasField("request_id") and not usable_request_id(message.request_id):
            described = f"must have between 1 and {LONGEST_REQUEST_ID} printable characters"
            raise FieldError("request_id", described)
        prompts, kind = self.services.prompts, message.WhichOneof("prompt")
        if message.ByteSize() > LONG_TEXT:
            tokens = await self.services.in_thread(prompts.read, message, kind, opens_turn)
        else:
            tokens = prompts.read(message, kind, opens_turn)
        return tokens, str(kind)

    def _count(self, ended: RequestFinished, tokens: Mapping[int, int]) -> None:
        self.services.metrics.count_generation(ended, list(tokens.values()))


@contextmanager
def _explained(kind: str, steering: RequestSteering) -> Iterator[None]:
    """Let the engine's refusals name the request's own fields; `kind` is the prompt's."""
    try:
        yield
    except DuplicateRequestError as error:
        raise InFlightError(request_id.get()) from error
    except SteeringError as error:
        raise steering.explain(error) from error
    except FieldError as error:
        if not error.field.startswith("prompt"):
            raise
        raise FieldError(kind, error.description) from error


def _cancel_orphan(cancel: Callable[[T], object], submitted: asyncio.Future[T]) -> None:
    """Take back what was submitted for a client that has gone; nothing where it was refused."""
    if not submitted.cancelled() and submitted.exception() is None:
        cancel(submitted.result())
