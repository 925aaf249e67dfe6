"""Messages of the contract: the only place that writes arguments into them and reads results from them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field, fields
from typing import Any, ClassVar, Protocol, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from saegis.errors import InternalError
from saegis.pictures import Image
from saegis.steering import Direction, Edit, FeatureRef, Target, Watch, as_target
from saegis.v1 import prompt_pb2, steering_pb2

Content = str | Image | Sequence[str | Image]
"""What a message says: a text, a picture, or texts and pictures in their order."""
ChatMessage = Mapping[str, Content]
"""One turn of a conversation: a mapping with the keys "role" and "content"."""


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


Result = TypeVar("Result", bound=_Dataclass)
Word = TypeVar("Word", bound=str)


def result(kind: type[Result], message: Message, **overrides: object) -> Result:
    """A result whose fields are the message's fields of the same names, except the overridden ones.

    Repeated fields become tuples, maps become dictionaries, and unset optional fields become None.
    """
    read = {field.name: _value(message, field.name) for field in fields(kind) if field.name not in overrides}
    return kind(**read, **overrides)


def _value(message: Message, name: str) -> Any:
    described = message.DESCRIPTOR.fields_by_name[name]
    value = getattr(message, name)
    if described.is_repeated:
        return dict(value) if isinstance(value, Mapping) else tuple(value)
    return None if described.has_presence and not message.HasField(name) else value


def word(kind: type[Word], message: Message, name: str) -> Word:
    """The value of an enum field: a member of a StrEnum, or any word for a kind of str.

    Raises InternalError for an unknown value.
    """
    described: Any = message.DESCRIPTOR.fields_by_name[name].enum_type
    values = described.values_by_number
    number = getattr(message, name)
    prefix = values[0].name.removesuffix("UNSPECIFIED")
    try:
        return kind(values[number].name.removeprefix(prefix).lower())
    except (KeyError, ValueError) as error:
        raise InternalError(f"unknown {name} {number}", reason="CONTRACT_BROKEN") from error


def set_prompt(
    request: Message,
    text: str | None,
    messages: Sequence[ChatMessage] | None,
    token_ids: Sequence[int] | None = None,
) -> None:
    """Set the prompt of a request that has one. Raises ValueError unless exactly one is given."""
    # Any message with a choice between a text, a conversation and token ids.
    asking: Any = request
    prompts = [value for value in (text, messages, token_ids) if value is not None]
    if len(prompts) != 1:
        raise ValueError(f"give exactly one of a text, messages and token_ids, not {len(prompts)} of them")
    if text is not None:
        put(request, "text", text)
    elif messages is not None:
        chat: prompt_pb2.Chat = asking.chat
        chat.messages.extend(_chat_message(message) for message in messages)
        chat.SetInParent()
    else:
        ids: prompt_pb2.TokenIds = asking.token_ids
        ids.SetInParent()
        put(ids, "ids", token_ids, shown_as="token_ids")


def _chat_message(message: ChatMessage) -> prompt_pb2.ChatMessage:
    if set(message) != {"role", "content"}:
        raise ValueError(f"a message has the keys role and content, not {', '.join(sorted(message))}")
    built, content = prompt_pb2.ChatMessage(), message["content"]
    put(built, "role", message["role"], shown_as="messages.role")
    if isinstance(content, Image):
        content = [content]
    if not isinstance(content, list | tuple):
        put(built, "content", content, shown_as="messages.content")
        return built
    for at, part in enumerate(content):
        if isinstance(part, Image):
            built.parts.add().image.data = part.data
        else:
            put(built.parts.add(), "text", part, shown_as=f"messages.content[{at}]")
    return built


def steering_message(edits: Iterable[Edit]) -> steering_pb2.Steering:
    """Edits as a message. Raises TypeError for what is no edit, ValueError for numbers that do not fit."""
    return steering_pb2.Steering(edits=[_edit(edit) for edit in edits])


def _edit(edit: Edit) -> steering_pb2.Edit:
    if not isinstance(edit, Edit):
        raise TypeError(f"steering takes edits such as saegis.clamp(...), not {type(edit).__name__}")
    message = steering_pb2.Edit(
        operation=f"OPERATION_{edit.operation.upper()}",
        site=edit.site,
        unit=f"UNIT_{edit.unit.upper()}" if edit.unit else None,
        phase=f"PHASE_{edit.phase.upper()}" if edit.phase else None,
    )
    _set_target(message, edit.target)
    put(message, "value", edit.value)
    if edit.redirect is not None:
        _set_target(message.redirect, edit.redirect.target)
        for name in ("strength", "threshold"):
            put(message.redirect, name, getattr(edit.redirect, name), shown_as=f"redirect.{name}")
    return message


def watch_message(watch: Watch | Target) -> steering_pb2.Watch:
    """A watch, or the target of one, as a message. Raises TypeError for what is neither."""
    if not isinstance(watch, Watch):
        watch = Watch(as_target(watch))
    message = steering_pb2.Watch(site=watch.site)
    _set_target(message, watch.target)
    return message


def _set_target(
    message: steering_pb2.Edit | steering_pb2.Watch | steering_pb2.Redirection, target: FeatureRef | Direction
) -> None:
    if isinstance(target, Direction):
        message.direction.values.extend(target.values)
        for name in ("digest", "name"):
            put(message.direction, name, getattr(target, name) or None, shown_as=f"direction.{name}")
        message.direction.SetInParent()
    else:
        message.feature.CopyFrom(feature_message(target))


def feature_message(feature: FeatureRef) -> steering_pb2.FeatureRef:
    """A feature as a message. Raises ValueError for an index that does not fit its field."""
    message = steering_pb2.FeatureRef(sae=feature.sae)
    put(message, "label" if isinstance(feature.selector, str) else "index", feature.selector)
    return message


def put(message: Message, name: str, value: object, *, shown_as: str = "") -> None:
    """Set a field unless the value is None; errors of type and range name the field."""
    if value is None:
        return
    shown = shown_as or name
    described = message.DESCRIPTOR.fields_by_name[name]
    # protobuf would store True as 1, and a single string as its letters.
    if isinstance(value, bool) and described.type != FieldDescriptor.TYPE_BOOL:
        raise TypeError(f"{shown}: expected a number, not {value}")
    field = getattr(message, name) if described.is_repeated else None
    if field is not None and isinstance(value, str):
        raise TypeError(f"{shown}: expected several, not the single string {value!r}")
    try:
        if field is None:
            setattr(message, name, value)
        elif isinstance(value, Mapping):
            field.update(value)
        else:
            field.extend(value)
    except UnicodeEncodeError as error:
        raise ValueError(f"{shown}: no Unicode text: half of a character stands at {error.start}") from error
    except (TypeError, ValueError) as error:
        raise type(error)(f"{shown}: {error}") from error
