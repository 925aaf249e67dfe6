"""Conversions of what the engine gives to the contract's messages."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from saegis.v1 import feature_pb2, generation_pb2
from saegis_server.engine.api import (
    Delta,
    Event,
    FinishReason,
    Receipt,
    SequenceFinished,
    Timings,
    TokenOutput,
    Usage,
)
from saegis_server.policy.decide.decision import Decision
from saegis_server.policy.decide.disclosure import own_sites, receipt_counts, receipt_rules
from saegis_server.policy.schema.policy import Mode
from saegis_server.rpc.services.run import Governed
from saegis_server.rpc.wire import policy_convert
from saegis_server.sae.catalog import FoundFeature

_FINISH_REASONS: Mapping[FinishReason, generation_pb2.FinishReason] = {
    FinishReason.STOP: generation_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: generation_pb2.FINISH_REASON_LENGTH,
    FinishReason.ABORT: generation_pb2.FINISH_REASON_ABORT,
    FinishReason.CONTENT_FILTER: generation_pb2.FINISH_REASON_CONTENT_FILTER,
}


@dataclass(frozen=True, slots=True)
class TokenDetails:
    """What a request wants told of its tokens: whether log probabilities, and the places of its watches."""

    logprobs: bool = False
    watches: tuple[int, ...] = ()


@dataclass(slots=True)
class Piece:
    """New text and tokens of one sequence, and its end if that has come."""

    index: int
    text: str = ""
    tokens: list[TokenOutput] = field(default_factory=list)
    finished: SequenceFinished | None = None

    def add(self, event: Delta | SequenceFinished) -> None:
        """Take one more event of the sequence."""
        if isinstance(event, SequenceFinished):
            self.finished = event
        else:
            self.text += event.text
            self.tokens.extend(event.tokens)


def pieces(events: Iterable[Event]) -> dict[int, Piece]:
    """The events of each sequence gathered into one piece, by index."""
    found: dict[int, Piece] = {}
    for event in events:
        if isinstance(event, Delta | SequenceFinished):
            found.setdefault(event.index, Piece(event.index)).add(event)
    return found


def chunk(piece: Piece, details: TokenDetails) -> generation_pb2.GenerationChunk:
    """A piece as a message of a stream."""
    return generation_pb2.GenerationChunk(
        index=piece.index,
        text=piece.text,
        token_ids=[token.token_id for token in piece.tokens],
        logprobs=_logprobs(piece.tokens) if details.logprobs else None,
        watched=_watched(piece.tokens, details.watches),
        finish_reason=_FINISH_REASONS[piece.finished.reason]
        if piece.finished
        else generation_pb2.FINISH_REASON_UNSPECIFIED,
    )


def outcome(event: SequenceFinished) -> generation_pb2.Outcome:
    """How one sequence of a stream ended."""
    return generation_pb2.Outcome(
        index=event.index,
        finish_reason=_FINISH_REASONS[event.reason],
        matched_token_id=event.stop_token,
        matched_stop_str=event.stop_string,
    )


def choice(piece: Piece, details: TokenDetails) -> generation_pb2.Choice:
    """A finished sequence as a whole."""
    whole = chunk(piece, details)
    ended = piece.finished
    return generation_pb2.Choice(
        index=piece.index,
        text=piece.text,
        token_ids=whole.token_ids,
        logprobs=whole.logprobs if details.logprobs else None,
        watched=whole.watched,
        finish_reason=whole.finish_reason,
        matched_token_id=ended.stop_token if ended else None,
        matched_stop_str=ended.stop_string if ended else None,
    )


def usage(counted: Usage, decision: Decision) -> generation_pb2.Usage:
    """Token counts, as far as the policies that decided let them be told."""
    return generation_pb2.Usage(
        prompt_tokens=counted.prompt_tokens,
        completion_tokens=counted.completion_tokens,
        cached_tokens=counted.cached_tokens,
        steered_tokens=counted.steered_tokens if receipt_counts(decision) else None,
    )


def receipt(done: Receipt, timings: Timings, model: str, governed: Governed) -> generation_pb2.Receipt:
    """What was done to a request that `model` answered, and by whose rules."""
    decision = governed.decision
    held = {each.name: each.held_tokens for each in done.conditions}
    return generation_pb2.Receipt(
        policy_revision=decision.policy_revision,
        decision_id=governed.id,
        ruled=any(rule.mode is Mode.ENFORCE for rule in decision.rules),
        rules=[policy_convert.applied(rule, held.get(rule.name, 0)) for rule in receipt_rules(decision)],
        program_digest=done.program_digest if receipt_counts(decision) else "",
        sites=_sites(done, decision),
        steered=done.steered,
        first_token_steered=done.first_token_steered,
        first_token_read=done.first_token_read,
        model=model,
        timings=_timings(timings),
    )


def _sites(done: Receipt, decision: Decision) -> list[generation_pb2.SiteReceipt]:
    """What was done at each site; where a policy conceals, what the request itself asked for there."""
    if receipt_counts(decision):
        return [
            generation_pb2.SiteReceipt(
                site=str(site.site),
                edits=site.edits,
                rules=site.rules,
                bans=site.bans,
                watches=site.watches,
                tokens_edited=site.tokens_edited,
                bans_fired=site.bans_fired,
                largest_relative_norm=site.largest_relative_norm,
            )
            for site in done.sites
        ]
    own = own_sites(decision)
    return [
        generation_pb2.SiteReceipt(site=str(site.site), edits=site.edits, watches=site.watches)
        for site in done.sites
        if site.site in own
    ]


def feature(found: FoundFeature) -> feature_pb2.Feature:
    """What is recorded about a feature."""
    message = feature_pb2.Feature(sae=found.loaded.id, index=found.index, site=str(found.site))
    if found.label is not None:
        label = found.label
        message.MergeFrom(
            feature_pb2.Feature(
                label=label.label,
                max_activation=label.max_activation,
                density=label.density,
                subjects=label.subjects,
                languages=label.languages,
                precision=label.precision,
                recall=label.recall,
                precision_by_language=label.precision_by_language,
                harmful=label.harmful,
            )
        )
    return message


def _timings(timings: Timings) -> generation_pb2.Timings:
    return generation_pb2.Timings(
        queue_seconds=timings.queue, prefill_seconds=timings.prefill, decode_seconds=timings.decode
    )


def _logprobs(tokens: Sequence[TokenOutput]) -> generation_pb2.LogProbs:
    top = [
        generation_pb2.TopLogProbs(
            token_ids=[token_id for token_id, _ in token.alternatives],
            values=[logprob for _, logprob in token.alternatives],
        )
        for token in tokens
        if token.alternatives
    ]
    return generation_pb2.LogProbs(
        token_logprobs=[token.logprob or 0.0 for token in tokens],
        token_ids=[token.token_id for token in tokens],
        top_logprobs=top,
    )


def _watched(
    tokens: Sequence[TokenOutput], watches: tuple[int, ...]
) -> list[generation_pb2.WatchedActivations]:
    """One entry for each watch, in the order of the request; the engine's order is that of the sites."""
    entries = [
        generation_pb2.WatchedActivations(
            watch=place,
            before=[token.watched[row].before for token in tokens],
            after=[token.watched[row].after for token in tokens],
            set_to=[each for token in tokens if (each := token.watched[row].set_to) is not None],
        )
        for row, place in enumerate(watches)
    ]
    return sorted(entries, key=lambda entry: entry.watch)
