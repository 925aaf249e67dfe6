"""The fields of a body that asks for text: what each means in the contract's request, and its JSON schema.

One table, from which bodies are read and the OpenAPI description is made. What may be left out may be null.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from saegis.v1 import generation_pb2 as pb
from saegis.v1 import prompt_pb2, steering_pb2
from saegis_server.engine.api import FieldError
from saegis_server.http import body, peers
from saegis_server.http.paths import Paths
from saegis_server.http.shape import told
from saegis_server.json_text import parse_json
from saegis_server.rpc.wire.prompts import MOST_MESSAGES
from saegis_server.rpc.wire.sampling import MOST_BIASES

Json = Mapping[str, Any]
#: How many tokens OpenAI's completions have where nothing is said.
SHORT_COMPLETION = 16
#: The most tokens that can be asked for: an answer ends with the context at the latest.
ALL_THAT_FITS = 2**32 - 1
#: What stands before the comma of an address that is itself a picture.
_DATA_URL = re.compile(r"data:image/(png|jpeg|jpg|webp);base64", re.IGNORECASE)
#: What schemas of the contract's messages are called in the description.
REF = "#/components/schemas/"


class Kind(Enum):
    """What a body asks for."""

    CHAT = "chat"
    COMPLETION = "completion"


@dataclass(slots=True)
class Asked:
    """What a body asks for: the contract's request, and how the answer is to be told."""

    kind: Kind
    message: pb.GenerateRequest = field(default_factory=pb.GenerateRequest)
    paths: Paths = field(default_factory=Paths)
    model: str = ""
    stream: bool = False
    tells_usage: bool = False
    echo: bool = False
    tells_tokens: bool = False
    #: The body's other fields while they are read, since some only make sense beside others.
    given: dict[str, Any] = field(default_factory=dict)

    def steer(self, place: str, steering: steering_pb2.Steering) -> None:
        """Add the edits and watches of a message that stands at `place`."""
        own = self.message.steering
        own.edits.extend(steering.edits)
        own.watches.extend(steering.watches)
        own.read_prompt |= steering.read_prompt
        own.read_moves |= steering.read_moves
        for name, places in (("edits", self.paths.edits), ("watches", self.paths.watches)):
            count = len(getattr(steering, name))
            places += [place if place.endswith(":") else f"{place}.{name}[{at}]" for at in range(count)]

    def watch(self, place: str, watches: object) -> None:
        """Add an array of watches that stands at `place`."""
        for at, each in enumerate(body.listed(place, watches)):
            self.message.steering.watches.append(body.message_of(steering_pb2.Watch, each, f"{place}[{at}]"))
            self.paths.watches.append(f"{place}[{at}]")


Take = Callable[[Asked, str, Any], None]


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a body: what it does with its value, its schema, and the kinds of bodies that have it."""

    take: Take
    schema: Json
    kinds: tuple[Kind, ...] = tuple(Kind)


def _sampling(name: str, read: Callable[[str, object], Any], schema: Json, *kinds: Kind) -> Field:
    """A field that is one of the contract's sampling parameters."""

    def take(asked: Asked, path: str, value: Any) -> None:
        asked.paths.names[f"sampling.{name}"] = path
        _set(asked.message.sampling, name, path, read(path, value))

    return Field(take, schema, kinds or tuple(Kind))


def _set(message: pb.SamplingParams, name: str, path: str, value: Any) -> None:
    try:
        setattr(message, name, value)
    except ValueError as error:
        raise FieldError(path, f"is out of range: {value}") from error


def _ignore(asked: Asked, path: str, value: Any) -> None:
    """Take anything: it concerns nobody here."""


def _only(*values: Any) -> Take:
    """Take what asks for nothing beyond what is done anyway."""

    def take(asked: Asked, path: str, value: Any) -> None:
        if not any(value == each and type(value) is type(each) for each in values):
            raise FieldError(path, "is not served")

    return take


