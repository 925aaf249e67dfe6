"""Tables: the programs of all running slots at one site, as tensors of a fixed size."""

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from saegis_server.steering.program import SiteProgram, SteeringError
from saegis_server.steering.projection import NO_LIMIT, ban_geometry
from saegis_server.steering.rows import Edit, Norm, Probe


class Column(IntEnum):
    """What each number of a row means; the last axis of `numbers`."""

    GATE_BIAS = 0
    THRESHOLD = 1
    GAIN = 2
    VALUE_BIAS = 3
    LINEAR = 4
    NORM = 5
    A = 6
    B = 7
    LO = 8
    HI = 9
    ONLY_IF_ACTIVE = 10
    RELATIVE = 11
    PHASE = 12
    IS_ROW = 13


COLUMNS = len(Column)
#: Stands for ±infinity in a table, so that padded arithmetic never makes a NaN.
UNBOUNDED = 3e38


@dataclass(frozen=True, slots=True)
class Capacity:
    """How many rows of each kind a slot has room for, at each site. At least 2 of each."""

    edits: int = 32
    rules: int = 8
    bans: int = 32
    watches: int = 32

    def check(self, site: str, program: SiteProgram) -> None:
        """Raise SteeringError if `program` asks for more rows than there is room for."""
        for kind in ("edits", "rules", "bans", "watches"):
            wanted, room = len(getattr(program, kind)), getattr(self, kind)
            if wanted > room:
                raise SteeringError(
                    f"{wanted} {kind} at {site}; this server has room for {room}", site, ((kind, room),)
                )


class Rows(NamedTuple):
    """Rows of every slot: read and write [S, K, d], numbers [S, K, columns]; float32."""

    read: Tensor
    write: Tensor
    numbers: Tensor


class Bans(NamedTuple):
    """Bans of every slot in the coordinates of their span (see projection.BanGeometry); float32.

    basis and write [S, K, d], numbers [S, K, columns], rows, gram, gram_pinv and writes [S, K, K],
    interior, descent, lengths and limits [S, K], step [S].
    """

    basis: Tensor
    write: Tensor
    numbers: Tensor
    rows: Tensor
    gram: Tensor
    gram_pinv: Tensor
    writes: Tensor
    interior: Tensor
    descent: Tensor
    lengths: Tensor
    limits: Tensor
    step: Tensor


class Watches(NamedTuple):
    """Watched probes of every slot: read [S, K, d], numbers [S, K, columns]; float32."""

    read: Tensor
    numbers: Tensor


class TableView(NamedTuple):
    """The tables as one step sees them: the step's slots, and no more rows than its programs use."""

    edits: Rows
    rules: Rows
    bans: Bans
    watches: Watches


def _probe_numbers(probe: Probe) -> list[float]:
    numbers = [0.0] * COLUMNS
    numbers[Column.GATE_BIAS] = probe.gate_bias
    numbers[Column.THRESHOLD] = probe.threshold
    numbers[Column.GAIN] = probe.gain
    numbers[Column.VALUE_BIAS] = probe.value_bias
    numbers[Column.LINEAR] = float(probe.linear)
    numbers[Column.NORM] = float(probe.norm)
    numbers[Column.A] = 1.0
    numbers[Column.LO], numbers[Column.HI] = -UNBOUNDED, UNBOUNDED
    numbers[Column.IS_ROW] = 1.0
    return numbers


def _edit_numbers(edit: Edit) -> list[float]:
    numbers = _probe_numbers(edit.probe)
    numbers[Column.A], numbers[Column.B] = edit.a, edit.b
    numbers[Column.LO], numbers[Column.HI] = max(edit.lo, -UNBOUNDED), min(edit.hi, UNBOUNDED)
    numbers[Column.ONLY_IF_ACTIVE] = float(edit.only_if_active)
    numbers[Column.RELATIVE] = float(edit.relative_to_norm)
    numbers[Column.PHASE] = float(edit.phase)
    return numbers


