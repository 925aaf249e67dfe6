"""GenerationService: a request to the engine, the engine's events back to the client."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import grpc

from saegis.v1 import generation_pb2 as pb
from saegis.v1 import generation_pb2_grpc
from saegis_server.engine.engine import Engine
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
from saegis_server.steering.program import SteeringError

_Context = grpc.aio.ServicerContext[Any, Any]
#: Texts longer than this are tokenized in a thread, so that the event loop goes on.
LONG_TEXT = 4096


class GenerationServicer(generation_pb2_grpc.GenerationServiceServicer):
    """Generates text. Errors are exceptions, which the interceptor maps."""

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
            receipt=convert.receipt(ended, self.services.model.name),
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
                receipt=convert.receipt(ended, self.services.model.name),
            )
        )

    @asynccontextmanager
    async def _running(
        self, message: pb.GenerateRequest, context: _Context
    ) -> AsyncIterator[tuple[Mailbox, convert.TokenDetails]]:
        """Submit a request; however the block is left, the request does not run on."""
        engine = self.services.engine
        request, steering = await self._translate(message, context)
        name = request.request_id
        mailbox = Mailbox(self.services.unread_limit, lambda: engine.cancel(name))
        try:
            await self._submit(request, mailbox)
        except DuplicateRequestError as error:
            raise InFlightError(name) from error
        except SteeringError as error:
            raise steering.explain(error) from error
        except FieldError as error:
            if not error.field.startswith("prompt"):
                raise
            raise FieldError(message.WhichOneof("prompt") or "text", error.description) from error
        try:
            yield mailbox, convert.TokenDetails(request.sampling.logprobs is not None, steering.watches)
        finally:
            # Once it has ended, another request may go by the same name.
            if not mailbox.ended:
                engine.cancel(name)

    async def _submit(self, request: GenerationRequest, mailbox: Mailbox) -> None:
        """Submit a request; in a thread where it bans, since new bans take the engine milliseconds."""
        engine = self.services.engine
        if not any(site.bans for site in request.program.sites.values()):
            engine.submit(request, mailbox.put)
            return
        submitting = asyncio.ensure_future(self.services.in_thread(engine.submit, request, mailbox.put))
        try:
            await asyncio.shield(submitting)
        except asyncio.CancelledError:
            # The thread goes on: what it submits has no reader any more.
            submitting.add_done_callback(partial(_cancel_orphan, engine, request.request_id))
            raise

    async def _translate(
        self, message: pb.GenerateRequest, context: _Context
    ) -> tuple[GenerationRequest, RequestSteering]:
        services = self.services
        if message.HasField("request_id") and not usable_request_id(message.request_id):
            described = f"must have between 1 and {LONGEST_REQUEST_ID} printable characters"
            raise FieldError("request_id", described)
        kind = message.WhichOneof("prompt")
        is_long = message.ByteSize() > LONG_TEXT
        if is_long:
            prompt = await services.in_thread(services.prompts.read, message, kind, True)
        else:
            prompt = services.prompts.read(message, kind, True)
        max_length = services.engine.max_length
        check_length(prompt, str(kind), max_length, completion=1)
        sampling = sampling_params(message.sampling, services.model.vocab_size, max_length - len(prompt))
        if sampling.n > services.engine.limits.queue:
            raise FieldError(
                "sampling.n", f"at most {services.engine.limits.queue} completions fit the queue"
            )
        steering = request_steering(message.steering, services.targets, services.engine.capacity)
        left = context.time_remaining()
        deadline = None if left is None else time.monotonic() + left
        return GenerationRequest(request_id.get(), prompt, sampling, steering.program, deadline), steering

    def _count(self, ended: RequestFinished, tokens: Mapping[int, int]) -> None:
        self.services.metrics.count_generation(ended, list(tokens.values()))


def _cancel_orphan(engine: Engine, request_id: str, submitted: asyncio.Future[None]) -> None:
    """Cancel a request that was submitted for a client that has gone; nothing where it was refused."""
    if not submitted.cancelled() and submitted.exception() is None:
        engine.cancel(request_id)
