"""Receipts: what an engine tells of a request that has ended: what was done to it, and how long it took."""

from __future__ import annotations

from dataclasses import dataclass

from saegis_server.engine.counts import Acted
from saegis_server.steering.site import Site


@dataclass(frozen=True, slots=True)
class SiteReceipt:
    """What was done at one site: rows by kind, tokens edited, bans fired, the largest ‖Δx‖/‖x‖ and its mean
    over the tokens edited.

    The prompt's tokens count once, however many completions there are.
    Rows of conditions that never held are not counted.
    """

    site: Site
    edits: int
    rules: int
    bans: int
    watches: int
    tokens_edited: int
    bans_fired: int
    largest_relative_norm: float
    mean_relative_norm: float = 0.0


@dataclass(frozen=True, slots=True)
class ConditionReceipt:
    """A condition, over all sequences: at how many tokens it held, and at which it held first.

    held_tokens: how many tokens were chosen while it held: the first one of an answer is chosen at the end of
    the prompt, and the one that it stopped counts too. first_token: counted from 0 over the answer's tokens,
    those that the request gave among them; -1 for the prompt, None where it never held. stopped: how many
    sequences it ended, alone or with others. at_prompts: at the end of how many sequences' prompts it held,
    which is one of the tokens each.
    """

    name: str
    held_tokens: int
    first_token: int | None
    stopped: int = 0
    at_prompts: int = 0


@dataclass(frozen=True, slots=True)
class Receipt:
    """What was done to a request: its program's digest, whether a token was moved, each site with rows.

    conditions: those of its guard, in its order. guard_peaks: the largest value that each of the program's
    `guards` had on the clean activations, those of a step that was taken again among them, in the order of
    `Literal.reading`. first_token_steered, first_token_read: whether rows, and whether conditions, act at the
    text's first token as at every other; not where it is left out, see FirstToken. acted: of each of the
    request's groups.
    """

    program_digest: str
    steered: bool
    sites: tuple[SiteReceipt, ...]
    conditions: tuple[ConditionReceipt, ...] = ()
    guard_peaks: tuple[float, ...] = ()
    first_token_steered: bool = False
    first_token_read: bool = False
    acted: tuple[Acted, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts; `steered_tokens`: those of prompt and completions that were moved at any site.

    The prompt's count once, however many completions there are.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    steered_tokens: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds on the monotonic clock: waiting for a slot, until the first token, and from then on."""

    queue: float
    prefill: float
    decode: float
