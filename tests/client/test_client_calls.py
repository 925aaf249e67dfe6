"""Every method of both clients, there and back over a socket."""

import math
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import pytest
from google.protobuf.message import Message

import saegis
from saegis.v1 import direction_pb2, feature_pb2, generation_pb2, model_pb2, prompt_pb2, steering_pb2
from tests.client.conftest import Caller
from tests.client.loopback import Loopback
from tests.client.messages import fill, plain, receipt, stream_of_two


def filled(message: Message) -> Any:
    fill(message)
    return message


def as_plain(result: Any) -> Any:
    """A result as dicts and tuples, as `plain` gives them for a message."""
    return asdict(result)


def test_generate(loopback: Loopback, call: Caller) -> None:
    answer = generation_pb2.GenerateResponse(
        request_id="r1",
        choices=[
            generation_pb2.Choice(
                index=0,
                text="gate",
                token_ids=[1, 2],
                logprobs=generation_pb2.LogProbs(
                    token_logprobs=[-1.5, -2.5],
                    token_ids=[1, 2],
                    top_logprobs=[
                        generation_pb2.TopLogProbs(values=[-0.5, -1.5], token_ids=[3, 1]),
                        generation_pb2.TopLogProbs(values=[-2.5], token_ids=[2]),
                    ],
                ),
                watched=[generation_pb2.WatchedActivations(watch=1, before=[1.0, 2.0], after=[3.0, 4.0])],
                finish_reason=generation_pb2.FINISH_REASON_STOP,
                matched_stop_str="\n",
            ),
            generation_pb2.Choice(index=1, finish_reason=generation_pb2.FINISH_REASON_LENGTH),
        ],
        usage=generation_pb2.Usage(prompt_tokens=3, completion_tokens=2),
        receipt=receipt(),
    )
    loopback.answers["Generate"] = answer
    result = call("generate", "The Golden", max_tokens=2, n=2, logprobs=2)
    assert isinstance(result, saegis.Generation)
    first, second = result.choices
    assert (result.request_id, result.text, result.token_ids) == ("r1", "gate", (1, 2))
    assert result.finish_reason == "stop"
    assert (first.matched_stop, second.matched_stop) == ("\n", None)
    assert (second.finish_reason, second.logprobs, second.watched) == ("length", None, ())
    assert result.logprobs is not None
    assert result.logprobs.token_logprobs == (-1.5, -2.5)
    assert result.logprobs.top[0] == (saegis.Alternative(3, -0.5), saegis.Alternative(1, -1.5))
    assert result.logprobs.top[1] == (saegis.Alternative(2, -2.5),)
    assert result.watched == (saegis.Watched(1, (1.0, 2.0), (3.0, 4.0)),)
    assert as_plain(result.usage) == plain(answer.usage)
    assert result.usage.total_tokens == 5
    assert as_plain(result.receipt) == plain(answer.receipt)
    request = loopback.received[0].request
    assert request.text == "The Golden"
    assert (request.sampling.max_tokens, request.sampling.n, request.sampling.logprobs) == (2, 2, 2)


def test_stream_of_several_completions_collects_to_a_generation(loopback: Loopback) -> None:
    loopback.answers["StreamGenerate"] = stream_of_two()
    with saegis.Client(loopback.target) as client:
        result = client.stream(token_ids=[1, 2, 3], n=2, watch=[5]).collect()
    first, second = result.choices
    assert (first.text, first.token_ids, first.finish_reason) == ("ab", (7, 7), "content_filter")
    assert (second.text, second.token_ids, second.finish_reason) == ("cd", (10, 11), "stop")
    assert first.logprobs is not None
    assert first.logprobs.token_logprobs == (-0.5, -0.5)
    assert len(first.logprobs.top) == 2
    assert first.watched == (saegis.Watched(0, (1.5, 2.5), (0.0, 0.5), (3.0, 4.0)),)
    # Token 0 is a token, not an absent one.
    assert (first.matched_stop, second.matched_stop) == (None, 0)
    assert as_plain(result.receipt) == plain(receipt())
    request = loopback.received[0].request.request
    assert list(request.token_ids.ids) == [1, 2, 3]
    assert request.steering.watches[0].feature.index == 5


def score_response() -> generation_pb2.ScoreResponse:
    """Three tokens; the numbers are exact in float32."""
    return generation_pb2.ScoreResponse(
        request_id="r1",
        token_ids=[7, 8, 9],
        logprobs=[-0.5, -1.5],
        plain_logprobs=[-2.5, -0.25],
        divergences=[0.5, 0.25],
        receipt=receipt(),
    )


