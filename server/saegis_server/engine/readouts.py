"""Readouts: what an engine tells of single tokens, and what of it a request asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Readouts:
    """What is told of single tokens, beside the watches at those of answers.

    prompt: all of it at every token of the prompt too. moves: how far each token is moved at each of
    `moving_sites`.
    """

    prompt: bool = False
    moves: bool = False


#: Nothing of them.
NO_READOUTS = Readouts()


@dataclass(frozen=True, slots=True)
class Watched:
    """A watched feature or direction at one token: before and after steering, in feature units.

    set_to: what the request's own edits of it make of `before`; None where it has none, or one in fractions
    of the norm.
    """

    before: float
    after: float
    set_to: float | None = None


@dataclass(frozen=True, slots=True)
class TokenOutput:
    """One generated token. `watched` has one entry per watch of the program, in the order of its sites.

    A watch is read at the position from which the token was predicted. `alternatives` are the likeliest
    (token id, logprob) pairs; logprobs are of the model's own distribution, before sampling changes it.
    moves: ‖Δx‖/‖x‖ at that position at each of `moving_sites`, where the request asks for it.
    """

    token_id: int
    logprob: float | None = None
    alternatives: tuple[tuple[int, float], ...] = ()
    watched: tuple[Watched, ...] = ()
    moves: tuple[float, ...] = ()


class WatchedPrompt(NamedTuple):
    """A watch at every token of a prompt, each at its own position; see Watched. set_to: empty for none."""

    before: tuple[float, ...]
    after: tuple[float, ...]
    set_to: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class PromptRead:
    """What was read at every token of the prompt, with what the request gives of the answer.

    Told once, where the request asks for it, before the first Delta. watched: an entry for each watch, in the
    order of TokenOutput.watched; moves: ‖Δx‖/‖x‖ of every token for each of `moving_sites`, if asked for.
    """

    watched: tuple[WatchedPrompt, ...] = ()
    moves: tuple[tuple[float, ...], ...] = ()
