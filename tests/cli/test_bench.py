"""The benchmark of a server: streams are timed while something else is done, and figures tell their unit."""

import asyncio

import pytest

import saegis
from saegis_lab.bench import serving
from saegis_lab.bench.report import Ratio, markdown
from tests.rpc.harness import running


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers that fit the tiny model's context."""
    monkeypatch.setattr(serving, "ANSWER_TOKENS", 24)
    monkeypatch.setattr(serving, "SETTLE_SECONDS", 0.1)
    monkeypatch.setattr(serving, "MEASURED_SECONDS", 0.5)


def test_streams_are_timed_while_metrics_are_scraped_and_a_text_is_read() -> None:
    with running() as server:
        port = server.address.metrics_port or 0

        async def work() -> list[float]:
            scraped = await asyncio.to_thread(serving.scrapes, port)
            while server.services.engine.stats().steps < 100:  # noqa: ASYNC110 - steps tell nobody
                await asyncio.sleep(0.01)
            return scraped + await asyncio.to_thread(serving.inspect, server.target, "first", 200)

        waits = asyncio.run(serving.beside(server.target, 2, work))
    assert len(waits.tokens) > 5
    assert len(waits.calls) > 2
    assert all(wait > 0.0 for wait in (*waits.tokens, *waits.calls))
    assert sum(wait > waits.p99 / 1000.0 for wait in waits.tokens) <= 0.01 * len(waits.tokens) + 1.0


def test_a_stream_that_fails_ends_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "PROMPT_TOKENS", 10**4)

    async def work() -> list[float]:
        return [float(await asyncio.Event().wait())]

    with running() as server, pytest.raises(saegis.SaegisError, match="token_ids"):
        asyncio.run(serving.beside(server.target, 1, work))


def test_a_ratio_is_that_of_paired_rounds_and_tells_its_unit() -> None:
    made = Ratio.of("model", "p99", "without", [3.0, 2.0, 9.0], [2.0, 2.0, 3.0], "≤ 1.5", unit="ms")
    assert (made.ours, made.theirs, made.ratio, made.low, made.high) == (3.0, 2.0, 1.5, 1.0, 3.0)
    assert "| model | p99 | without | 3.0 ms | 2.0 ms | 1.50 | 1.00–3.00 | ≤ 1.5 |" in markdown([made])
