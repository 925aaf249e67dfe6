"""Programs: a request's steering message to the rows that the engine runs, every error with its field."""

from dataclasses import dataclass, field

from saegis.v1 import steering_pb2 as pb
from saegis_server.engine.api import FieldError
from saegis_server.rpc.wire.problems import ConflictError
from saegis_server.rpc.wire.targets import Resolved, Targets
from saegis_server.sae.request_edit import RequestEdit, UnitError, scaled
from saegis_server.steering.operations import Op, Unit
from saegis_server.steering.program import SiteProgram, SteeringError, SteeringProgram
from saegis_server.steering.rows import Edit, Phase, Probe
from saegis_server.steering.site import Site
from saegis_server.steering.table import Capacity

#: What the contract's numbers mean; every operation, unit and phase of it has its word in `steering`.
_OPS = {number: Op[name.removeprefix("OPERATION_")] for name, number in pb.Operation.items() if number}
_UNITS = {number: Unit[name.removeprefix("UNIT_")] for name, number in pb.Unit.items() if number}
_PHASES = {number: Phase[name.removeprefix("PHASE_")] for name, number in pb.Phase.items() if number}


@dataclass(slots=True)
class _SiteRows:
    """The rows of one site while they are gathered, each with its place in the request."""

    edits: list[tuple[int, Edit]] = field(default_factory=list)
    bans: list[tuple[int, Edit]] = field(default_factory=list)
    watches: list[tuple[int, Probe]] = field(default_factory=list)
    #: By kind (a ban or not), probe and phase, the place of the first edit: what is looked up, not searched.
    first: dict[tuple[bool, str, Phase], int] = field(default_factory=dict)

    def places(self) -> list[tuple[str, int, int]]:
        """Of each row its stage, its number in that stage, and its place in the request."""
        stages = (
            ("edits", [place for place, _ in self.edits]),
            ("bans", [place for place, _ in self.bans]),
            ("watches", [place for place, _ in self.watches]),
        )
        return [(stage, row, place) for stage, places in stages for row, place in enumerate(places)]

    def program(self) -> SiteProgram:
        return SiteProgram(
            edits=tuple(edit for _, edit in self.edits),
            bans=tuple(edit for _, edit in self.bans),
            watches=tuple(probe for _, probe in self.watches),
        )


@dataclass(frozen=True, slots=True)
class RequestSteering:
    """A request's program, and which of the request's edits and watches its rows came from.

    watches: for each watch of the program, in the order of its sites, its place in the request.
    paths: the field path of each row, by site, stage and place in that stage. edits: what the operator's
    policies judge, edits and then watches, in the order of the request.
    """

    program: SteeringProgram
    watches: tuple[int, ...] = ()
    paths: dict[tuple[Site, str, int], str] = field(default_factory=dict)
    edits: tuple[RequestEdit, ...] = ()

    def explain(self, error: SteeringError) -> FieldError:
        """The error of a program as one of the request's fields."""
        return _explain(error, self.paths)

    def require_room(self, capacity: Capacity) -> None:
        """Raise FieldError where the request's own rows, by themselves, are more than there is room for."""
        try:
            for site, rows in self.program.sites.items():
                capacity.check(site, rows)
        except SteeringError as error:
            raise self.explain(error) from error


def request_steering(message: pb.Steering, targets: Targets, capacity: Capacity) -> RequestSteering:
    """The program of a request's own edits and watches, which is still to be admitted.

    Raises FieldError, ConflictError and the catalog's errors, with paths from `steering.`.
    """
    _check_counts(message, len(targets.sites), capacity)
    gathered = {site: _SiteRows() for site in targets.sites}
    edits = []
    for place, edit in enumerate(message.edits):
        path = f"steering.edits[{place}]"
        resolved = targets.resolve(edit, edit.WhichOneof("target"), path)
        found = _edit(edit, resolved, path)
        edits.append(found)
        at_site = gathered[resolved.site]
        _check_conflicts(place, found.edit, at_site, found.op.bans)
        (at_site.bans if found.op.bans else at_site.edits).append((place, found.edit))
    for place, watch in enumerate(message.watches):
        path = f"steering.watches[{place}]"
        resolved = targets.resolve(watch, watch.WhichOneof("target"), path)
        gathered[resolved.site].watches.append((place, resolved.probe))
        row = Op.WATCH.row(resolved.probe, 0.0)
        edits.append(RequestEdit(path, resolved.site, Op.WATCH, row, resolved.feature))
    used = {site: found for site, found in gathered.items() if found.places()}
    return _assemble(used, tuple(edits))


