"""Generation over a socket: streams and unary answers agree, and tell what was asked for."""

import time
from collections.abc import Sequence
from threading import Event
from typing import Any

import grpc
import pytest
import torch

from saegis.v1 import generation_pb2 as pb
from saegis.v1 import prompt_pb2, steering_pb2
from tests.rpc import tiny
from tests.rpc.conftest import Stubs
from tests.rpc.harness import Running, eventually

TOKENIZER = tiny.tokenizer()


def request(**fields: Any) -> pb.GenerateRequest:
    """A request of the river; `sampling` is a mapping, greedy and of twelve tokens by default."""
    sampling = {"temperature": 0.0, "max_tokens": 12, **fields.pop("sampling", {})}
    return pb.GenerateRequest(**{"text": "the river", "sampling": pb.SamplingParams(**sampling), **fields})


def stream(
    stubs: Stubs, message: pb.GenerateRequest
) -> tuple[list[pb.GenerationChunk], pb.GenerationComplete]:
    """The pieces and the closing message, which must be one and the last."""
    messages = list(stubs.generation.StreamGenerate(pb.StreamGenerateRequest(request=message)))
    kinds = [each.WhichOneof("response") for each in messages]
    assert kinds == ["chunk"] * (len(messages) - 1) + ["complete"]
    return [each.chunk for each in messages[:-1]], messages[-1].complete


def watch(index: int, sae: str = "first") -> steering_pb2.Watch:
    return steering_pb2.Watch(feature=steering_pb2.FeatureRef(sae=sae, index=index))


def clamp(index: int, value: float, sae: str = "first", **fields: Any) -> steering_pb2.Edit:
    reference = steering_pb2.FeatureRef(sae=sae, index=index)
    return steering_pb2.Edit(operation=steering_pb2.OPERATION_CLAMP, feature=reference, value=value, **fields)


def decoded(tokens: Sequence[int]) -> str:
    text = TOKENIZER.decode(list(tokens), skip_special_tokens=True)
    assert isinstance(text, str)
    return text


def _continued(prompt: torch.Tensor, tokens: int) -> torch.Tensor:
    model: Any = tiny.model()
    found = model.generate(prompt, max_new_tokens=tokens, do_sample=False, pad_token_id=0)
    assert isinstance(found, torch.Tensor)
    return found


def test_greedy_text_is_what_transformers_gives(stubs: Stubs) -> None:
    found = stubs.generation.Generate(request(sampling={"max_tokens": 40}))
    prompt = torch.tensor([TOKENIZER("the river")["input_ids"]])
    expected = _continued(prompt, 40)
    assert list(found.choices[0].token_ids) == expected[0, prompt.shape[1] :].tolist()
    # A character whose bytes are cut off at the end shows in the whole text only.
    assert found.choices[0].text.rstrip("�") == decoded(found.choices[0].token_ids).rstrip("�")
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (prompt.shape[1], 40)
    assert found.choices[0].finish_reason == pb.FINISH_REASON_LENGTH
    assert (found.receipt.steered, found.receipt.model, len(found.receipt.sites)) == (False, "tiny", 0)


@pytest.mark.parametrize("n", [1, 3])
def test_a_stream_and_a_unary_answer_tell_the_same(stubs: Stubs, n: int) -> None:
    message = request(
        sampling={"temperature": 1.0, "seed": 7, "n": n, "logprobs": 2, "max_tokens": 20},
        steering=steering_pb2.Steering(edits=[clamp(3, 2.0)], watches=[watch(3), watch(1, "second")]),
    )
    whole = stubs.generation.Generate(message)
    chunks, complete = stream(stubs, message)
    assert [choice.index for choice in whole.choices] == list(range(n))
    assert [outcome.index for outcome in complete.outcomes] == list(range(n))
    assert len({choice.text for choice in whole.choices}) == n
    for choice, outcome in zip(whole.choices, complete.outcomes, strict=True):
        pieces = [chunk for chunk in chunks if chunk.index == choice.index]
        assert "".join(piece.text for piece in pieces) == choice.text
        joined = pb.GenerationChunk()
        for piece in pieces:
            joined.token_ids.extend(piece.token_ids)
            joined.logprobs.MergeFrom(piece.logprobs)
        assert joined.token_ids == choice.token_ids
        # Beside other rows a product may round its last bits differently.
        assert list(joined.logprobs.token_logprobs) == pytest.approx(
            list(choice.logprobs.token_logprobs), abs=1e-4
        )
        reasons = [piece.finish_reason for piece in pieces]
        assert reasons == [pb.FINISH_REASON_UNSPECIFIED] * (len(pieces) - 1) + [choice.finish_reason]
        assert outcome.finish_reason == choice.finish_reason
    assert complete.usage == whole.usage
    assert complete.receipt.program_digest == whole.receipt.program_digest


