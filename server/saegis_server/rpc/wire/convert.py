"""Conversions of the engine's, the catalog's and the policies' objects to the contract's messages."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from saegis.v1 import direction_pb2, feature_pb2, generation_pb2
from saegis.v1 import policy_pb2 as pb
from saegis_server.directions.store import KeptDirection
from saegis_server.engine.api import Delta, Event, FinishReason, SequenceFinished
from saegis_server.engine.counts import Acted
from saegis_server.engine.readouts import PromptRead, TokenOutput
from saegis_server.engine.receipts import Receipt, Timings, Usage
from saegis_server.policy.decide import decision
from saegis_server.policy.decide.cases import CaseResult
from saegis_server.policy.decide.decision import Decision
from saegis_server.policy.decide.disclosure import Audience, own_sites, receipt_counts, receipt_rules
from saegis_server.policy.schema.policy import Mode
from saegis_server.policy.store.history import Revision
from saegis_server.policy.store.in_force import PolicyState
from saegis_server.problem import Problem
from saegis_server.rpc.services.account import EditAccount, RuleAccount, TargetAccount
from saegis_server.rpc.services.run import Run
from saegis_server.sae.catalog import FoundFeature
from saegis_server.steering.site import Site

_FINISH_REASONS: Mapping[FinishReason, generation_pb2.FinishReason] = {
    FinishReason.STOP: generation_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: generation_pb2.FINISH_REASON_LENGTH,
    FinishReason.ABORT: generation_pb2.FINISH_REASON_ABORT,
    FinishReason.CONTENT_FILTER: generation_pb2.FINISH_REASON_CONTENT_FILTER,
}

Made = TypeVar("Made", bound=Message)


def message(kind: type[Made], source: object, **overrides: Any) -> Made:
    """A message whose fields are the source's attributes of the same names, except the overridden ones."""
    names = (field.name for field in kind.DESCRIPTOR.fields if field.name not in overrides)
    return kind(**{name: getattr(source, name) for name in names}, **overrides)


@dataclass(frozen=True, slots=True)
class TokenDetails:
    """Which details of its tokens a request asks for: log probabilities, the places of its watches, and the
    sites of which it is told how far tokens are moved."""

    logprobs: bool = False
    watches: tuple[int, ...] = ()
    moves: tuple[Site, ...] = ()


@dataclass(slots=True)
class Piece:
    """New text and tokens of one sequence, its closing event if it has ended, and what was read of the prompt
    if that comes with it."""

    index: int
    text: str = ""
    tokens: list[TokenOutput] = field(default_factory=list)
    finished: SequenceFinished | None = None
    prompt: PromptRead | None = None

    def add(self, event: Delta | SequenceFinished) -> None:
        """Take one more event of the sequence."""
        if isinstance(event, SequenceFinished):
            self.finished = event
        else:
            self.text += event.text
            self.tokens.extend(event.tokens)


def pieces(events: Iterable[Event]) -> dict[int, Piece]:
    """The events of each sequence gathered into one piece, by index."""
    by_index: dict[int, Piece] = {}
    prompt: PromptRead | None = None
    for event in events:
        if isinstance(event, PromptRead):
            prompt = event
        elif isinstance(event, Delta | SequenceFinished):
            piece = by_index.setdefault(event.index, Piece(event.index))
            piece.prompt, prompt = piece.prompt or prompt, None
            piece.add(event)
    return by_index


def prompt_readings(piece: Piece, details: TokenDetails) -> dict[str, Any]:
    """What was read of the prompt before a piece, as fields of a message."""
    if piece.prompt is None:
        return {}
    watched = [
        generation_pb2.WatchedActivations(
            watch=place, before=values.before, after=values.after, set_to=values.set_to
        )
        for place, values in zip(details.watches, piece.prompt.watched, strict=True)
    ]
    moves = [
        generation_pb2.SiteMoves(site=str(site), relative_norms=norms)
        for site, norms in zip(details.moves, piece.prompt.moves, strict=True)
    ]
    return {"prompt_watched": sorted(watched, key=lambda entry: entry.watch), "prompt_moves": moves}


