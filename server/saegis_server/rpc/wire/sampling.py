"""Sampling parameters: turns the contract's message into the engine's, with the contract's defaults."""

from saegis.v1 import generation_pb2
from saegis_server.engine.api import FieldError, SamplingParams

DEFAULT_MAX_TOKENS = 128
#: The largest n that the engine's SamplingParams accept.
LARGEST_N = 64
#: The most tokens that one request may bias, and may stop at.
MOST_BIASES, MOST_STOP_TOKENS = 1024, 1024
_OPTIONAL = (
    "temperature",
    "top_p",
    "min_p",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "min_tokens",
    "skip_special_tokens",
    "n",
    "logprobs",
)


def sampling_params(message: generation_pb2.SamplingParams, vocab_size: int, room: int) -> SamplingParams:
    """The engine's parameters; what is unset takes its default.

    room: how many tokens the context has left after the prompt, at least 1. Raises FieldError.
    """
    for name, most in (("logit_bias", MOST_BIASES), ("stop_token_ids", MOST_STOP_TOKENS)):
        if (count := len(getattr(message, name))) > most:
            raise FieldError(f"sampling.{name}", f"at most {most} tokens, not {count}")
    options = {name: getattr(message, name) for name in _OPTIONAL if message.HasField(name)}
    for position, token in enumerate(message.stop_token_ids):
        _check_token(f"sampling.stop_token_ids[{position}]", token, vocab_size)
    for token in message.logit_bias:
        _check_token(f"sampling.logit_bias[{token}]", token, vocab_size)
    return SamplingParams(
        **options,
        top_k=_top_k(message.top_k),
        max_tokens=_max_tokens(message, room),
        stop=tuple(message.stop),
        stop_token_ids=tuple(message.stop_token_ids),
        include_stop_str_in_output=message.include_stop_str_in_output,
        ignore_eos=message.ignore_eos,
        # Every int64 is a different seed: negative ones map to those from 2^63 on.
        seed=message.seed % 2**64 if message.HasField("seed") else None,
        logit_bias=dict(message.logit_bias),
    )


def _check_token(path: str, token: int, vocab_size: int) -> None:
    if token >= vocab_size:
        raise FieldError(path, f"the model's tokens are 0 to {vocab_size - 1}, not {token}")


def _top_k(value: int) -> int:
    if value < -1:
        raise FieldError("sampling.top_k", f"must be at least -1, not {value}")
    return max(value, 0)


def _max_tokens(message: generation_pb2.SamplingParams, room: int) -> int:
    if not message.HasField("max_tokens"):
        return min(max(DEFAULT_MAX_TOKENS, message.min_tokens), room)
    if message.max_tokens < 1:
        raise FieldError("sampling.max_tokens", "must be at least 1, not 0")
    # A completion ends with the context, with the reason LENGTH.
    return min(message.max_tokens, room)
