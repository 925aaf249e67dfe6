"""Writing requests: the one place where arguments of the clients become messages of the contract."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from saegis.feature_results import FeatureInfo
from saegis.steering import Direction, Edit, FeatureRef, Target, Watch, as_target
from saegis.v1 import feature_pb2, generation_pb2, model_pb2, prompt_pb2, steering_pb2

ChatMessage = Mapping[str, str]
"""One turn of a conversation: a mapping with the keys "role" and "content"."""


class GenerationOptions(TypedDict, total=False):
    """The keyword arguments of `generate` and `stream`; what is absent keeps the server's default."""

    messages: Sequence[ChatMessage] | None
    """The prompt as a conversation."""
    token_ids: Sequence[int] | None
    """The prompt as token ids."""
    request_id: str | None
    temperature: float | None
    """0 means greedy; the server's default is 1."""
    top_p: float | None
    top_k: int | None
    min_p: float | None
    frequency_penalty: float | None
    presence_penalty: float | None
    repetition_penalty: float | None
    max_tokens: int | None
    min_tokens: int | None
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    skip_special_tokens: bool | None
    ignore_eos: bool
    n: int | None
    logprobs: int | None
    """How many alternatives to report at each token; 0 reports the chosen token alone."""
    seed: int | None
    include_stop_str_in_output: bool
    logit_bias: Mapping[int, float]
    steering: Sequence[Edit]
    """Edits to apply: `[saegis.clamp(...), saegis.ban(...)]`."""
    watch: Sequence[Watch | Target]
    """Features or directions to report for each generated token."""


def generate(prompt: str | None, options: GenerationOptions) -> generation_pb2.GenerateRequest:
    """The request of `generate` and, wrapped, of `stream`.

    Raises TypeError for an unknown option or a value of the wrong type, and ValueError where not exactly one
    of prompt, messages and token_ids is given or a number does not fit its field.
    """
    unknown = options.keys() - GenerationOptions.__annotations__.keys()
    if unknown:
        raise TypeError(f"unknown option {', '.join(sorted(unknown))}")
    # A copy, typed loosely: the loop below goes over the options by name.
    rest: dict[str, Any] = {**options}
    request = generation_pb2.GenerateRequest()
    _set_prompt(request, prompt, rest.pop("messages", None), rest.pop("token_ids", None))
    _set(request, "request_id", rest.pop("request_id", None))
    request.steering.CopyFrom(steering_message(rest.pop("steering", ())))
    request.steering.watches.extend(_watch(watch) for watch in rest.pop("watch", ()))
    if not request.steering.edits and not request.steering.watches:
        request.ClearField("steering")
    request.sampling.SetInParent()
    if isinstance(rest.get("stop"), str):
        rest["stop"] = [rest["stop"]]
    for name, value in rest.items():
        _set(request.sampling, name, value)
    return request


def score(
    text: str | None,
    *,
    messages: Sequence[ChatMessage] | None,
    token_ids: Sequence[int] | None,
    steering: Sequence[Edit],
    unruled: bool,
    request_id: str | None,
) -> generation_pb2.ScoreRequest:
    """The request of `score`; raises as `generate` does."""
    request = generation_pb2.ScoreRequest(unruled=unruled)
    _set_prompt(request, text, messages, token_ids)
    _set(request, "request_id", request_id)
    if steering:
        request.steering.CopyFrom(steering_message(steering))
    return request


def inspect(
    text: str | None,
    *,
    messages: Sequence[ChatMessage] | None,
    token_ids: Sequence[int] | None,
    sae: str,
    site: str,
    top_k: int | None,
) -> feature_pb2.InspectRequest:
    """The request of `inspect`; raises as `generate` does."""
    request = feature_pb2.InspectRequest(sae=sae, site=site)
    _set_prompt(request, text, messages, token_ids)
    _set(request, "top_k", top_k)
    return request


def get_feature(feature: int | str | FeatureRef | FeatureInfo, sae: str) -> feature_pb2.GetFeatureRequest:
    """The request of `get_feature`. Raises ValueError where `sae` contradicts the feature's own."""
    target = as_target(feature)
    if isinstance(target, Direction):
        raise TypeError("a direction is no feature")
    if sae and target.sae not in ("", sae):
        raise ValueError(f"sae is {sae!r} but the feature belongs to {target.sae!r}")
    return feature_pb2.GetFeatureRequest(feature=_feature(FeatureRef(target.selector, sae or target.sae)))