def test_score(loopback: Loopback, call: Caller) -> None:
    answer = loopback.answers["Score"] = score_response()
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    result = call("score", messages=messages, steering=[saegis.ban(3)], request_id="mine")
    assert isinstance(result, saegis.Score)
    assert as_plain(result) == plain(answer)
    assert result.divergence == 0.375
    assert (result.perplexity, result.plain_perplexity) == pytest.approx((math.exp(1.0), math.exp(1.375)))
    assert loopback.received[0].request == generation_pb2.ScoreRequest(
        request_id="mine",
        chat=prompt_pb2.Chat(
            messages=[
                prompt_pb2.ChatMessage(role=message["role"], content=message["content"])
                for message in messages
            ]
        ),
        steering=steering_pb2.Steering(
            edits=[
                steering_pb2.Edit(
                    operation=steering_pb2.OPERATION_BAN, feature=steering_pb2.FeatureRef(index=3), value=0.0
                )
            ]
        ),
    )


def test_a_text_that_steering_makes_impossible_has_no_finite_perplexity(
    loopback: Loopback, call: Caller
) -> None:
    for worst in (-math.inf, -2000.0):
        answer = score_response()
        answer.logprobs[0] = worst
        loopback.answers["Score"] = answer
        assert call("score", "x").perplexity == math.inf


@pytest.mark.parametrize("field", ["logprobs", "plain_logprobs", "divergences", "token_ids"])
def test_a_score_whose_numbers_do_not_fit_its_tokens_breaks_the_contract(
    loopback: Loopback, call: Caller, field: str
) -> None:
    answer = score_response()
    getattr(answer, field).pop()
    loopback.answers["Score"] = answer
    with pytest.raises(saegis.InternalError, match="do not fit its tokens"):
        call("score", "x")
    loopback.answers["Score"] = generation_pb2.ScoreResponse(token_ids=[7])
    with pytest.raises(saegis.InternalError, match="do not fit its tokens"):
        call("score", "x")


def test_inspect(loopback: Loopback, call: Caller) -> None:
    answer = loopback.answers["Inspect"] = filled(feature_pb2.InspectResponse())
    messages = [{"role": "user", "content": "hi"}]
    further: Any = {"top_k": 3, "long_text": True}
    given = [4, "bridge", saegis.feature(5, sae="s")]
    result = call("inspect", messages=messages, sae="s", site="blocks.1", features=given, **further)
    assert as_plain(result) == plain(answer)
    assert [token.text for token in result] == [token.text for token in answer.tokens]
    assert len(result) == 2
    assert loopback.received[0].request == feature_pb2.InspectRequest(
        chat=prompt_pb2.Chat(messages=[prompt_pb2.ChatMessage(role="user", content="hi")]),
        sae="s",
        site="blocks.1",
        features=[
            steering_pb2.FeatureRef(index=4),
            steering_pb2.FeatureRef(label="bridge"),
            steering_pb2.FeatureRef(index=5, sae="s"),
        ],
        **further,
    )


@pytest.mark.parametrize(
    ("given", "options", "sent"),
    [
        (0, {}, steering_pb2.FeatureRef(index=0)),
        ("bridge", {"sae": "s"}, steering_pb2.FeatureRef(label="bridge", sae="s")),
        (saegis.feature(3, sae="s"), {}, steering_pb2.FeatureRef(index=3, sae="s")),
    ],
)
def test_get_feature(
    loopback: Loopback, call: Caller, given: Any, options: dict[str, str], sent: steering_pb2.FeatureRef
) -> None:
    answer = loopback.answers["GetFeature"] = filled(feature_pb2.GetFeatureResponse())
    told = plain(answer)
    expected = told["feature"] | {"histogram": told["histogram"], "examples": told["examples"]}
    assert as_plain(call("get_feature", given, **options)) == expected
    assert loopback.received[0].request.feature == sent


def test_what_nobody_recorded_about_a_feature_is_none(loopback: Loopback, call: Caller) -> None:
    loopback.answers["GetFeature"] = feature_pb2.GetFeatureResponse(feature=feature_pb2.Feature(index=4))
    result = call("get_feature", 4)
    assert (result.max_activation, result.density, result.precision) == (None, None, None)
    assert (result.recall, result.precision_by_language) == ({}, {})
    assert (result.subjects, result.languages, result.harmful) == ((), (), False)
    assert (result.histogram, result.examples) == (None, ())


