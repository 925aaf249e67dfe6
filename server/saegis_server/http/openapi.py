"""The OpenAPI description, made from the table of routes, that of fields, and the contract's messages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from saegis.v1 import generation_pb2, steering_pb2
from saegis.version import __version__
from saegis_server.http.answers import encoded
from saegis_server.http.endpoints import Endpoint, Face, named
from saegis_server.http.exchange import JSON, Exchange
from saegis_server.http.fields import FIELDS, REF, Kind
from saegis_server.http.paths import Paths
from saegis_server.http.routes import ROUTES, Route
from saegis_server.rpc.server.entrance import Call
from saegis_server.rpc.server.limits import Holding

Json = dict[str, Any]
#: Whoever may read the contract over gRPC may read its description here.
REFLECTION = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
_PARAMETER = re.compile(r"\{(\w+)(:\w+)?\}")
#: The messages of protobuf that its JSON writes as strings.
_TEXTS = frozenset(("google.protobuf.Timestamp", "google.protobuf.Duration"))
#: The message of protobuf that its JSON writes as any object.
_ANY = "google.protobuf.Struct"
_Type = FieldDescriptor
_WHOLE = frozenset((_Type.TYPE_INT32, _Type.TYPE_SINT32, _Type.TYPE_SFIXED32))
_COUNTS = frozenset((_Type.TYPE_UINT32, _Type.TYPE_FIXED32))
_REAL = frozenset((_Type.TYPE_FLOAT, _Type.TYPE_DOUBLE))


@cache
def description() -> Json:
    """The description of everything that is served over HTTP."""
    found: dict[str, Descriptor] = {}
    paths: dict[str, Json] = {}
    for route in ROUTES:
        path = _PARAMETER.sub(r"{\1}", route.path)
        paths.setdefault(path, {})[route.verb.lower()] = _operation(route)
        for message in (route.request, route.response):
            _gather(message, found)
    _gather(steering_pb2.Steering.DESCRIPTOR, found)
    _gather(generation_pb2.Receipt.DESCRIPTOR, found)
    schemas = {name: _message(message) for name, message in sorted(found.items())}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Saegis",
            "version": __version__,
            "description": "Steered text with OpenAI's names, and what the features are, over HTTP.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas | _answers() | {"Error": _ERROR},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}, {}],
    }


class Description(Endpoint):
    """Answers with the description."""

    def __init__(self, face: Face) -> None:
        super().__init__(face, REFLECTION)

    async def run(self, exchange: Exchange, call: Call, holding: Holding, paths: Paths) -> None:
        """Answer with it."""
        await exchange.answer(200, JSON, encoded(description()), [named(call)])


def _operation(route: Route) -> Json:
    told: Json = {
        "summary": route.summary,
        "operationId": f"{route.verb.lower()}{re.sub(r'[^a-z]+', '_', route.path)}".strip("_"),
        "responses": {"200": {"description": "The answer.", "content": _content(route)}, "default": _FAILED},
    }
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name, _ in _PARAMETER.findall(route.path)
    ]
    if route.fields is not None:
        told["requestBody"] = _body({"$ref": f"{REF}{_request_name(route.fields)}"})
    elif route.request is not None and route.verb == "POST":
        told["requestBody"] = _body(_reference(route.request))
    elif route.request is not None:
        given = [each["name"] for each in parameters]
        parameters += [each for each in _query_parameters(route.request) if each["name"] not in given]
    return told | ({"parameters": parameters} if parameters else {})


def _body(schema: Json) -> Json:
    return {"required": True, "content": {JSON: {"schema": schema}}}


def _content(route: Route) -> Json:
    if route.fields is Kind.CHAT:
        whole = {"$ref": f"{REF}ChatCompletion"}
    elif route.fields is Kind.COMPLETION:
        whole = {"$ref": f"{REF}Completion"}
    elif route.response is not None:
        whole = _reference(route.response)
    else:
        whole = {"$ref": f"{REF}{'Model' if '{' in route.path else 'Models'}"}
    events = {"text/event-stream": {"schema": {"type": "string"}}} if route.fields else {}
    return {JSON: {"schema": whole}, **events}


def _request_name(kind: Kind) -> str:
    return "ChatRequest" if kind is Kind.CHAT else "CompletionRequest"


def _query_parameters(message: Descriptor) -> Iterator[Json]:
    """The parameters of a query: the fields that are no messages with fields of their own."""
    for each in message.fields:
        schema = _value(each)
        if "$ref" not in schema and not each.is_repeated:
            yield {"name": each.name, "in": "query", "schema": schema}


def _gather(message: Any, found: dict[str, Descriptor]) -> None:
    """Add a message and those within it, by name."""
    if message is None or message.name in found or message.full_name in _TEXTS | {_ANY}:
        return
    if not message.GetOptions().map_entry:
        found[message.name] = message
    for each in message.fields:
        _gather(each.message_type, found)


def _reference(message: Descriptor) -> Json:
    return {"$ref": f"{REF}{message.name}"}


def _message(message: Descriptor) -> Json:
    return {"type": "object", "properties": {each.name: _field(each) for each in message.fields}}


def _field(each: FieldDescriptor) -> Json:
    inner = each.message_type
    if inner is not None and inner.GetOptions().map_entry:
        return {"type": "object", "additionalProperties": _value(inner.fields_by_name["value"])}
    return {"type": "array", "items": _value(each)} if each.is_repeated else _value(each)


def _value(each: FieldDescriptor) -> Json:
    """The schema of one value in protobuf's JSON, in which numbers of 64 bits are strings."""
    if each.type in _REAL:
        return {"anyOf": [{"type": "number"}, {"enum": ["NaN", "Infinity", "-Infinity"]}]}
    if each.type in _COUNTS:
        return {"type": "integer", "minimum": 0, "maximum": 2**32 - 1}
    if each.type in _WHOLE:
        return {"type": "integer"}
    if each.type == _Type.TYPE_BOOL:
        return {"type": "boolean"}
    if each.enum_type is not None:
        return _enum(each.enum_type)
    if each.message_type is not None and each.message_type.full_name == _ANY:
        return {"type": "object"}
    if each.message_type is not None and each.message_type.full_name not in _TEXTS:
        return _reference(each.message_type)
    return {"type": "string"}