def search_features(
    query: str, *, sae: str, page_size: int, page_token: str
) -> feature_pb2.SearchFeaturesRequest:
    """The request of `search_features`; raises ValueError for a page size that does not fit its field."""
    request = feature_pb2.SearchFeaturesRequest(query=query, sae=sae, page_token=page_token)
    _set(request, "page_size", page_size)
    return request


def contrast_features(
    positive: Iterable[str], negative: Iterable[str], *, sae: str, limit: int
) -> feature_pb2.ContrastFeaturesRequest:
    """The request of `contrast_features`; raises TypeError where one text is given instead of several."""
    request = feature_pb2.ContrastFeaturesRequest(sae=sae)
    _set(request, "positive_texts", positive)
    _set(request, "negative_texts", negative)
    _set(request, "limit", limit)
    return request


def tokenize(
    text: str | None, *, messages: Sequence[ChatMessage] | None, add_special_tokens: bool | None
) -> model_pb2.TokenizeRequest:
    """The request of `tokenize`; raises ValueError where not exactly one of text and messages is given."""
    request = model_pb2.TokenizeRequest()
    _set_prompt(request, text, messages, None)
    _set(request, "add_special_tokens", add_special_tokens)
    return request


def detokenize(token_ids: Iterable[int], *, skip_special_tokens: bool | None) -> model_pb2.DetokenizeRequest:
    """The request of `detokenize`; raises ValueError for an id that does not fit its field."""
    request = model_pb2.DetokenizeRequest()
    _set(request, "token_ids", token_ids)
    _set(request, "skip_special_tokens", skip_special_tokens)
    return request


def _set_prompt(
    request: (
        generation_pb2.GenerateRequest
        | generation_pb2.ScoreRequest
        | feature_pb2.InspectRequest
        | model_pb2.TokenizeRequest
    ),
    text: str | None,
    messages: Sequence[ChatMessage] | None,
    token_ids: Sequence[int] | None,
) -> None:
    given = [value for value in (text, messages, token_ids) if value is not None]
    if len(given) != 1:
        raise ValueError(f"give exactly one of a text, messages and token_ids, not {len(given)} of them")
    if text is not None:
        _set(request, "text", text)
    elif messages is not None:
        request.chat.messages.extend(_chat_message(each) for each in messages)
        request.chat.SetInParent()
    elif not isinstance(request, model_pb2.TokenizeRequest):
        request.token_ids.SetInParent()
        _set(request.token_ids, "ids", token_ids, shown_as="token_ids")


def _chat_message(message: ChatMessage) -> prompt_pb2.ChatMessage:
    if set(message) != {"role", "content"}:
        raise ValueError(f"a message has the keys role and content, not {', '.join(sorted(message))}")
    built = prompt_pb2.ChatMessage()
    for name in ("role", "content"):
        _set(built, name, message[name], shown_as=f"messages.{name}")
    return built


def steering_message(edits: Iterable[Edit]) -> steering_pb2.Steering:
    """Edits as the contract has them. Raises TypeError for what is no edit, ValueError for its numbers."""
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
    _set(message, "value", edit.value)
    return message


def _watch(watch: Watch | Target) -> steering_pb2.Watch:
    if not isinstance(watch, Watch):
        watch = Watch(as_target(watch))
    message = steering_pb2.Watch(site=watch.site)
    _set_target(message, watch.target)
    return message


def _set_target(message: steering_pb2.Edit | steering_pb2.Watch, target: FeatureRef | Direction) -> None:
    if isinstance(target, Direction):
        message.direction.values.extend(target.values)
        message.direction.SetInParent()
    else:
        message.feature.CopyFrom(_feature(target))


def _feature(feature: FeatureRef) -> steering_pb2.FeatureRef:
    message = steering_pb2.FeatureRef(sae=feature.sae)
    _set(message, "label" if isinstance(feature.selector, str) else "index", feature.selector)
    return message


def _set(message: Message, name: str, value: object, *, shown_as: str = "") -> None:
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
