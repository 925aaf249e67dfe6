"""OpenAI's public client, unmodified: whole and streamed answers, log probabilities, errors and retries."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types import CompletionUsage
from openai.types.chat import ChatCompletion, ChatCompletionUserMessageParam

from saegis_server.rpc.wire.problems import BusyError
from tests.http.conftest import url_of
from tests.http.guarded import client_of, guarded, records
from tests.rpc.harness import Running, eventually

CHAT: list[Any] = [{"role": "user", "content": "the river runs under the bridge"}]
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 6}
CLAMP = {"operation": "OPERATION_CLAMP", "feature": {"sae": "first", "index": 12}, "value": 3.0}


def digest_of(told: ChatCompletion) -> str:
    """The digest of the program that an answer was made under."""
    assert told.model_extra is not None
    return str(told.model_extra["saegis"]["receipt"]["program_digest"])


@pytest.fixture(scope="module")
def ruled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server under policies, with an audit log."""
    with guarded(tmp_path_factory.mktemp("guarded")) as server:
        yield server


def test_models_are_listed_with_the_operators_presets(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", "tiny@bridge"]
    assert client.models.retrieve("tiny@bridge").owned_by == "saegis"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("tiny@tower")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_a_conversation_is_continued(client: openai.OpenAI) -> None:
    told = client.chat.completions.create(model="tiny", messages=CHAT, **GREEDY)
    (choice,) = told.choices
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert (choice.finish_reason, told.object, told.model) == ("length", "chat.completion", "tiny")
    assert told.usage is not None
    assert told.usage.completion_tokens == 6
    assert told.usage.total_tokens == told.usage.prompt_tokens + 6


def test_a_stream_has_what_the_whole_answer_has(client: openai.OpenAI) -> None:
    fields = {"model": "tiny", "messages": CHAT, "logprobs": True, "top_logprobs": 2, **GREEDY}
    whole = client.chat.completions.create(**fields)
    chunks = list(
        client.chat.completions.create(**fields, stream=True, stream_options={"include_usage": True})
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    told = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert "".join(choice.delta.content or "" for choice in told) == whole.choices[0].message.content
    assert [choice.finish_reason for choice in told if choice.finish_reason] == ["length"]
    entries = [entry for choice in told if choice.logprobs for entry in choice.logprobs.content or ()]
    assert whole.choices[0].logprobs is not None
    assert entries == whole.choices[0].logprobs.content
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


def test_a_stream_without_usage_ends_with_its_last_choice_and_its_receipt(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(model="tiny", messages=CHAT, n=3, stream=True, **GREEDY))
    assert all(chunk.choices for chunk in chunks)
    assert {chunk.choices[0].index for chunk in chunks} == {0, 1, 2}
    ended = [chunk for chunk in chunks if chunk.choices[0].finish_reason]
    assert len(ended) == 3
    assert ended[-1] is chunks[-1]
    (told,) = [chunk.model_extra["saegis"] for chunk in chunks if "saegis" in (chunk.model_extra or {})]
    assert told["receipt"]["program_digest"]
    assert [outcome["finish_reason"] for outcome in told["outcomes"]] == ["FINISH_REASON_LENGTH"] * 3


def test_text_is_continued_with_the_old_log_probabilities(client: openai.OpenAI) -> None:
    told = client.completions.create(
        model="tiny", prompt=["the river"], logprobs=2, n=2, seed=1, max_tokens=5
    )
    for choice in told.choices:
        assert choice.logprobs is not None
        assert choice.logprobs.tokens is not None
        assert choice.logprobs.top_logprobs is not None
        assert choice.logprobs.text_offset is not None
        assert len(choice.logprobs.tokens) == len(choice.logprobs.token_logprobs or ()) == 5
        assert [len(top) for top in choice.logprobs.top_logprobs] == [2] * 5
        assert choice.logprobs.text_offset[0] == 0
    echoed = client.completions.create(model="tiny", prompt="the river", echo=True, **GREEDY)
    plain = client.completions.create(model="tiny", prompt="the river", **GREEDY)
    assert echoed.choices[0].text == "the river" + plain.choices[0].text
    pieces = client.completions.create(model="tiny", prompt="the river", echo=True, stream=True, **GREEDY)
    assert "".join(piece.choices[0].text for piece in pieces) == echoed.choices[0].text


def test_the_asynchronous_client_is_answered_at_once_many_times(served: Running) -> None:
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{url_of(served)}/v1", api_key="none") as client:

            async def one(number: int) -> str:
                stream = await client.chat.completions.create(
                    model="tiny", messages=CHAT, seed=number % 2, max_tokens=8, stream=True
                )
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return list(await asyncio.gather(*map(one, range(8))))

    told = asyncio.run(ask())
    assert told == told[:2] * 4
    assert told[0] != told[1]


def test_a_steered_request_is_told_what_was_done(ruled: Running) -> None:
    with client_of(ruled) as client:
        raw = client.chat.completions.with_raw_response.create(
            model="tiny",
            messages=CHAT,
            extra_body={
                "steering": {"edits": [CLAMP]},
                "watch": [{"feature": {"sae": "first", "index": 12}}],
            },
            **GREEDY,
        )
    told = raw.parse().model_extra
    assert told is not None
    receipt, (watched,) = told["saegis"]["receipt"], told["saegis"]["watched"]
    assert receipt["steered"]
    assert {rule["rule"] for rule in receipt["rules"]} == {"no-bridges", "cap-river", "ends"}
    assert receipt["edits"][0]["target"]["tokens"]["completion"] > 0
    assert watched["set_to"] == [3.0] * 6
    assert told["saegis"]["policy"].startswith("bridges-free@")
    assert raw.headers["x-saegis-program-digest"] == receipt["program_digest"]
    assert raw.headers["x-saegis-policy"] == receipt["policy_revision"]
    decision = next(
        each for each in records(ruled, "decision") if each["decision_id"] == receipt["decision_id"]
    )
    assert (decision["principal"], decision["request_id"]) == ("app-free", raw.headers["x-request-id"])
    eventually(
        lambda: any(each["decision_id"] == receipt["decision_id"] for each in records(ruled, "answer"))
    )


def test_the_same_program_comes_as_a_string_in_the_extra_arguments(ruled: Running) -> None:
    with client_of(ruled) as client:
        digests = [
            client.chat.completions.create(model="tiny", messages=CHAT, extra_body=extra, **GREEDY)
            for extra in (
                {"steering": {"edits": [CLAMP]}},
                {"vllm_xargs": {"saegis": json.dumps({"steering": {"edits": [CLAMP]}})}},
            )
        ]
    first, second = (
        told.model_extra["saegis"]["receipt"]["program_digest"] for told in digests if told.model_extra
    )
    assert first == second


@pytest.mark.parametrize("stream", [False, True])
def test_a_denied_request_names_the_rule(ruled: Running, stream: bool) -> None:
    edit = {**CLAMP, "feature": {"sae": "first", "index": 20}}
    extra = {"steering": {"edits": [CLAMP, edit]}}
    with client_of(ruled) as client, pytest.raises(openai.PermissionDeniedError) as caught:
        client.chat.completions.create(model="tiny", messages=CHAT, stream=stream, extra_body=extra, **GREEDY)
    error = caught.value
    assert (error.status_code, error.code, error.param) == (403, "policy_denied", "steering.edits[1]")
    assert isinstance(error.body, dict)
    told = error.body["metadata"]
    assert (told["policy"], told["rule"]) == ("bridges-free", "allow")
    (record,) = [each for each in records(ruled, "decision") if each["decision_id"] == told["decision_id"]]
    assert not record["allowed"]
    assert error.response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("stream", [False, True])
def test_what_a_policy_ends_is_filtered_content(ruled: Running, stream: bool) -> None:
    with client_of(ruled, tenant="stopped") as client:
        told: Any = client.chat.completions.create(model="tiny", messages=CHAT, stream=stream, **GREEDY)
        reasons = [choice.finish_reason for each in (told if stream else [told]) for choice in each.choices]
    assert reasons[-1] == "content_filter"


def test_callers_are_known_by_their_tokens_and_bound_by_their_roles(ruled: Running) -> None:
    with client_of(ruled) as client, pytest.raises(openai.AuthenticationError) as unknown:
        client.with_options(api_key="saegis_nobody").models.list()
    assert (unknown.value.code, unknown.value.response.headers["www-authenticate"]) == (
        "unauthenticated",
        "Bearer",
    )
    assert httpx.get(f"{url_of(ruled)}/v1/models").status_code == 401
    with client_of(ruled, "reader") as client:
        assert client.chat.completions.create(model="tiny", messages=CHAT, **GREEDY).choices
        extra = {"steering": {"edits": [CLAMP]}}
        for stream in (False, True):
            with pytest.raises(openai.PermissionDeniedError) as missing:
                client.chat.completions.create(
                    model="tiny", messages=CHAT, extra_body=extra, stream=stream, **GREEDY
                )
            assert (missing.value.code, missing.value.param) == ("role_missing", "steering.edits")
    for path in ("usage", "features/first/3", "features/search"):
        assert (
            httpx.get(
                f"{url_of(ruled)}/v1/{path}", headers={"authorization": "Bearer saegis_reader_free"}
            ).json()["error"]["code"]
            == "role_missing"
        )


def test_the_client_tries_again_when_it_is_told_to(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = served.services.engine
    refused: list[bool] = []
    submit = engine.submit

    def busy(*arguments: Any) -> Any:
        if len(refused) < 2:
            refused.append(True)
            raise BusyError("SERVER_LIMIT", "requests", "try again", 0.05)
        return submit(*arguments)

    monkeypatch.setattr(engine, "submit", busy)
    with openai.OpenAI(base_url=f"{url_of(served)}/v1", api_key="none", max_retries=2) as client:
        assert client.chat.completions.create(model="tiny", messages=CHAT, **GREEDY).choices
    refused.clear()
    with (
        openai.OpenAI(base_url=f"{url_of(served)}/v1", api_key="none", max_retries=0) as client,
        pytest.raises(openai.RateLimitError) as caught,
    ):
        client.chat.completions.create(model="tiny", messages=CHAT, **GREEDY)
    headers = caught.value.response.headers
    told = [headers[name] for name in ("retry-after-ms", "retry-after", "x-should-retry")]
    assert told == ["50", "1", "true"]


def test_a_name_in_use_is_refused_and_not_tried_again(served: Running, client: openai.OpenAI) -> None:
    extra = {"request_id": "mine"}
    with client.chat.completions.create(
        model="tiny", messages=CHAT, max_tokens=1500, stream=True, extra_body=extra
    ) as stream:
        assert next(iter(stream)).id == "chatcmpl-mine"
        with pytest.raises(openai.ConflictError) as caught:
            client.with_options(max_retries=2).chat.completions.create(
                model="tiny", messages=CHAT, extra_headers={"x-request-id": "mine"}, **GREEDY
            )
    assert caught.value.code == "request_in_flight"
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert caught.value.response.headers["x-request-id"] == "mine"


def test_a_client_that_leaves_frees_its_place(served: Running, client: openai.OpenAI) -> None:
    with client.chat.completions.create(model="tiny", messages=CHAT, max_tokens=1900, stream=True) as stream:
        next(iter(stream))
        assert not served.is_idle()
    eventually(served.is_idle)
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.3).chat.completions.create(model="tiny", messages=CHAT, max_tokens=1900)
    eventually(served.is_idle)


LONG = {"role": "user", "content": "the river " * 2000}


def watching(feature: Any) -> dict[str, Any]:
    """Fields of a request that watches a feature."""
    return {"extra_body": {"watch": [{"feature": feature}]}}


def steering(program: Any) -> dict[str, Any]:
    """Fields of a request that is steered."""
    return {"extra_body": {"steering": program}}


def in_a_string(text: str) -> dict[str, Any]:
    """Fields of a request whose program is in a string."""
    return {"extra_body": {"vllm_xargs": {"saegis": text}}}


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"temperature": -1}, "temperature", "field_invalid"),
        ({"temperature": "hot"}, "temperature", "field_invalid"),
        ({"top_p": 1.5}, "top_p", "field_invalid"),
        ({"n": 0}, "n", "field_invalid"),
        ({"n": 1.5}, "n", "field_invalid"),
        ({"n": 2**40}, "n", "field_invalid"),
        ({"max_tokens": 0}, "max_tokens", "field_invalid"),
        ({"max_completion_tokens": 0}, "max_completion_tokens", "field_invalid"),
        ({"max_completion_tokens": 3, "max_tokens": 4}, "max_completion_tokens", "field_invalid"),
        ({"top_logprobs": 3}, "top_logprobs", "field_invalid"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "field_invalid"),
        ({"logit_bias": {"999999": 1}}, "logit_bias[999999]", "field_invalid"),
        ({"logit_bias": {"x": 1}}, "logit_bias[x]", "field_invalid"),
        ({"stop": [""]}, "stop[0]", "field_invalid"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "field_invalid"),
        ({"response_format": {"type": "json_object"}}, "response_format", "field_invalid"),
        ({"messages": []}, "messages", "field_invalid"),
        ({"messages": [{"role": "stranger", "content": ""}]}, "messages[0].role", "field_invalid"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "field_invalid"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": ""}}]}]},
            "messages[0].content[0].image_url.url",
            "field_invalid",
        ),
        ({"model": "another"}, "model", "model_not_found"),
        ({"extra_body": {"unheard": 1}}, "unheard", "field_invalid"),
        ({"extra_body": {"watch": [{"feature": {"index": 1.5}}]}}, "watch[0].feature.index", "field_invalid"),
        (
            {"extra_body": {"watch": [{"feature": {"sae": "x", "index": 1}}]}},
            "watch[0].feature.sae",
            "sae_not_found",
        ),
        (
            {"extra_body": {"steering": {"edits": [{"operation": "CLAMP"}]}}},
            "steering.edits[0].operation",
            "field_invalid",
        ),
        (steering({"edit": []}), "steering", "field_invalid"),
        ({"extra_body": {"vllm_xargs": {"saegis": "{"}}}, "vllm_xargs.saegis", "field_invalid"),
        (
            {"extra_body": {"vllm_xargs": {"saegis": '{"watch": [{}]}'}}},
            "vllm_xargs.saegis.watch[0]",
            "field_invalid",
        ),
        (
            {"messages": [{"role": "user", "content": "the river " * 2000}]},
            "messages",
            "context_length_exceeded",
        ),
    ],
)
def test_a_fault_is_named_as_the_client_wrote_it(
    client: openai.OpenAI, fields: dict[str, Any], param: str, code: str
) -> None:
    asked: dict[str, Any] = {"model": "tiny", "messages": CHAT, "max_tokens": 2} | fields
    if "max_completion_tokens" in fields and "max_tokens" not in fields:
        del asked["max_tokens"]
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(**asked)
    assert (caught.value.param, caught.value.code) == (param, code)
    assert caught.value.status_code in (400, 404)
    assert param in caught.value.message


