"""HTTP and gRPC answer the same request with the same text, numbers, reasons, counts and receipt."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from google.protobuf.json_format import MessageToDict

from saegis.v1 import generation_pb2 as pb
from saegis.v1 import generation_pb2_grpc, prompt_pb2, steering_pb2
from tests.http.conftest import url_of
from tests.rpc import tiny
from tests.rpc.harness import Running
from tests.tiers import sized

pytestmark = pytest.mark.timeout(1800)
_WORDS = tiny.TEXT.replace(".", "").replace(";", "").split()
#: What differs between two runs of one request.
_OWN = ("decision_id", "timings", "trace_id")
_PHASES = (
    steering_pb2.PHASE_UNSPECIFIED,
    steering_pb2.PHASE_ALL,
    steering_pb2.PHASE_PROMPT,
    steering_pb2.PHASE_COMPLETION,
)
_OPERATIONS = ("CLAMP", "CLAMP_IF_ACTIVE", "SCALE", "ADD", "CAP", "FLOOR", "ABLATE", "BAN")


def text(draw: random.Random) -> str:
    return " ".join(draw.choices(_WORDS, k=draw.randint(1, 12)))


def feature(draw: random.Random) -> steering_pb2.FeatureRef:
    """Any feature of either SAE, by its index."""
    return steering_pb2.FeatureRef(sae=draw.choice(("first", "second")), index=draw.randrange(tiny.FEATURES))


def labelled(draw: random.Random) -> steering_pb2.FeatureRef:
    """A feature by its label."""
    return steering_pb2.FeatureRef(sae="first", label=draw.choice(("the red bridge", "a river", "poison")))


def edit(draw: random.Random, target: steering_pb2.FeatureRef) -> steering_pb2.Edit:
    name = draw.choice(_OPERATIONS)
    made = steering_pb2.Edit(operation=f"OPERATION_{name}", feature=target)
    if name != "ABLATE":
        made.value = round(draw.uniform(0.0, 4.0), 3)
    made.phase = draw.choice(_PHASES)
    return made


def steering(draw: random.Random) -> steering_pb2.Steering:
    """A few edits of different features, and a few watches."""
    targets = {target.SerializeToString(): target for target in (feature(draw) for _ in range(3))}
    edits = [edit(draw, target) for target in targets.values()][: draw.randint(0, 3)]
    watches = [
        steering_pb2.Watch(feature=draw.choice((feature, labelled))(draw)) for _ in range(draw.randint(0, 2))
    ]
    reads = bool(watches) and draw.random() < 0.3
    return steering_pb2.Steering(
        edits=edits, watches=watches, read_prompt=reads, read_moves=draw.random() < 0.2
    )


def sampling(draw: random.Random) -> pb.SamplingParams:
    made = pb.SamplingParams(max_tokens=draw.randint(1, 12))
    made.temperature = draw.choice((0.0, 0.0, 0.7))
    optional: dict[str, Any] = {
        "n": draw.randint(1, 3),
        "seed": draw.randint(-(2**40), 2**40),
        "logprobs": draw.randint(0, 4),
        "top_p": 0.9,
        "top_k": 20,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.25,
        "repetition_penalty": 1.2,
        "min_tokens": 1,
    }
    for name, value in optional.items():
        if name == "seed" or draw.random() < 0.3:
            setattr(made, name, value)
    if draw.random() < 0.3:
        made.stop.append(draw.choice(("er", " The", "z")))
    if draw.random() < 0.3:
        made.logit_bias[draw.randrange(tiny.VOCABULARY)] = 8.0
    return made


def drawn(draw: random.Random) -> pb.GenerateRequest:
    """Any request that both sides can say."""
    request = pb.GenerateRequest(sampling=sampling(draw), steering=steering(draw))
    if draw.random() < 0.5:
        turns = [prompt_pb2.ChatMessage(role="user", content=text(draw))]
        if draw.random() < 0.3:
            turns.append(prompt_pb2.ChatMessage(role="assistant", content=text(draw)))
        request.chat.messages.extend(turns)
    elif draw.random() < 0.7:
        request.text = text(draw)
    else:
        request.token_ids.ids.extend(draw.choices(range(3, tiny.VOCABULARY), k=5))
    return request


def as_body(request: pb.GenerateRequest) -> dict[str, Any]:
    """The request as OpenAI's clients would write it."""
    told = MessageToDict(request.sampling, preserving_proto_field_name=True)
    body: dict[str, Any] = {"model": "tiny", **told}
    if request.sampling.HasField("seed"):
        body["seed"] = request.sampling.seed
    if request.HasField("chat"):
        body["messages"] = [{"role": turn.role, "content": turn.content} for turn in request.chat.messages]
        if "logprobs" in body:
            body["top_logprobs"], body["logprobs"] = body["logprobs"], True
    else:
        body["prompt"] = request.text or list(request.token_ids.ids)
    program = MessageToDict(request.steering, preserving_proto_field_name=True)
    if watches := program.pop("watches", None):
        body["watch"] = watches
    if program:
        body["steering"] = program
    return body


