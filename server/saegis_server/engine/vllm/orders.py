"""Orders: what the engine tells its workers of a text before vLLM runs it, and what they tell of a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from saegis_server.engine.counts import RowGroup
from saegis_server.engine.torch.conditions import ConditionResult
from saegis_server.engine.torch.sequence import RowCounts
from saegis_server.engine.vllm.draws import Draw
from saegis_server.steering.admitted import AdmittedRows
from saegis_server.steering.conditions import CompiledConditions
from saegis_server.steering.site import Site


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is told of a text beside its tokens.

    prompt: watches and moves at every token that is read, and not at the last of a step alone; moves: how far
    tokens are moved, where no feature is watched; logprobs: the model's distribution after the last one;
    logits: those after every token; clean: the activations at every site as they come in; record: what was
    done at every token.
    """

    prompt: bool = False
    logprobs: bool = False
    logits: bool = False
    clean: bool = False
    record: bool = False
    moves: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Order:
    """How one text is steered and read: the rows of its slot, and where in the text they hold.

    answer: where the answer begins; unmoved, unread, left_out: how many of the first tokens no row moves, no
    condition reads, and no statistics count. stops: the tokens that may not be chosen before `min_tokens`
    are. draw: by what its tokens are drawn where it has a seed, None where any draw will do.
    """

    slot: int
    rows: Mapping[Site, AdmittedRows]
    counts: RowCounts
    answer: int
    compiled: CompiledConditions | None = None
    groups: tuple[RowGroup, ...] = ()
    unmoved: int = 0
    unread: int = 0
    left_out: int = 0
    min_tokens: int = 0
    stops: tuple[int, ...] = ()
    draw: Draw | None = None
    wanted: Wanted = field(default_factory=Wanted)

    @property
    def steers(self) -> bool:
        """Whether any of its rows may change an activation."""
        return any(rows.changes_anything for rows in self.rows.values())


class Told(NamedTuple):
    """What a step gave for one text, of which it read the tokens `start` to `start + length`.

    finite: whether the logits after the last one are. outcome: what its conditions come to, see Outcome, and
    `holds`, which of them held last, where they come to anything. watched: float32 [sites, Q, W, 2], before
    and after, and moved float32 [sites, Q], of the last token (Q = 1) or of all; None where nothing is
    watched or asked for, or no site acts. logprobs: float32 [V]; logits: [length, V]; clean: [length, d] at
    each site. record: float32 [length, 3·sites + G], of each site whether a token was edited, how many bans
    fired and ‖Δx‖/‖x‖, then whether each group of rows acted.
    """

    request_id: str
    start: int
    length: int
    finite: bool
    outcome: int
    holds: list[bool] | None = None
    watched: Tensor | None = None
    moved: Tensor | None = None
    logprobs: Tensor | None = None
    logits: Tensor | None = None
    clean: dict[Site, Tensor] | None = None
    record: Tensor | None = None


class Books(NamedTuple):
    """What was counted for a text so far, on the host.

    counts: [sites + 1][COUNTED]; activity: float32 [G, 2]; observed: float32 [sites, places, 2, numbers];
    conditions: what came of them.
    """

    counts: list[list[float]]
    activity: Tensor
    observed: Tensor
    conditions: ConditionResult
