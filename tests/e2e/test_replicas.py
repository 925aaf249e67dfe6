"""Two replicas behind one client: one is killed under load, and no unary call, rule or record is lost.

Nothing is between them: the client spreads its calls over both, and an operator puts each policy on both.
"""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import saegis
from saegis.bundles import pack
from saegis_server.audit.files import log_files
from saegis_server.audit.verify import verify
from tests.e2e.serving import Serving, TinyFiles, serving

pytestmark = pytest.mark.slow

CALLERS, CALLS, TOKENS = 8, 120, 60
#: So many answers are there before a replica dies: both are at work.
BEFORE = 20
POLICY = """\
apiVersion: saegis.dev/v1
kind: Policy
name: no-poison
serial: {serial}
revision: r{serial}
rules: [{{id: poison, ban: {{features: [{{sae: tiny-sae, index: 7}}], strength: {strength}}}}}]
allow: [{{id: uses, uses: [text, temperature]}}]
limits: {{after_bans: true}}
"""


@dataclass(frozen=True, slots=True)
class Replica:
    """A server with folders of its own for what it keeps."""

    server: Serving
    folder: Path

    @property
    def address(self) -> str:
        """Its host and port."""
        return self.server.target

    def put(self, bundle: Path) -> str:
        """Put a policy in force, and return its digest."""
        with saegis.Client(self.address) as client:
            held = {state.active.name: state for state in client.list_policies().policies}
            etag = held["no-poison"].etag if "no-poison" in held else ""
            return client.put_policy(pack(bundle), etag=etag).active.digest

    def active(self) -> list[str]:
        """The digests of the policies in force."""
        with saegis.Client(self.address) as client:
            return [state.active.digest for state in client.list_policies().policies]

    def records(self, kind: str) -> list[dict[str, Any]]:
        """What its log holds of a kind; a line that was torn off is none."""
        lines = [line for path in log_files(self.folder / "audit") for line in path.read_bytes().splitlines()]
        return [record for record in map(json.loads, lines) if record["kind"] == kind]


@contextmanager
def replica(folder: Path, files: TinyFiles, port: str = "0") -> Iterator[Replica]:
    """A replica whose policies and audit log lie in a folder."""
    folder.mkdir(exist_ok=True)
    kept = ("--audit", str(folder / "audit"), "--policy-state", str(folder / "policies"))
    with serving(folder / "stderr", *files.options, *kept, "--port", port) as server:
        yield Replica(server, folder)


def bundle(folder: Path, serial: int) -> Path:
    """A revision of the policy."""
    folder.mkdir()
    (folder / "policy.yaml").write_text(POLICY.format(serial=serial, strength=serial), encoding="utf-8")
    return folder


def ask(client: saegis.Client, number: int) -> saegis.Generation:
    """The answer to one of five prompts."""
    prompt = f"The red bridge {number % 5}"
    return client.generate(
        prompt, max_tokens=TOKENS, ignore_eos=True, temperature=0.0, request_id=f"call-{number}"
    )


def under_load(client: saegis.Client, dying: Replica) -> list[saegis.Generation]:
    """The answers to all calls, amid which a replica is killed."""
    answered = threading.Semaphore(0)

    def one(number: int) -> saegis.Generation:
        try:
            return ask(client, number)
        finally:
            answered.release()

    with ThreadPoolExecutor(CALLERS) as callers:
        asked = [callers.submit(one, number) for number in range(CALLS)]
        for _ in range(BEFORE):
            answered.acquire(timeout=120)
        dying.server.process.kill()
        return [each.result(300) for each in asked]


@pytest.mark.timeout(600)
def test_a_replica_that_is_killed_takes_no_call_rule_or_record_with_it(
    tiny_files: TinyFiles, tmp_path: Path
) -> None:
    first, second = bundle(tmp_path / "r1", 1), bundle(tmp_path / "r2", 2)
    with ExitStack() as opened:
        with ThreadPoolExecutor(2) as starting:  # both at once, since that takes a while
            one, other = starting.map(
                lambda name: opened.enter_context(replica(tmp_path / name, tiny_files)), ("one", "other")
            )
        digest = one.put(first)
        assert other.put(first) == digest
        hosts = ",".join(each.address for each in (one, other))
        client = opened.enter_context(saegis.Client(f"ipv4:{hosts}"))
        answers = under_load(client, other)
        assert other.server.process.wait(60) < 0
        # What an operator puts meanwhile reaches the one that is there, and the other once it is back.
        newer = one.put(second)
        port = other.address.rpartition(":")[2]
        back = opened.enter_context(replica(tmp_path / "other", tiny_files, port))
        assert back.active() == [digest]
        assert back.put(second) == newer
        assert one.active() == back.active() == [newer]
        before = len(back.records("answer"))
        client.wait_until_ready(30)
        for number in range(CALLS, 2 * CALLS):
            answers.append(ask(client, number))
            if len(back.records("answer")) > before + 3:
                break
        check_answers(answers)
        check_records(answers, one, back, killed_after=CALLS)
        for each in (one, back):
            each.server.terminate()
            assert each.server.wait() == 0
            found = verify(each.folder / "audit")
            assert not found.problems


def check_answers(answers: list[saegis.Generation]) -> None:
    """Each call has an answer under the policy, and equal prompts have equal ones under one revision."""
    texts: dict[tuple[int, str], set[tuple[int, ...]]] = {}
    for number, answer in enumerate(answers):
        assert len(answer.token_ids) == TOKENS
        assert [rule.name for rule in answer.receipt.rules] == ["no-poison/poison"]
        key = (number % 5, answer.receipt.policy_revision)
        texts.setdefault(key, set()).add(tuple(answer.token_ids))
    assert len({revision for _, revision in texts}) == 2
    assert all(len(found) == 1 for found in texts.values())


def check_records(answers: list[saegis.Generation], one: Replica, back: Replica, killed_after: int) -> None:
    """Each answer that was told is in the log of the replica that gave it, with the decision before it."""
    told = {answer.request_id for answer in answers}
    held = {
        each.folder.name: {record["request_id"] for record in each.records("answer")} for each in (one, back)
    }
    assert told == set().union(*held.values())
    early = {f"call-{number}" for number in range(killed_after)}
    assert all(found & early for found in held.values()), "both were at work when one was killed"
    for each in (one, back):
        decided = [record["request_id"] for record in each.records("decision")]
        assert held[each.folder.name] <= set(decided)
        assert all(record["allowed"] for record in each.records("decision"))
    # What the dead one had decided on and not answered, the other was asked again.
    lost = {record["request_id"] for record in back.records("decision")} - held["other"]
    assert lost
    assert lost <= held["one"]