def _model(asked: Asked, path: str, value: Any) -> None:
    asked.model = body.text(path, value)


def _stream(asked: Asked, path: str, value: Any) -> None:
    asked.stream = body.boolean(path, value)


def _stream_options(asked: Asked, path: str, value: Any) -> None:
    options = body.mapping(path, value)
    if not asked.given.get("stream"):
        raise FieldError(path, "is for streams only")
    for name, each in options.items():
        if name not in ("include_usage", "include_obfuscation"):
            raise FieldError(f"{path}.{name}", "is unknown")
        if body.boolean(f"{path}.{name}", each):
            if name == "include_obfuscation":
                raise FieldError(f"{path}.{name}", "is not served")
            asked.tells_usage = True


def _messages(asked: Asked, path: str, value: Any) -> None:
    turns = body.listed(path, value)
    if len(turns) > MOST_MESSAGES:
        raise FieldError(path, f"at most {MOST_MESSAGES} messages, not {len(turns)}")
    asked.paths.names |= {"chat": path, "chat.messages": path, "text": path}
    asked.message.chat.SetInParent()
    for at, turn in enumerate(turns):
        where = f"{path}[{at}]"
        entries = body.mapping(where, turn)
        for name, each in entries.items():
            if name not in ("role", "content") and each is not None:
                raise FieldError(f"{where}.{name}", "is not served")
        role = body.text(f"{where}.role", entries.get("role"))
        message = asked.message.chat.messages.add(role=role)
        own = f"chat.messages[{at}]"
        _content(message, f"{where}.content", entries.get("content"))
        for place in range(len(message.parts)):
            named = f"{where}.content[{place}]"
            asked.paths.names[f"{own}.parts[{place}]"] = named
            asked.paths.names[f"{own}.parts[{place}].image.data"] = f"{named}.image_url.url"


def _content(message: prompt_pb2.ChatMessage, path: str, value: object) -> None:
    """Take what a message says: a string, or parts, which are texts and pictures."""
    if not isinstance(value, list):
        message.content = body.text(path, value)
        return
    for at, part in enumerate(value):
        where = f"{path}[{at}]"
        entries = body.mapping(where, part)
        if entries.get("type") == "image_url":
            given = body.mapping(f"{where}.image_url", entries.get("image_url"))
            for name, each in given.items():
                if name != "url" and not (name == "detail" and each in (None, "auto")):
                    raise FieldError(f"{where}.image_url.{name}", "is not served")
            message.parts.add().image.data = _picture(f"{where}.image_url.url", given.get("url"))
        elif entries.get("type") == "text":
            message.parts.add().text = body.text(f"{where}.text", entries.get("text"))
        else:
            raise FieldError(f"{where}.type", "must be text or image_url: nothing else is served")


def _picture(path: str, value: object) -> bytes:
    """The file in a data URL. Raises FieldError for any other address: nothing is fetched."""
    url = body.text(path, value)
    head, comma, data = url.partition(",")
    if not comma or _DATA_URL.fullmatch(head) is None:
        raise FieldError(
            path,
            "must be a data URL (data:image/png;base64,...) of a PNG, JPEG or WebP file: nothing is fetched",
        )
    try:
        return b64decode(data, validate=True)
    except ValueError as error:
        raise FieldError(path, f"is no base64: {error}") from error


def _prompt(asked: Asked, path: str, value: Any) -> None:
    message, many = asked.message, isinstance(value, list)
    if many and len(value) == 1 and isinstance(value[0], str | list):
        # An array of one prompt is that prompt, as clients of completions send it.
        path, value = f"{path}[0]", value[0]
    asked.paths.names |= {"text": path, "token_ids": path, "token_ids.ids": path}
    if isinstance(value, str):
        message.text = value
        return
    if not isinstance(value, list):
        raise FieldError(path, f"must be a string or an array of token ids, not {told(value)}")
    if value and isinstance(value[0], str | list):
        raise FieldError(path, "one prompt for each request: send several requests")
    message.token_ids.SetInParent()
    for at, token in enumerate(value):
        if not 0 <= body.integer(f"{path}[{at}]", token) < 2**32:
            raise FieldError(f"{path}[{at}]", f"is no token: {token}")
    message.token_ids.ids.extend(value)


