"""GenerationService: completions and chunks with watched values, token counts and receipts; and scores."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean
from typing import Any, TypedDict, Unpack

from saegis.base import BaseClient
from saegis.errors import InternalError
from saegis.messages import ChatMessage, put, result, set_prompt, steering_message, watch_message, word
from saegis.policies import AppliedRule, TargetTokens, applied_rules, target_tokens
from saegis.rpc import rpc
from saegis.steering import Edit, Target, Watch
from saegis.v1 import generation_pb2 as pb


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
    read_prompt: bool
    """Whether to report `watch`, and with `read_moves` the moves, for each token of the prompt too."""
    read_moves: bool
    """Whether to report how far each token was moved. Under a policy it needs permission."""


class FinishReason(StrEnum):
    """Why a completion ended; the values are OpenAI's strings."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    CONTENT_FILTER = "content_filter"


@dataclass(frozen=True, slots=True)
class Alternative:
    """A token that could have been chosen, and its log probability (natural logarithm)."""

    token_id: int
    logprob: float


@dataclass(frozen=True, slots=True)
class LogProbs:
    """Log probabilities (natural logarithms) aligned with the tokens of a chunk or choice."""

    token_ids: tuple[int, ...]
    token_logprobs: tuple[float, ...]
    top: tuple[tuple[Alternative, ...], ...]
    """The most probable alternatives at each token, most probable first; empty if none were asked for."""


@dataclass(frozen=True, slots=True)
class Watched:
    """One watch's values, in feature units, aligned with the tokens of a chunk or choice."""

    watch: int
    """The watch, counted from 0 in the request's `watch` list."""
    before: tuple[float, ...]
    """Values before edits and rules, read in the step that chose the token."""
    after: tuple[float, ...]
    """Values after edits and rules, read from the whole activation: not always what an edit set."""
    set_to: tuple[float, ...] = ()
    """The values that the request's own edits of the target set; `before` at tokens where none of them acts.
    Empty if the request has no such edit, or one in fractions of the norm."""


@dataclass(frozen=True, slots=True)
class SiteMoves:
    """How far edits and rules moved activations at one site, aligned with the tokens of a chunk or choice."""

    site: str
    relative_norms: tuple[float, ...]
    """Norm of the change over that of the clean activation, read where the watches are; 0 at tokens that
    nothing moved."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one request, over all its completions."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    """Prompt tokens whose keys and values were reused."""
    steered_tokens: int | None
    """Tokens, of prompt and completions, that at least one edit or rule moved; None if it is concealed."""

    @property
    def total_tokens(self) -> int:
        """Prompt and completion tokens together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Timings:
    """Where a request's time went, in seconds."""

    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float


@dataclass(frozen=True, slots=True)
class SiteReceipt:
    """What was done at one site."""

    site: str
    edits: int
    """The request's own edits in force."""
    rules: int | None
    """The policy's clamps, caps, floors and scalings in force; None if a policy conceals its rules."""
    bans: int | None
    """Bans in force, the policy's and the request's."""
    watches: int
    tokens_edited: int | None
    bans_fired: int | None
    """How often a banned feature was active at a token and was made inactive."""
    largest_relative_norm: float | None
    """The largest move of any token, as a fraction of its activation's norm."""
    mean_relative_norm: float | None = None
    """The mean move of the tokens that were moved, in the same way."""


