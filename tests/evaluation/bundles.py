"""Bundles for the tests of measured policies, over the tiny model's SAEs."""

from __future__ import annotations

from collections.abc import Mapping

from saegis_server.policy.bundle.bundle import Bundle

BAN = "ban: {features: [{sae: first, indices: [3, 7]}], strength: 2}"
STOP = "when: {if: {feature: {sae: first, index: 3}, above: 5}, over: window, window: 2}\n    stop: {}"
SCALE = "scale: {features: [{sae: first, index: 5}], factor: 0.5}"


def bundle(rules: Mapping[str, str], extra: str = "", files: Mapping[str, bytes] | None = None) -> Bundle:
    """A bundle that concerns one tenant of one model only; rules: their text by id. It allows nothing."""
    listed = "".join(f"  - id: {id_}\n    {text}\n" for id_, text in rules.items())
    head = (
        "apiVersion: saegis.dev/v1\nkind: Policy\nname: strict\nserial: 7\nrevision: '2026-01'\n"
        f"match: {{tenants: [acme], models: [theirs]}}\n{extra}\nrules:\n{listed or '  []'}"
    )
    return Bundle.from_files({"policy.yaml": head.encode(), **(files or {})})