def test_log_probabilities_are_the_models_own(stubs: Stubs) -> None:
    found = stubs.generation.Generate(request(sampling={"logprobs": 3, "max_tokens": 5})).choices[0]
    prompt = TOKENIZER("the river")["input_ids"]
    assert isinstance(prompt, list)
    with torch.no_grad():
        logits = tiny.model()(torch.tensor([[*prompt, *found.token_ids]])).logits[0]
    expected = logits[len(prompt) - 1 : -1].log_softmax(-1)
    chosen = expected[torch.arange(5), torch.tensor(list(found.token_ids))]
    assert list(found.logprobs.token_logprobs) == pytest.approx(chosen.tolist(), abs=1e-4)
    assert found.logprobs.token_ids == found.token_ids
    for row, top in enumerate(found.logprobs.top_logprobs):
        best = expected[row].topk(3)
        assert list(top.token_ids) == best.indices.tolist()
        assert list(top.values) == pytest.approx(best.values.tolist(), abs=1e-4)
    assert not stubs.generation.Generate(request()).choices[0].HasField("logprobs")
    bare = stubs.generation.Generate(request(sampling={"logprobs": 0})).choices[0]
    assert (len(bare.logprobs.token_logprobs), len(bare.logprobs.top_logprobs)) == (12, 0)


def test_watches_are_told_in_the_requests_order(stubs: Stubs) -> None:
    watches = [watch(2, "second"), watch(3), watch(4, "second")]
    edits = [clamp(3, 5.0), clamp(4, 6.0, "second")]
    found = stubs.generation.Generate(
        request(steering=steering_pb2.Steering(edits=edits, watches=watches), sampling={"max_tokens": 6})
    ).choices[0]
    assert [each.watch for each in found.watched] == [0, 1, 2]
    assert all(len(each.before) == len(each.after) == 6 for each in found.watched)
    alone = [
        stubs.generation.Generate(
            request(steering=steering_pb2.Steering(edits=edits, watches=[each]), sampling={"max_tokens": 6})
        ).choices[0]
        for each in watches
    ]
    for together, single in zip(found.watched, alone, strict=True):
        assert list(together.before) == pytest.approx(list(single.watched[0].before), abs=1e-4)
        assert list(together.after) == pytest.approx(list(single.watched[0].after), abs=1e-4)
    assert list(found.watched[1].before) != list(found.watched[1].after)


def test_what_edits_set_is_told_beside_what_is_read(stubs: Stubs) -> None:
    watched = [watch(index) for index in (3, 4, 5, 6, 7, 8)]

    def edit(index: int, operation: steering_pb2.Operation, value: float, **fields: Any) -> steering_pb2.Edit:
        reference = steering_pb2.FeatureRef(sae="first", index=index)
        return steering_pb2.Edit(operation=operation, feature=reference, value=value, **fields)

    edits = [
        edit(3, steering_pb2.OPERATION_CLAMP, 1.0, unit=steering_pb2.UNIT_MAX_ACTIVATION),
        edit(4, steering_pb2.OPERATION_SCALE, 2.0),
        edit(5, steering_pb2.OPERATION_CLAMP, 2.5, phase=steering_pb2.PHASE_COMPLETION),
        edit(6, steering_pb2.OPERATION_CLAMP, 0.1, unit=steering_pb2.UNIT_NORM_FRACTION),
        edit(7, steering_pb2.OPERATION_FLOOR, 0.5),
        edit(7, steering_pb2.OPERATION_CAP, 0.75),
    ]
    steering = steering_pb2.Steering(edits=edits, watches=watched)
    message = request(steering=steering, sampling={"max_tokens": 6})
    clamped, scaled, later, relative, bounded, free = stubs.generation.Generate(message).choices[0].watched
    assert list(clamped.set_to) == [4.0] * 6
    assert list(clamped.after) != pytest.approx([4.0] * 6, abs=1e-2), "re-encoding gives another value"
    assert list(scaled.set_to) == pytest.approx([2.0 * value for value in scaled.before], rel=1e-6)
    assert list(later.set_to) == [later.before[0], *[2.5] * 5]
    assert (list(relative.set_to), list(free.set_to)) == ([], [])
    assert list(bounded.set_to) == pytest.approx(
        [min(max(value, 0.5), 0.75) for value in bounded.before], rel=1e-6
    )
    chunks, _ = stream(stubs, message)
    told = [value for chunk in chunks for value in chunk.watched[2].set_to]
    assert told == list(later.set_to)


def test_a_first_token_that_no_row_moves_is_set_to_nothing(stubs: Stubs) -> None:
    steering = steering_pb2.Steering(edits=[clamp(3, 4.0)], watches=[watch(3)])
    bos = prompt_pb2.TokenIds(ids=[TOKENIZER.bos_token_id])
    message = request(steering=steering, sampling={"max_tokens": 3})
    message.ClearField("text")
    message.token_ids.CopyFrom(bos)
    (found,) = stubs.generation.Generate(message).choices[0].watched
    assert list(found.set_to) == [found.before[0], 4.0, 4.0]
    assert found.after[0] == found.before[0]