def test_search_features(loopback: Loopback, call: Caller) -> None:
    answer = loopback.answers["SearchFeatures"] = filled(feature_pb2.SearchFeaturesResponse())
    result = call("search_features", "golden gate", sae="s", page_size=7, page_token="t")
    assert as_plain(result) == plain(answer)
    assert len(list(result)) == len(result) == 2
    assert loopback.received[0].request == feature_pb2.SearchFeaturesRequest(
        query="golden gate",
        sae="s",
        page_size=7,
        page_token="t",
    )


def test_contrast_features(loopback: Loopback, call: Caller) -> None:
    answer = loopback.answers["ContrastFeatures"] = filled(feature_pb2.ContrastFeaturesResponse())
    languages: Any = {"positive_languages": ["en", "sw"], "negative_languages": ["en"]}
    result = call("contrast_features", ["a", "b"], ["c"], sae="s", limit=9, max_q_value=0.05, **languages)
    assert as_plain(result) == plain(answer)
    assert len(list(result)) == len(result) == 2
    assert loopback.received[0].request == feature_pb2.ContrastFeaturesRequest(
        positive_texts=["a", "b"], negative_texts=["c"], sae="s", limit=9, max_q_value=0.05, **languages
    )


def test_model(loopback: Loopback, call: Caller) -> None:
    answer = loopback.answers["GetModel"] = filled(model_pb2.GetModelResponse())
    answer.saes[1].ClearField("fvu")
    result = call("model")
    assert as_plain(result) == plain(answer)
    assert result.saes[1].fvu is None


def test_server_info(loopback: Loopback, call: Caller) -> None:
    answer = loopback.answers["GetServerInfo"] = filled(model_pb2.GetServerInfoResponse())
    answer.start_time.FromDatetime(datetime(2026, 11, 23, 12, tzinfo=UTC))
    result = call("server_info")
    assert result.start_time == datetime(2026, 11, 23, 12, tzinfo=UTC)
    assert result.compiled is True
    assert as_plain(result.limits) == plain(answer.limits)
    assert (result.version, result.torch_version, result.device) == (
        answer.version,
        answer.torch_version,
        answer.device,
    )


def test_load(loopback: Loopback, call: Caller) -> None:
    answer = loopback.answers["GetLoad"] = filled(model_pb2.GetLoadResponse())
    assert as_plain(call("load")) == plain(answer)


def test_tokenize_and_detokenize(loopback: Loopback, call: Caller) -> None:
    answer = loopback.answers["Tokenize"] = filled(model_pb2.TokenizeResponse())
    result = call("tokenize", "a b", add_special_tokens=False)
    assert as_plain(result) == plain(answer)
    assert len(result) == 2
    loopback.answers["Detokenize"] = model_pb2.DetokenizeResponse(text="a b")
    assert call("detokenize", result.token_ids, skip_special_tokens=False) == "a b"
    tokenize, detokenize = (received.request for received in loopback.received)
    assert tokenize == model_pb2.TokenizeRequest(text="a b", add_special_tokens=False)
    assert detokenize == model_pb2.DetokenizeRequest(token_ids=answer.token_ids, skip_special_tokens=False)


def test_an_answer_without_completions_breaks_the_contract(loopback: Loopback, call: Caller) -> None:
    loopback.answers["Generate"] = generation_pb2.GenerateResponse(request_id="r")
    with pytest.raises(saegis.InternalError, match="no completion"):
        call("generate", "x")


def test_an_unknown_finish_reason_breaks_the_contract(loopback: Loopback, call: Caller) -> None:
    choice = generation_pb2.Choice()
    loopback.answers["Generate"] = generation_pb2.GenerateResponse(choices=[choice])
    with pytest.raises(saegis.InternalError, match="finish_reason 0"):
        call("generate", "x")


def test_directions(loopback: Loopback, call: Caller) -> None:
    kept = filled(direction_pb2.KeptDirection())
    loopback.answers["UploadDirection"] = direction_pb2.UploadDirectionResponse(direction=kept)
    loopback.answers["ListDirections"] = direction_pb2.ListDirectionsResponse(directions=[kept, kept])
    loopback.answers["DeleteDirection"] = direction_pb2.DeleteDirectionResponse(direction=kept)
    uploaded = call("upload_direction", [1.0, 2.0], name="refusal", site="layers.3")
    assert isinstance(uploaded, saegis.KeptDirection)
    assert as_plain(uploaded) == plain(kept)
    assert call("list_directions") == (uploaded, uploaded)
    assert call("delete_direction", uploaded) == uploaded
    sent = [each.request for each in loopback.received]
    assert sent[0] == direction_pb2.UploadDirectionRequest(values=[1.0, 2.0], name="refusal", site="layers.3")
    assert sent[2] == direction_pb2.DeleteDirectionRequest(digest=kept.digest)
