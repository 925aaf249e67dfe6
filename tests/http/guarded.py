"""A server with principals, policies and an audit log, to be called over HTTP."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai

from saegis_server.rpc.auth.principals import token_digest
from tests.rpc.harness import Running, running

#: Feature 3 is banned, 5 capped; what writes 21 beyond 8 ends; edits of 12 are the request's to make.
POLICY = """
apiVersion: saegis.dev/v1
kind: Policy
name: bridges
serial: 1
revision: r1
match: {tenants: [%(tenant)s]}
rules:
  - {id: no-bridges, ban: {features: [{sae: first, index: 3}], strength: 2}}
  - {id: cap-river, cap: {features: [{sae: first, index: 5}], value: 1}}
  - {id: ends, stop: {}, when: {if: {feature: {sae: second, index: 21}, above: %(above)s}, over: token}}
allow:
  - {id: style, ops: [clamp, add, watch], features: [{sae: first, indices: [12, 13]}]}
  - {id: plain, uses: [text, token_ids, prefill, n, logit_bias]}
"""
#: The tenants: with `stopped` every answer ends by the rule.
ABOVE = {"free": 1_000_000, "stopped": 0}
ROLES = {"app": "use, steer, inspect", "reader": "use", "owner": "administer"}


def token(role: str, tenant: str) -> str:
    """The bearer token of a principal."""
    return f"saegis_{role}_{tenant}"


@contextmanager
def guarded(folder: Path, policy: str = POLICY, **settings: Any) -> Iterator[Running]:
    """The server; its audit log is in `folder`/audit."""
    principals = "".join(
        f"  - {{name: {role}-{tenant}, tenant: {tenant}, roles: [{roles}],"
        f" token_sha256: {token_digest(token(role, tenant))}}}\n"
        for tenant in ABOVE
        for role, roles in ROLES.items()
    )
    who = folder / "identities.yaml"
    who.write_text(
        f"apiVersion: saegis.dev/v1\nkind: Identities\nprincipals:\n{principals}", encoding="utf-8"
    )
    bundles = []
    for tenant, above in ABOVE.items():
        bundle = folder / tenant
        bundle.mkdir()
        text = re.sub("name: (.*)", rf"name: \1-{tenant}", policy, count=1)
        (bundle / "policy.yaml").write_text(text % {"tenant": tenant, "above": above}, encoding="utf-8")
        bundles.append(str(bundle))
    audit = {"directory": folder / "audit", "fsync": "never"}
    with running(
        identities=who, policies={"bundles": bundles}, audit=audit, max_num_seqs=4, http_port=0, **settings
    ) as server:
        yield server


def client_of(server: Running, role: str = "app", tenant: str = "free") -> openai.OpenAI:
    """A principal's client."""
    url = f"http://127.0.0.1:{server.address.http_port}/v1"
    return openai.OpenAI(base_url=url, api_key=token(role, tenant), max_retries=0)


def records(server: Running, kind: str) -> list[dict[str, Any]]:
    """What the audit log holds of a kind."""
    assert server.config.audit is not None
    lines = (server.config.audit.directory / "audit.jsonl").read_text().splitlines()
    return [each for each in map(json.loads, lines) if each["kind"] == kind]