def test_what_many_clients_send_and_what_changes_nothing_is_accepted(client: openai.OpenAI) -> None:
    told = client.chat.completions.create(
        model="tiny",
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "the "}, {"type": "text", "text": "river"}]}
        ],
        user="somebody",
        metadata={"a": "b"},
        store=False,
        response_format={"type": "text"},
        max_completion_tokens=4,
        temperature=0.0,
        tools=[],
        stop=None,
    )
    plain = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "the river"}], temperature=0.0, max_tokens=4
    )
    assert told.choices[0].message.content == plain.choices[0].message.content


def test_without_a_bound_a_chat_goes_to_the_end_of_the_context_and_a_completion_does_not(
    client: openai.OpenAI, served: Running
) -> None:
    text = client.completions.create(model="tiny", prompt="the river", temperature=0.0)
    assert text.usage is not None
    assert text.usage.completion_tokens == 16

    def chat(words: int, bound: int | None = None) -> CompletionUsage:
        said = ChatCompletionUserMessageParam(role="user", content="river" * words)
        answer = client.chat.completions.create(
            model="tiny", messages=[said], temperature=0.0, max_tokens=bound
        )
        assert answer.usage is not None
        return answer.usage

    context = served.services.engine.max_length
    one, two = (chat(words, bound=1).prompt_tokens for words in (1, 2))
    almost = (context - one) // (two - one)
    assert chat(almost, bound=1).total_tokens <= context
    assert chat(almost - 4).total_tokens == context


