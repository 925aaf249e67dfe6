"""Scores over a socket: what Transformers says with a plain hook, and what is refused."""

import time
from concurrent.futures import Future
from threading import Event
from typing import Any

import grpc
import pytest
import torch
from torch import Tensor

from saegis.v1 import generation_pb2 as pb
from saegis.v1 import model_pb2, prompt_pb2, steering_pb2
from tests.rpc import tiny
from tests.rpc.conftest import Stubs
from tests.rpc.harness import Running, embedded, eventually, failure
from tests.rpc.test_generation import clamp, request

TOKENIZER = tiny.tokenizer()
FIRST = tiny.catalog().entries[0].sae
TEXT = "The river runs under the red bridge, and the day is long."


USER = prompt_pb2.ChatMessage(role="user", content="the river")


def ids_of(text: str) -> list[int]:
    found = TOKENIZER(text)["input_ids"]
    assert isinstance(found, list)
    return found


def by_ids(*tokens: int) -> pb.ScoreRequest:
    return pb.ScoreRequest(token_ids=prompt_pb2.TokenIds(ids=tokens))


def steered(*edits: steering_pb2.Edit, **fields: Any) -> pb.ScoreRequest:
    return pb.ScoreRequest(**{"text": TEXT, "steering": steering_pb2.Steering(edits=edits), **fields})


def ban(index: int) -> steering_pb2.Edit:
    feature = steering_pb2.FeatureRef(sae="first", index=index)
    return steering_pb2.Edit(operation=steering_pb2.OPERATION_BAN, feature=feature, value=1.0)


def by_transformers(tokens: list[int], clamped: int | None = None, value: float = 0.0) -> Tensor:
    """Log probabilities [T − 1, V], one feature of the first SAE clamped by a plain hook, its error kept."""
    model = tiny.model()

    def steer(_: Any, __: Any, output: Any) -> Any:
        x = output[0] if isinstance(output, tuple) else output
        if clamped is None:
            return output
        moved = x + (value - FIRST.encode(x[0])[:, clamped, None]) * FIRST.W_dec[clamped]
        moved[:, :1] = x[:, :1]  # the model's own BOS
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    model.model.layers[0].register_forward_hook(steer)
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0, :-1]
    return torch.log_softmax(logits.double(), -1)


def test_a_score_is_what_transformers_says(stubs: Stubs) -> None:
    found = stubs.generation.Score(steered(clamp(3, 5.0), request_id="mine"))
    tokens = ids_of(TEXT)
    plain, moved = by_transformers(tokens), by_transformers(tokens, 3, 5.0)
    following = torch.tensor(tokens[1:])[:, None]
    divergences = torch.nn.functional.kl_div(moved, plain, reduction="none", log_target=True).sum(-1)
    assert (found.request_id, list(found.token_ids)) == ("mine", tokens)
    assert list(found.logprobs) == pytest.approx(moved.gather(-1, following)[:, 0].tolist(), abs=1e-4)
    assert list(found.plain_logprobs) == pytest.approx(plain.gather(-1, following)[:, 0].tolist(), abs=1e-4)
    assert list(found.divergences) == pytest.approx(divergences.tolist(), abs=1e-4)
    assert max(found.divergences) > 0.01
    (site,) = found.receipt.sites
    assert (site.site, site.edits, site.tokens_edited) == (str(tiny.FIRST_SITE), 1, len(tokens) - 1)
    assert (found.receipt.steered, found.receipt.model) == (True, "tiny")
    assert found.receipt.timings.prefill_seconds > 0.0


def test_a_ban_leaves_the_receipt_of_a_generation(stubs: Stubs) -> None:
    edits = [ban(7), ban(12), clamp(20, 4.0), clamp(2, 3.0, "second")]
    found = stubs.generation.Score(steered(*edits))
    steering = steering_pb2.Steering(edits=edits)
    answer = stubs.generation.Generate(request(text=TEXT, steering=steering, sampling={"max_tokens": 1}))
    assert found.receipt.program_digest == answer.receipt.program_digest
    assert sum(site.bans_fired for site in found.receipt.sites) > 0
    for site, wanted in zip(found.receipt.sites, answer.receipt.sites, strict=True):
        for name in ("largest_relative_norm", "mean_relative_norm"):
            assert getattr(site, name) == pytest.approx(getattr(wanted, name), rel=1e-4)
            setattr(site, name, getattr(wanted, name))
        assert site == wanted


def test_prompts_of_every_kind_are_scored(stubs: Stubs) -> None:
    by_text = stubs.generation.Score(pb.ScoreRequest(text=TEXT))
    same = stubs.generation.Score(by_ids(*ids_of(TEXT)))
    assert (same.token_ids, same.logprobs) == (by_text.token_ids, by_text.logprobs)
    assert by_text.logprobs == by_text.plain_logprobs
    assert by_text.request_id
    turns = [{"role": "user", "content": "the river"}, {"role": "assistant", "content": "is long"}]
    for count in (1, 2):
        chat = prompt_pb2.Chat(messages=[message(turn) for turn in turns[:count]])
        rendered = TOKENIZER.apply_chat_template(turns[:count], return_dict=False)
        opened = TOKENIZER.apply_chat_template(turns[:count], add_generation_prompt=True, return_dict=False)
        found = stubs.generation.Score(pb.ScoreRequest(chat=chat))
        assert list(found.token_ids) == rendered != opened


def message(turn: dict[str, str]) -> prompt_pb2.ChatMessage:
    """A turn of a conversation, as it is sent."""
    return prompt_pb2.ChatMessage(role=turn["role"], content=turn["content"])


