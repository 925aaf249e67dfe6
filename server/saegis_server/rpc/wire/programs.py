"""Programs: a request's steering message to the rows that the engine runs, every error with its field."""

import math
from dataclasses import dataclass, field

from saegis.v1 import steering_pb2 as pb
from saegis_server.engine.api import FieldError
from saegis_server.policy.decide.decision import RequestEdit
from saegis_server.policy.decide.operations import WITH_UNIT, row_of
from saegis_server.policy.schema.policy import Op, Unit
from saegis_server.rpc.wire.problems import ConflictError
from saegis_server.rpc.wire.targets import Resolved, Targets
from saegis_server.steering.program import LARGEST_VALUE, SiteProgram, SteeringError, SteeringProgram
from saegis_server.steering.rows import Edit, Phase, Probe
from saegis_server.steering.table import Capacity

_PHASES = {
    pb.PHASE_UNSPECIFIED: Phase.ALL,
    pb.PHASE_ALL: Phase.ALL,
    pb.PHASE_PROMPT: Phase.PROMPT,
    pb.PHASE_COMPLETION: Phase.COMPLETION,
}
_OPS: dict[int, Op] = {
    pb.OPERATION_CLAMP: Op.CLAMP,
    pb.OPERATION_CLAMP_IF_ACTIVE: Op.CLAMP_IF_ACTIVE,
    pb.OPERATION_SCALE: Op.SCALE,
    pb.OPERATION_ADD: Op.ADD,
    pb.OPERATION_CAP: Op.CAP,
    pb.OPERATION_FLOOR: Op.FLOOR,
    pb.OPERATION_ABLATE: Op.ABLATE,
    pb.OPERATION_BAN: Op.BAN,
}
_UNITS = {
    pb.UNIT_UNSPECIFIED: Unit.FEATURE,
    pb.UNIT_FEATURE: Unit.FEATURE,
    pb.UNIT_MAX_ACTIVATION: Unit.MAX_ACTIVATION,
    pb.UNIT_NORM_FRACTION: Unit.NORM_FRACTION,
}


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
    paths: dict[tuple[str, str, int], str] = field(default_factory=dict)
    edits: tuple[RequestEdit, ...] = ()

    def explain(self, error: SteeringError) -> FieldError:
        """The error of a program as one of the request's fields."""
        return _explain(error, self.paths)


def request_steering(message: pb.Steering, targets: Targets, capacity: Capacity) -> RequestSteering:
    """The program of a request's own edits and watches.

    Raises FieldError, ConflictError and the catalog's errors, with paths from `steering.`.
    """
    _check_counts(message, len(targets.sites), capacity)
    gathered = {site: _SiteRows() for site in targets.sites}
    edits = []
    for place, edit in enumerate(message.edits):
        path = f"steering.edits[{place}]"
        resolved = targets.resolve(edit, edit.WhichOneof("target"), path)
        row = _edit(edit, resolved, path)
        edits.append(_judged(edit, resolved, row, path))
        at_site = gathered[resolved.site]
        _check_conflicts(place, row, at_site, is_ban=edit.operation == pb.OPERATION_BAN)
        (at_site.bans if edit.operation == pb.OPERATION_BAN else at_site.edits).append((place, row))
    for place, watch in enumerate(message.watches):
        resolved = targets.resolve(watch, watch.WhichOneof("target"), f"steering.watches[{place}]")
        gathered[resolved.site].watches.append((place, resolved.probe))
        row = row_of(Op.WATCH, resolved.probe, 0.0, Phase.ALL)
        path = f"steering.watches[{place}]"
        edits.append(RequestEdit(path, resolved.site, Op.WATCH, row, resolved.feature))
    used = {site: found for site, found in gathered.items() if found.places()}
    return _assemble(used, capacity, tuple(edits))


