"""Endpoints: what is done with a request over HTTP. Each runs a handler of the contract's services."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, quote

from google.protobuf.message import Message

from saegis.v1 import generation_pb2, model_pb2, steering_pb2
from saegis_server.engine.api import FieldError
from saegis_server.http import body, fields
from saegis_server.http.answers import Answer, TokenTexts, as_json, encoded
from saegis_server.http.errors import Header, error_of, headers_of, status_of
from saegis_server.http.exchange import EVENTS, JSON, Exchange, Receive, Scope, Send
from saegis_server.http.fields import Asked, Kind
from saegis_server.http.paths import Paths
from saegis_server.rpc.server.entrance import Call, Entrance
from saegis_server.rpc.server.intake import Intake
from saegis_server.rpc.server.limits import Holding
from saegis_server.rpc.server.listener import Servicers
from saegis_server.rpc.server.threads import in_own_thread
from saegis_server.rpc.services.run import Run, begun
from saegis_server.rpc.services.shared import Services
from saegis_server.rpc.wire.errors import Problem
from saegis_server.rpc.wire.problems import MalformedRequestError, StalledReaderError, UnknownModelError

#: Bodies of more bytes are read, and answers of more bytes or tokens made, off the event loop.
LONG_BODY, LONG_ANSWER, MANY_TOKENS = 16 * 1024, 16 * 1024, 512
GENERATE = "/saegis.v1.GenerationService/Generate"
STREAM = "/saegis.v1.GenerationService/StreamGenerate"
GET_MODEL = "/saegis.v1.ModelService/GetModel"
#: Between the name of a model and that of a preset.
AT = "@"


@dataclass(frozen=True, slots=True)
class Serving:
    """What answers: the services, their servicers, and the programs that are listed as models."""

    services: Services
    servicers: Servicers
    presets: Mapping[str, steering_pb2.Steering]
    texts: TokenTexts

    def models(self) -> list[str]:
        """The names of the model, alone and with each preset."""
        name = self.services.model.name
        return [name, *(f"{name}{AT}{preset}" for preset in self.presets)]


class Face:
    """What all endpoints share. `serving` is set once the model is loaded; before, nobody is let in."""

    def __init__(self, entrance: Entrance, intake: Intake, max_bytes: int) -> None:
        self.entrance, self.intake, self.max_bytes = entrance, intake, max_bytes
        self.serving: Serving


class Endpoint(ABC):
    """An ASGI application that makes one call of the contract for each request."""

    def __init__(self, face: Face, method: str) -> None:
        """`method`: the RPC, whose roles, limits and counts hold for the request too."""
        self.face, self.method = face, method

    @abstractmethod
    async def run(self, exchange: Exchange, call: Call, holding: Holding, paths: Paths) -> None:
        """Read the request, run its handler and answer."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Make the call, and answer with its error if it has one."""
        exchange, entrance, paths = (
            Exchange(scope, receive, send, self.face.intake),
            self.face.entrance,
            Paths(),
        )
        call = entrance.begin(self.method, exchange)
        try:
            with entrance.inside(call, exchange) as holding:
                await self.run(exchange, call, holding, paths)
        except (Exception, asyncio.CancelledError) as error:
            problem = entrance.failed(error, call, exchange)
            if problem is None:
                _stay()
            elif isinstance(error, StalledReaderError):
                await exchange.abort()
            else:
                await _tell(exchange, call, problem, paths)
            return
        entrance.succeeded(call)


def _stay() -> None:
    """The client has gone; its task ends by itself and not by the cancellation."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        task.uncancel()


async def _tell(exchange: Exchange, call: Call, problem: Problem, paths: Paths) -> None:
    """Answer with an error, in a stream that has begun as its last event."""
    told = encoded({"error": error_of(problem, paths)})
    with suppress(asyncio.CancelledError):
        try:
            if exchange.has_begun:
                await exchange.write(event(told), is_last=True)
            else:
                headers = [named(call), *headers_of(problem)]
                await exchange.answer(status_of(problem), JSON, told, headers)
        except StalledReaderError:
            await exchange.abort()


def event(data: bytes) -> bytes:
    """A server-sent event."""
    return b"data: " + data + b"\n\n"


def named(call: Call) -> Header:
    """The header with the request's name."""
    return "x-request-id", call.id if call.id.isascii() else quote(call.id)


class Generation(Endpoint):
    """Chat and completions, by Generate and StreamGenerate."""

    def __init__(self, face: Face, kind: Kind) -> None:
        super().__init__(face, GENERATE)
        self._kind = kind

    async def run(self, exchange: Exchange, call: Call, holding: Holding, paths: Paths) -> None:
        """Generate as the body asks."""
        data = await exchange.body(call.method, self.face.max_bytes, holding)
        asked, serving = Asked(self._kind, paths=paths), self.face.serving
        with exchange.attended():
            if len(data) > LONG_BODY:
                await serving.services.before_running(fields.read, self._kind, data, asked)
            else:
                fields.read(self._kind, data, asked)
            _choose_model(asked, serving)
            name = exchange.header("x-request-id")
            if name and not asked.message.HasField("request_id"):
                asked.message.request_id, paths.names["request_id"] = name, "x-request-id"
            if len(data) > LONG_BODY:
                await self.face.intake.check(call.method, asked.message.SerializeToString(), holding)
            answer = _answer(asked, serving)
            if asked.stream:
                await self._stream(exchange, call, asked, answer)
            else:
                await self._whole(exchange, call, asked, answer)

    async def _whole(self, exchange: Exchange, call: Call, asked: Asked, answer: Answer) -> None:
        self.face.entrance.accept(call, asked.message)
        answer.id = call.id
        headers = _Headers(call)
        response = await self.face.serving.servicers.generation.Generate(asked.message, exchange)

        def make() -> bytes:
            return encoded(answer.whole(response))

        many = response.usage.completion_tokens > MANY_TOKENS
        await exchange.answer(200, JSON, await in_own_thread(make) if many else make(), headers.told)

    async def _stream(self, exchange: Exchange, call: Call, asked: Asked, answer: Answer) -> None:
        request = generation_pb2.StreamGenerateRequest(request=asked.message)
        call.method = STREAM
        self.face.entrance.accept(call, request)
        answer.id = call.id
        headers, held = _Headers(call), dict[str, Any]()
        generation = self.face.serving.servicers.generation
        async with aclosing(generation.StreamGenerate(request, exchange)) as messages:
            async for message in messages:
                if not exchange.has_begun:
                    await exchange.begin(200, EVENTS, headers.told)
                if message.HasField("complete"):
                    last = b"".join(event(encoded(each)) for each in answer.close(message.complete, held))
                    await exchange.write(last + event(b"[DONE]"), is_last=True)
                    return
                chunks = list(answer.chunks(message.chunk))
                if answer.is_over:
                    held = chunks.pop()
                if chunks:
                    await exchange.write(b"".join(event(encoded(chunk)) for chunk in chunks))


