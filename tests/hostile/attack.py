"""A server in a process of its own under attack: who calls it, the flood, and what came of each call."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from saegis.v1 import model_pb2, model_pb2_grpc
from saegis_server.rpc.auth.principals import token_digest
from saegis_server.rpc.wire.errors import DETAILS_KEY
from tests.e2e.serving import Serving, serving, write_tiny_files
from tests.hostile.crafts import BANNED, CAPPED, CLAMPED, FLOORED, REDIRECTED, SAE, TARGET, Call, Manner
from tests.rpc.half_open import HalfOpen

SLOTS, GRACE_SECONDS = 8, 10.0
#: Principals, which are their own tenants and whose tokens are their names, and their roles.
PRINCIPALS = {
    "hostile": "use, steer, inspect",
    "wild": "use, steer, inspect, unruled",
    "quiet": "use",
    "ops": "operate",
}
_RULES = f"""
rules:
  - {{id: ban, ban: {{features: [{{sae: {SAE}, index: {BANNED}}}]}}}}
  - {{id: cap, cap: {{features: [{{sae: {SAE}, index: {CAPPED}}}], value: 0.5}}}}
  - {{id: floor, floor: {{features: [{{sae: {SAE}, index: {FLOORED}}}], value: 0.25}}}}
  - id: redirect
    redirect:
      features: [{{sae: {SAE}, index: {REDIRECTED}}}]
      to: {{feature: {{sae: {SAE}, index: {TARGET}}}}}
      factor: 2
  - {{id: clamp, clamp: {{features: [{{sae: {SAE}, index: {CLAMPED}}}], value: 0.75}}}}
allow:
  - id: every-edit
    ops: [clamp, clamp_if_active, scale, add, cap, floor, ablate, ban, redirect, watch]
    directions: true
"""
_USES = """
  - id: every-use
    uses: [logit_bias, n, temperature, token_ids, text, prefill, score, inspect, unruled]
"""
#: The policies by name: all hold the same, of which none of these allowances may undo anything.
_POLICIES = {
    "held": ("[hostile, quiet, ops]", _RULES),
    "held-of-wild": ("[wild]", _RULES + _USES),
}
#: What grpc itself says, before a call reaches the server's code, and what the client brought about.
_OF_GRPC = {grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED}
_CALL_SECONDS = 60.0
#: How long it takes for a client to go away in the middle, and for one that does not read.
_GONE_SECONDS, _UNREAD_SECONDS = 0.02, 0.5
#: One channel may have a hundred calls under way; these are more.
_CHANNELS, _AT_ONCE = 4, 64


def bearer(name: str) -> tuple[tuple[str, str], ...]:
    """The metadata of a principal."""
    return (("authorization", f"Bearer {name}"),)


@contextmanager
def attacked(folder: Path) -> Iterator[Serving]:
    """A server with hostile and quiet tenants, an operator, policies that hold features, and an audit log."""
    lines = ["apiVersion: saegis.dev/v1", "kind: Identities", "principals:"]
    for name, roles in PRINCIPALS.items():
        lines.append(
            f"  - {{name: {name}, tenant: {name}, roles: [{roles}], token_sha256: {token_digest(name)}}}"
        )
    (folder / "identities.yaml").write_text("\n".join(lines), encoding="utf-8")
    (folder / "identities.yaml").chmod(0o600)
    options: tuple[str, ...] = ("--identities", str(folder / "identities.yaml"))
    for name, (tenants, rules) in _POLICIES.items():
        head = f'apiVersion: saegis.dev/v1\nkind: Policy\nname: {name}\nserial: 1\nrevision: "1"\n'
        (folder / name).mkdir()
        text = f"{head}match: {{tenants: {tenants}}}\n{rules}"
        (folder / name / "policy.yaml").write_text(text, encoding="utf-8")
        options += ("--policy", str(folder / name))
    options += ("--policy-state", str(folder / "state"), "--audit", str(folder / "audit"))
    options += ("--max-num-seqs", str(SLOTS), "--queue-limit", "64", "--grace", str(GRACE_SECONDS))
    options += ("--log-level", "error")
    with serving(folder / "stderr", *write_tiny_files(folder).options, *options) as server:
        yield server


# -- the flood ----------------------------------------------------------------------------------------------


@dataclass
class Outcomes:
    """What came of calls: statuses, reasons of refusals, refusals without any, and faults of the server."""

    codes: Counter[grpc.StatusCode] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    unnamed: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def note(self, call: Call, error: grpc.RpcError | None) -> None:
        """Note the end of one call."""
        if error is None:
            self.codes[grpc.StatusCode.OK] += 1
            return
        code, message, reason = error.code(), error.details() or "", _reason(error)
        self.codes[code] += 1
        described = f"{call.method}: {code} {message[:200]}"
        if code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN):
            self.faults.append(described)
        if reason:
            self.reasons[reason] += 1
        elif code not in _OF_GRPC and "larger than max" not in message:
            self.unnamed.append(described)


def _reason(error: Any) -> str:
    """The reason that a refusal names; empty where there is none."""
    trailers = dict(error.trailing_metadata() or ())
    for packed in status_pb2.Status.FromString(trailers.get(DETAILS_KEY, b"")).details:
        info = error_details_pb2.ErrorInfo()
        if packed.Unpack(info):
            return str(info.reason)
    return ""


async def flood(
    target: str, calls: Iterable[Call], outcomes: Outcomes, over: asyncio.Event | None = None
) -> None:
    """Make all calls, many at once, until they are done or it is over."""
    channels = [grpc.aio.insecure_channel(target, (("number", number),)) for number in range(_CHANNELS)]
    waiting = iter(enumerate(calls))

    async def work() -> None:
        for number, call in waiting:
            if over is not None and over.is_set():
                return
            await _make(channels[number % _CHANNELS], call, outcomes)

    try:
        await asyncio.gather(*(work() for _ in range(_AT_ONCE)))
    finally:
        for channel in channels:
            await channel.close(None)


async def _make(channel: grpc.aio.Channel, call: Call, outcomes: Outcomes) -> None:
    name = {Manner.NOBODY: "", Manner.FORGED: "nobody"}.get(call.manner, call.caller)
    metadata = bearer(name) if name else ()
    make: Any = channel.unary_stream if call.streams else channel.unary_unary
    running = make(call.method)(call.data, metadata=metadata, timeout=_CALL_SECONDS)
    try:
        match call.manner:
            case Manner.CANCELLED:
                await asyncio.sleep(_GONE_SECONDS)
                running.cancel()
            case Manner.UNREAD:
                await asyncio.sleep(_UNREAD_SECONDS)
                running.cancel()
        if call.streams:
            async for _ in running:
                pass
        else:
            await running
        outcomes.note(call, None)
    except grpc.RpcError as error:
        outcomes.note(call, error)
    except asyncio.CancelledError:
        if not running.cancelled():
            raise
        outcomes.codes[grpc.StatusCode.CANCELLED] += 1


# -- what is seen meanwhile, and afterwards -----------------------------------------------------------------


class Prober:
    """Asks for the server's health, over and over, in a thread of its own, while its block lasts."""

    def __init__(self, target: str) -> None:
        self.answers: list[float] = []
        self.wrong: list[str] = []
        self._target = target
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        with grpc.insecure_channel(self._target) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            while not self._over.wait(0.05):
                asked = time.monotonic()
                try:
                    status = stub.Check(health_pb2.HealthCheckRequest(), timeout=10.0).status
                except grpc.RpcError as error:
                    self.wrong.append(str(error))
                    continue
                self.answers.append(time.monotonic() - asked)
                if status != health_pb2.HealthCheckResponse.SERVING:
                    self.wrong.append(str(status))

    def __enter__(self) -> Prober:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