def test_the_last_message_may_be_read_as_an_answer(stubs: Stubs) -> None:
    turns = [{"role": "user", "content": "the river"}, {"role": "assistant", "content": "is long and cold"}]
    chat = prompt_pb2.Chat(messages=[message(turn) for turn in turns])
    asked = TOKENIZER.apply_chat_template(turns[:1], add_generation_prompt=True, return_dict=False)
    edit = clamp(3, 5.0, phase=steering_pb2.PHASE_COMPLETION)
    read, answered = (
        stubs.generation.Score(steered(edit, text=None, chat=chat, as_answer=as_answer))
        for as_answer in (False, True)
    )
    assert set(read.divergences) == {0.0}
    # The prediction at place i is of token i + 1.
    assert set(answered.divergences[: len(asked)]) == {0.0}
    assert min(answered.divergences[len(asked) :]) > 0.0
    (site,) = answered.receipt.sites
    assert site.tokens_edited == len(answered.token_ids) - len(asked)


def test_a_text_as_long_as_the_context(stubs: Stubs) -> None:
    longest = [200 + place % 90 for place in range(tiny.CONTEXT)]
    found = stubs.generation.Score(by_ids(*longest))
    assert list(found.token_ids) == longest
    plain = by_transformers(longest).gather(-1, torch.tensor(longest[1:])[:, None])[:, 0]
    assert list(found.plain_logprobs) == pytest.approx(plain.tolist(), abs=1e-3)
    refused = failure(lambda: stubs.generation.Score(by_ids(*longest, 5)))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "CONTEXT_LENGTH_EXCEEDED")
    assert refused.fields == ["token_ids"]


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (pb.ScoreRequest(), "text"),
        (pb.ScoreRequest(text=""), "text"),
        (by_ids(), "token_ids"),
        (by_ids(5), "token_ids"),
        (by_ids(5, 999), "token_ids.ids[1]"),
        (pb.ScoreRequest(chat=prompt_pb2.Chat()), "chat.messages"),
        (pb.ScoreRequest(text=TEXT, request_id=""), "request_id"),
        (pb.ScoreRequest(text=TEXT, as_answer=True), "as_answer"),
        (pb.ScoreRequest(chat=prompt_pb2.Chat(messages=[USER]), as_answer=True), "as_answer"),
        (steered(clamp(3, 1.0), clamp(3, 1.0, site="here")), "steering.edits[1].site"),
        (steered(*(clamp(index, 1.0) for index in range(9))), "steering.edits[8]"),
        (
            pb.ScoreRequest(text=TEXT, steering=steering_pb2.Steering(watches=[steering_pb2.Watch()])),
            "steering.watches",
        ),
    ],
)
def test_a_wrong_field_is_named(stubs: Stubs, message: pb.ScoreRequest, field: str) -> None:
    found = failure(lambda: stubs.generation.Score(message))
    assert (found.code, found.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")
    assert found.fields == [field]
    assert found.message.startswith(f"{field}: ")


def test_edits_that_contradict_each_other_or_know_no_sae(stubs: Stubs) -> None:
    contradicting = failure(lambda: stubs.generation.Score(steered(ban(3), clamp(3, 1.0))))
    assert (contradicting.reason, contradicting.fields) == (
        "FIELDS_CONTRADICT",
        ["steering.edits[1]", "steering.edits[0]"],
    )
    unknown = failure(lambda: stubs.generation.Score(steered(clamp(3, 1.0, "third"))))
    assert (unknown.code, unknown.fields) == (
        grpc.StatusCode.NOT_FOUND,
        ["steering.edits[0].feature.sae"],
    )


def test_edits_that_make_the_activations_overflow(stubs: Stubs) -> None:
    found = failure(lambda: stubs.generation.Score(steered(clamp(0, 1e6, "explosive"))))
    assert (found.code, found.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "STEERING_DIVERGED")


def test_while_a_text_is_read_the_loop_goes_on_and_a_client_may_leave(
    stubs: Stubs, served: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, go, begun = embedded(served.services).step, Event(), Event()
    read, starts = step.read, list[int]()

    def held(tokens: list[int], start: int, *others: Any) -> Any:
        starts.append(start)
        begun.set()
        assert go.wait(20.0)
        return read(tokens, start, *others)

    monkeypatch.setattr(step, "read", held)
    gone = stubs.generation.Score.future(by_ids(*[7] * tiny.CONTEXT))
    assert begun.wait(10.0)
    assert stubs.models.GetLoad(model_pb2.GetLoadRequest(), timeout=5.0).num_running_reqs == 0
    assert not gone.done()
    gone.cancel()
    eventually(lambda: served.server.gate.is_empty)
    go.set()
    assert len(stubs.generation.Score(by_ids(5, 6, 7)).logprobs) == 2
    assert starts == [0, 0, 0, 0], "the first text's first chunk, and the second text"


def test_a_client_that_leaves_while_its_bans_are_worked_out(
    stubs: Stubs, served: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text is submitted in a thread, which goes on; what it submitted must not be read on."""
    engine, go = embedded(served.services), Event()
    score, read, submitted = engine.score, engine.step.read, list[Future[Any]]()

    def slowly(*args: Any, **named: Any) -> Any:
        time.sleep(0.3)
        submitted.append(score(*args, **named))
        return submitted[0]

    def held(*args: Any) -> Any:
        assert go.wait(20.0)
        return read(*args)

    monkeypatch.setattr(engine, "score", slowly)
    monkeypatch.setattr(engine.step, "read", held)
    with pytest.raises(grpc.RpcError):
        stubs.generation.Score(steered(ban(30)), timeout=0.1)
    eventually(lambda: bool(submitted) and submitted[0].cancelled())
    go.set()
