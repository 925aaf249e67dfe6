"""Operations: what each operation of a request's edits makes of a probe and a value."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from saegis_server.policy.schema.policy import Op
from saegis_server.steering import rows
from saegis_server.steering.rows import Edit, Phase, Probe

#: Operations whose value has a unit, and what makes their row.
_WITH_UNIT: Mapping[Op, Callable[..., Edit]] = {
    Op.CLAMP: rows.clamp,
    Op.CLAMP_IF_ACTIVE: rows.clamp_if_active,
    Op.ADD: rows.add,
    Op.CAP: rows.cap,
    Op.FLOOR: rows.floor,
}
WITH_UNIT = frozenset(_WITH_UNIT)


def row_of(op: Op, probe: Probe, value: float, phase: Phase, relative: bool = False) -> Edit:
    """The row of an operation.

    value: in feature units or, with `relative`, a fraction of ‖x‖; the factor of a scale, the strength of a
    ban; of no account for ablate and for watch, whose row changes nothing.
    """
    if op is Op.WATCH:
        return Edit(probe, phase=phase)
    if op is Op.SCALE:
        return rows.scale(probe, value, phase=phase)
    if op is Op.ABLATE:
        return rows.ablate(probe, phase=phase)
    if op is Op.BAN:
        return rows.ban(probe, value, phase=phase)
    return _WITH_UNIT[op](probe, value, phase=phase, relative=relative)
