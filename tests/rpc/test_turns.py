"""Turns, pools and limits: what one caller may take, and that it takes nothing from another."""

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from saegis.v1 import generation_pb2 as pb
from saegis.v1 import generation_pb2_grpc, model_pb2, model_pb2_grpc
from saegis_server.fair import FairQueue, has_room
from saegis_server.rpc.auth.identity import Identity
from saegis_server.rpc.auth.principals import token_digest
from saegis_server.rpc.auth.roles import ALL_ROLES
from saegis_server.rpc.server.limits import Limiter, Limits, RequestLimits
from saegis_server.rpc.server.threads import Turns, UnwantedError, WorkPool, stop_if_unwanted
from saegis_server.rpc.wire.problems import BusyError
from tests.rpc import tiny
from tests.rpc.callers import bearer
from tests.rpc.harness import Running, eventually, failure, running

ONE = Identity("one", "a", ALL_ROLES)
TWO = Identity("two", "a", ALL_ROLES)
OTHER = Identity("three", "b", ALL_ROLES)


def test_a_fair_queue_holds_what_a_list_would_and_serves_owners_in_turn() -> None:
    rng = random.Random(0)
    queue: FairQueue[tuple[str, int]] = FairQueue(lambda item: item[0])
    held: list[tuple[str, int]] = []
    for number in range(1500):
        if rng.random() < 0.55 or not held:
            item = (rng.choice("abc"), number)
            queue.append(item)
            held.append(item)
        elif rng.random() < 0.3:
            item = rng.choice(held)
            queue.remove(item)
            held.remove(item)
        else:
            owner = queue.owners[0]
            item = queue.pop(owner)
            assert item == min(each for each in held if each[0] == owner), "first come, first served"
            held.remove(item)
            others = {each[0] for each in held} - {owner}
            assert not others or queue.owners[0] in others
        assert sorted(queue) == sorted(held)
        assert len(queue) == len(held)
        assert {owner: queue.count(owner) for owner in queue.owners} == Counter(each[0] for each in held)


@pytest.mark.parametrize(("share", "own"), [(0.0, 1), (0.25, 5), (0.5, 10), (1.0, 20)])
def test_in_a_full_queue_a_caller_may_have_its_share(share: float, own: int) -> None:
    """One item at least; in a queue that is not full nobody is held to a share."""
    assert has_room(20, own - 1, 1, 20, share)
    assert not has_room(20, own, 1, 20, share)
    assert has_room(15, 15, 5, 20, share)


class Work:
    """Work that ends when it is told to, and notes whose ran."""

    def __init__(self) -> None:
        self.go, self.order = threading.Semaphore(0), list[str]()

    def __call__(self, name: str) -> None:
        self.order.append(name)
        assert self.go.acquire(timeout=10)


def test_a_pool_serves_tenants_in_turn_and_says_when_it_is_full() -> None:
    async def scenario() -> None:
        pool, work = WorkPool("work", 1, most_waiting=8), Work()
        flood = [asyncio.ensure_future(pool.run("flood", work, "flood")) for _ in range(9)]
        await asyncio.sleep(0.05)
        with pytest.raises(BusyError) as raised:
            await pool.run("flood", work, "flood")
        assert (raised.value.reason, raised.value.retry_after > 0) == ("WORK_QUEUE_FULL", True)
        quiet = asyncio.ensure_future(pool.run("quiet", work, "quiet"))
        await asyncio.sleep(0)
        for _ in range(10):
            work.go.release()
        await asyncio.gather(*flood, quiet)
        assert work.order.index("quiet") == 1, "after what had begun, before all that waited"
        assert (pool.running, pool.waiting) == (0, 0)

    asyncio.run(scenario())


