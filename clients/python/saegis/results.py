"""What generating returns: texts and chunks with their readings, token counts and the receipt."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from saegis.policy_results import AppliedRule


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
    """The most probable alternatives at each token, most probable first; empty where none were asked for."""


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
    """What the request's own edits of the target set the values to; `before` where none of them acts. Empty
    where it has no such edit, or one in fractions of the norm."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one request, over all its completions."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    """Prompt tokens whose keys and values were reused."""
    steered_tokens: int | None
    """Tokens, of prompt and completions, that at least one edit or rule moved; None where it is concealed."""

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
    """The policy's clamps, caps, floors and scalings in force; None where a policy conceals its rules."""
    bans: int | None
    """Bans in force, the policy's and the request's."""
    watches: int
    tokens_edited: int | None
    bans_fired: int | None
    """How often a banned feature was active at a token and was put out."""
    largest_relative_norm: float | None
    """The largest move of any token, as a fraction of its activation's norm."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What was done to the activations of a request, and by whose rule."""

    program_digest: str
    """SHA-256 of the effective steering, the request's and the policy's together, in hexadecimal; empty where
    a policy conceals its rules."""
    policy_revision: str
    """The policy revision in force at admission; empty where the server has no policy."""
    sites: tuple[SiteReceipt, ...]
    steered: bool
    """Whether any token was moved."""
    model: str
    timings: Timings
    rules: tuple[AppliedRule, ...]
    """The operator's rules that applied; empty where the policy does not tell them."""
    ruled: bool
    """Whether any of the operator's rules was in force, told or not."""
    decision_id: str
    """Names the decision, as the operator's audit log does; empty where the server has no policy."""
    first_token_steered: bool = False
    """Whether edits and rules acted at the text's first token; by default not where it is the model's own
    beginning-of-sequence token."""
    first_token_read: bool = False
    """Whether the operator's conditions read that token."""


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


@dataclass(frozen=True, slots=True)
class Generation:
    """The answer to `generate`. The properties are those of its first completion."""

    request_id: str
    choices: tuple[Choice, ...]
    usage: Usage
    receipt: Receipt

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
        """The first completion's log probabilities, where asked for."""
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
    """Why the completion ended; None in all pieces of an index but its last."""


@dataclass(frozen=True, slots=True)
class Final:
    """The closing message of a stream."""

    request_id: str
    outcomes: tuple[Outcome, ...]
    usage: Usage
    receipt: Receipt


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
            )
        )
    return Generation(final.request_id, tuple(choices), final.usage, final.receipt)


def _join_logprobs(pieces: Sequence[LogProbs]) -> LogProbs | None:
    if not pieces:
        return None
    return LogProbs(
        token_ids=tuple(token for piece in pieces for token in piece.token_ids),
        token_logprobs=tuple(value for piece in pieces for value in piece.token_logprobs),
        top=tuple(top for piece in pieces for top in piece.top),
    )


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
