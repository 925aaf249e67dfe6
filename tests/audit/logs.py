"""Audit logs for tests: settings, records, and what a naive reader finds in the files."""

import hashlib
import json
from pathlib import Path
from typing import Any

from saegis_server.audit.files import log_files
from saegis_server.audit.log import AuditLog, AuditSettings
from saegis_server.audit.records import AnswerRecord, DecisionRecord, PolicyRecord


def settings(directory: Path, **fields: Any) -> AuditSettings:
    return AuditSettings(directory=directory, **fields)


def decision(number: int = 1, **fields: Any) -> DecisionRecord:
    known: dict[str, Any] = {
        "decision_id": f"decision-{number}",
        "request_id": f"request-{number}",
        "principal": "alice",
        "tenant": "acme",
        "roles": ("use", "steer"),
        "method": "/saegis.v1.GenerationService/Generate",
        "model": "tiny",
        "policy_revision": "guard@1",
        "allowed": True,
        "edits": ({"path": "steering.edits[0]", "op": "clamp", "label": "桥", "value": 2.5},),
    }
    return DecisionRecord(**(known | fields))


def answer(number: int = 1) -> AnswerRecord:
    return AnswerRecord(
        decision_id=f"decision-{number}",
        request_id=f"request-{number}",
        tenant="acme",
        program_digest="d" * 64,
        policy_revision="guard@1",
        finish_reasons=("stop",),
        usage={"prompt_tokens": 5, "completion_tokens": 7},
        peaks={"watch/7": 0.25},
        seconds=0.125,
    )


def put(number: int = 1, **fields: Any) -> PolicyRecord:
    known: dict[str, Any] = {
        "action": "put",
        "name": f"policy-{number}",
        "revision": f"r{number}",
        "serial": number,
        "digest": "d" * 64,
        "by": "bob",
    }
    return PolicyRecord(**(known | fields))


def write(found: AuditSettings, number: int) -> None:
    """A log from start to stop with `number` records of policies between."""
    log = AuditLog(found)
    for future in [log.append(put(each)) for each in range(number)]:
        future.result()
    log.close()


def lines(directory: Path) -> list[dict[str, Any]]:
    """Every record of a log's files, in order."""
    return [json.loads(line) for path in log_files(directory) for line in path.read_bytes().splitlines()]


def is_chain(found: list[dict[str, Any]]) -> bool:
    """Whether records form a chain of plain hashes from the first on, worked out the plain way."""
    before = "0" * 64
    for number, record in enumerate(found, 1):
        content = {name: value for name, value in record.items() if name != "hash"}
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        hashed = hashlib.sha256(text.encode()).hexdigest()
        if (record["seq"], record["prev"], record["hash"]) != (number, before, hashed):
            return False
        before = hashed
    return True
