"""A server under load: how long callers wait for tokens, alone, beside scrapes, and beside a long text."""

import asyncio
import multiprocessing
import time
import urllib.request
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
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
#: How long streams run before anything is measured; how long they are measured with and without scrapes, and
#: without a text beside them; and how often metrics are scraped meanwhile: far more often than Prometheus
#: does, so that the slowest hundredth of the tokens tells. All in seconds.
SETTLE_SECONDS, SCRAPED_SECONDS, ALONE_SECONDS, SCRAPE_SECONDS = 1.0, 3.0, 6.0, 0.1
#: How many times as many rounds are scraped, since they are that short.
SCRAPED_ROUNDS = 2
#: What is done beside streams: what its own calls took, in seconds.
Work = Callable[[], Awaitable[list[float]]]


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


async def beside(target: str, streams: int, works: Sequence[Work]) -> list[Waits]:
    """How long streams wait while each of some works is done, one after the other, beside the same streams.

    Raises what a stream raises.
    """
    waits: list[float] = []

    async def measured() -> list[Waits]:
        await asyncio.sleep(SETTLE_SECONDS)
        found = []
        for work in works:
            waits.clear()
            calls = await work()
            found.append(Waits(list(waits), calls))
        return found

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
    until, took = time.monotonic() + SCRAPED_SECONDS, []
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


async def _nothing(seconds: float) -> list[float]:
    await asyncio.sleep(seconds)
    return []


class _Pairs(NamedTuple):
    """What streams waited alone and beside something, in rounds one after the other."""

    alone: list[Waits]
    disturbed: list[Waits]

    @classmethod
    def of(cls, target: str, streams: int, alone: Work, work: Work, rounds: int) -> "_Pairs":
        """Measure so many rounds of the same streams."""
        found = asyncio.run(beside(target, streams, [alone, work] * rounds))
        return cls(found[::2], found[1::2])

    def p99(self, name: str, what: str, against: str) -> Ratio:
        """How much longer the slowest hundredth of the tokens takes."""
        ours, theirs = ([each.p99 for each in side] for side in (self.disturbed, self.alone))
        return Ratio.of(name, what, against, ours, theirs, "≤ 1.5", unit="ms")


def served(name: str, rounds: int, progress: Progress, device: str = "cpu") -> list[Ratio]:
    """Serve the reference model with features watched and all of them counted, and measure how long callers
    wait, with and without scrapes or a long text beside them.

    name: of what is measured. Raises ServerProcessError if the server does not start or stop.
    """
    options = ["--usage-every", str(USAGE_EVERY), "--device", device]
    options += [f"--watch-feature={SAE}:{index}" for index in range(COUNTED)]
    spawned = multiprocessing.get_context("spawn")
    with ServerProcess(options, progress) as server, ProcessPoolExecutor(1, spawned) as process:
        # What is done beside the streams is done in another process, since it delays no other caller.
        process.submit(inspect, server.target, SAE, PROMPT_TOKENS).result()
        idle = [scrape(server.metrics_port) for _ in range(50)]

        async def scraped() -> list[float]:
            return await asyncio.get_running_loop().run_in_executor(process, scrapes, server.metrics_port)

        async def inspected() -> list[float]:
            return await asyncio.get_running_loop().run_in_executor(
                process, inspect, server.target, SAE, LONG_TEXT
            )

        progress(f"scrapes beside {FULL} streams", 0, 2)
        alone = partial(_nothing, SCRAPED_SECONDS)
        scraping = _Pairs.of(server.target, FULL, alone, scraped, SCRAPED_ROUNDS * rounds)
        progress(f"a long text beside {BESIDE_A_TEXT} streams", 1, 2)
        alone = partial(_nothing, ALONE_SECONDS)
        reading = _Pairs.of(server.target, BESIDE_A_TEXT, alone, inspected, rounds)
        server.stop()
    often, text = f"{1 / SCRAPE_SECONDS:.0f} scrapes a second", f"Inspect of {LONG_TEXT:,} tokens"
    return [
        *_scrapes(name, idle, scraping.disturbed),
        scraping.p99(name, f"p99 between tokens of {FULL} streams, {often}", "no scrape"),
        reading.p99(name, f"p99 between tokens of {BESIDE_A_TEXT} streams, {text}", "without"),
    ]


def _scrapes(name: str, idle: list[float], beside: list[Waits]) -> list[Ratio]:
    """How long scrapes take, in milliseconds: usually, and at most."""
    usual, every = 1000.0 * median(idle), [1000.0 * call for each in beside for call in each.calls]
    medians = [1000.0 * median(each.calls) for each in beside]
    against, bar = "nothing beside it", "≤ 50 ms"
    return [
        Ratio.of(
            name,
            f"a scrape beside {FULL} streams, median",
            against,
            medians,
            [usual] * len(medians),
            bar,
            unit="ms",
        ),
        Ratio.of(
            name, f"the same, the longest of {len(every)}", against, [max(every)], [usual], bar, unit="ms"
        ),
    ]
