"""Copies of bundles: the parts of a filter, and what is put in force on a server to measure a bundle."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from typing import Any

from saegis.bundles import POLICY_FILE, RULES, TESTS
from saegis_server.policy.bundle.bundle import Bundle
from saegis_server.policy.bundle.files import in_folder
from saegis_server.policy.decide.uses import ORDINARY, Use
from saegis_server.policy.schema.policy import API_VERSION, Rule
from saegis_server.policy.schema.yaml_text import read_yaml
from saegis_server.steering.conditions import Scope

#: The name that every measured copy has: a server keeps one revision of each name in force.
MEASURED = "measured"
_PART = f"{RULES}/measured-uses.yaml"
_ALLOWANCE = "measured-uses"


def alone(bundle: Bundle) -> dict[str, Bundle]:
    """The bundles of a bundle's parts, by name: the rules of each action alone, such as "ban alone".

    Actions are such as redirect, ban and stop; those with a condition over the prompt are apart, such as
    "prompt stop". A bundle of one has no parts. The parts keep everything but rules.
    """
    return {f"{name} alone": _with_rules(bundle, ids) for name, ids in _rules_of_parts(bundle).items()}


def parts(bundle: Bundle) -> dict[str, Bundle]:
    """The parts as `alone` has them, then all but each of them, such as "without ban". Of two parts, the one
    alone is all but the other, and stands there once."""
    of_part = _rules_of_parts(bundle)
    if len(of_part) < 3:
        return alone(bundle)
    every = {rule.id for rule in bundle.policy.rules}
    return alone(bundle) | {
        f"without {name}": _with_rules(bundle, every - ids) for name, ids in of_part.items()
    }


def _rules_of_parts(bundle: Bundle) -> dict[str, set[str]]:
    """The ids of the rules of each part by its name; none for a bundle of one part."""
    of_part: dict[str, set[str]] = {}
    for rule in bundle.policy.rules:
        of_part.setdefault(_part(rule), set()).add(rule.id)
    return of_part if len(of_part) > 1 else {}


def _part(rule: Rule) -> str:
    """The name of the part that a rule belongs to."""
    judges_prompt = rule.when is not None and rule.when.over is Scope.PROMPT
    return f"prompt {rule.action}" if judges_prompt else rule.action


def with_actions(bundle: Bundle, actions: Collection[str]) -> Bundle:
    """The bundle with only the rules of these actions, such as "ban". Its cases are left out."""
    return _with_rules(bundle, {rule.id for rule in bundle.policy.rules if rule.action in actions})


def _with_rules(bundle: Bundle, kept: Collection[str]) -> Bundle:
    """The bundle with only the rules of these ids, without its cases."""

    def changed(document: dict[str, Any]) -> dict[str, Any]:
        rules = [rule for rule in document.get("rules") or () if rule["id"] in kept]
        return {**document, "rules": rules}

    return Bundle.from_files(_changed(bundle, changed))


def without_stops(bundle: Bundle) -> Bundle:
    """The bundle as texts are scored under it: a server scores none that a rule would stop."""
    return with_actions(bundle, {rule.action for rule in bundle.policy.rules} - {"stop"})


def measured_copy(bundle: Bundle | None, serial: int) -> Bundle:
    """What is put in force to measure a bundle: its rules as they are; without a bundle there are none.

    The copy has a name and serial of its own, concerns every request, whomever the bundle concerns, has no
    cases, and allows the uses that a measurement needs: its requests choose the temperature, begin answers,
    and have texts scored without the rules. Raises ValueError for a rule that refuses requests: there is no
    answer to measure.
    """
    uses = [use for use in Use if use not in ORDINARY]
    allowed = [{"id": _ALLOWANCE, "uses": uses}, {"id": f"{_ALLOWANCE}-ordinary", "uses": list(ORDINARY)}]
    part = {"apiVersion": API_VERSION, "kind": "PolicyPart", "allow": allowed}
    head = {"apiVersion": API_VERSION, "kind": "Policy"}
    named = {"name": MEASURED, "serial": serial, "revision": f"r{serial}", "match": {}}
    if bundle is None:
        return Bundle.from_files({POLICY_FILE: _text({**head, **named}), _PART: _text(part)})
    for rule in bundle.policy.rules:
        if rule.refuse is not None:
            raise ValueError(f"rule {rule.id}: refuses requests; only what is answered is measured")

    def changed(document: dict[str, Any]) -> dict[str, Any]:
        return {**document, **named} if document["kind"] == "Policy" else document

    return Bundle.from_files({**_changed(bundle, changed), _PART: _text(part)})


def _changed(bundle: Bundle, change: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, bytes]:
    """The bundle's files but its cases, with each file of rules changed; without a signature."""
    files = {path: data for path, data in bundle.files.items() if not path.startswith(f"{TESTS}/")}
    written: Mapping[str, bytes] = {POLICY_FILE: files[POLICY_FILE], **in_folder(files, RULES)}
    for path, data in written.items():
        document: Any = read_yaml(data, path).value
        files[path] = _text(change(document))
    return files


def _text(document: Mapping[str, Any]) -> bytes:
    """JSON, which is YAML too and quotes every text."""
    return json.dumps(document, ensure_ascii=False, indent=1, allow_nan=False).encode("utf-8")
