"""One tiny server for the tests of this folder, and a client of it."""

from collections.abc import Iterator

import pytest

import saegis
from tests.rpc.harness import Running, eventually, running


@pytest.fixture(scope="session")
def evaluated() -> Iterator[Running]:
    """A server that every test may use and none may change."""
    with running(max_num_seqs=4, queue_limit=64) as server:
        yield server


@pytest.fixture
def client(evaluated: Running) -> Iterator[saegis.Client]:
    """A client of the server, which must be idle again in the end."""
    with saegis.Client(evaluated.target) as made:
        yield made
    eventually(evaluated.is_idle)


@pytest.fixture(scope="session")
def evaluated_target(evaluated: Running) -> str:
    """Where the server listens, for fixtures that outlive one test."""
    return evaluated.target


@pytest.fixture(scope="module")
def asker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[saegis.Client]:
    """A client of a server of its own, whose policies the tests of one module change."""
    state = tmp_path_factory.mktemp("policies") / "state"
    with (
        running(max_num_seqs=4, queue_limit=256, policies={"state": str(state)}) as server,
        saegis.Client(server.target) as client,
    ):
        yield client