def chunk(piece: Piece, details: TokenDetails) -> generation_pb2.GenerationChunk:
    """A piece as a message of a stream."""
    return generation_pb2.GenerationChunk(
        index=piece.index,
        text=piece.text,
        token_ids=[token.token_id for token in piece.tokens],
        logprobs=_logprobs(piece.tokens) if details.logprobs else None,
        watched=_watched(piece.tokens, details.watches),
        moves=_moves(piece.tokens, details.moves),
        finish_reason=_FINISH_REASONS[piece.finished.reason]
        if piece.finished
        else generation_pb2.FINISH_REASON_UNSPECIFIED,
        **prompt_readings(piece, details),
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
        moves=whole.moves,
        finish_reason=whole.finish_reason,
        matched_token_id=ended.stop_token if ended else None,
        matched_stop_str=ended.stop_string if ended else None,
    )


def usage(counted: Usage, decision: Decision) -> generation_pb2.Usage:
    """Token counts, as far as the policies do not conceal them."""
    steered = counted.steered_tokens if receipt_counts(decision) else None
    return message(generation_pb2.Usage, counted, steered_tokens=steered)


def receipt(done: Receipt, timings: Timings, model: str, run: Run) -> generation_pb2.Receipt:
    """The receipt of a run that `model` has answered: what was done to it, and by whose rules."""
    governed, account, decision = run.governed, run.account, run.governed.decision
    shown, counts = receipt_rules(decision), receipt_counts(decision)
    return generation_pb2.Receipt(
        policy_revision=decision.policy_revision,
        decision_id=governed.id,
        trace_id=governed.trace.id,
        ruled=any(rule.mode is Mode.ENFORCE for rule in decision.rules),
        rules=[_ruled(each, counts) for each in account.rules if each.rule in shown],
        edits=[_edited(each) for each in account.edits] if counts else (),
        program_digest=done.program_digest if counts else "",
        sites=_sites(done, decision),
        steered=done.steered,
        first_token_steered=done.first_token_steered,
        first_token_read=done.first_token_read,
        model=model,
        timings=_timings(timings),
    )


def _sites(done: Receipt, decision: Decision) -> list[generation_pb2.SiteReceipt]:
    """What was done at each site; if a policy conceals it, only what the request itself asked for."""
    if receipt_counts(decision):
        return [message(generation_pb2.SiteReceipt, site, site=str(site.site)) for site in done.sites]
    own = own_sites(decision)
    return [
        generation_pb2.SiteReceipt(site=str(site.site), edits=site.edits, watches=site.watches)
        for site in done.sites
        if site.site in own
    ]


def feature(source: FoundFeature) -> feature_pb2.Feature:
    """What is recorded about a feature."""
    place: dict[str, Any] = {"sae": source.loaded.id, "index": source.index, "site": str(source.site)}
    if source.label is None:
        return feature_pb2.Feature(**place)
    return message(feature_pb2.Feature, source.label, **place)


def direction(kept: KeptDirection) -> direction_pb2.KeptDirection:
    """A direction that is kept, without its numbers."""
    site = "" if kept.site is None else str(kept.site)
    return message(direction_pb2.KeptDirection, kept, site=site)


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


def _moves(tokens: Sequence[TokenOutput], sites: tuple[Site, ...]) -> list[generation_pb2.SiteMoves]:
    """One entry for each site."""
    return [
        generation_pb2.SiteMoves(site=str(site), relative_norms=[token.moves[place] for token in tokens])
        for place, site in enumerate(sites)
    ]


def _watched(
    tokens: Sequence[TokenOutput], watches: tuple[int, ...]
) -> list[generation_pb2.WatchedActivations]:
    """One entry for each watch, in the request's order. The engine orders watches by site."""
    entries = [
        generation_pb2.WatchedActivations(
            watch=place,
            before=[token.watched[row].before for token in tokens],
            after=[token.watched[row].after for token in tokens],
            set_to=[value for token in tokens if (value := token.watched[row].set_to) is not None],
        )
        for row, place in enumerate(watches)
    ]
    return sorted(entries, key=lambda entry: entry.watch)


