"""A server under attack over its socket: it names refusals, answers health, keeps its memory, and ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from tests.e2e.serving import Serving
from tests.hostile.attack import (
    GRACE_SECONDS,
    HalfOpenFlood,
    Outcomes,
    Prober,
    attacked,
    flood,
    is_idle,
    metric,
    resident_bytes,
)
from tests.hostile.crafts import drawn
from tests.rpc.harness import eventually

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(600)]
#: With the edits of test_edits.py these are twenty thousand and more.
WARM_UP, CALLS = 1_500, 6_500
LARGEST_STALL_SECONDS, HEALTH_SECONDS, MOST_GROWTH = 0.25, 1.0, 1.1


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """The server that the tests of this module attack, in their order; the last one ends it."""
    with attacked(tmp_path_factory.mktemp("attacked")) as server:
        yield server


def attack(server: Serving, seed: int, count: int) -> Outcomes:
    """Make calls of every craft and wait until the server has nothing left of them."""
    outcomes = Outcomes()
    asyncio.run(flood(server.target, drawn(seed, count), outcomes))
    eventually(lambda: is_idle(server), 30.0)
    return outcomes


def test_eight_thousand_calls_of_every_craft(server: Serving) -> None:
    with HalfOpenFlood(server) as half_open, Prober(server.target) as prober:
        first = attack(server, 1, WARM_UP)
        before = resident_bytes(server)
        then = attack(server, 2, CALLS)
        after = resident_bytes(server)
    for outcomes in (first, then):
        assert not outcomes.faults, outcomes.faults[:5]
        assert not outcomes.unnamed, outcomes.unnamed[:5]
    assert sum(then.codes.values()) == CALLS
    assert len(then.reasons) >= 8, then.reasons
    assert half_open.opened > 200
    assert not prober.wrong, prober.wrong[:3]
    assert len(prober.answers) > 50
    assert max(prober.answers) <= HEALTH_SECONDS
    assert after <= MOST_GROWTH * before, f"{before / 2**20:.0f} MiB became {after / 2**20:.0f}"
    assert metric(server, "saegis_event_loop_stall_seconds_max") <= LARGEST_STALL_SECONDS


def test_it_ends_in_time_while_the_flood_goes_on(server: Serving) -> None:
    async def end() -> float:
        over = asyncio.Event()
        flooding = asyncio.ensure_future(flood(server.target, drawn(4, 4_000), Outcomes(), over))
        await asyncio.sleep(2.0)
        asked = time.monotonic()
        server.terminate()
        code = await asyncio.to_thread(server.wait)
        took = time.monotonic() - asked
        over.set()
        await flooding
        assert code == 0, server.stderr_path.read_text(encoding="utf-8")[-3000:]
        return took

    assert asyncio.run(end()) <= GRACE_SECONDS + 5.0
