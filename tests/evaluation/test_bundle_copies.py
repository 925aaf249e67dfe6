"""Copies of bundles: parts keep all but rules, and a measured copy acts as the bundle does, for everybody."""

import pytest

from saegis_lab.evaluation.bundle_copies import MEASURED, measured_copy, parts, with_actions, without_stops
from saegis_server.policy.bundle.bundle import Bundle
from saegis_server.policy.decide.uses import Use
from saegis_server.policy.schema.policy import EVERY
from tests.evaluation.bundles import BAN, SCALE, STOP, bundle
from tests.policy.bundles import bundle_files

WHOLE = bundle({"b": BAN, "a": STOP, "c": SCALE, "d": BAN}, "told: judged")


def rules(of: Bundle) -> list[str]:
    return [rule.id for rule in of.policy.rules]


def test_each_part_has_the_rules_of_its_actions_and_all_else() -> None:
    found = parts(WHOLE)
    assert {name: rules(part) for name, part in found.items()} == {
        "stop alone": ["a"],
        "ban alone": ["b", "d"],
        "scale alone": ["c"],
        "without stop": ["b", "c", "d"],
        "without ban": ["a", "c"],
        "without scale": ["a", "b", "d"],
    }
    for part in found.values():
        assert part.policy.model_copy(update={"rules": WHOLE.policy.rules}) == WHOLE.policy


def test_of_two_actions_each_alone_is_all_but_the_other() -> None:
    two = bundle({"a": BAN, "b": STOP})
    assert {name: rules(part) for name, part in parts(two).items()} == {
        "ban alone": ["a"],
        "stop alone": ["b"],
    }
    assert parts(bundle({"a": BAN})) == {}


def test_rules_with_a_condition_over_the_prompt_are_parts_of_their_own() -> None:
    asked = "when: {if: {feature: {sae: first, index: 3}, above: 5}, over: prompt}\n    stop: {}"
    found = parts(bundle({"a": STOP, "b": asked, "c": BAN}))
    assert {name: rules(part) for name, part in found.items()} == {
        "stop alone": ["a"],
        "prompt stop alone": ["b"],
        "ban alone": ["c"],
        "without stop": ["b", "c"],
        "without prompt stop": ["a", "c"],
        "without ban": ["a", "b"],
    }
    assert rules(without_stops(bundle({"a": STOP, "b": asked, "c": BAN}))) == ["c"]


def test_texts_are_scored_under_the_rules_that_stop_nothing() -> None:
    assert rules(without_stops(WHOLE)) == ["b", "c", "d"]


def test_rules_in_other_files_are_parted_too() -> None:
    spread = Bundle.from_files(bundle_files())
    assert rules(with_actions(spread, {"cap"})) == ["less-river"]
    assert rules(with_actions(spread, {"ban", "stop"})) == ["no-poison", "stop-poison"]


@pytest.mark.parametrize("whole", [WHOLE, Bundle.from_files(bundle_files())], ids=("one file", "several"))
def test_a_measured_copy_has_the_same_rules_and_concerns_everybody(whole: Bundle) -> None:
    copy = measured_copy(whole, 12)
    assert (copy.policy.name, copy.policy.serial, copy.cases) == (MEASURED, 12, ())
    assert copy.policy.match.tenants == copy.policy.match.models == copy.policy.match.roles == (EVERY,)
    named = ("name", "serial", "revision", "match", "allow")
    assert copy.policy.model_copy(update={key: getattr(whole.policy, key) for key in named}) == whole.policy
    added = [entry for entry in copy.policy.allow if entry not in whole.policy.allow]
    assert {use for entry in added for use in entry.uses} == set(Use)
    assert len(added) + len(whole.policy.allow) == len(copy.policy.allow)
    assert set(copy.directions) == set(whole.directions)


def test_without_a_bundle_there_is_no_rule() -> None:
    copy = measured_copy(None, 1)
    assert copy.policy.rules == ()
    assert {use for entry in copy.policy.allow for use in entry.uses} == set(Use)


def test_a_bundle_that_refuses_requests_is_not_measured() -> None:
    refusing = (
        "when: {if: {feature: {sae: first, index: 3}, above: 1}, over: prompt}\n    refuse: {message: No.}"
    )
    with pytest.raises(ValueError, match="rule r: refuses requests"):
        measured_copy(bundle({"r": refusing}), 1)
