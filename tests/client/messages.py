"""Messages with every field set to a value of its own, and what the client must make of them."""

import re
from itertools import count
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from saegis.v1 import generation_pb2

_INTEGERS = {getattr(FieldDescriptor, f"CPPTYPE_{name}") for name in ("INT32", "INT64", "UINT32", "UINT64")}
_REALS = {FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE}


def fill(message: Message, numbers: "count[int] | None" = None) -> None:
    """Set every field of a message; of a oneof the last member wins. Repeated fields get two values."""
    numbers = numbers or count(1)
    for described in message.DESCRIPTOR.fields:
        field = getattr(message, described.name)
        is_map = described.message_type is not None and described.message_type.GetOptions().map_entry
        if is_map:
            field[f"key {next(numbers)}"] = next(numbers) + 0.5
        elif described.message_type is not None:
            parts = [field.add(), field.add()] if described.is_repeated else [field]
            for part in parts:
                part.SetInParent()
                fill(part, numbers)
        elif described.is_repeated:
            field.extend([_value(described, numbers), _value(described, numbers)])
        else:
            setattr(message, described.name, _value(described, numbers))


def _value(described: Any, numbers: "count[int]") -> Any:
    kind = described.cpp_type
    if kind in _INTEGERS:
        return next(numbers)
    if kind in _REALS:
        return next(numbers) + 0.5
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return True
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return described.enum_type.values[1].number
    return f"text {next(numbers)}"


def plain(message: Message) -> dict[str, Any]:
    """A message as nested dicts and tuples, unset fields as None: what `asdict` of a result should be.

    Enums are their names in lower case, without the prefix.
    """
    result: dict[str, Any] = {}
    for described in message.DESCRIPTOR.fields:
        field = getattr(message, described.name)
        if described.message_type is not None and described.message_type.GetOptions().map_entry:
            result[described.name] = dict(field)
        elif described.is_repeated:
            result[described.name] = tuple(
                plain(each) if described.message_type is not None else each for each in field
            )
        elif described.enum_type is not None:
            prefix = re.sub("(?<=[a-z])(?=[A-Z])", "_", described.enum_type.name).upper()
            name = described.enum_type.values_by_number[field].name
            result[described.name] = name.removeprefix(f"{prefix}_").lower()
        elif described.has_presence and not message.HasField(described.name):
            result[described.name] = None
        else:
            result[described.name] = plain(field) if described.message_type is not None else field
    return result


def receipt() -> generation_pb2.Receipt:
    """A receipt with every field set."""
    message = generation_pb2.Receipt()
    fill(message)
    return message


def stream_of_two() -> list[generation_pb2.StreamGenerateResponse]:
    """A stream with n = 2, the indices mixed: "ab" ended by a string, and "cd" ended by a token."""
    logprobs = generation_pb2.LogProbs(
        token_logprobs=[-0.5],
        token_ids=[7],
        top_logprobs=[generation_pb2.TopLogProbs(values=[-0.25, -0.5], token_ids=[9, 7])],
    )
    pieces = [
        generation_pb2.GenerationChunk(
            index=0,
            text="a",
            token_ids=[7],
            logprobs=logprobs,
            watched=[generation_pb2.WatchedActivations(watch=0, before=[1.5], after=[0.0], set_to=[3.0])],
        ),
        generation_pb2.GenerationChunk(index=1, text="c", token_ids=[10]),
        generation_pb2.GenerationChunk(
            index=1, text="d", token_ids=[11], finish_reason=generation_pb2.FINISH_REASON_STOP
        ),
        generation_pb2.GenerationChunk(
            index=0,
            text="b",
            token_ids=[7],
            logprobs=logprobs,
            watched=[generation_pb2.WatchedActivations(watch=0, before=[2.5], after=[0.5], set_to=[4.0])],
            finish_reason=generation_pb2.FINISH_REASON_CONTENT_FILTER,
        ),
    ]
    complete = generation_pb2.GenerationComplete(
        request_id="r1",
        outcomes=[
            generation_pb2.Outcome(index=0, finish_reason=generation_pb2.FINISH_REASON_CONTENT_FILTER),
            generation_pb2.Outcome(
                index=1, finish_reason=generation_pb2.FINISH_REASON_STOP, matched_token_id=0
            ),
        ],
        usage=generation_pb2.Usage(prompt_tokens=3, completion_tokens=4, cached_tokens=1, steered_tokens=2),
        receipt=receipt(),
    )
    return [
        *(generation_pb2.StreamGenerateResponse(chunk=piece) for piece in pieces),
        generation_pb2.StreamGenerateResponse(complete=complete),
    ]
