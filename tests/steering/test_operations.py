"""The table of operations against what names them: the contract, the client, commands, the schema."""

import math
from enum import StrEnum
from functools import partial
from itertools import product
from typing import get_args

import pytest
import torch
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper

import saegis
from saegis.cli.edits import OPERATIONS, EditSyntaxError, parse_edit
from saegis.v1 import steering_pb2 as pb
from saegis_server.policy.schema import policy
from saegis_server.steering.operations import Op, Takes, Unit
from saegis_server.steering.rows import Edit, Phase, Probe, Redirection

PROBE = Probe("sae:1", torch.ones(4), torch.ones(4))
OTHER = Probe("sae:2", torch.ones(4), torch.ones(4))
#: Every operation with a value that it takes, or with none.
VALUES = {op: None if op.takes is Takes.NOTHING else 2.0 for op in Op}
#: Of every operation, what it writes instead, or none.
TO = {op: Redirection(OTHER, 0.5, 0.25) if op.redirects else None for op in Op}


@pytest.mark.parametrize(
    ("words", "contract", "client"),
    [
        (set(Op) - {Op.WATCH}, pb.Operation, saegis.Operation),
        (set(Unit), pb.Unit, saegis.Unit),
        (set(Phase), pb.Phase, saegis.Phase),
    ],
)
def test_the_contract_and_the_client_have_the_words_of_the_table(
    words: set[StrEnum], contract: EnumTypeWrapper, client: object
) -> None:
    prefix = f"{contract.DESCRIPTOR.name.upper()}_"
    numbered = {name.removeprefix(prefix).lower() for name, number in contract.items() if number}
    assert numbered == set(get_args(client)) == words


def test_the_client_makes_what_each_operation_takes() -> None:
    for op in set(Op) - {Op.WATCH, Op.CLAMP_IF_ACTIVE}:
        make = partial(getattr(saegis, op), **({"to": 2} if op.redirects else {}))
        edit = make(1) if op.takes is Takes.NOTHING else make(1, 2.0)
        assert (edit.operation, edit.value) == (op, VALUES[op])
        assert (edit.redirect is not None) is op.redirects
        for unit in op.units:
            assert make(1, 2.0, unit=unit).unit == unit
        if op.takes is Takes.MAYBE:
            assert op.fault(make(1).value, None) is None
        elif op.takes is Takes.VALUE:
            with pytest.raises(TypeError):
                make(1)


def test_the_command_line_reads_what_each_operation_takes() -> None:
    for op in (Op[name.upper()] for name in OPERATIONS):
        form, to = OPERATIONS[op], "7:" if op.redirects else ""
        assert (form.value == "") is (op.takes is Takes.NOTHING)
        assert form.is_optional is (op.takes is not Takes.VALUE)
        assert form.has_target is op.redirects
        if op.takes is Takes.NOTHING:
            assert parse_edit(op, "12") == form.make(12)
            continue
        assert parse_edit(op, f"12={to}2").value == 2.0
        for suffix, unit in (("max", Unit.MAX_ACTIVATION), ("norm", Unit.NORM_FRACTION)):
            if unit in op.units:
                assert parse_edit(op, f"12={to}2{suffix}").unit == unit
                continue
            with pytest.raises(EditSyntaxError, match="is no redirect" if to else "without a unit"):
                parse_edit(op, f"12={to}2{suffix}")


def test_the_rules_of_a_policy_take_what_their_operations_take() -> None:
    found = {op: get_args(policy.Rule.model_fields[op].annotation)[0] for op in Op if op in policy.ACTIONS}
    assert set(found) == {Op.CLAMP, Op.SCALE, Op.CAP, Op.FLOOR, Op.BAN, Op.REDIRECT, Op.WATCH}
    for op, model in found.items():
        keys = set(model.model_fields)
        assert ("unit" in keys) is bool(op.units)
        assert ("to" in keys) is op.redirects
        assert bool(keys & {"value", "factor", "strength"}) is (op.takes is not Takes.NOTHING)
    units = get_args(policy.Redirect.model_fields["unit"].annotation)
    assert set(units) == Op.REDIRECT.units
    assert set(get_args(get_args(policy.Allowance.model_fields["ops"].annotation)[0])) <= {Op, ...}


def test_an_edit_of_each_operation_is_its_row() -> None:
    for op, phase in product(Op, Phase):
        row = op.row(PROBE, 2.0, phase, to=TO[op])
        assert (row.probe, row.phase) == (PROBE, phase)
        if Unit.NORM_FRACTION in op.units:
            assert op.row(PROBE, 2.0, phase, relative=True).relative_to_norm
    assert Op.WATCH.row(PROBE, 2.0) == Edit(PROBE)
    assert Op.BAN.row(PROBE, 2.0).hi == 0.0
    assert [op for op in Op if op.bans] == [Op.BAN]
    redirect = Op.REDIRECT.row(PROBE, 2.0, to=TO[Op.REDIRECT])
    assert (redirect.a, redirect.above, redirect.target, redirect.factor) == (-0.5, 0.25, OTHER, 2.0)


def test_a_value_or_unit_that_an_operation_does_not_take_is_at_fault() -> None:
    for op in Op:
        assert op.fault(VALUES[op], None, to=TO[op]) is None
        for unit in Unit:
            found = op.fault(VALUES[op], unit, "IT", TO[op])
            refused = "IT takes no unit" + (f" {unit}" if op.units else "")
            assert found == (None if unit in op.units else ("unit", refused))
        missing = op.fault(None, None, "IT", TO[op])
        assert missing == (("value", "IT needs a value") if op.takes is Takes.VALUE else None)
        for absurd in (math.nan, math.inf, -math.inf, 1.1e6, -1.1e6):
            found = op.fault(absurd, None, to=TO[op])
            assert found is not None
            assert found[0] == "value"
        to = None if op.redirects else Redirection(OTHER)
        needs = "needs a" if op.redirects else "takes no"
        assert op.fault(VALUES[op], None, "IT", to) == ("to", f"IT {needs} target to write instead")
    assert Op.BAN.fault(-1.0, None) == ("value", "the strength of a ban must be at least 0, not -1")


@pytest.mark.parametrize("name", ["strength", "threshold"])
@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (-0.5, "the {} of a redirect must be at least 0, not -0.5"),
        (math.nan, "must be a finite number, not nan"),
        (math.inf, "must be a finite number, not inf"),
        (2e6, "must lie between ±1e+06, not 2e+06"),
    ],
)
def test_the_numbers_of_a_redirect_are_judged_by_name(name: str, number: float, reason: str) -> None:
    to = Redirection(OTHER, number) if name == "strength" else Redirection(OTHER, threshold=number)
    assert Op.REDIRECT.fault(1.0, None, to=to) == (name, reason.format(name))