class _Headers:
    """The headers of an answer: the request's name and, once it was decided on, what governs it."""

    def __init__(self, call: Call) -> None:
        self.told = [named(call)]
        begun.set(self._begun)

    def _begun(self, run: Run) -> None:
        governed = run.governed
        for name, value in (
            ("x-saegis-decision-id", governed.id),
            ("x-saegis-program-digest", run.shown_digest),
            ("x-saegis-policy", governed.decision.policy_revision),
        ):
            if value:
                self.told.append((name, value))


def _choose_model(asked: Asked, serving: Serving) -> None:
    """Add the program of the preset that the model's name has. Raises UnknownModelError."""
    name = serving.services.model.name
    asked.model = asked.model or name
    if asked.model == name:
        return
    preset = asked.model.removeprefix(f"{name}{AT}")
    if preset == asked.model or preset not in serving.presets:
        raise UnknownModelError("model", asked.model)
    asked.steer("model:", serving.presets[preset])


def _answer(asked: Asked, serving: Serving) -> Answer:
    message, prompts = asked.message, serving.services.prompts
    prompt = ""
    if asked.echo and message.HasField("text"):
        prompt = message.text
    elif asked.echo:
        prompt = prompts.decode(message.token_ids.ids, skip_special_tokens=False)
    return Answer(asked, "", asked.model, int(time.time()), serving.texts, prompt)


Handler = Callable[[Any, Any], Awaitable[Message]]


class Unary(Endpoint):
    """An RPC of the contract as it is: protobuf's JSON of its request, and of its answer."""

    def __init__(
        self,
        face: Face,
        method: str,
        kind: type[Message],
        handler: Callable[[Servicers], Handler],
        place: Callable[[Mapping[str, str]], dict[str, Any]] = dict,
    ) -> None:
        """`kind`: the request's. `place`: what the parameters of the path are in the request's JSON."""
        super().__init__(face, method)
        self._kind, self._handler, self._place = kind, handler, place

    async def run(self, exchange: Exchange, call: Call, holding: Holding, paths: Paths) -> None:
        """Run the handler on the query of a GET, on the body of a POST."""
        services, data = self.face.serving.services, b""
        if exchange.has_body:
            data = await exchange.body(call.method, self.face.max_bytes, holding)

        def read() -> Message:
            asked = body.json_object(data) if exchange.has_body else _query(exchange.query)
            return body.message_of(self._kind, asked | self._place(exchange.path_params), "")

        def tell() -> bytes:
            return self.tell(exchange, response)

        with exchange.attended():
            if len(data) > LONG_BODY:
                request = await services.before_running(read)
                await self.face.intake.check(call.method, request.SerializeToString(), holding)
            else:
                request = read()
            self.face.entrance.accept(call, request)
            response = await self._handler(self.face.serving.servicers)(request, exchange)
            long = response.ByteSize() > LONG_ANSWER
            told = await services.in_thread(tell) if long else tell()
            await exchange.answer(200, JSON, told, [named(call)])

    def tell(self, exchange: Exchange, response: Message) -> bytes:
        """The answer's JSON."""
        return encoded(as_json(response))


def _query(text: str) -> dict[str, Any]:
    """The fields of a query. Raises MalformedRequestError."""
    try:
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=64, errors="strict")
    except ValueError as error:
        raise MalformedRequestError(f"the query cannot be read: {error}") from error
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise FieldError(name, "is there twice")
        found[name] = {"true": True, "false": False}.get(value, value)
    return found


class Models(Unary):
    """The model and its presets, as OpenAI lists models; with a name in the path, that one."""

    def __init__(self, face: Face) -> None:
        super().__init__(
            face, GET_MODEL, model_pb2.GetModelRequest, lambda servicers: servicers.models.GetModel, _nothing
        )

    def tell(self, exchange: Exchange, response: Message) -> bytes:
        """The list, or the one that is asked for. Raises UnknownModelError."""
        serving = self.face.serving
        about = {"object": "model", "created": int(serving.services.started), "owned_by": "saegis"}
        models = {name: {"id": name, **about} for name in serving.models()}
        wanted = exchange.path_params.get("model")
        if wanted is None:
            return encoded({"object": "list", "data": list(models.values())})
        if wanted not in models:
            raise UnknownModelError("model", wanted)
        return encoded(models[wanted])


def _nothing(_: Mapping[str, str]) -> dict[str, Any]:
    return {}
