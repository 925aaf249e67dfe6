"""Answers: the contract's answers in the shapes of OpenAI's chat and completions, whole and in chunks."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from saegis.v1 import generation_pb2 as pb
from saegis_server.http.fields import Asked, Kind
from saegis_server.rpc.wire.prompts import PromptReader

Json = dict[str, Any]
Piece = pb.Choice | pb.GenerationChunk
#: What stands for the logarithm of 0, which JSON cannot hold.
NEVER = -9999.0
_REMEMBERED = 65_536
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class TokenTexts:
    """The text of each token by itself, remembered."""

    def __init__(self, prompts: PromptReader) -> None:
        def read(token: int) -> str:
            return prompts.pieces((token,))[0]

        self.of = lru_cache(_REMEMBERED)(read)


def as_json(message: Message, whole: bool = True) -> Json:
    """A message in protobuf's JSON, with the contract's names. whole: with what is 0, false or empty too."""
    told: Json = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=whole
    )
    return told


def encoded(value: object) -> bytes:
    """JSON as it is sent."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def _finite(value: float) -> float:
    return value if math.isfinite(value) else NEVER


@dataclass(slots=True)
class Answer:
    """An answer while it is told.

    model: what the client called the model. created: when it began, in seconds since 1970.
    """

    asked: Asked
    id: str
    model: str
    created: int
    texts: TokenTexts
    #: What stands before each completion, where it was asked for.
    prompt: str = ""
    _begun: set[int] = field(default_factory=set)
    _offsets: dict[int, int] = field(default_factory=dict)
    _open: int = 0

    def __post_init__(self) -> None:
        self._open = max(1, self.asked.message.sampling.n)

    @property
    def _is_chat(self) -> bool:
        return self.asked.kind is Kind.CHAT

    def whole(self, response: pb.GenerateResponse) -> Json:
        """The answer of Generate."""
        choices = []
        for choice in response.choices:
            told: Json = {"index": choice.index}
            if self._is_chat:
                told["message"] = {"role": "assistant", "content": choice.text, "refusal": None}
            else:
                told["text"] = self.prompt + choice.text
            told["logprobs"] = self._logprobs(choice)
            told |= self._tokens(choice)
            choices.append(told | {"finish_reason": _reason(choice.finish_reason), **_stopped_at(choice)})
        saegis = self._receipt(response.receipt) | self._readings(response.choices, response)
        return self._head(False) | {
            "choices": choices,
            "usage": usage_of(response.usage),
            "saegis": saegis,
        }

    def chunks(self, message: pb.GenerationChunk) -> Iterator[Json]:
        """The chunks of a piece of one completion."""
        index, ended = message.index, message.finish_reason != pb.FINISH_REASON_UNSPECIFIED
        if index not in self._begun:
            self._begun.add(index)
            if self._is_chat:
                yield self._chunk(index, {"delta": {"role": "assistant", "content": ""}})
            elif self.prompt:
                yield self._chunk(index, {"text": self.prompt})
        told: Json = {"delta": {"content": message.text} if message.text else {}}
        if not self._is_chat:
            told = {"text": message.text}
        told |= self._tokens(message)
        chunk = self._chunk(
            index, told, self._logprobs(message), _reason(message.finish_reason) if ended else None
        )
        if readings := self._readings((message,), message):
            chunk["saegis"] = readings
        if message.text or ended or readings or chunk["choices"][0]["logprobs"] or told.get("token_ids"):
            yield chunk
        self._open -= ended

    @property
    def is_over(self) -> bool:
        """Whether every completion has ended."""
        return self._open == 0

    def close(self, complete: pb.GenerationComplete, last: Json) -> list[Json]:
        """The last chunks of a stream: `last`, held back so far, and what was counted and done.

        A chunk without choices comes only where the client asked for the usage.
        """
        outcomes = [as_json(outcome, whole=False) for outcome in complete.outcomes]
        told = self._receipt(complete.receipt) | {"outcomes": outcomes}
        if not self.asked.tells_usage:
            return [last | {"saegis": last.get("saegis", {}) | told}]
        usage = {"choices": [], "usage": usage_of(complete.usage), "saegis": told}
        return [last, self._head(True) | usage]

    def _head(self, is_chunk: bool) -> Json:
        kind = (
            ("chat.completion.chunk" if is_chunk else "chat.completion")
            if self._is_chat
            else "text_completion"
        )
        return {
            "id": f"{'chatcmpl' if self._is_chat else 'cmpl'}-{self.id}",
            "object": kind,
            "created": self.created,
            "model": self.model,
        }

    def _chunk(self, index: int, told: Json, logprobs: Json | None = None, reason: str | None = None) -> Json:
        choice = {"index": index, **told, "logprobs": logprobs, "finish_reason": reason}
        return self._head(True) | {"choices": [choice]} | ({"usage": None} if self.asked.tells_usage else {})

    def _tokens(self, piece: Piece) -> Json:
        """The tokens' ids where they were asked for, as vLLM tells them."""
        return {"token_ids": list(piece.token_ids)} if self.asked.tells_tokens else {}

    def _logprobs(self, piece: Piece) -> Json | None:
        if not piece.HasField("logprobs") or not piece.logprobs.token_ids:
            return None
        return self._chat_logprobs(piece.logprobs) if self._is_chat else self._old_logprobs(piece)

    def _chat_logprobs(self, told: pb.LogProbs) -> Json:
        of = self.texts.of

        def entry(token: int, logprob: float) -> Json:
            text = of(token)
            # Of a part of a character the bytes are not known.
            raw = None if _REPLACEMENT in text else list(text.encode())
            return {"token": text, "bytes": raw, "logprob": _finite(logprob)}

        return {
            "content": [
                entry(token, logprob) | {"top_logprobs": [entry(*pair) for pair in top]}
                for token, logprob, top in _columns(told)
            ],
            "refusal": None,
        }

    def _old_logprobs(self, piece: Piece) -> Json:
        texts, tops, offsets = [], [], []
        at = self._offsets.get(piece.index, 0)
        for token, _, top in _columns(piece.logprobs):
            texts.append(self.texts.of(token))
            offsets.append(at)
            at += len(texts[-1])
            tops.append(self._by_text(top))
        self._offsets[piece.index] = at
        return {
            "tokens": texts,
            "token_logprobs": [_finite(each) for each in piece.logprobs.token_logprobs],
            "top_logprobs": tops if piece.logprobs.top_logprobs else None,
            "text_offset": offsets,
        }

    def _by_text(self, top: Iterable[tuple[int, float]]) -> Json:
        """Log probabilities by text; of tokens with the same text, the later ones by their id."""
        told: Json = {}
        for token, logprob in top:
            text = self.texts.of(token)
            told[text if text not in told else f"token_id:{token}"] = _finite(logprob)
        return told

    def _receipt(self, receipt: pb.Receipt) -> Json:
        return {"receipt": as_json(receipt), "policy": receipt.policy_revision}

    def _readings(
        self,
        pieces: Sequence[pb.Choice | pb.GenerationChunk],
        of_prompt: pb.GenerateResponse | pb.GenerationChunk,
    ) -> Json:
        """What was read at single tokens, by what the request asked for; nothing where it did not ask."""
        steering, told = self.asked.message.steering, dict[str, Any]()
        for name, wanted in (("watched", bool(steering.watches)), ("moves", steering.read_moves)):
            if wanted:
                entries = [
                    {"index": piece.index, **as_json(entry)}
                    for piece in pieces
                    for entry in getattr(piece, name)
                ]
                if entries:
                    told[name] = entries
                if found := getattr(of_prompt, f"prompt_{name}"):
                    told[f"prompt_{name}"] = [as_json(entry) for entry in found]
        return told


def usage_of(usage: pb.Usage) -> Json:
    """OpenAI's counts of tokens, and how many of them were steered unless a policy conceals it."""
    told: Json = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
    return told | ({"steered_tokens": usage.steered_tokens} if usage.HasField("steered_tokens") else {})


def _columns(told: pb.LogProbs) -> Iterator[tuple[int, float, list[tuple[int, float]]]]:
    """Each token of log probabilities with its own and with its alternatives."""
    tops = told.top_logprobs or [pb.TopLogProbs()] * len(told.token_ids)
    for token, logprob, top in zip(told.token_ids, told.token_logprobs, tops, strict=True):
        yield token, logprob, list(zip(top.token_ids, top.values, strict=True))


def _reason(reason: pb.FinishReason) -> str:
    """Why a completion ended, in OpenAI's words."""
    return pb.FinishReason.Name(reason).removeprefix("FINISH_REASON_").lower()


def _stopped_at(ended: pb.Choice) -> Json:
    """At which token or string a completion ended, as vLLM tells it."""
    kind = ended.WhichOneof("matched_stop")
    return {"stop_reason": None if kind is None else getattr(ended, kind)}