def test_work_whose_caller_has_left_is_not_begun_and_ends_soon() -> None:
    ended = threading.Event()

    def long() -> None:
        try:
            while True:
                stop_if_unwanted()
                time.sleep(0.002)
        except UnwantedError:
            ended.set()
            raise

    async def scenario() -> None:
        pool, begun = WorkPool("work", 1, most_waiting=8), list[str]()
        running_one = asyncio.ensure_future(pool.run("a", long))
        waiting_one = asyncio.ensure_future(pool.run("a", begun.append, "waited"))
        await asyncio.sleep(0.03)
        waiting_one.cancel()
        running_one.cancel()
        await asyncio.gather(running_one, waiting_one, return_exceptions=True)
        assert pool.running == 1, "its place is free only once its thread has ended"
        await pool.run("a", begun.append, "after")
        assert begun == ["after"]
        assert ended.is_set()
        await asyncio.sleep(0)
        assert (pool.running, pool.waiting) == (0, 0)

    asyncio.run(scenario())


def test_a_turn_that_comes_as_its_caller_leaves_goes_to_the_next() -> None:
    """The caller is cancelled, and a turn is given back before its task has heard of it."""

    async def scenario() -> None:
        turns = Turns(1, 8, lambda: AssertionError("it is full"))
        await turns.take("a")
        leaving, next_one = asyncio.ensure_future(turns.take("b")), asyncio.ensure_future(turns.take("c"))
        await asyncio.sleep(0)
        leaving.cancel()
        turns.give_back("a")
        await asyncio.wait_for(next_one, 1.0)
        assert (turns.held, turns.waiting) == (1, 0)
        late = asyncio.ensure_future(turns.take("d"))
        await asyncio.sleep(0)
        turns.give_back("c")
        late.cancel()
        await asyncio.gather(leaving, late, return_exceptions=True)
        assert (turns.held, turns.waiting) == (0, 0)

    asyncio.run(scenario())


def test_requests_at_once_by_principal_tenant_and_server() -> None:
    limiter = Limiter(
        Limits(principal=RequestLimits(requests=2), tenant=RequestLimits(requests=3), requests=4)
    )
    first, second = limiter.enter(ONE), limiter.enter(ONE)
    first.__enter__()
    second.__enter__()
    assert refusal(lambda: limiter.enter(ONE)) == "PRINCIPAL_LIMIT"
    third = limiter.enter(TWO)
    third.__enter__()
    assert refusal(lambda: limiter.enter(TWO)) == "TENANT_LIMIT"
    with limiter.enter(OTHER):
        assert refusal(lambda: limiter.enter(OTHER)) == "SERVER_LIMIT"
        with limiter.enter(Identity("four", "c", ALL_ROLES)):
            pass
    for each in (first, second, third):
        each.__exit__(None, None, None)
    assert (limiter.inside, limiter.held_bytes) == (0, 0)


def refusal(enter: Callable[[], Any]) -> str:
    with pytest.raises(BusyError) as raised, enter():
        pass
    return raised.value.reason


def test_tokens_and_bytes_a_minute_are_saved_up_and_paid_back() -> None:
    now = [0.0]
    limits = Limits(tenant=RequestLimits(tokens_per_minute=60, bytes_per_minute=600))
    limiter = Limiter(limits, lambda: now[0])
    with limiter.enter(ONE) as holding:
        holding.add(100)
        limiter.spend(ONE, "tokens", 90)
    with pytest.raises(BusyError) as raised, limiter.enter(TWO):
        pass
    assert raised.value.reason == "RATE_LIMITED"
    assert raised.value.retry_after == pytest.approx(31.0)
    with limiter.enter(OTHER):
        pass
    now[0] = 31.0
    with limiter.enter(TWO) as holding:
        holding.add(600)
    now[0] = 1000.0
    with limiter.enter(TWO) as holding:
        holding.add(600)
    assert refusal(lambda: limiter.enter(ONE)) == "RATE_LIMITED"


def test_held_bytes_are_bounded_and_leave_room_for_others() -> None:
    limiter = Limiter(Limits(held_bytes=4000))
    with limiter.enter(ONE) as holding:
        holding.add(3900)
        with pytest.raises(BusyError, match="held already"):
            holding.add(200)
        with limiter.enter(OTHER) as other:
            other.add(900)
        assert limiter.held_bytes == 3900
    assert limiter.held_bytes == 0