def test_a_ban_holds_and_the_receipt_tells(stubs: Stubs) -> None:
    banned = steering_pb2.FeatureRef(sae="first", label="poison")
    ban = steering_pb2.Edit(operation=steering_pb2.OPERATION_BAN, feature=banned, value=1.0)
    other = steering_pb2.Edit(
        operation=steering_pb2.OPERATION_ADD,
        feature=steering_pb2.FeatureRef(sae="first", index=20),
        value=30.0,
    )
    steering = steering_pb2.Steering(edits=[ban, other], watches=[steering_pb2.Watch(feature=banned)])
    found = stubs.generation.Generate(request(steering=steering, sampling={"max_tokens": 60}))
    assert max(found.choices[0].watched[0].after) <= 1e-4
    assert max(found.choices[0].watched[0].before) > 1e-2
    (site,) = found.receipt.sites
    assert (site.site, site.edits, site.bans, site.watches) == (str(tiny.FIRST_SITE), 1, 1, 1)
    assert site.bans_fired > 0
    # Every token is moved but the first, which is the model's own BOS, and the last, which is not fed back.
    assert site.tokens_edited == found.usage.prompt_tokens + 58 == found.usage.steered_tokens
    assert not found.receipt.first_token_steered
    assert site.largest_relative_norm > 0.0
    assert found.receipt.steered


def test_stops_are_told(stubs: Stubs) -> None:
    whole = stubs.generation.Generate(request(sampling={"max_tokens": 30})).choices[0]
    token = whole.token_ids[4]
    by_token = stubs.generation.Generate(
        request(sampling={"max_tokens": 30, "stop_token_ids": [token]})
    ).choices[0]
    assert by_token.finish_reason == pb.FINISH_REASON_STOP
    assert (by_token.WhichOneof("matched_stop"), by_token.matched_token_id) == ("matched_token_id", token)
    text = whole.text.strip()[3:5]
    by_text = stubs.generation.Generate(request(sampling={"max_tokens": 30, "stop": [text]})).choices[0]
    assert (by_text.WhichOneof("matched_stop"), by_text.matched_stop_str) == ("matched_stop_str", text)
    assert by_text.text == whole.text[: whole.text.index(text)]
    _, complete = stream(stubs, request(sampling={"max_tokens": 30, "stop": [text]}))
    assert complete.outcomes[0].matched_stop_str == text


def test_prompts_of_every_kind_mean_the_same(stubs: Stubs) -> None:
    tokens = TOKENIZER("the river")["input_ids"]
    by_ids = request(text=None, token_ids=prompt_pb2.TokenIds(ids=tokens))
    expected = stubs.generation.Generate(request()).choices[0].token_ids
    assert stubs.generation.Generate(by_ids).choices[0].token_ids == expected
    chat = prompt_pb2.Chat(messages=[prompt_pb2.ChatMessage(role="user", content="the river")])
    rendered = TOKENIZER.apply_chat_template(
        [{"role": "user", "content": "the river"}], add_generation_prompt=True, return_dict=False
    )
    found = stubs.generation.Generate(request(text=None, chat=chat))
    assert found.usage.prompt_tokens == len(rendered)


def test_requests_in_company_get_what_they_get_alone(stubs: Stubs) -> None:
    messages = [
        request(steering=steering_pb2.Steering(edits=[clamp(index, 4.0)]), sampling={"max_tokens": 24})
        for index in range(12)
    ]
    alone = [stubs.generation.Generate(message).choices[0].token_ids for message in messages]
    calls = [stubs.generation.Generate.future(message) for message in messages]
    assert [call.result().choices[0].token_ids for call in calls] == alone
    assert len({tuple(tokens) for tokens in alone}) > 6


def test_a_client_that_leaves_while_its_bans_are_worked_out(
    stubs: Stubs, served: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request is submitted in a thread, which goes on; what it submitted must not run on."""
    engine = served.services.engine
    submit, submitted = engine.submit, Event()

    def slowly(*args: Any) -> None:
        time.sleep(0.3)
        submit(*args)
        submitted.set()

    monkeypatch.setattr(engine, "submit", slowly)
    ban = steering_pb2.Edit(
        operation=steering_pb2.OPERATION_BAN, feature=steering_pb2.FeatureRef(sae="first", index=30)
    )
    message = request(sampling={"max_tokens": 2000}, steering=steering_pb2.Steering(edits=[ban]))
    with pytest.raises(grpc.RpcError):
        stubs.generation.Generate(message, timeout=0.1)
    assert submitted.wait(5.0)
    eventually(served.is_idle, seconds=1.0)
