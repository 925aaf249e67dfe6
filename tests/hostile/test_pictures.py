"""Hostile pictures: each refused by name or answered, and no banned feature awake at any of their tokens."""

from __future__ import annotations

import asyncio
import gc
import random
import resource
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import saegis
from saegis_server.engine.torch.engine import TorchEngine
from tests.hostile.edits import Held
from tests.hostile.watched import InTorch
from tests.hostile.witness import Witness
from tests.pictures.hostile import ANSWERED, REFUSED
from tests.rpc import seeing
from tests.rpc.harness import Running, running
from tests.tiers import sized

BANNED = (1, 2, 5)
POLICY = f"""\
apiVersion: saegis.dev/v1
kind: Policy
name: held
serial: 1
revision: r1
match: {{tenants: ["*"]}}
rules:
  - {{id: held, ban: {{features: [{{sae: seen, indices: {list(BANNED)}}}], strength: 1}}}}
allow:
  - {{id: looks, uses: [pictures], max: 2}}
  - {{id: edits, ops: [clamp, add, scale], directions: true}}
"""
AT_ONCE = 8
LARGEST_STALL_SECONDS, MOST_GROWTH = 0.25, 1.1


@dataclass
class Outcome:
    """What came of requests: answers, refusals by status, and what no server should say."""

    answered: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def files() -> list[bytes]:
    """Every odd file, made once."""
    return [make() for make, _ in (*REFUSED.values(), *ANSWERED.values())]


def turned(data: bytes, rng: random.Random) -> bytes:
    """A file with some bytes changed, or cut."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if changed:
            changed[rng.randrange(len(changed))] = rng.randrange(256)
    return (
        bytes(changed[: rng.randint(1, len(changed))]) if changed and rng.random() < 0.3 else bytes(changed)
    )


def request(rng: random.Random, made: list[bytes]) -> dict[str, Any]:
    """The arguments of one request: odd files among good ones, placeholders in its texts, edits that push."""
    parts: list[str | saegis.Image] = [rng.choice(["what is this? ", "<image>", "<image> <image>\n", ""])]
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        data = rng.choice(made)
        if rng.random() < 0.4:
            data = turned(data, rng)
        parts.append(saegis.Image(data))
    content: saegis.Content = [part for part in parts if part != ""]
    feature = saegis.feature(rng.randrange(seeing.FEATURES))
    push = rng.choice([saegis.clamp, saegis.add])(feature, rng.uniform(-50.0, 50.0))
    return {
        "messages": [{"role": "user", "content": content}],
        "steering": [push] if rng.random() < 0.5 else [],
        "temperature": 0.0,
        "max_tokens": 3,
    }


async def flood(target: str, seed: int, count: int, outcome: Outcome) -> None:
    """Send requests, some at once."""
    rng, made = random.Random(seed), files()
    turns = asyncio.Semaphore(AT_ONCE)

    async def ask(client: saegis.AsyncClient, arguments: dict[str, Any]) -> None:
        async with turns:
            try:
                await client.generate(**arguments, timeout=120)
                outcome.answered += 1
            except (saegis.InvalidArgument, saegis.PermissionDenied, saegis.ResourceExhausted) as error:
                outcome.refused[type(error).__name__] += 1
                if not error.violations and isinstance(error, saegis.InvalidArgument):
                    outcome.faults.append(f"names no field: {error}")
            except saegis.SaegisError as error:
                outcome.faults.append(f"{type(error).__name__}: {error}")

    async with saegis.AsyncClient(target, insecure=True) as client:
        await asyncio.gather(*(ask(client, request(rng, made)) for _ in range(count)))


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Running]:
    """A server that sees, under a policy that bans three features."""
    bundle = tmp_path / "held"
    bundle.mkdir()
    (bundle / "policy.yaml").write_text(POLICY, encoding="utf-8")
    settings: dict[str, Any] = {"policies": {"bundles": [str(bundle)]}, "max_pictures": 2}
    with running(
        make=seeing.seeing_services, max_picture_pixels=2**20, max_message_bytes=16 * 2**20, **settings
    ) as server:
        yield server


def witness_of(server: Running) -> Witness:
    """What looks behind the site at every token that the server reads or writes."""
    engine = server.services.engine
    assert isinstance(engine, TorchEngine)
    held = (Held(seeing.SITE, "seen", BANNED),)
    return Witness(InTorch(engine.step), server.services.catalog, held, bos=256)


def require_named_and_held(outcome: Outcome, witness: Witness, count: int) -> None:
    assert not outcome.faults, outcome.faults[:5]
    assert outcome.answered + outcome.refused.total() == count
    assert outcome.answered > count // 10
    assert outcome.refused["InvalidArgument"] > count // 10
    assert not witness.awake, witness.awake[:3]
    assert witness.tokens > 10 * outcome.answered


def test_hostile_pictures_are_refused_by_name_or_answered_under_the_ban(served: Running) -> None:
    witness, outcome, count = witness_of(served), Outcome(), sized(120, 40)
    asyncio.run(flood(served.target, 1, count, outcome))
    require_named_and_held(outcome, witness, count)


@pytest.mark.nightly
@pytest.mark.alone
@pytest.mark.timeout(3000)
def test_two_thousand_hostile_pictures_cost_no_memory_and_no_stall(
    served: Running, request: pytest.FixtureRequest
) -> None:
    witness, outcome = witness_of(served), Outcome()
    asyncio.run(flood(served.target, 2, 300, Outcome()))
    # As a process that serves does once it has loaded: what the tests have loaded is no garbage to look for.
    gc.collect()
    gc.freeze()
    request.addfinalizer(gc.unfreeze)
    before, stalls, over = _resident(), [0.0], asyncio.Event()

    async def watch() -> None:
        while not over.is_set():
            begun = time.monotonic()
            await asyncio.sleep(0.01)
            stalls.append(time.monotonic() - begun - 0.01)

    watching = asyncio.run_coroutine_threadsafe(watch(), served.loop)
    asyncio.run(flood(served.target, 3, 2000, outcome))
    served.loop.call_soon_threadsafe(over.set)
    watching.result(10)
    require_named_and_held(outcome, witness, 2000)
    assert _resident() <= MOST_GROWTH * before
    assert max(stalls) <= LARGEST_STALL_SECONDS


def _resident() -> int:
    """The bytes that this process has in memory."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()
