"""The room that a server is given for the rows and readings of a bundle."""

from saegis_lab.evaluation.bundle_features import room_for
from tests.evaluation.bundles import BAN, bundle


def reading(index: int) -> str:
    return f"{{feature: {{sae: first, index: {index}}}, above: 1}}"


def test_there_is_never_less_room_than_a_server_starts_with() -> None:
    assert room_for(bundle({"a": BAN})) == {"rules": 32, "bans": 32, "watches": 64, "conditions": 32}


def test_rows_and_readings_of_all_rules_have_room() -> None:
    redirect = (
        f"redirect: {{features: [{{sae: first, indices: {list(range(40))}}}], "
        "to: {feature: {sae: first, index: 50}}, factor: 2}"
    )
    ban = f"ban: {{features: [{{sae: first, indices: {list(range(33))}}}], strength: 2}}"
    many = ", ".join(map(reading, range(130)))
    inner = f"{{not: {{all: [{reading(1)}, {reading(2)}]}}}}"
    asked = f"when: {{if: {{any: [{many}, {inner}]}}, over: prompt}}\n    stop: {{}}"
    told = f"when: {{if: {reading(3)}, over: answer}}\n    stop: {{}}"
    found = room_for(bundle({"a": redirect, "b": ban, "c": asked, "d": told}))
    # 133 readings, four of which each condition brings room for.
    assert found == {"rules": 40, "bans": 33, "watches": 133, "conditions": 34}
