"""Uses of requests: what a message asks for beyond the ordinary, as the operator's policies judge it."""

from collections.abc import Iterator

from saegis.v1 import generation_pb2
from saegis_server.policy.decide.uses import Use, UseOfRequest, beyond
from saegis_server.rpc.wire.prompts import PromptReader, begins_answer

#: What Inspect and ContrastFeatures are.
INSPECTION = (UseOfRequest(Use.INSPECT),)


def of_generation(message: generation_pb2.GenerateRequest, prompts: PromptReader) -> tuple[UseOfRequest, ...]:
    """The uses of a request of Generate or StreamGenerate, with field paths from GenerateRequest."""
    return (*_of_prompt(message, prompts), *_of_turns(message), *_of_sampling(message.sampling))


def of_score(message: generation_pb2.ScoreRequest, prompts: PromptReader) -> tuple[UseOfRequest, ...]:
    """The uses of a request of Score; a text that is only read has no turn that would be continued."""
    unruled = (UseOfRequest(Use.UNRULED, "unruled"),) if message.unruled else ()
    return (UseOfRequest(Use.SCORE), *unruled, *_of_prompt(message, prompts))


def _of_prompt(
    message: generation_pb2.GenerateRequest | generation_pb2.ScoreRequest, prompts: PromptReader
) -> Iterator[UseOfRequest]:
    kind = message.WhichOneof("prompt")
    if kind in ("text", "token_ids") and prompts.has_chat_template:
        yield UseOfRequest(Use(kind), kind)


def _of_turns(message: generation_pb2.GenerateRequest) -> Iterator[UseOfRequest]:
    if begins_answer(message.chat):
        yield UseOfRequest(Use.PREFILL, f"chat.messages[{len(message.chat.messages) - 1}]")


def _of_sampling(sampling: generation_pb2.SamplingParams) -> Iterator[UseOfRequest]:
    if sampling.logit_bias:
        yield UseOfRequest(Use.LOGIT_BIAS, "sampling.logit_bias")
    for use in (Use.N, Use.TEMPERATURE):
        # What is unset is 1.
        if sampling.HasField(use.value):
            asked = beyond(use, float(getattr(sampling, use.value)), f"sampling.{use.value}")
            if asked is not None:
                yield asked