_MODES = {
    Mode.ENFORCE: pb.RULE_MODE_ENFORCE,
    Mode.AUDIT: pb.RULE_MODE_AUDIT,
    Mode.SHADOW: pb.RULE_MODE_SHADOW,
}


def revision(stored: Revision, state: PolicyState) -> pb.PolicyRevision:
    """A revision of a policy whose present state is `state`."""
    put_time = Timestamp()
    put_time.FromDatetime(stored.put_time)
    shadow = state.shadow is not None and stored.digest == state.shadow.digest
    active = stored.digest == state.active.digest
    return message(pb.PolicyRevision, stored, put_time=put_time, active=active, shadow=shadow)


def state(stored: PolicyState, reads: bool = True) -> pb.PolicyState:
    """A policy in force. reads: whether its content may be shown."""
    return pb.PolicyState(
        active=revision(stored.active, stored),
        shadow=revision(stored.shadow, stored) if stored.shadow is not None else None,
        etag=stored.etag,
        description=stored.description if reads else "",
        rules=stored.rules if reads else (),
    )


def problem(source: Problem) -> pb.PolicyProblem:
    """One thing that is wrong with a bundle."""
    return message(pb.PolicyProblem, source)


def changes(by_entry: Mapping[str, str]) -> pb.PolicyChanges:
    """What became of a policy's entries, by key: "added", "removed" or "changed"."""
    entries = (
        pb.PolicyChange(change=f"CHANGE_KIND_{kind.upper()}", key=key) for key, kind in by_entry.items()
    )
    return pb.PolicyChanges(changes=entries)


def case_outcome(case: CaseResult) -> pb.CaseOutcome:
    """How a case went."""
    return message(pb.CaseOutcome, case)


def applied_rule(rule: decision.AppliedRule, **did: Any) -> pb.AppliedRule:
    """A rule that applies, and what it did."""
    told = ("policy", "rule", "action", "labels", "reason", "conditional")
    return pb.AppliedRule(**{name: getattr(rule, name) for name in told}, mode=_MODES[rule.mode], **did)


def _ruled(account: RuleAccount, counts: bool) -> pb.AppliedRule:
    """What a rule did; without `counts` only at how many tokens its condition held."""
    condition = account.condition
    tokens = 0 if condition is None else condition.held_tokens
    if not counts:
        return applied_rule(account.rule, tokens=tokens)
    return applied_rule(
        account.rule,
        tokens=tokens,
        acted=_tokens(account.acted),
        targets=map(_target, account.targets),
        held=_tokens(account.held),
        first_held=None if condition is None else condition.first_token,
        stopped=0 if condition is None else condition.stopped,
        readings=map(_target, account.readings),
    )


def _edited(account: EditAccount) -> generation_pb2.AppliedEdit:
    operation: Any = f"OPERATION_{account.edit.op.name}"
    target = _target(account.on, account.edit.direction_name)
    return generation_pb2.AppliedEdit(edit=account.place, operation=operation, target=target)


def _target(account: TargetAccount, direction_name: str = "") -> pb.TargetTokens:
    target, feature = account.target, account.target.feature
    return pb.TargetTokens(
        site=str(target.site),
        sae="" if feature is None else feature.loaded.id,
        index=None if feature is None else feature.index,
        label="" if feature is None or feature.label is None else feature.label.label,
        direction=target.direction,
        direction_name=direction_name,
        tokens=_tokens(account.tokens),
    )


def _tokens(tokens: Acted | None) -> pb.PhaseTokens | None:
    return None if tokens is None else pb.PhaseTokens(prompt=tokens.prompt, completion=tokens.answer)


def decided(verdict: decision.Decision, audience: Audience) -> pb.PolicyDecision:
    """A decision, as far as the audience may know it."""
    return pb.PolicyDecision(
        allowed=verdict.allowed,
        policy_revision=verdict.policy_revision,
        denials=[message(pb.Denial, denial) for denial in audience.denials(verdict)],
        rules=[applied_rule(rule) for rule in audience.rules(verdict)],
        program_digest=verdict.digest if verdict.allowed and not audience.conceals(verdict) else "",
    )
