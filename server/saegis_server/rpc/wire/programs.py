"""Programs: turns a request's steering message into the rows that the engine runs. Errors name fields."""

from dataclasses import dataclass, field, replace

from saegis.v1 import steering_pb2 as pb
from saegis_server.engine.api import FieldError
from saegis_server.engine.readouts import NO_READOUTS, Readouts
from saegis_server.rpc.wire.problems import ConflictError
from saegis_server.rpc.wire.targets import Resolved, Targets
from saegis_server.sae.request_edit import EditError, RequestEdit, Wish, request_edit
from saegis_server.steering.operations import Op, Unit
from saegis_server.steering.program import SiteProgram, SteeringError, SteeringProgram
from saegis_server.steering.rows import Edit, Phase, Probe
from saegis_server.steering.site import Site
from saegis_server.steering.table import Capacity

#: The contract's numbers as operations, units and phases of `steering`.
_OPS = {number: Op[name.removeprefix("OPERATION_")] for name, number in pb.Operation.items() if number}
_UNITS = {number: Unit[name.removeprefix("UNIT_")] for name, number in pb.Unit.items() if number}
_PHASES = {number: Phase[name.removeprefix("PHASE_")] for name, number in pb.Phase.items() if number}
#: What the contract calls the parts of a redirect.
_FIELDS = {"to": "redirect", "strength": "redirect.strength", "threshold": "redirect.threshold"}


@dataclass(slots=True)
class _SiteRows:
    """The rows of one site while they are collected, each with its place in the request."""

    edits: list[tuple[int, Edit]] = field(default_factory=list)
    bans: list[tuple[int, Edit]] = field(default_factory=list)
    watches: list[tuple[int, Probe]] = field(default_factory=list)
    #: The place of the first edit by kind (a ban or not), probe and phase, for quick look-ups. A redirect
    #: also stands there as an edit of what it writes.
    first: dict[tuple[bool, str, Phase], int] = field(default_factory=dict)

    def places(self) -> list[tuple[str, int, int]]:
        """The stage of each row, its number in that stage, and its place in the request."""
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
    """A request's program, and where in the request its rows come from.

    watches: the place in the request of each watch of the program, in the order of its sites. paths: the
    field path of each row, by site, stage and number in that stage. edits: the edits and then the watches in
    the request's order, for the operator's policies to judge. readouts: what is to be told of single tokens.
    """

    program: SteeringProgram
    watches: tuple[int, ...] = ()
    paths: dict[tuple[Site, str, int], str] = field(default_factory=dict)
    edits: tuple[RequestEdit, ...] = ()
    readouts: Readouts = NO_READOUTS

    def explain(self, error: SteeringError) -> FieldError:
        """The error of a program as an error of the request's field."""
        return _explain(error, self.paths)

    def require_room(self, capacity: Capacity) -> None:
        """Raise FieldError if the request's own rows alone exceed the capacity."""
        try:
            for site, rows in self.program.sites.items():
                capacity.check(site, rows)
        except SteeringError as error:
            raise self.explain(error) from error


def request_steering(message: pb.Steering, targets: Targets, capacity: Capacity) -> RequestSteering:
    """The program of a request's own edits and watches, not admitted yet.

    Raises FieldError, ConflictError and the catalog's errors, with paths from `steering.`.
    """
    _check_counts(message, len(targets.sites), capacity)
    gathered = {site: _SiteRows() for site in targets.sites}
    edits = []
    for place, edit in enumerate(message.edits):
        path = f"steering.edits[{place}]"
        resolved = targets.resolve(edit, edit.WhichOneof("target"), path)
        asked = _edit(edit, resolved, targets, path)
        edits.append(asked)
        at_site = gathered[resolved.site]
        _check_conflicts(place, asked, at_site)
        (at_site.bans if asked.op.bans else at_site.edits).append((place, asked.edit))
    for place, watch in enumerate(message.watches):
        path = f"steering.watches[{place}]"
        resolved = targets.resolve(watch, watch.WhichOneof("target"), path)
        gathered[resolved.site].watches.append((place, resolved.probe))
        row = Op.WATCH.row(resolved.probe, 0.0)
        asked = RequestEdit(path, resolved.site, Op.WATCH, row, resolved.feature)
        edits.append(replace(asked, direction_name=resolved.direction_name))
    used = {site: rows for site, rows in gathered.items() if rows.places()}
    return replace(_assemble(used, tuple(edits)), readouts=_readouts(message))