@dataclass(frozen=True, slots=True)
class AppliedEdit:
    """What one of the request's own edits did."""

    edit: int
    """The edit, counted from 0 in the request's `steering` list."""
    operation: str
    """What it does, as `saegis.Edit` has it."""
    target: TargetTokens
    """What it changes, and the tokens on which it acted; edits of the same target at the same tokens count
    together, and so do bans of the operator with the request's own."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What was done to the activations of a request, and by whose rule."""

    program_digest: str
    """SHA-256 of the effective steering, the request's and the policy's together, in hexadecimal; empty if
    a policy conceals its rules."""
    policy_revision: str
    """The policy revision in force at admission; empty if the server has no policy."""
    sites: tuple[SiteReceipt, ...]
    steered: bool
    """Whether any token was moved."""
    model: str
    timings: Timings
    rules: tuple[AppliedRule, ...]
    """The operator's rules that applied; empty if the policy does not show them."""
    ruled: bool
    """Whether any of the operator's rules was in force, shown or not."""
    decision_id: str
    """The decision's id, as in the operator's audit log; empty if the server has no policy."""
    first_token_steered: bool = False
    """Whether edits and rules acted at the text's first token; by default not if it is the model's own
    beginning-of-sequence token."""
    first_token_read: bool = False
    """Whether the operator's conditions read that token."""
    edits: tuple[AppliedEdit, ...] = ()
    """What the request's own edits did; empty if a policy conceals its rules."""
    trace_id: str = ""
    """The id of the request's OpenTelemetry trace, in hexadecimal; empty if the server sends no traces."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one completion of a stream ended."""

    index: int
    finish_reason: FinishReason
    matched_stop: int | str | None
    """The token id or string at which it ended, where the reason is "stop"."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One whole completion."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: LogProbs | None
    watched: tuple[Watched, ...]
    finish_reason: FinishReason
    matched_stop: int | str | None
    """The token id or string at which it ended, where the reason is "stop"."""
    moves: tuple[SiteMoves, ...] = ()
    """How far tokens were moved, if asked for."""


@dataclass(frozen=True, slots=True)
class Generation:
    """The answer to `generate`. The properties are those of the first completion."""

    request_id: str
    choices: tuple[Choice, ...]
    usage: Usage
    receipt: Receipt
    prompt_watched: tuple[Watched, ...] = ()
    """Watched activations of the prompt's tokens, each at its own position, if asked for."""
    prompt_moves: tuple[SiteMoves, ...] = ()
    """How far the prompt's tokens were moved, if asked for."""

    @property
    def text(self) -> str:
        """The first completion's text."""
        return self.choices[0].text

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The first completion's tokens."""
        return self.choices[0].token_ids

    @property
    def logprobs(self) -> LogProbs | None:
        """The first completion's log probabilities, if asked for."""
        return self.choices[0].logprobs

    @property
    def watched(self) -> tuple[Watched, ...]:
        """The first completion's watched activations, one entry for each watch."""
        return self.choices[0].watched

    @property
    def finish_reason(self) -> FinishReason:
        """Why the first completion ended."""
        return self.choices[0].finish_reason


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of one completion: what is new since the last piece of the same index."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: LogProbs | None
    watched: tuple[Watched, ...]
    finish_reason: FinishReason | None
    """Why the completion ended; None except in the last piece of an index."""
    moves: tuple[SiteMoves, ...] = ()
    """How far tokens were moved, if asked for."""
    prompt_watched: tuple[Watched, ...] = ()
    """Watched activations of the prompt's tokens, if asked for: in the first chunk of a stream alone."""
    prompt_moves: tuple[SiteMoves, ...] = ()
    """The same of how far they were moved."""


@dataclass(frozen=True, slots=True)
class Final:
    """The closing message of a stream."""

    request_id: str
    outcomes: tuple[Outcome, ...]
    usage: Usage
    receipt: Receipt


@dataclass(frozen=True, slots=True)
class Score:
    """The answer to `score`: how likely each token of a text is, steered and plain.

    The tuples of numbers have one entry less than there are tokens: entry i is for token i + 1, given tokens
    0 to i. Logarithms are natural.
    """

    request_id: str
    token_ids: tuple[int, ...]
    """All tokens of the text."""
    logprobs: tuple[float, ...]
    """Log probabilities under the model as steered."""
    plain_logprobs: tuple[float, ...]
    """Log probabilities under the operator's rules alone or, if `unruled`, under the unsteered model."""
    divergences: tuple[float, ...]
    """KL(plain || steered) of the distributions of the next token, in nats."""
    receipt: Receipt

    @property
    def divergence(self) -> float:
        """The mean of the divergences, in nats a token."""
        return fmean(self.divergences)

    @property
    def perplexity(self) -> float:
        """Perplexity under the model as steered: exp of the mean negative log probability."""
        return _perplexity(self.logprobs)

    @property
    def plain_perplexity(self) -> float:
        """Perplexity of the plain log probabilities."""
        return _perplexity(self.plain_logprobs)


def _perplexity(logprobs: Sequence[float]) -> float:
    try:
        return math.exp(-fmean(logprobs))
    except OverflowError:
        return math.inf