def _most_tokens(asked: Asked, path: str, value: Any) -> None:
    other = "max_tokens" if path == "max_completion_tokens" else "max_completion_tokens"
    if asked.kind is Kind.CHAT and asked.given.get(other, value) != value:
        raise FieldError(path, f"contradicts {other}")
    asked.paths.names["sampling.max_tokens"] = path
    _set(asked.message.sampling, "max_tokens", path, body.integer(path, value))


def _stop(asked: Asked, path: str, value: Any) -> None:
    asked.paths.names["sampling.stop"] = path
    if isinstance(value, str):
        asked.message.sampling.stop.append(value)
        return
    for at, each in enumerate(body.listed(path, value)):
        asked.message.sampling.stop.append(body.text(f"{path}[{at}]", each))


def _stop_tokens(asked: Asked, path: str, value: Any) -> None:
    asked.paths.names["sampling.stop_token_ids"] = path
    for at, each in enumerate(body.listed(path, value)):
        if not 0 <= body.integer(f"{path}[{at}]", each) < 2**32:
            raise FieldError(f"{path}[{at}]", f"is no token: {each}")
        asked.message.sampling.stop_token_ids.append(each)


def _logit_bias(asked: Asked, path: str, value: Any) -> None:
    biases = body.mapping(path, value)
    if len(biases) > MOST_BIASES:
        raise FieldError(path, f"at most {MOST_BIASES} tokens, not {len(biases)}")
    asked.paths.names["sampling.logit_bias"] = path
    for token, bias in biases.items():
        where = f"{path}[{token}]"
        if not (token.isascii() and token.isdecimal() and len(token) < 11 and int(token) < 2**32):
            raise FieldError(where, "is no token: keys are token ids")
        asked.message.sampling.logit_bias[int(token)] = body.number(where, bias)


def _logprobs(asked: Asked, path: str, value: Any) -> None:
    asked.paths.names.setdefault("sampling.logprobs", path)
    if asked.kind is Kind.COMPLETION:
        _set(asked.message.sampling, "logprobs", path, body.integer(path, value))
    elif body.boolean(path, value) and not asked.message.sampling.HasField("logprobs"):
        asked.message.sampling.logprobs = 0


def _top_logprobs(asked: Asked, path: str, value: Any) -> None:
    count = body.integer(path, value)
    if asked.given.get("logprobs") is not True:
        if count == 0:
            return
        raise FieldError(path, "needs logprobs: true")
    asked.paths.names["sampling.logprobs"] = path
    _set(asked.message.sampling, "logprobs", path, count)


def _echo(asked: Asked, path: str, value: Any) -> None:
    asked.echo = body.boolean(path, value)
    if asked.echo and asked.given.get("logprobs") is not None:
        raise FieldError(path, "with logprobs is not served: Score tells how likely a text is")


def _token_ids(asked: Asked, path: str, value: Any) -> None:
    asked.tells_tokens = body.boolean(path, value)


def _best_of(asked: Asked, path: str, value: Any) -> None:
    if body.integer(path, value) != asked.given.get("n", 1):
        raise FieldError(path, "must be n: all completions are answered")


def _request_id(asked: Asked, path: str, value: Any) -> None:
    asked.message.request_id = body.text(path, value)


def _steering(asked: Asked, path: str, value: Any) -> None:
    asked.steer(path, body.message_of(steering_pb2.Steering, value, path))


def _watch(asked: Asked, path: str, value: Any) -> None:
    asked.watch(path, value)