def _readouts(message: pb.Steering) -> Readouts:
    if message.read_prompt and not (message.watches or message.read_moves):
        raise FieldError("steering.read_prompt", "there is nothing to read: give watches, or set read_moves")
    return Readouts(message.read_prompt, message.read_moves)


def _assemble(gathered: dict[Site, _SiteRows], edits: tuple[RequestEdit, ...]) -> RequestSteering:
    paths: dict[tuple[Site, str, int], str] = {}
    for site, rows in gathered.items():
        for stage, row, place in rows.places():
            kind = "watches" if stage == "watches" else "edits"
            paths[site, stage, row] = f"steering.{kind}[{place}]"
    try:
        program = SteeringProgram({site: rows.program() for site, rows in gathered.items()})
    except SteeringError as error:
        raise _explain(error, paths) from error
    watches = tuple(place for rows in gathered.values() for place, _ in rows.watches)
    return RequestSteering(program, watches, paths, edits)


def _explain(error: SteeringError, paths: dict[tuple[Site, str, int], str]) -> FieldError:
    site = error.site
    fields = [paths[site, *row] for row in error.rows if site is not None and (site, *row) in paths]
    if not fields:
        return FieldError("steering", str(error))
    if len(fields) == 1:
        return FieldError(fields[0], str(error))
    return ConflictError(fields[-1], tuple(fields[:-1]), str(error))


def _edit(message: pb.Edit, target: Resolved, targets: Targets, path: str) -> RequestEdit:
    """An edit with its row and, in the requested unit, its value."""
    if message.phase and message.phase not in _PHASES:
        raise FieldError(f"{path}.phase", f"there is no phase {message.phase}")
    if (op := _OPS.get(message.operation)) is None:
        reason = f"there is no operation {message.operation}" if message.operation else "must be given"
        raise FieldError(f"{path}.operation", reason)
    if op.units and message.unit and message.unit not in _UNITS:
        raise FieldError(f"{path}.unit", f"there is no unit {message.unit}")
    to = message.redirect if message.HasField("redirect") else None
    wish = Wish(
        op=op,
        value=message.value if message.HasField("value") else None,
        unit=_UNITS.get(message.unit, Unit.FEATURE) if message.unit else None,
        phase=_PHASES.get(message.phase, Phase.ALL),
        to=None if to is None else targets.written(to, target.site, f"{path}.redirect"),
        strength=message.redirect.strength,
        threshold=message.redirect.threshold,
        name=pb.Operation.Name(message.operation),
    )
    try:
        asked = request_edit(path, target, wish)
    except EditError as error:
        raise FieldError(f"{path}.{_FIELDS.get(error.field, error.field)}", str(error)) from error
    return replace(asked, direction_name=target.direction_name)


def _check_conflicts(place: int, edit: RequestEdit, at_site: _SiteRows) -> None:
    """Raise ConflictError if a banned feature has another edit or ban at the same tokens."""
    is_ban, own = edit.op.bans, edit.edit.phase
    phases = tuple(Phase) if own == Phase.ALL else (Phase.ALL, own)
    for probe in edit.probes:
        for banned in (True, False) if is_ban else (True,):
            for phase in phases:
                other = at_site.first.get((banned, probe.key, phase))
                if other is not None:
                    raise ConflictError(
                        f"steering.edits[{place}]",
                        (f"steering.edits[{other}]",),
                        "one of the two bans what the other one edits, at the same tokens",
                    )
        at_site.first.setdefault((is_ban, probe.key, own), place)


def _check_counts(message: pb.Steering, sites: int, capacity: Capacity) -> None:
    """Raise FieldError for more edits or watches than all sites together have room for."""
    rooms = (("edits", capacity.edits + capacity.bans), ("watches", capacity.watches))
    for name, room in rooms:
        if (count := len(getattr(message, name))) > room * max(sites, 1):
            raise FieldError(
                f"steering.{name}", f"at most {room * max(sites, 1)} at all sites together, not {count}"
            )
