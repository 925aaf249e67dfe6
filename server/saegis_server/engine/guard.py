"""Guards: conditions on what is read from a request's activations, and what follows from each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property

from saegis_server.steering.conditions import Condition
from saegis_server.steering.digest import digest_of
from saegis_server.steering.program import SiteProgram, SteeringProgram


class Reaction(StrEnum):
    """What follows when a condition comes to hold.

    STOP ends the sequence before the token of that step is told; text that was held back, such as half a
    character, is not told either. REFUSE fails the request before its first own token; in the answer, where
    that is too late, it is STOP. EDIT puts further rows in force from that very token on: the step is taken
    again with them, so no token comes of a step without them; a prompt is read again from its start. The rows
    of a condition that is not sticky leave after the first token at which it does not hold. RECORD counts.
    """

    RECORD = "record"
    STOP = "stop"
    REFUSE = "refuse"
    EDIT = "edit"


@dataclass(frozen=True)
class Guarded:
    """One condition and what follows from it.

    name: tells it apart from others of the request in receipts, such as "policy/rule". message: of REFUSE.
    rows: of EDIT, by site; only `rules` and `bans` of them are used, in addition to the program's own.
    """

    name: str
    condition: Condition
    reaction: Reaction
    message: str = ""
    rows: Mapping[str, SiteProgram] = field(default_factory=dict)


@dataclass(frozen=True)
class Guard:
    """All conditions of a request. Their readings are the `guards` of its program, see `Condition`.

    reads_first_token: whether they read a text's first token also where it is the model's own
    beginning-of-sequence token. hold_back: whether a token is told only once it has been judged itself, by
    being read: what stops an answer at a token then keeps that token back too. The model's own end tokens,
    which are no text, are told at once.
    """

    conditions: tuple[Guarded, ...] = ()
    reads_first_token: bool = False
    hold_back: bool = False

    @cached_property
    def digest(self) -> str:
        """SHA-256 of every condition, with its thresholds and its rows, and of what else it says."""
        return digest_of(self)

    def digest_beside(self, program: SteeringProgram) -> str:
        """What names all that may act on a request with this program: the program's own digest without a
        guard, with one that of both."""
        return program.digest if self == UNGUARDED else digest_of((program.digest, self.digest))


#: The guard of a request that nobody watches over.
UNGUARDED = Guard()