def _xargs(asked: Asked, path: str, value: Any) -> None:
    for name, each in body.mapping(path, value).items():
        where = f"{path}.{name}"
        if name != "saegis":
            raise FieldError(where, "is unknown")
        try:
            inner = parse_json(body.text(where, each))
        except (ValueError, RecursionError) as error:
            if isinstance(error, FieldError):
                raise
            raise FieldError(where, f"is no JSON: {error}") from error
        for key, entry in body.mapping(where, inner).items():
            if key not in ("steering", "watch"):
                raise FieldError(f"{where}.{key}", "must be steering or watch")
            (_steering if key == "steering" else _watch)(asked, f"{where}.{key}", entry)


def _vectors(asked: Asked, path: str, value: Any) -> None:
    for place, edit in peers.vectors(path, value):
        asked.steer(f"{place}:", steering_pb2.Steering(edits=[edit]))


def _clamps(asked: Asked, path: str, value: Any) -> None:
    for place, edit in peers.clamps(value):
        asked.steer(f"{place}:", steering_pb2.Steering(edits=[edit]))


def _number(least: float, most: float, default: float) -> Json:
    return {"type": "number", "minimum": least, "maximum": most, "default": default}


_COUNT: Json = {"type": "integer", "minimum": 0, "maximum": 2**32 - 1}
_TOKENS: Json = {"type": "array", "items": _COUNT}
_TEXT: Json = {"type": "string"}
_FLAG: Json = {"type": "boolean"}
_TEXT_PART: Json = {
    "type": "object",
    "required": ["type", "text"],
    "properties": {"type": {"const": "text"}, "text": _TEXT},
}
_PICTURE_PART: Json = {
    "type": "object",
    "required": ["type", "image_url"],
    "properties": {
        "type": {"const": "image_url"},
        "image_url": {
            "type": "object",
            "required": ["url"],
            "properties": {
                "url": {
                    "type": "string",
                    "pattern": "^data:image/(png|jpeg|webp);base64,",
                    "description": "The file itself: nothing is fetched.",
                },
                "detail": {"const": "auto"},
            },
        },
    },
}
_MESSAGES: Json = {
    "type": "array",
    "minItems": 1,
    "maxItems": MOST_MESSAGES,
    "items": {
        "type": "object",
        "required": ["role", "content"],
        "properties": {
            "role": {"type": "string", "examples": ["system", "user", "assistant"]},
            "content": {
                "anyOf": [
                    _TEXT,
                    {
                        "type": "array",
                        "items": {"anyOf": [_TEXT_PART, _PICTURE_PART]},
                    },
                ]
            },
        },
    },
}
_BY_SITE: Json = {"type": "object", "description": 'As {"post_block": {LAYER: ...}}.'}
_ONE: Json = {"description": "Taken with the value that asks for nothing more; refused with any other."}
_UNUSED: Json = {"description": "Accepted, and not used."}
_CHAT, _COMPLETION = (Kind.CHAT,), (Kind.COMPLETION,)

