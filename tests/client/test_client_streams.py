"""Streams: chunks in their order, one closing message, cancellation by every way of leaving early."""

import asyncio
import gc

import pytest

import saegis
from saegis.v1 import generation_pb2
from tests.client.loopback import Loopback
from tests.client.messages import stream_of_two

Response = generation_pb2.StreamGenerateResponse


@pytest.fixture
def endless(loopback: Loopback) -> Loopback:
    """A server whose stream would take minutes to end."""
    piece = Response(chunk=generation_pb2.GenerationChunk(text="a", token_ids=[1]))
    loopback.answers["StreamGenerate"] = [piece] * 10_000
    loopback.pause_seconds = 0.05
    return loopback


def test_chunks_then_final(loopback: Loopback) -> None:
    loopback.answers["StreamGenerate"] = stream_of_two()
    with saegis.Client(loopback.target) as client:
        stream = client.stream("x")
        with pytest.raises(RuntimeError, match="not ended"):
            _ = stream.final
        chunks = list(stream)
        assert [(chunk.index, chunk.text, chunk.finish_reason) for chunk in chunks] == [
            (0, "a", None),
            (1, "c", None),
            (1, "d", "stop"),
            (0, "b", "content_filter"),
        ]
        assert chunks[0].watched == (saegis.Watched(0, (1.5,), (0.0,), (3.0,)),)
        assert stream.final.request_id == "r1"
        assert stream.final.usage == saegis.Usage(3, 4, 1, 2)
        assert stream.final.outcomes[1] == saegis.Outcome(1, saegis.FinishReason.STOP, 0)
        assert list(stream) == [], "it has ended and stays so"
        stream.close()
        assert stream.collect().choices[0].text == "ab"


async def test_asyncio_chunks_then_final(loopback: Loopback) -> None:
    loopback.answers["StreamGenerate"] = stream_of_two()
    async with saegis.AsyncClient(loopback.target) as client, client.stream("x") as stream:
        with pytest.raises(RuntimeError, match="not ended"):
            _ = stream.final
        assert [chunk.text async for chunk in stream] == ["a", "c", "d", "b"]
        assert stream.final.usage.completion_tokens == 4
        assert [chunk async for chunk in stream] == []
        assert (await stream.collect()).choices[1].text == "cd"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda messages: messages[:-1], "without its closing message"),
        (lambda messages: [*messages, messages[0]], "went on after"),
        (lambda messages: [*messages, messages[-1]], "went on after"),
        (lambda messages: [Response(), *messages], "neither"),
        (lambda messages: [], "without its closing message"),
    ],
    ids=["no end", "chunk after the end", "two ends", "empty message", "nothing"],
)
async def test_broken_streams_are_errors(loopback: Loopback, change: object, message: str) -> None:
    assert callable(change)
    loopback.answers["StreamGenerate"] = change(stream_of_two())
    with saegis.Client(loopback.target) as client, pytest.raises(saegis.InternalError, match=message):
        await asyncio.to_thread(lambda: list(client.stream("x")))
    async with saegis.AsyncClient(loopback.target) as twin:
        with pytest.raises(saegis.InternalError, match=message):
            await twin.stream("x").collect()


def test_close_cancels(endless: Loopback) -> None:
    with saegis.Client(endless.target) as client:
        stream = client.stream("x")
        assert next(stream).text == "a"
        stream.close()
        assert endless.ended.wait(5)
        with pytest.raises(saegis.Cancelled):
            list(stream)
        with pytest.raises(RuntimeError, match="not ended"):
            _ = stream.final


def test_leaving_a_with_block_cancels(endless: Loopback) -> None:
    with saegis.Client(endless.target) as client:
        with client.stream("x") as stream:
            next(stream)
        assert endless.ended.wait(5)


def test_abandoning_cancels(endless: Loopback) -> None:
    with saegis.Client(endless.target) as client:
        for chunk in client.stream("x"):
            assert chunk.text == "a"
            break
        gc.collect()
        assert endless.ended.wait(5)


def test_closing_the_client_cancels(endless: Loopback) -> None:
    client = saegis.Client(endless.target)
    stream = client.stream("x")
    next(stream)
    client.close()
    with pytest.raises(saegis.Cancelled):
        list(stream)
    assert endless.ended.wait(5)


async def test_asyncio_close_cancels(endless: Loopback) -> None:
    async with saegis.AsyncClient(endless.target) as client:
        stream = client.stream("x")
        assert (await anext(stream)).text == "a"
        await stream.close()
        assert await asyncio.to_thread(endless.ended.wait, 5)
        with pytest.raises(saegis.Cancelled):
            await anext(stream)


async def test_asyncio_close_wakes_a_waiting_reader(endless: Loopback) -> None:
    endless.pause_seconds = 30
    async with saegis.AsyncClient(endless.target) as client:
        stream = client.stream("x")
        await anext(stream)
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.05)
        await stream.close()
        with pytest.raises(saegis.Cancelled):
            await waiting


async def test_asyncio_task_cancellation_cancels(endless: Loopback) -> None:
    async with saegis.AsyncClient(endless.target) as client:
        started = asyncio.Event()

        async def read() -> None:
            async for _ in client.stream("x"):
                started.set()

        task = asyncio.create_task(read())
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(endless.ended.wait, 5)


async def test_asyncio_abandoning_cancels(endless: Loopback) -> None:
    async with saegis.AsyncClient(endless.target) as client:
        async for chunk in client.stream("x"):
            assert chunk.text == "a"
            break
        gc.collect()
        assert await asyncio.to_thread(endless.ended.wait, 5)


async def test_a_deadline_ends_a_stream(endless: Loopback) -> None:
    async with saegis.AsyncClient(endless.target) as client:
        with pytest.raises(saegis.DeadlineExceeded):
            await client.stream("x", timeout=0.3).collect()
    with saegis.Client(endless.target) as twin, pytest.raises(saegis.DeadlineExceeded):
        await asyncio.to_thread(twin.stream("x", timeout=0.3).collect)