@pytest.fixture(scope="module")
def two_tenants(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server that knows a principal of each of two tenants, and may give one of them few tokens."""
    lines = ["apiVersion: saegis.dev/v1", "kind: Identities", "principals:"]
    for tenant in ("flood", "quiet"):
        digest = token_digest(tenant)
        roles = ", ".join(ALL_ROLES)
        lines.append(f"  - {{name: {tenant}, tenant: {tenant}, roles: [{roles}], token_sha256: {digest}}}")
    path: Path = tmp_path_factory.mktemp("identities") / "identities.yaml"
    path.write_text("\n".join(lines), encoding="utf-8")
    with running(identities=path, max_num_seqs=4, queue_limit=64) as server:
        yield server


def test_a_flood_of_one_tenant_leaves_another_its_turn(two_tenants: Running) -> None:
    """Five requests of 64 sequences each, and loops of long texts, beside short requests of another."""
    stop, refused = threading.Event(), list[grpc.StatusCode]()

    def keep_calling(method: Any, message: Any) -> None:
        while not stop.is_set():
            try:
                method(message, metadata=bearer("flood"))
            except (grpc.RpcError, ValueError) as error:
                if not stop.is_set():
                    assert isinstance(error, grpc.RpcError)  # noqa: PT017
                    refused.append(error.code())
                    time.sleep(0.01)

    tokens = pb.SamplingParams(n=13, max_tokens=60, temperature=0.0, ignore_eos=True)
    generation, text = pb.GenerateRequest(text="x", sampling=tokens), tiny.TEXT * 700
    with (
        grpc.insecure_channel(two_tenants.target) as channel,
        grpc.insecure_channel(two_tenants.target) as own,
        ThreadPoolExecutor(12) as threads,
    ):
        models = model_pb2_grpc.ModelServiceStub(channel)
        floods = generation_pb2_grpc.GenerationServiceStub(channel)
        long_text = model_pb2.TokenizeRequest(text=text)
        work = [threads.submit(keep_calling, models.Tokenize, long_text) for _ in range(4)]
        work += [threads.submit(keep_calling, floods.Generate, generation) for _ in range(6)]
        try:
            eventually(lambda: two_tenants.services.engine.stats().waiting > 30)
            stub = generation_pb2_grpc.GenerationServiceStub(own)
            sampling = pb.SamplingParams(max_tokens=4, temperature=0.0)
            waits = []
            for _ in range(8):
                message = pb.GenerateRequest(text="the river", sampling=sampling)
                answer = stub.Generate(message, metadata=bearer("quiet"), timeout=10)
                waits.append(answer.receipt.timings.queue_seconds)
        finally:
            stop.set()
            channel.close()
        for each in work:
            each.result(60)
    assert sorted(waits)[len(waits) // 2] < 1.0, waits
    assert set(refused) == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    eventually(two_tenants.is_idle)


def test_a_tenant_that_has_had_its_tokens_is_told_when_to_come_again(two_tenants: Running) -> None:
    limited = Limits(tenant=RequestLimits(tokens_per_minute=30))
    limiter = two_tenants.services.limiter
    before, limiter._limits = limiter._limits, limited
    try:
        with grpc.insecure_channel(two_tenants.target) as channel:
            stub = generation_pb2_grpc.GenerationServiceStub(channel)
            sampling = pb.SamplingParams(max_tokens=40, temperature=0.0, ignore_eos=True)
            message = pb.GenerateRequest(text="the river", sampling=sampling)
            answer = stub.Generate(message, metadata=bearer("flood"))
            used = answer.usage.prompt_tokens + answer.usage.completion_tokens
            found = failure(lambda: stub.Generate(message, metadata=bearer("flood")))
            assert (found.code, found.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED")
            seconds = found.details["RetryInfo"].retry_delay.ToTimedelta().total_seconds()
            assert seconds == pytest.approx((used - 29) * 2, abs=2.0)
            stub.Generate(message, metadata=bearer("quiet"))
    finally:
        limiter._limits = before