#: The fields, in the order in which they are read: what steers comes in the order in which it counts.
FIELDS: dict[str, Field] = {
    "model": Field(_model, {"type": "string", "description": "The model's name, or MODEL@PRESET."}),
    "messages": Field(_messages, _MESSAGES, _CHAT),
    "prompt": Field(
        _prompt, {"anyOf": [_TEXT, {"type": "array", "items": _TEXT, "maxItems": 1}, _TOKENS]}, _COMPLETION
    ),
    "stream": Field(_stream, _FLAG),
    "stream_options": Field(_stream_options, {"type": "object", "properties": {"include_usage": _FLAG}}),
    "max_completion_tokens": Field(_most_tokens, _COUNT, _CHAT),
    "max_tokens": Field(_most_tokens, _COUNT),
    "temperature": _sampling("temperature", body.number, {"type": "number", "minimum": 0.0, "default": 1.0}),
    "top_p": _sampling("top_p", body.number, _number(0.0, 1.0, 1.0)),
    "top_k": _sampling("top_k", body.integer, {"type": "integer", "minimum": -1, "maximum": 2**31 - 1}),
    "min_p": _sampling("min_p", body.number, _number(0.0, 1.0, 0.0)),
    "frequency_penalty": _sampling("frequency_penalty", body.number, _number(-2.0, 2.0, 0.0)),
    "presence_penalty": _sampling("presence_penalty", body.number, _number(-2.0, 2.0, 0.0)),
    "repetition_penalty": _sampling("repetition_penalty", body.number, {"type": "number", "default": 1.0}),
    "n": _sampling("n", body.integer, {"type": "integer", "minimum": 1, "default": 1}),
    "best_of": Field(_best_of, {"type": "integer", "description": "Must be n."}, _COMPLETION),
    "seed": _sampling("seed", body.integer, {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}),
    "stop": Field(_stop, {"anyOf": [_TEXT, {"type": "array", "items": _TEXT}]}),
    "stop_token_ids": Field(_stop_tokens, _TOKENS),
    "min_tokens": _sampling("min_tokens", body.integer, _COUNT),
    "ignore_eos": _sampling("ignore_eos", body.boolean, _FLAG),
    "skip_special_tokens": _sampling("skip_special_tokens", body.boolean, _FLAG),
    "include_stop_str_in_output": _sampling("include_stop_str_in_output", body.boolean, _FLAG),
    "logit_bias": Field(_logit_bias, {"type": "object", "additionalProperties": _number(-100.0, 100.0, 0.0)}),
    "logprobs": Field(_logprobs, {"type": ["boolean", "integer"]}),
    "top_logprobs": Field(_top_logprobs, _COUNT, _CHAT),
    "echo": Field(_echo, _FLAG, _COMPLETION),
    "return_token_ids": Field(_token_ids, _FLAG),
    "request_id": Field(_request_id, {"type": "string", "minLength": 1, "maxLength": 128}),
    "steering": Field(_steering, {"$ref": f"{REF}Steering"}),
    "watch": Field(_watch, {"type": "array", "items": {"$ref": f"{REF}Watch"}}),
    "vllm_xargs": Field(_xargs, {"type": "object", "properties": {"saegis": _TEXT}}),
    **{name: Field(_vectors, _BY_SITE) for name in peers.VECTORS},
    peers.CLAMPS: Field(_clamps, {"type": "array", "items": {"type": "object"}}),
    # What many clients send and what changes nothing here.
    **{
        name: Field(_ignore, _UNUSED)
        for name in ("user", "metadata", "safety_identifier", "prompt_cache_key")
    },
    "store": Field(_only(False), _ONE),
    "service_tier": Field(_only("auto", "default"), _ONE),
    "response_format": Field(_only({"type": "text"}), _ONE, _CHAT),
    "modalities": Field(_only(["text"]), _ONE, _CHAT),
    "tools": Field(_only([]), _ONE, _CHAT),
    "tool_choice": Field(_only("none"), _ONE, _CHAT),
    "functions": Field(_only([]), _ONE, _CHAT),
    "function_call": Field(_only("none"), _ONE, _CHAT),
    "suffix": Field(_only(""), _ONE, _COMPLETION),
}


def read(kind: Kind, data: bytes, asked: Asked) -> None:
    """Read a body into what it asks for. Raises FieldError and MalformedRequestError."""
    given = {name: value for name, value in body.json_object(data).items() if value is not None}
    for name in given:
        known = FIELDS.get(name)
        if known is None or kind not in known.kinds:
            raise FieldError(name, "is unknown")
    asked.given = given
    for name, known in FIELDS.items():
        if name in given:
            known.take(asked, name, given[name])
    needed = "messages" if kind is Kind.CHAT else "prompt"
    if needed not in given:
        raise FieldError(needed, "must be given")
    if not asked.message.sampling.HasField("max_tokens"):
        most = SHORT_COMPLETION if kind is Kind.COMPLETION else ALL_THAT_FITS
        asked.message.sampling.max_tokens = max(most, asked.message.sampling.min_tokens)
    asked.given = {}
