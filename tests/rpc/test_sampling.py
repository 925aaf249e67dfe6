"""Sampling messages become the engine's parameters, with the contract's defaults."""

import math

import pytest

from saegis.v1 import generation_pb2 as pb
from saegis_server.engine.api import FieldError, SamplingParams
from saegis_server.rpc.wire.sampling import LARGEST_N, sampling_params


def params(**fields: object) -> SamplingParams:
    return sampling_params(pb.SamplingParams(**fields), vocab_size=300, room=200)  # type: ignore[arg-type]


def test_unset_fields_take_the_contracts_defaults() -> None:
    assert params() == SamplingParams(max_tokens=128)
    assert sampling_params(pb.SamplingParams(), 300, room=7).max_tokens == 7
    assert params(min_tokens=150).max_tokens == 150


def test_zero_is_a_value() -> None:
    assert params(temperature=0.0).temperature == 0.0
    assert params(seed=0).seed == 0
    assert params(logprobs=0).logprobs == 0
    assert params(skip_special_tokens=False).skip_special_tokens is False
    assert params(top_k=0).top_k == params(top_k=-1).top_k == 0


def test_everything_is_passed_on() -> None:
    found = params(
        temperature=0.5,
        top_p=0.25,
        top_k=9,
        min_p=0.125,
        frequency_penalty=1.5,
        presence_penalty=-1.5,
        repetition_penalty=1.25,
        max_tokens=50,
        min_tokens=3,
        stop=["a", "b"],
        stop_token_ids=[4, 5],
        ignore_eos=True,
        n=3,
        logprobs=4,
        seed=12,
        include_stop_str_in_output=True,
        logit_bias={7: 2.5},
    )
    assert found == SamplingParams(
        temperature=0.5,
        top_p=0.25,
        top_k=9,
        min_p=0.125,
        frequency_penalty=1.5,
        presence_penalty=-1.5,
        repetition_penalty=1.25,
        max_tokens=50,
        min_tokens=3,
        stop=("a", "b"),
        stop_token_ids=(4, 5),
        ignore_eos=True,
        n=3,
        logprobs=4,
        seed=12,
        include_stop_str_in_output=True,
        logit_bias={7: 2.5},
    )


def test_every_int64_is_a_seed_of_its_own() -> None:
    assert params(seed=-1).seed == 2**64 - 1
    assert params(seed=-(2**63)).seed == 2**63
    assert params(seed=2**63 - 1).seed == 2**63 - 1


def test_a_completion_ends_where_the_context_does() -> None:
    assert params(max_tokens=100_000).max_tokens == 200


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"temperature": -1.0}, "sampling.temperature"),
        ({"temperature": math.nan}, "sampling.temperature"),
        ({"temperature": math.inf}, "sampling.temperature"),
        ({"top_p": 0.0}, "sampling.top_p"),
        ({"top_p": math.nan}, "sampling.top_p"),
        ({"top_k": -2}, "sampling.top_k"),
        ({"min_p": 1.5}, "sampling.min_p"),
        ({"frequency_penalty": 2.5}, "sampling.frequency_penalty"),
        ({"presence_penalty": math.nan}, "sampling.presence_penalty"),
        ({"repetition_penalty": 0.0}, "sampling.repetition_penalty"),
        ({"max_tokens": 0}, "sampling.max_tokens"),
        ({"max_tokens": 2, "min_tokens": 3}, "sampling.min_tokens"),
        ({"n": 0}, "sampling.n"),
        ({"n": LARGEST_N + 1}, "sampling.n"),
        ({"logprobs": 21}, "sampling.logprobs"),
        ({"stop": ["ok", ""]}, "sampling.stop[1]"),
        ({"stop_token_ids": [1, 300]}, "sampling.stop_token_ids[1]"),
        ({"logit_bias": {300: 1.0}}, "sampling.logit_bias[300]"),
        ({"logit_bias": {3: 101.0}}, "sampling.logit_bias[3]"),
        ({"logit_bias": {3: math.nan}}, "sampling.logit_bias[3]"),
    ],
)
def test_values_out_of_range_name_their_field(fields: dict[str, object], field: str) -> None:
    with pytest.raises(FieldError) as caught:
        params(**fields)
    assert caught.value.field == field


def test_the_largest_n_is_the_engines() -> None:
    assert params(n=LARGEST_N).n == LARGEST_N