def plain(receipt: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in receipt.items() if name not in _OWN}


def check_logprobs(told: dict[str, Any], wanted: pb.LogProbs, chat: bool, texts: dict[int, str]) -> None:
    """Compare the log probabilities of one choice, number by number."""
    names = [texts[token] for token in wanted.token_ids]
    if not chat:
        assert told["tokens"] == names
        assert told["token_logprobs"] == list(wanted.token_logprobs)
        tops = [list(top.values()) for top in told["top_logprobs"] or ()]
        assert tops == [list(top.values) for top in wanted.top_logprobs]
        return
    assert [entry["token"] for entry in told["content"]] == names
    assert [entry["logprob"] for entry in told["content"]] == list(wanted.token_logprobs)
    for entry, top in zip(told["content"], wanted.top_logprobs, strict=False):
        assert [each["logprob"] for each in entry["top_logprobs"]] == list(top.values)
        assert [each["token"] for each in entry["top_logprobs"]] == [texts[token] for token in top.token_ids]


def check(told: dict[str, Any], wanted: pb.GenerateResponse, chat: bool, texts: dict[int, str]) -> None:
    """Compare a whole answer over HTTP with that over gRPC."""
    assert len(told["choices"]) == len(wanted.choices)
    for choice, other in zip(told["choices"], wanted.choices, strict=True):
        assert (choice["message"]["content"] if chat else choice["text"]) == other.text
        reason = pb.FinishReason.Name(other.finish_reason).removeprefix("FINISH_REASON_").lower()
        assert choice["finish_reason"] == reason
        kind = other.WhichOneof("matched_stop")
        assert choice["stop_reason"] == (getattr(other, kind) if kind else None)
        if other.HasField("logprobs"):
            check_logprobs(choice["logprobs"], other.logprobs, chat, texts)
        else:
            assert choice["logprobs"] is None
    usage = told["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["steered_tokens"]) == (
        wanted.usage.prompt_tokens,
        wanted.usage.completion_tokens,
        wanted.usage.steered_tokens,
    )
    receipt = MessageToDict(
        wanted.receipt, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    assert plain(told["saegis"]["receipt"]) == plain(receipt)
    for name in ("watched", "moves"):
        own = [
            MessageToDict(entry, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
            for choice in wanted.choices
            for entry in getattr(choice, name)
        ]
        given = [{key: each[key] for key in each if key != "index"} for each in told["saegis"].get(name, ())]
        assert given == own
    prompt = told["saegis"].get("prompt_watched", ())
    assert [each["before"] for each in prompt] == [
        MessageToDict(each)["before"] for each in wanted.prompt_watched
    ]


@pytest.fixture(scope="module")
def texts() -> dict[int, str]:
    """The text of each token by itself."""
    tokenizer = tiny.tokenizer()
    return {token: str(tokenizer.decode([token])) for token in range(len(tokenizer))}


@pytest.mark.parametrize("count", [sized(100, 15), pytest.param(500, marks=pytest.mark.nightly)])
def test_the_same_requests_have_the_same_answers(
    served: Running, generation: generation_pb2_grpc.GenerationServiceStub, texts: dict[int, str], count: int
) -> None:
    draw = random.Random(19)
    requests = [drawn(draw) for _ in range(count)]
    with httpx.Client(base_url=url_of(served), timeout=300) as http, ThreadPoolExecutor(4) as pool:

        def compare(request: pb.GenerateRequest) -> None:
            wanted, chat = generation.Generate(request), request.HasField("chat")
            answer = http.post(f"/v1/{'chat/' if chat else ''}completions", json=as_body(request))
            assert answer.status_code == 200, answer.text
            check(answer.json(), wanted, chat, texts)

        list(pool.map(compare, requests))


def test_streams_end_with_the_same_receipt(
    client: openai.OpenAI, generation: generation_pb2_grpc.GenerationServiceStub
) -> None:
    draw = random.Random(20)
    for _ in range(sized(50, 5)):
        request = drawn(draw)
        request.chat.messages.append(prompt_pb2.ChatMessage(role="user", content="the river"))
        wanted = [*generation.StreamGenerate(pb.StreamGenerateRequest(request=request))]
        body = as_body(request)
        asked = {name: body.pop(name) for name in ("model", "messages")}
        chunks = list(client.chat.completions.create(**asked, extra_body=body, stream=True))
        told = dict.fromkeys(range(max(1, request.sampling.n)), "")
        for chunk in chunks:
            told[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
        own = dict.fromkeys(told, "")
        for message in wanted[:-1]:
            own[message.chunk.index] += message.chunk.text
        assert told == own
        receipt = MessageToDict(
            wanted[-1].complete.receipt,
            preserving_proto_field_name=True,
            always_print_fields_with_no_presence=True,
        )
        assert chunks[-1].model_extra is not None
        assert plain(chunks[-1].model_extra["saegis"]["receipt"]) == plain(receipt)
