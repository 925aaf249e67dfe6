"""A server under load: how long callers wait for tokens, alone, beside scrapes, and beside a long text."""

import asyncio
import multiprocessing
import time
import urllib.request
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from statistics import median, quantiles
from typing import NamedTuple

from saegis import AsyncClient, Client
from saegis_lab.bench.loads import COUNTED, USAGE_EVERY
from saegis_lab.bench.report import Ratio
from saegis_server.engine.api import Progress
from saegis_server.rpc.server.process import ServerProcess

#: What the SAE of the reference model is called.
SAE = "polyglot"
#: Streams of full load, as many as the server runs at once, and those beside which a text is read.
FULL, BESIDE_A_TEXT = 16, 8
#: Tokens of the text that is read, and how many features of each token are told.
LONG_TEXT, TOLD = 20_000, 5
PROMPT_TOKENS, ANSWER_TOKENS = 16, 960
#: How long streams run before anything is measured, how long they are measured, and how often metrics are
#: scraped meanwhile: far more often than Prometheus does, so that the slowest hundredth of the tokens tells.
SETTLE_SECONDS, MEASURED_SECONDS, SCRAPE_SECONDS = 1.0, 6.0, 0.1


class Waits(NamedTuple):
    """How long callers waited, in seconds: between two pieces of a stream, and for each other call."""

    tokens: list[float]
    calls: list[float]

    @property
    def p99(self) -> float:
        """How long at most the callers waited for all pieces but a hundredth, in milliseconds."""
        return 1000.0 * quantiles(self.tokens, n=100)[-1]


async def _stream(client: AsyncClient, waits: list[float], first: int) -> None:
    """Ask for one answer after the other without end, and note the time between its pieces."""
    prompt = [first + place for place in range(PROMPT_TOKENS)]
    while True:
        answer = client.stream(token_ids=prompt, temperature=0.0, max_tokens=ANSWER_TOKENS, ignore_eos=True)
        last = None
        async for _ in answer:
            now = time.perf_counter()
            if last is not None:
                waits.append(now - last)
            last = now


async def beside(target: str, streams: int, work: Callable[[], Awaitable[list[float]]]) -> Waits:
    """How long streams wait while some work is done, which returns what its own calls took.

    Raises what a stream raises.
    """
    waits: list[float] = []

    async def measured() -> Waits:
        await asyncio.sleep(SETTLE_SECONDS)
        waits.clear()
        calls = await work()
        return Waits(list(waits), calls)

    async with AsyncClient(target) as client:
        running = [asyncio.create_task(_stream(client, waits, 8 + place)) for place in range(streams)]
        ending = asyncio.create_task(measured())
        try:
            await asyncio.wait([ending, *running], return_when=asyncio.FIRST_COMPLETED)
            for each in running:
                if each.done():  # which none does by itself
                    each.result()
            return ending.result()
        finally:
            for task in (ending, *running):
                task.cancel()
            await asyncio.gather(ending, *running, return_exceptions=True)


def scrape(port: int) -> float:
    """How long one scrape takes, in seconds, until all of it is there."""
    began = time.perf_counter()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        answer.read()
    return time.perf_counter() - began


def scrapes(port: int) -> list[float]:
    """Scrape again and again, as long as streams are measured; how long each took."""
    until, took = time.monotonic() + MEASURED_SECONDS, []
    while time.monotonic() < until:
        took.append(scrape(port))
        time.sleep(SCRAPE_SECONDS)
    return took


def inspect(target: str, sae: str, tokens: int) -> list[float]:
    """How long it takes to read a text of so many tokens, in seconds."""
    began = time.perf_counter()
    with Client(target, timeout=600.0) as client:
        text = [8 + place % 2000 for place in range(tokens)]
        client.inspect(token_ids=text, sae=sae, top_k=TOLD, long_text=True)
    return [time.perf_counter() - began]


class _Round(NamedTuple):
    """One round: streams of full load, the same while metrics are scraped, fewer streams, the same while a
    text is read; and how long scrapes take of a server that does nothing else, in seconds."""

    full: Waits
    scraped: Waits
    few: Waits
    beside_a_text: Waits
    idle: list[float]


def _round(server: ServerProcess, process: ProcessPoolExecutor) -> _Round:
    """What is done beside the streams is done in another process, since it delays no other caller."""

    async def nothing() -> list[float]:
        await asyncio.sleep(MEASURED_SECONDS)
        return []

    async def scraped() -> list[float]:
        return await asyncio.get_running_loop().run_in_executor(process, scrapes, server.metrics_port)

    async def inspected() -> list[float]:
        return await asyncio.get_running_loop().run_in_executor(
            process, inspect, server.target, SAE, LONG_TEXT
        )

    idle = [scrape(server.metrics_port) for _ in range(10)]
    sides = (FULL, nothing), (FULL, scraped), (BESIDE_A_TEXT, nothing), (BESIDE_A_TEXT, inspected)
    full, scraping, few, reading = (
        asyncio.run(beside(server.target, streams, work)) for streams, work in sides
    )
    return _Round(full, scraping, few, reading, idle)


def served(name: str, rounds: int, progress: Progress) -> list[Ratio]:
    """Serve the reference model with features watched and all of them counted, and measure how long callers
    wait, with and without scrapes or a long text beside them.

    name: of what is measured. Raises ServerProcessError if the server does not start or stop.
    """
    options = ["--usage-every", str(USAGE_EVERY)]
    options += [f"--watch-feature={SAE}:{index}" for index in range(COUNTED)]
    spawned = multiprocessing.get_context("spawn")
    found = []
    with ServerProcess(options, progress) as server, ProcessPoolExecutor(1, spawned) as process:
        process.submit(inspect, server.target, SAE, PROMPT_TOKENS).result()
        for number in range(rounds + 1):
            progress("streams of a server", number, rounds + 1)
            found.append(_round(server, process))
        server.stop()
    return _ratios(name, found[1:])


def _ratios(name: str, rounds: list[_Round]) -> list[Ratio]:
    """What was measured, in milliseconds."""

    def row(what: str, against: str, ours: list[float], theirs: list[float], bar: str) -> Ratio:
        return Ratio.of(name, what, against, ours, theirs, bar, unit="ms")

    idle = [1000.0 * median(each.idle) for each in rounds]
    usual = [1000.0 * median(each.scraped.calls) for each in rounds]
    longest = [1000.0 * max(each.scraped.calls) for each in rounds]
    full, scraped = [each.full.p99 for each in rounds], [each.scraped.p99 for each in rounds]
    few, beside_a_text = [each.few.p99 for each in rounds], [each.beside_a_text.p99 for each in rounds]
    scrapes_a_second, text = f"{1 / SCRAPE_SECONDS:.0f} scrapes a second", f"Inspect of {LONG_TEXT:,} tokens"
    return [
        row(f"a scrape beside {FULL} streams, median", "nothing beside it", usual, idle, "≤ 50 ms"),
        row(
            f"the same, the longest of {MEASURED_SECONDS:.0f} s",
            "nothing beside it",
            longest,
            idle,
            "≤ 50 ms",
        ),
        row(f"p99 between tokens of {FULL} streams, {scrapes_a_second}", "no scrape", scraped, full, "≤ 1.5"),
        row(f"p99 between tokens of {BESIDE_A_TEXT} streams, {text}", "without", beside_a_text, few, "≤ 1.5"),
    ]