def _assemble(
    gathered: dict[str, _SiteRows], capacity: Capacity, edits: tuple[RequestEdit, ...]
) -> RequestSteering:
    paths: dict[tuple[str, str, int], str] = {}
    for site, found in gathered.items():
        for stage, row, place in found.places():
            kind = "watches" if stage == "watches" else "edits"
            paths[site, stage, row] = f"steering.{kind}[{place}]"
    try:
        program = SteeringProgram({site: found.program() for site, found in gathered.items()})
        for site, rows_at_site in program.sites.items():
            capacity.check(site, rows_at_site)
    except SteeringError as error:
        raise _explain(error, paths) from error
    watches = tuple(place for found in gathered.values() for place, _ in found.watches)
    return RequestSteering(program, watches, paths, edits)


def _explain(error: SteeringError, paths: dict[tuple[str, str, int], str]) -> FieldError:
    found = [paths[error.site, *row] for row in error.rows if (error.site, *row) in paths]
    if not found:
        return FieldError("steering", str(error))
    if len(found) == 1:
        return FieldError(found[0], str(error))
    return ConflictError(found[-1], tuple(found[:-1]), str(error))


def _edit(message: pb.Edit, target: Resolved, path: str) -> Edit:
    phase = _PHASES.get(message.phase)
    if phase is None:
        raise FieldError(f"{path}.phase", f"there is no phase {message.phase}")
    op = _OPS.get(message.operation)
    if op is None:
        unset = message.operation == pb.OPERATION_UNSPECIFIED
        known = "must be given" if unset else f"there is no operation {message.operation}"
        raise FieldError(f"{path}.operation", known)
    if op in WITH_UNIT:
        value, relative = _value_in_unit(message, target, path)
    else:
        value, relative = _value_without_unit(op, message, path), False
    return row_of(op, target.probe, value, phase, relative)


def _value_without_unit(op: Op, message: pb.Edit, path: str) -> float:
    """The value of an operation whose value has no unit; 0 where it may be left out and is."""
    name = pb.Operation.Name(message.operation)
    if message.unit != pb.UNIT_UNSPECIFIED:
        raise FieldError(f"{path}.unit", f"{name} takes no unit")
    if op is Op.SCALE:
        return _value(message, path)
    if op is Op.ABLATE and message.HasField("value"):
        raise FieldError(f"{path}.value", f"{name} takes no value")
    strength = _value(message, path) if message.HasField("value") else 0.0
    if strength < 0.0:
        raise FieldError(f"{path}.value", f"the strength of a ban must be at least 0, not {strength:g}")
    return strength


def _judged(message: pb.Edit, target: Resolved, row: Edit, path: str) -> RequestEdit:
    """The edit as the policies judge it: what was asked for, in its own unit, and what it becomes."""
    return RequestEdit(
        path=path,
        site=target.site,
        op=_OPS[message.operation],
        edit=row,
        feature=target.feature,
        value=message.value if message.HasField("value") else None,
        unit=_UNITS[message.unit],
    )


def _value(message: pb.Edit, path: str) -> float:
    if not message.HasField("value"):
        raise FieldError(f"{path}.value", f"{pb.Operation.Name(message.operation)} needs a value")
    return _checked(message.value, path)


def _checked(value: float, path: str) -> float:
    if not math.isfinite(value):
        raise FieldError(f"{path}.value", f"must be a finite number, not {value}")
    if abs(value) > LARGEST_VALUE:
        raise FieldError(f"{path}.value", f"must lie between ±{LARGEST_VALUE:g}, not {value:g}")
    return value


def _value_in_unit(message: pb.Edit, target: Resolved, path: str) -> tuple[float, bool]:
    """The value in feature units or, with True, as a fraction of the activation's norm."""
    value = _value(message, path)
    if message.unit in (pb.UNIT_UNSPECIFIED, pb.UNIT_FEATURE):
        return value, False
    if message.unit == pb.UNIT_NORM_FRACTION:
        return value, True
    if message.unit != pb.UNIT_MAX_ACTIVATION:
        raise FieldError(f"{path}.unit", f"there is no unit {message.unit}")
    if target.feature is None:
        raise FieldError(f"{path}.unit", "UNIT_MAX_ACTIVATION is for features; a direction has no maximum")
    if not target.feature.max_activation:
        raise FieldError(f"{path}.unit", "no largest activation is recorded for this feature")
    return _checked(value * target.feature.max_activation, path), False


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