def _assemble(gathered: dict[Site, _SiteRows], edits: tuple[RequestEdit, ...]) -> RequestSteering:
    paths: dict[tuple[Site, str, int], str] = {}
    for site, found in gathered.items():
        for stage, row, place in found.places():
            kind = "watches" if stage == "watches" else "edits"
            paths[site, stage, row] = f"steering.{kind}[{place}]"
    try:
        program = SteeringProgram({site: found.program() for site, found in gathered.items()})
    except SteeringError as error:
        raise _explain(error, paths) from error
    watches = tuple(place for found in gathered.values() for place, _ in found.watches)
    return RequestSteering(program, watches, paths, edits)


def _explain(error: SteeringError, paths: dict[tuple[Site, str, int], str]) -> FieldError:
    site = error.site
    found = [paths[site, *row] for row in error.rows if site is not None and (site, *row) in paths]
    if not found:
        return FieldError("steering", str(error))
    if len(found) == 1:
        return FieldError(found[0], str(error))
    return ConflictError(found[-1], tuple(found[:-1]), str(error))


def _edit(message: pb.Edit, target: Resolved, path: str) -> RequestEdit:
    """An edit with its row, its value in the unit in which it was asked for."""
    if message.phase and message.phase not in _PHASES:
        raise FieldError(f"{path}.phase", f"there is no phase {message.phase}")
    if (op := _OPS.get(message.operation)) is None:
        known = f"there is no operation {message.operation}" if message.operation else "must be given"
        raise FieldError(f"{path}.operation", known)
    if op.units and message.unit and message.unit not in _UNITS:
        raise FieldError(f"{path}.unit", f"there is no unit {message.unit}")
    unit = _UNITS.get(message.unit, Unit.FEATURE)
    asked = message.value if message.HasField("value") else None
    if fault := op.fault(asked, unit if message.unit else None, pb.Operation.Name(message.operation)):
        raise FieldError(f"{path}.{fault[0]}", fault[1])
    try:
        value, relative = scaled(asked or 0.0, unit, target.feature)
    except UnitError as error:
        raise FieldError(f"{path}.{error.field}", str(error)) from error
    row = op.row(target.probe, value, _PHASES.get(message.phase, Phase.ALL), relative)
    return RequestEdit(path, target.site, op, row, target.feature, asked, unit)


def _check_conflicts(place: int, row: Edit, at_site: _SiteRows, is_ban: bool) -> None:
    """A feature that is banned can have no other edit or ban at the same tokens."""
    phases = tuple(Phase) if row.phase == Phase.ALL else (Phase.ALL, row.phase)
    for banned in (True, False) if is_ban else (True,):
        for phase in phases:
            other = at_site.first.get((banned, row.probe.key, phase))
            if other is not None:
                raise ConflictError(
                    f"steering.edits[{place}]",
                    (f"steering.edits[{other}]",),
                    "one of the two bans what the other one edits, at the same tokens",
                )
    at_site.first.setdefault((is_ban, row.probe.key, row.phase), place)


def _check_counts(message: pb.Steering, sites: int, capacity: Capacity) -> None:
    """Whether all sites together have room for as many edits and watches; checked before any is read."""
    rooms = (("edits", capacity.edits + capacity.bans), ("watches", capacity.watches))
    for name, room in rooms:
        if (count := len(getattr(message, name))) > room * max(sites, 1):
            raise FieldError(
                f"steering.{name}", f"at most {room * max(sites, 1)} at all sites together, not {count}"
            )
