"""Callers of a guarded server: their file of identities, their tokens, and what comes of their calls."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest

from saegis_server.rpc.auth.identity import Identity, current_identity
from saegis_server.rpc.auth.principals import token_digest
from saegis_server.rpc.auth.roles import Role
from tests.rpc.harness import Failure, Running


def identities(folder: Path, principals: Mapping[str, tuple[frozenset[Role], str]]) -> Path:
    """A file of principals of the tenant "t", each with its roles and the line of its credential."""
    lines = ["apiVersion: saegis.dev/v1", "kind: Identities", "principals:"]
    for name, (roles, credential) in principals.items():
        lines.append(f"  - {{name: {name}, tenant: t, roles: [{', '.join(roles)}], {credential}}}")
    path = folder / "identities.yaml"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def by_token(token: str) -> str:
    return f"token_sha256: {token_digest(token)}"


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


def expect(found: Failure, code: grpc.StatusCode, reason: str) -> None:
    assert (found.code, found.reason) == (code, reason)
    assert found.details["ErrorInfo"].domain == "saegis.dev"
    assert found.details["RequestInfo"].request_id


def outcome(attempt: Callable[[], object]) -> grpc.StatusCode:
    """The status of a call that may succeed."""
    try:
        attempt()
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return grpc.StatusCode.OK


def spied(server: Running, monkeypatch: pytest.MonkeyPatch) -> list[Identity]:
    """As whom GetLoad runs, call by call."""
    seen: list[Identity] = []
    engine = server.services.engine
    stats = engine.stats

    def reading() -> Any:
        seen.append(current_identity())
        return stats()

    monkeypatch.setattr(engine, "stats", reading)
    return seen
