"""A loopback server for each test, and both clients behind one face."""

import asyncio
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import saegis
from tests.client.loopback import Loopback, start

Caller = Callable[..., Any]


@pytest.fixture
def loopback() -> Iterator[Loopback]:
    served = Loopback()
    server = start(served)
    yield served
    server.stop(grace=None).wait()


@pytest.fixture(params=["Client", "AsyncClient"])
def call(request: pytest.FixtureRequest, loopback: Loopback) -> Caller:
    """Calls a method by name on a fresh client of either kind, with the client's settings as `settings`."""

    def blocking(method: str, *args: Any, settings: dict[str, Any] | None = None, **options: Any) -> Any:
        with saegis.Client(loopback.target, **(settings or {})) as client:
            return getattr(client, method)(*args, **options)

    def asynchronous(method: str, *args: Any, settings: dict[str, Any] | None = None, **options: Any) -> Any:
        async def run() -> Any:
            async with saegis.AsyncClient(loopback.target, **(settings or {})) as client:
                answer = getattr(client, method)(*args, **options)
                return await answer if inspect.isawaitable(answer) else answer

        return asyncio.run(run())

    return blocking if request.param == "Client" else asynchronous