def assemble(chunks: Sequence[Chunk], final: Final) -> Generation:
    """The answer that `generate` would have given, from the chunks of a stream and its closing message."""
    choices = []
    for outcome in final.outcomes:
        pieces = [chunk for chunk in chunks if chunk.index == outcome.index]
        choices.append(
            Choice(
                index=outcome.index,
                text="".join(piece.text for piece in pieces),
                token_ids=tuple(token for piece in pieces for token in piece.token_ids),
                logprobs=_join_logprobs([piece.logprobs for piece in pieces if piece.logprobs]),
                watched=_join_watched([watched for piece in pieces for watched in piece.watched]),
                finish_reason=outcome.finish_reason,
                matched_stop=outcome.matched_stop,
                moves=_join_moves([moves for piece in pieces for moves in piece.moves]),
            )
        )
    return Generation(
        final.request_id,
        tuple(choices),
        final.usage,
        final.receipt,
        prompt_watched=_join_watched([watched for piece in chunks for watched in piece.prompt_watched]),
        prompt_moves=_join_moves([moves for piece in chunks for moves in piece.prompt_moves]),
    )


def _join_logprobs(pieces: Sequence[LogProbs]) -> LogProbs | None:
    if not pieces:
        return None
    return LogProbs(
        token_ids=tuple(token for piece in pieces for token in piece.token_ids),
        token_logprobs=tuple(value for piece in pieces for value in piece.token_logprobs),
        top=tuple(top for piece in pieces for top in piece.top),
    )


def _join_moves(pieces: Sequence[SiteMoves]) -> tuple[SiteMoves, ...]:
    joined: dict[str, SiteMoves] = {}
    for piece in pieces:
        so_far = joined.get(piece.site, SiteMoves(piece.site, ()))
        joined[piece.site] = SiteMoves(piece.site, so_far.relative_norms + piece.relative_norms)
    return tuple(joined.values())


def _join_watched(pieces: Sequence[Watched]) -> tuple[Watched, ...]:
    joined: dict[int, Watched] = {}
    for piece in pieces:
        so_far = joined.get(piece.watch, Watched(piece.watch, (), ()))
        joined[piece.watch] = Watched(
            piece.watch,
            so_far.before + piece.before,
            so_far.after + piece.after,
            so_far.set_to + piece.set_to,
        )
    return tuple(joined[watch] for watch in sorted(joined))


def generate_request(prompt: str | None, options: GenerationOptions) -> pb.GenerateRequest:
    """The request of `generate` and, wrapped, of `stream`.

    Raises TypeError for an unknown option or a value of the wrong type, and ValueError unless exactly one of
    prompt, messages and token_ids is given, or if a number does not fit its field.
    """
    unknown = options.keys() - GenerationOptions.__annotations__.keys()
    if unknown:
        raise TypeError(f"unknown option {', '.join(sorted(unknown))}")
    # A loosely typed copy, since the loop below takes options by name.
    rest: dict[str, Any] = {**options}
    request = pb.GenerateRequest()
    set_prompt(request, prompt, rest.pop("messages", None), rest.pop("token_ids", None))
    put(request, "request_id", rest.pop("request_id", None))
    request.steering.CopyFrom(steering_message(rest.pop("steering", ())))
    request.steering.watches.extend(watch_message(watch) for watch in rest.pop("watch", ()))
    for name in ("read_prompt", "read_moves"):
        put(request.steering, name, rest.pop(name, False))
    if not request.steering.ListFields():
        request.ClearField("steering")
    request.sampling.SetInParent()
    if isinstance(rest.get("stop"), str):
        rest["stop"] = [rest["stop"]]
    for name, value in rest.items():
        put(request.sampling, name, value)
    return request


def _generation(message: pb.GenerateResponse) -> Generation:
    choices = tuple(
        result(
            Choice,
            choice,
            logprobs=_logprobs(choice),
            watched=_watched(choice.watched),
            finish_reason=word(FinishReason, choice, "finish_reason"),
            matched_stop=_matched_stop(choice),
            moves=_moves(choice.moves),
        )
        for choice in message.choices
    )
    if not choices:
        raise InternalError("the answer has no completion", reason="CONTRACT_BROKEN")
    return Generation(
        message.request_id,
        choices,
        result(Usage, message.usage),
        _receipt(message.receipt),
        prompt_watched=_watched(message.prompt_watched),
        prompt_moves=_moves(message.prompt_moves),
    )