def test_a_preset_does_what_its_program_does_as_edits(client: openai.OpenAI) -> None:
    edit = {"operation": "OPERATION_CLAMP", "feature": {"sae": "first", "index": 3}, "value": 6.0}
    asked = client.chat.completions.create(model="tiny@bridge", messages=CHAT, **GREEDY)
    own = client.chat.completions.create(
        model="tiny", messages=CHAT, extra_body={"steering": {"edits": [edit]}}, **GREEDY
    )
    assert digest_of(asked) == digest_of(own)
    assert asked.model == "tiny@bridge"
    assert asked.choices[0].message.content == own.choices[0].message.content
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model="tiny@bridge",
            messages=CHAT,
            extra_body={"steering": {"edits": [{**edit, "operation": "OPERATION_BAN", "value": 1.0}]}},
        )
    assert caught.value.param == "model"


def test_the_presets_of_a_server_under_policies_are_judged_as_edits(tmp_path: Path) -> None:
    preset = tmp_path / "bridge.json"
    preset.write_text(
        '{"edits": [{"operation": "OPERATION_ADD", "feature": {"sae": "first", "index": 3}, "value": 2}]}'
    )
    with (
        guarded(tmp_path, presets={"bridge": preset}) as server,
        client_of(server) as client,
        pytest.raises(openai.PermissionDeniedError) as caught,
    ):
        client.chat.completions.create(model="tiny@bridge", messages=CHAT, **GREEDY)
    assert (caught.value.code, caught.value.param) == ("policy_denied", "model")
