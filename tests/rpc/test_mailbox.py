"""The mailbox: everything in order, one wake-up for many events, and a bound for readers that do not read."""

import asyncio
from threading import Thread

import pytest

from saegis_server.engine.api import Delta, DuplicateRequestError, Event, RequestFailed, RequestFinished
from saegis_server.engine.readouts import TokenOutput
from saegis_server.engine.receipts import Receipt, Timings, Usage
from saegis_server.rpc.wire.mailbox import Mailbox, closing
from saegis_server.rpc.wire.problems import SlowReaderError

FINISHED = RequestFinished(Usage(1, 1, 0, 0), Receipt("", False, ()), Timings(0.0, 0.0, 0.0))


def delta(number: int) -> Delta:
    return Delta(0, "x", (TokenOutput(number),))


def never() -> None:
    raise AssertionError("it has overflowed")


async def test_events_of_another_thread_come_in_order() -> None:
    mailbox = Mailbox(10_000, never)
    sent: list[Event] = [*(delta(number) for number in range(5000)), FINISHED]

    def write() -> None:
        for event in sent:
            mailbox.put([event])

    writer = Thread(target=write)
    writer.start()
    seen: list[Event] = []
    batches = 0
    while closing(seen[-1:]) is None:
        seen += await mailbox.get()
        batches += 1
    writer.join()
    assert seen == sent
    assert batches < len(sent)


async def test_many_events_wake_the_loop_once(monkeypatch: pytest.MonkeyPatch) -> None:
    mailbox = Mailbox(100, never)
    loop = asyncio.get_running_loop()
    woken: list[object] = []
    monkeypatch.setattr(loop, "call_soon_threadsafe", lambda callback: woken.append(callback))
    for number in range(20):
        mailbox.put([delta(number)])
    assert len(woken) == 1


async def test_it_waits_until_something_comes() -> None:
    mailbox = Mailbox(100, never)
    waiting = asyncio.ensure_future(mailbox.get())
    await asyncio.sleep(0.01)
    assert not waiting.done()
    mailbox.put([delta(1)])
    assert await waiting == [delta(1)]


async def test_more_than_the_limit_is_not_kept() -> None:
    overflowed: list[bool] = []
    mailbox = Mailbox(3, lambda: overflowed.append(True))
    mailbox.put([delta(1), delta(2)])
    assert await mailbox.get() == [delta(1), delta(2)]
    mailbox.put([delta(3), delta(4), delta(5)])
    assert await mailbox.get() == [delta(3), delta(4), delta(5)]
    for number in range(1000):
        mailbox.put([delta(number)])
    with pytest.raises(SlowReaderError):
        await mailbox.get()
    await asyncio.sleep(0)
    assert overflowed == [True]
    assert not mailbox._events
    mailbox.put([FINISHED])
    with pytest.raises(SlowReaderError):
        await mailbox.get()


def test_a_closed_loop_does_not_trouble_the_engine() -> None:
    async def make() -> Mailbox:
        return Mailbox(3, never)

    mailbox = asyncio.run(make())
    mailbox.put([delta(1)])


def test_a_failure_is_raised() -> None:
    with pytest.raises(DuplicateRequestError):
        closing([delta(1), RequestFailed(DuplicateRequestError("x"), FINISHED)])
    assert closing([delta(1)]) is None
    assert closing([delta(1), FINISHED]) is FINISHED