def chunk(message: pb.GenerationChunk) -> Chunk:
    """One piece of a stream."""
    return result(
        Chunk,
        message,
        logprobs=_logprobs(message),
        watched=_watched(message.watched),
        finish_reason=word(FinishReason, message, "finish_reason") if message.finish_reason else None,
        moves=_moves(message.moves),
        prompt_watched=_watched(message.prompt_watched),
        prompt_moves=_moves(message.prompt_moves),
    )


def final(message: pb.GenerationComplete) -> Final:
    """The closing message of a stream."""
    outcomes = tuple(
        Outcome(outcome.index, word(FinishReason, outcome, "finish_reason"), _matched_stop(outcome))
        for outcome in message.outcomes
    )
    return Final(message.request_id, outcomes, result(Usage, message.usage), _receipt(message.receipt))


def _score(message: pb.ScoreResponse) -> Score:
    scored = len(message.token_ids) - 1
    counts = {len(message.logprobs), len(message.plain_logprobs), len(message.divergences)}
    if scored < 1 or counts != {scored}:
        raise InternalError("the answer's numbers do not fit its tokens", reason="CONTRACT_BROKEN")
    return result(Score, message, receipt=_receipt(message.receipt))


def _matched_stop(message: pb.Choice | pb.Outcome) -> int | str | None:
    match message.WhichOneof("matched_stop"):
        case "matched_token_id":
            return message.matched_token_id
        case "matched_stop_str":
            return message.matched_stop_str
    return None


def _logprobs(
    message: pb.Choice | pb.GenerationChunk,
) -> LogProbs | None:
    if not message.HasField("logprobs"):
        return None
    logprobs = message.logprobs
    top = tuple(
        tuple(Alternative(token, value) for token, value in zip(at.token_ids, at.values, strict=True))
        for at in logprobs.top_logprobs
    )
    return LogProbs(tuple(logprobs.token_ids), tuple(logprobs.token_logprobs), top)


def _watched(messages: Iterable[pb.WatchedActivations]) -> tuple[Watched, ...]:
    return tuple(
        Watched(message.watch, tuple(message.before), tuple(message.after), tuple(message.set_to))
        for message in messages
    )


def _moves(messages: Iterable[pb.SiteMoves]) -> tuple[SiteMoves, ...]:
    return tuple(result(SiteMoves, message) for message in messages)


def _receipt(message: pb.Receipt) -> Receipt:
    return result(
        Receipt,
        message,
        sites=tuple(result(SiteReceipt, site) for site in message.sites),
        timings=result(Timings, message.timings),
        rules=applied_rules(message.rules),
        edits=tuple(
            result(
                AppliedEdit,
                edit,
                operation=word(str, edit, "operation"),
                target=target_tokens(edit.target),
            )
            for edit in message.edits
        ),
    )


class GenerationMethods(BaseClient):
    """The methods of both clients that call GenerationService, except streams."""

    @rpc(lambda stubs: stubs.generation.Generate, _generation)
    def generate(
        self,
        prompt: str | None = None,
        *,
        timeout: float | None = None,
        **options: Unpack[GenerationOptions],
    ) -> pb.GenerateRequest:
        """Continue a prompt, `messages` or `token_ids`; returns when everything is generated."""
        return generate_request(prompt, options)

    @rpc(lambda stubs: stubs.generation.Score, _score)
    def score(
        self,
        text: str | None = None,
        *,
        messages: Sequence[ChatMessage] | None = None,
        token_ids: Sequence[int] | None = None,
        steering: Sequence[Edit] = (),
        unruled: bool = False,
        as_answer: bool = False,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> pb.ScoreRequest:
        """Return how likely a text, a finished conversation or token ids are, with `steering` and without.

        With `unruled`, the comparison is with the model without the operator's rules too. That needs the role
        of that name and, under a policy, its permission. With `as_answer`, the last message, which must be
        the assistant's, is read as an answer and not as part of the prompt.
        """
        request = pb.ScoreRequest(unruled=unruled, as_answer=as_answer)
        set_prompt(request, text, messages, token_ids)
        put(request, "request_id", request_id)
        if steering:
            request.steering.CopyFrom(steering_message(steering))
        return request
