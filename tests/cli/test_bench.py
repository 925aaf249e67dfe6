"""The benchmark of a server: streams are timed while something else is done, and figures tell their unit."""

import asyncio
import random

import pytest
from typer.testing import CliRunner

import saegis
from saegis_lab.bench import faces, serving
from saegis_lab.bench.report import SURE, Ratio, interval, markdown
from saegis_lab.bench.run import take_turns
from saegis_lab.cli.app import app
from tests.engine.in_vllm import HAS_VLLM
from tests.rpc.harness import running


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers that fit the tiny model's context."""
    monkeypatch.setattr(serving, "ANSWER_TOKENS", 24)
    monkeypatch.setattr(serving, "SETTLE_SECONDS", 0.1)
    monkeypatch.setattr(serving, "SCRAPED_SECONDS", 0.5)


def test_streams_are_timed_while_metrics_are_scraped_and_a_text_is_read() -> None:
    with running() as server:
        port = server.address.metrics_port or 0

        async def work() -> list[float]:
            scraped = await asyncio.to_thread(serving.scrapes, port)
            goal = server.services.engine.stats().steps + 50
            while server.services.engine.stats().steps < goal:  # noqa: ASYNC110 - steps tell nobody
                await asyncio.sleep(0.01)
            return scraped + await asyncio.to_thread(serving.inspect, server.target, "first", 200)

        both = asyncio.run(serving.beside(server.target, 2, [work, work]))
    assert len(both) == 2
    for waits in both:
        assert len(waits.tokens) > 5
        assert len(waits.calls) > 2
        assert all(wait > 0.0 for wait in (*waits.tokens, *waits.calls))
        assert sum(wait > waits.p99 / 1000.0 for wait in waits.tokens) <= 0.01 * len(waits.tokens) + 1.0


def test_a_stream_that_fails_ends_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "PROMPT_TOKENS", 10**4)

    async def work() -> list[float]:
        return [float(await asyncio.Event().wait())]

    with running() as server, pytest.raises(saegis.SaegisError, match="token_ids"):
        asyncio.run(serving.beside(server.target, 1, [work]))


def test_both_faces_tell_when_the_tokens_of_a_stream_came(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(faces, "ANSWER_TOKENS", 24)
    monkeypatch.setattr(faces, "STREAMS", 3)
    with running(http_port=0) as server:
        port = server.address.http_port or 0
        for came in (asyncio.run(faces.over_grpc(server.target, 1)), asyncio.run(faces.over_http(port, 1))):
            assert 12 < len(came) <= 24  # engine steps may end together before they are told
            assert came == sorted(came)
        assert faces.between_tokens(lambda number: faces.over_http(port, number)) > 0.0
        monkeypatch.setattr(faces, "PROMPT_TOKENS", 10**4)
        with pytest.raises(RuntimeError, match="400"):
            asyncio.run(faces.over_http(port, 1))


def test_a_ratio_is_that_of_paired_rounds_and_tells_its_unit() -> None:
    made = Ratio.of("model", "p99", "without", [3.0, 2.0, 9.0], [2.0, 2.0, 3.0], "≤ 1.5", unit="ms")
    assert (made.ours, made.theirs, made.ratio, made.low, made.high) == (3.0, 2.0, 1.5, 1.0, 3.0)
    assert "| model | p99 | without | 3.0 ms | 2.0 ms | 1.50 | 1.00–3.00 | ≤ 1.5 |" in markdown([made])


def test_an_interval_holds_the_median_as_surely_as_it_says() -> None:
    """Of few values it is all of them; of many it is narrow, and still holds it in nine cases of ten."""
    assert interval([3.0, 1.0, 2.0]) == (1.0, 3.0)
    assert interval([5.0, 1.0, 2.0, 3.0, 4.0]) == (1.0, 5.0)
    rng, held, widths = random.Random(1), 0, 0.0
    for _ in range(2000):
        low, high = interval([rng.expovariate(1.0) for _ in range(30)])
        held += low <= 0.6931 <= high
        widths += high - low
    assert SURE <= held / 2000 < 0.97
    assert widths / 2000 < 1.0


def test_sides_take_turns_both_ways() -> None:
    order: list[str] = []

    def side(name: str) -> float:
        order.append(name)
        return float(len(order))

    one, other = take_turns([lambda: side("a"), lambda: side("b")], 2)
    assert "".join(order) == "abbaab"
    assert (one, other) == ([4.0, 5.0], [3.0, 6.0])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--only", "reference"), "--only reference"),
        (("--part", "http"), "--part http"),
        ((), "vLLM"),
    ],
)
def test_what_vllm_is_not_measured_with_is_named(arguments: tuple[str, ...], named: str) -> None:
    if not arguments and HAS_VLLM:
        pytest.skip("it would be measured here")
    result = CliRunner().invoke(app, ["bench", "--engine", "vllm", *arguments])
    assert result.exit_code != 0
    assert named in result.stderr