def centred_read(probe: Probe) -> Tensor:
    """The read row, with its mean removed for layer norm: r·(x − mean(x)) = (r − mean(r))·x."""
    return probe.read - probe.read.mean() if probe.norm is Norm.LAYER_NORM else probe.read


class SiteTable:
    """The rows of every slot at one site. Slots are written when a request is admitted.

    Empty rows read nothing, change nothing and cost a multiplication by zero.
    """

    def __init__(
        self,
        slots: int,
        width: int,
        capacity: Capacity,
        device: torch.device | str = "cpu",
        activations: torch.dtype = torch.float32,
    ) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(slots, *shape, dtype=torch.float32, device=device)

        def rows(count: int) -> Rows:
            return Rows(zeros(count, width), zeros(count, width), zeros(count, COLUMNS))

        k = capacity.bans
        square = (k, k)
        self.capacity = capacity
        self.activations = activations
        self.edits = rows(capacity.edits)
        self.rules = rows(capacity.rules)
        self.bans = Bans(
            *(zeros(k, width), zeros(k, width), zeros(k, COLUMNS)),
            *(zeros(*square), zeros(*square), zeros(*square), zeros(*square)),
            *(zeros(k), zeros(k), zeros(k), zeros(k), zeros()),
        )
        self.watches = Watches(zeros(capacity.watches, width), zeros(capacity.watches, COLUMNS))
        self._used: set[int] = set()
        self.bans.limits.fill_(NO_LIMIT)

    def write(self, slot: int, program: SiteProgram) -> None:
        """Make `program` the one that `slot` runs at this site.

        Raises SteeringError if it does not fit or its bans cannot hold; the slot is then empty.
        """
        self.clear(slot)
        self.capacity.check("this site", program)
        self._used.add(slot)
        for table, edits in ((self.edits, program.edits), (self.rules, program.rules)):
            if edits:
                count = len(edits)
                table.read[slot, :count] = torch.stack([centred_read(edit.probe) for edit in edits]).to(
                    table.read
                )
                table.write[slot, :count] = torch.stack([edit.probe.write for edit in edits]).to(table.write)
                table.numbers[slot, :count] = torch.tensor([_edit_numbers(e) for e in edits]).to(
                    table.numbers
                )
        if program.watches:
            count = len(program.watches)
            reads = torch.stack([centred_read(probe) for probe in program.watches])
            self.watches.read[slot, :count] = reads.to(self.watches.read)
            numbers = torch.tensor([_probe_numbers(probe) for probe in program.watches])
            self.watches.numbers[slot, :count] = numbers.to(self.watches.numbers)
        if program.bans:
            self._write_bans(slot, program.bans)

    def _write_bans(self, slot: int, edits: tuple[Edit, ...]) -> None:
        geometry, count = ban_geometry(edits, "this site", self.activations), len(edits)
        table = self.bans
        table.basis[slot, :count] = geometry.basis.to(table.basis)
        table.write[slot, :count] = torch.stack([edit.probe.write for edit in edits]).to(table.write)
        table.numbers[slot, :count] = torch.tensor([_edit_numbers(edit) for edit in edits]).to(table.numbers)
        for name in ("rows", "gram", "gram_pinv", "writes"):
            getattr(table, name)[slot, :count, :count] = getattr(geometry, name).to(table.rows)
        for name in ("interior", "descent", "lengths", "limits"):
            getattr(table, name)[slot, :count] = getattr(geometry, name).to(table.limits)
        table.step[slot] = geometry.step

    def clear(self, slot: int) -> None:
        """Leave `slot` unsteered."""
        if slot not in self._used:
            return
        self._used.discard(slot)
        for group in (self.edits, self.rules, self.bans, self.watches):
            for tensor in group:
                tensor[slot] = 0.0
        self.bans.limits[slot] = NO_LIMIT

    def move(self, source: int, target: int) -> None:
        """Make `target` run what `source` runs, and leave `source` empty."""
        self.clear(target)
        if source not in self._used:
            return
        for group in (self.edits, self.rules, self.bans, self.watches):
            for tensor in group:
                tensor[target] = tensor[source]
        self._used.add(target)
        self.clear(source)