class HalfOpenFlood:
    """Opens large requests without a token that it never ends, and holds idle connections to the metrics.

    In a thread of its own, while its block lasts.
    """

    def __init__(self, server: Serving) -> None:
        self.opened = 0
        self._server = server
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._idle: list[socket.socket] = []

    def _run(self) -> None:
        while not self._over.is_set():
            connection = HalfOpen(self._server.target, 3_900_000)
            try:
                for number in range(20):
                    connection.open(number, "/saegis.v1.ModelService/Tokenize")
                    self.opened += 1
                for _ in range(3):
                    connection.push()
            except OSError:
                pass  # the server has had enough of it
            finally:
                connection.close()
            self._over.wait(0.2)

    def __enter__(self) -> HalfOpenFlood:
        address = ("127.0.0.1", self._server.ready["metrics_port"])
        self._idle = [socket.create_connection(address, timeout=5.0) for _ in range(100)]
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        for connection in self._idle:
            connection.close()


def metric(server: Serving, name: str) -> float:
    """The value of a series of the server that has no labels."""
    address = f"http://127.0.0.1:{server.ready['metrics_port']}/metrics"
    with urllib.request.urlopen(address, timeout=10.0) as answer:
        lines = answer.read().decode().splitlines()
    found: Sequence[str] = [line for line in lines if line.startswith(f"{name} ")]
    assert found, f"there is no series {name}"
    return float(found[0].rpartition(" ")[2])


def resident_bytes(server: Serving) -> int:
    """How much memory of the server's process is resident."""
    status = Path(f"/proc/{server.process.pid}/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


def load(server: Serving) -> model_pb2.GetLoadResponse:
    """How busy the server is, as its operator sees it."""
    with grpc.insecure_channel(server.target) as channel:
        stub = model_pb2_grpc.ModelServiceStub(channel)
        return stub.GetLoad(model_pb2.GetLoadRequest(), metadata=bearer("ops"), timeout=10.0)


def is_idle(server: Serving) -> bool:
    """Whether no slot is occupied and nothing waits."""
    with suppress(grpc.RpcError):
        found = load(server)
        return found.num_running_reqs == found.num_waiting_reqs == found.num_used_tokens == 0
    return False
