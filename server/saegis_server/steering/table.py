"""Tables: the programs of all running slots at one site, as a few tensors of a fixed size.

What the step does with a row is decided here, when it is written: the fewer operations a row costs in the
step, the sooner the step is compiled and the faster it runs.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from saegis_server.steering.bounds import OPEN, RANGES
from saegis_server.steering.program import SiteProgram, SteeringError
from saegis_server.steering.projection import HeldGeometry
from saegis_server.steering.ranking import Moment, Ranking
from saegis_server.steering.rows import Edit, Norm, Phase, Probe
from saegis_server.steering.site import Site


class Column(IntEnum):
    """What each number of a row means, in the order of the second axis of `numbers`.

    The value of a row with read q is max(GAIN·q + BIAS, FLOOR) where q > THRESHOLD, else 0. Its edit applies
    where the value is above GATE, at tokens of the phases that IN_PROMPT and IN_COMPLETION name. All edits
    of a slot may move x by ‖x‖ / TIGHTNESS together, its largest one; 0 is no bound. WHEN: see Edit.when.
    RANK: which of the token's cuts the value must be above, see `Ranking`; 0 for rows without a rank.
    """

    THRESHOLD = 0
    GAIN = 1
    BIAS = 2
    FLOOR = 3
    NORM = 4
    A = 5
    B = 6
    LO = 7
    HI = 8
    GATE = 9
    RELATIVE = 10
    IN_PROMPT = 11
    IN_COMPLETION = 12
    TIGHTNESS = 13
    WHEN = 14
    RANK = 15


COLUMNS = len(Column)
#: Stands for infinity in a table, so that arithmetic on it never makes a NaN.
UNBOUNDED = 3e38


@dataclass(frozen=True, slots=True)
class Capacity:
    """How many rows of each kind a slot has room for, at each site. At least 2 of each.

    `watches` is the room for watches and guards together; `conditions` that of a slot, for all of its sites.
    """

    edits: int = 32
    rules: int = 32
    bans: int = 32
    watches: int = 64
    conditions: int = 32

    @property
    def held(self) -> int:
        """How many rows may hold what they read: every ban and every rule."""
        return self.bans + self.rules

    def check(self, site: Site, program: SiteProgram) -> None:
        """Raise SteeringError if `program` asks for more rows than there is room for."""
        for kind in (field.name for field in fields(self) if field.name != "conditions"):
            wanted, room = len(getattr(program, kind)), getattr(self, kind)
            if wanted > room:
                raise SteeringError(
                    f"{wanted} {kind} at {site}; this server has room for {room} ({_more(kind, wanted)})",
                    site,
                    ((kind, room),),
                )
        wanted = len(program.watches) + len(program.guards)
        if wanted > self.watches:
            raise SteeringError(
                f"{len(program.watches)} watches and {len(program.guards)} guards at {site}; "
                f"this server has room for {self.watches} together ({_more('watches', wanted)})",
                site,
                (("guards", self.watches - len(program.watches)),),
            )


def _more(kind: str, wanted: int) -> str:
    """How the operator makes room."""
    return f"its operator makes more with saegis serve --rows {kind}={wanted}"


class Rows(NamedTuple):
    """Rows of every slot, float32: vectors [S, 2, K, d], read and written; numbers [S, C, K].

    Rows that are only read have vectors [S, 1, K, d].
    """

    vectors: Tensor
    numbers: Tensor

    @property
    def per_slot(self) -> int:
        """How many rows each slot has, empty ones too."""
        return self.numbers.shape[2]

    def narrow(self, slots: int, rows: int) -> "Rows":
        """The first rows of the first slots."""
        return Rows(self.vectors[:slots, :, :rows], self.numbers[:slots, :, :rows])


#: The range of a row that holds nothing, as `Bounds.ranges` has it.
_OPEN_RANGE = torch.tensor([*OPEN.high, *OPEN.low, *(float(number) for number in OPEN[2:])])


class Bounds(NamedTuple):
    """What every slot holds, bans first, in the coordinates of its rows' span (see HeldGeometry); float32.

    vectors [S, 2, K, d]: basis and what bans write; numbers [S, C, K]: of the bans, zero for other rows;
    squares [S, 5, K, K]: rows, gram, gram_pinv, fixed_pinv, writes; lines [S, 5, K]: lengths, descent, sides
    and, in each entry, step and reach; ranges [S, 2, RANGES, RANGE, K], see `bounds`.
    """

    vectors: Tensor
    numbers: Tensor
    squares: Tensor
    lines: Tensor
    ranges: Tensor

    @property
    def per_slot(self) -> int:
        """How many rows each slot has, empty ones too."""
        return self.numbers.shape[2]

    def narrow(self, slots: int, rows: int) -> "Bounds":
        """The first rows of the first slots."""
        return Bounds(
            self.vectors[:slots, :, :rows],
            self.numbers[:slots, :, :rows],
            self.squares[:slots, :, :rows, :rows],
            self.lines[:slots, :, :rows],
            self.ranges[:slots, ..., :rows],
        )

    def fill(self, slot: int, bans: Sequence[Edit], held: HeldGeometry, ranking: Ranking) -> None:
        """Let an empty slot hold what `held` says, the first rows of which are these bans."""
        count = len(held.basis)
        self.vectors[slot, 0, :count] = held.basis.to(self.vectors)
        if bans:
            writes = torch.stack([ban.probe.write for ban in bans])
            self.vectors[slot, 1, : len(bans)] = writes.to(self.vectors)
            _fill_numbers(self, slot, [_edit_numbers(ban, ranking) for ban in bans])
        squares = torch.stack((held.rows, held.gram, held.gram_pinv, held.fixed_pinv, held.writes))
        self.squares[slot, :, :count, :count] = squares.to(self.squares)
        scalars = (torch.full_like(held.lengths, number) for number in (held.step, held.reach))
        lines = torch.stack((held.lengths, held.descent, held.sides, *scalars))
        self.lines[slot, :, :count] = lines.to(self.lines)
        self.ranges[slot, ..., :count] = held.ranges.to(self.ranges)

    def clear(self, slot: int) -> None:
        """Let a slot hold nothing."""
        for tensor in self[:-1]:
            tensor[slot] = 0.0
        self.ranges[slot] = _OPEN_RANGE.to(self.ranges)[:, None]


class TableView(NamedTuple):
    """The tables as one step sees them: the step's slots, and no more rows than its programs use.

    watches and guards are only read. observed: what is read at every token, the same rows for all slots, as
    of one slot; None for nothing.
    """

    edits: Rows
    rules: Rows
    bounds: Bounds
    watches: Rows
    guards: Rows
    observed: Rows | None = None


def _probe_numbers(probe: Probe, ranking: Ranking) -> list[float]:
    numbers = [0.0] * COLUMNS
    numbers[Column.THRESHOLD] = -UNBOUNDED if probe.linear else probe.threshold - probe.gate_bias
    numbers[Column.GAIN] = probe.gain
    numbers[Column.BIAS] = probe.value_bias
    numbers[Column.FLOOR] = -UNBOUNDED if probe.linear else 0.0
    numbers[Column.NORM] = float(probe.norm)
    numbers[Column.RANK] = float(ranking.column(probe))
    return numbers


def _edit_numbers(edit: Edit, ranking: Ranking) -> list[float]:
    numbers = _probe_numbers(edit.probe, ranking)
    numbers[Column.A], numbers[Column.B] = edit.a, edit.b
    numbers[Column.LO], numbers[Column.HI] = max(edit.lo, -UNBOUNDED), min(edit.hi, UNBOUNDED)
    numbers[Column.GATE] = max(edit.above, -UNBOUNDED)
    numbers[Column.RELATIVE] = float(edit.relative_to_norm)
    numbers[Column.IN_PROMPT] = float(edit.phase is not Phase.COMPLETION)
    numbers[Column.IN_COMPLETION] = float(edit.phase is not Phase.PROMPT)
    numbers[Column.WHEN] = float(edit.when)
    return numbers


def _tightness(share: float) -> float:
    """1/share, a float32 above 0; so large for 0 that ‖x‖ over it is nothing."""
    return min(1.0 / share, UNBOUNDED) if share > 0.0 else UNBOUNDED


def centred_read(probe: Probe) -> Tensor:
    """The read row, with its mean removed for layer norm: r·(x − mean(x)) = (r − mean(r))·x."""
    return probe.read - probe.read.mean() if probe.norm is Norm.LAYER_NORM else probe.read


@lru_cache(maxsize=64)
def _only_read(probes: tuple[Probe, ...], ranking: Ranking) -> tuple[Tensor, Tensor]:
    """The vectors [1, K, d] and the numbers [C, K] of rows that are only read; many requests share them."""
    reads = torch.stack([centred_read(probe) for probe in probes])
    return reads[None], torch.tensor([_probe_numbers(probe, ranking) for probe in probes]).T


def _fill_read(table: Rows, slot: int, probes: tuple[Probe, ...], ranking: Ranking) -> None:
    vectors, numbers = _only_read(probes, ranking)
    table.vectors[slot, :, : len(probes)] = vectors.to(table.vectors)
    table.numbers[slot, :, : len(probes)] = numbers.to(table.numbers)


def rows_to_read(count: int, width: int, device: torch.device | str) -> Rows:
    """Empty rows of one slot that are only read."""
    return Rows(torch.zeros(1, 1, count, width, device=device), torch.zeros(1, COLUMNS, count, device=device))


def put_to_read(table: Rows, place: int, probe: Probe | None, ranking: Ranking) -> None:
    """Let a row of the only slot read a probe, or nothing."""
    for tensor, new in (
        (table.vectors[0, 0], None if probe is None else centred_read(probe)),
        (table.numbers[0].T, None if probe is None else torch.tensor(_probe_numbers(probe, ranking))),
    ):
        tensor[place] = 0.0 if new is None else new.to(tensor)


def rows_of_dictionary(
    read: Tensor,
    gate_bias: Tensor,
    threshold: Tensor,
    gain: Tensor,
    value_bias: Tensor,
    norm: Norm,
    groups: int = 0,
) -> Rows:
    """Rows of one slot that read M features, each as `put_to_read` would put its probe.

    read: float32 [d, M], which is not copied unless for layer norm; the others: float64 [M], see Probe.
    groups: in how many groups rank decides which features are active; 0 where it does not.
    """
    numbers = torch.zeros(1, COLUMNS, read.shape[1], device=read.device)
    numbers[0, Column.THRESHOLD] = (threshold - gate_bias).to(torch.float32)
    numbers[0, Column.GAIN] = gain.to(torch.float32)
    numbers[0, Column.BIAS] = value_bias.to(torch.float32)
    numbers[0, Column.NORM] = float(norm)
    if groups:
        features = torch.arange(read.shape[1], device=read.device)
        numbers[0, Column.RANK] = 1.0 + (features // (read.shape[1] // groups)).to(torch.float32)
    centred = read - read.mean(0) if norm is Norm.LAYER_NORM else read
    return Rows(centred.T[None, None], numbers)


def _fill(table: Rows, slot: int, reads: Sequence[Tensor], writes: Sequence[Tensor]) -> None:
    vectors = torch.stack((torch.stack(list(reads)), torch.stack(list(writes))))
    table.vectors[slot, :, : len(reads)] = vectors.to(table.vectors)


def _fill_numbers(table: Rows | Bounds, slot: int, numbers: list[list[float]]) -> None:
    table.numbers[slot, :, : len(numbers)] = torch.tensor(numbers).T.to(table.numbers)


class SiteTable:
    """The rows of every slot at one site. Slots are written when a request is admitted.

    Empty rows read nothing, change nothing and cost a multiplication by zero. There is one row of each kind
    beyond the capacity: to the compiler a slice that takes a whole tensor would be another program.
    """

    def __init__(
        self,
        slots: int,
        width: int,
        capacity: Capacity,
        device: torch.device | str = "cpu",
        ranking: Ranking | None = None,
    ) -> None:
        """Allocate for `slots` slots of activations [.., width]. ranking: of the SAEs that decide by rank."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(slots, *shape, dtype=torch.float32, device=device)

        def rows(count: int, vectors: int = 2) -> Rows:
            return Rows(zeros(vectors, count + 1, width), zeros(COLUMNS, count + 1))

        k = capacity.held + 1
        self.capacity, self.ranking = capacity, Ranking() if ranking is None else ranking
        self.edits, self.rules = rows(capacity.edits), rows(capacity.rules)
        self.watches, self.guards = rows(capacity.watches, 1), rows(capacity.watches, 1)
        open_ranges = _OPEN_RANGE.to(device)[:, None].repeat(slots, 2, RANGES, 1, k)
        self.bounds = Bounds(zeros(2, k, width), zeros(COLUMNS, k), zeros(5, k, k), zeros(5, k), open_ranges)
        # Which kinds of rows each slot has that is not empty.
        self._used: dict[int, list[Rows | Bounds]] = {}
        # Which cuts the program of each slot needs that needs any.
        self._needs: dict[int, frozenset[tuple[int, Moment]]] = {}

    def write(
        self, slot: int, program: SiteProgram, held: HeldGeometry | None, moves: Tensor | None = None
    ) -> None:
        """Make `program`, which must fit, the one that `slot` runs at this site.

        held: its geometry. moves: what its edits write, float32 [E, d]; None for their own write vectors.
        Raises SteeringError for a row whose rank cannot be told here.
        """
        needs = self.ranking.needs_of(program)
        self.clear(slot)
        if needs:
            self._needs[slot] = needs
        used = self._used.setdefault(slot, [])
        own = [edit.write for edit in program.edits] if moves is None else list(moves)
        written = own, [rule.write for rule in program.rules]
        for table, edits, writes in zip(
            (self.edits, self.rules), (program.edits, program.rules), written, strict=True
        ):
            if edits:
                used.append(table)
                _fill(table, slot, [centred_read(edit.probe) for edit in edits], writes)
                _fill_numbers(table, slot, [_edit_numbers(edit, self.ranking) for edit in edits])
        if program.max_relative_norm is not None and program.edits:
            self.edits.numbers[slot, Column.TIGHTNESS, 0] = _tightness(program.max_relative_norm)
        for table, probes in ((self.watches, program.watches), (self.guards, program.guards)):
            if probes:
                used.append(table)
                _fill_read(table, slot, probes, self.ranking)
        if held is not None:
            used.append(self.bounds)
            self.bounds.fill(slot, program.bans, held, self.ranking)

    def view(self, slots: int, edits: int, rules: int, bounds: int, watches: int, guards: int) -> TableView:
        """The first rows of each kind of the first slots."""
        return TableView(
            self.edits.narrow(slots, edits),
            self.rules.narrow(slots, rules),
            self.bounds.narrow(slots, bounds),
            self.watches.narrow(slots, watches),
            self.guards.narrow(slots, guards),
        )

    def view_of(
        self, slots: Tensor, edits: int, rules: int, bounds: int, watches: int, guards: int
    ) -> TableView:
        """The first rows of each kind of some slots, an int64 [S]."""
        every = self.view(self.edits.vectors.shape[0], edits, rules, bounds, watches, guards)

        def pick(group: Rows) -> Rows:
            return Rows(*(tensor.index_select(0, slots) for tensor in group))

        own = Bounds(*(tensor.index_select(0, slots) for tensor in every.bounds))
        return TableView(pick(every.edits), pick(every.rules), own, pick(every.watches), pick(every.guards))

    def needs(self, slots: Iterable[int]) -> set[tuple[int, Moment]]:
        """Which cuts the programs of some slots need."""
        return {need for slot in slots for need in self._needs.get(slot, ())} if self._needs else set()

    def clear(self, slot: int) -> None:
        """Leave `slot` unsteered."""
        self._needs.pop(slot, None)
        for kind in self._used.pop(slot, ()):
            if isinstance(kind, Bounds):
                kind.clear(slot)
                continue
            for tensor in kind:
                tensor[slot] = 0.0

    def move(self, source: int, target: int) -> None:
        """Make `target` run what `source` runs, and leave `source` empty."""
        self.clear(target)
        if source not in self._used:
            return
        if source in self._needs:
            self._needs[target] = self._needs[source]
        self._used[target] = self._used[source]
        for kind in self._used[target]:
            for tensor in kind:
                tensor[target] = tensor[source]
        self.clear(source)