def _enum(kind: EnumDescriptor) -> Json:
    return {"type": "string", "enum": [value.name for value in kind.values]}


def _answers() -> Json:
    """The schemas of what has OpenAI's shape."""
    saegis: Json = {
        "type": "object",
        "required": ["receipt", "policy"],
        "properties": {
            "receipt": {"$ref": f"{REF}Receipt"},
            "policy": {"type": "string"},
            "watched": {"type": "array", "items": {"type": "object"}},
            "moves": {"type": "array", "items": {"type": "object"}},
        },
    }
    usage = {"type": "object", "required": ["prompt_tokens", "completion_tokens", "total_tokens"]}

    def answer(kind: str) -> Json:
        head: Json = {"id": {"type": "string"}, "object": {"const": kind}, "created": {"type": "integer"}}
        parts: Json = {"model": {"type": "string"}, "choices": _CHOICES, "usage": usage, "saegis": saegis}
        return {"type": "object", "required": [*head, *parts], "properties": head | parts}

    def request(kind: Kind) -> Json:
        known = {name: each.schema for name, each in FIELDS.items() if kind in each.kinds}
        needed = "messages" if kind is Kind.CHAT else "prompt"
        return {
            "type": "object",
            "required": [needed],
            "properties": known,
            "additionalProperties": False,
        }

    return {
        **{_request_name(kind): request(kind) for kind in Kind},
        "ChatCompletion": answer("chat.completion"),
        "Completion": answer("text_completion"),
        "Model": _MODEL,
        "Models": {
            "type": "object",
            "required": ["object", "data"],
            "properties": {"object": {"const": "list"}, "data": {"type": "array", "items": _MODEL}},
        },
    }


_CHOICES: Json = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["index", "finish_reason", "logprobs"],
        "properties": {"index": {"type": "integer"}, "finish_reason": {"type": "string"}},
    },
}
_MODEL: Json = {
    "type": "object",
    "required": ["id", "object", "created", "owned_by"],
    "properties": {"id": {"type": "string"}, "object": {"const": "model"}, "created": {"type": "integer"}},
}
_ERROR: Json = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}
_FAILED: Json = {
    "description": "What is wrong, and with which field.",
    "content": {JSON: {"schema": {"$ref": f"{REF}Error"}}},
}
