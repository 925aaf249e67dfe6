"""One server for the tests that leave it as they found it, and a client of it."""

from collections.abc import Iterator

import pytest

from saegis import Client
from tests.e2e.serving import Serving, TinyFiles, serving, write_tiny_files


@pytest.fixture(scope="session")
def tiny_files(tmp_path_factory: pytest.TempPathFactory) -> TinyFiles:
    """The files of the tiny model and its SAE."""
    return write_tiny_files(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def server(tiny_files: TinyFiles, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A running server of the tiny model; it must stop in order when the tests are over."""
    folder = tmp_path_factory.mktemp("server")
    with serving(folder / "stderr", *tiny_files.options, "--max-num-seqs", "32") as running:
        yield running
        running.terminate()
        assert running.wait() == 0, running.stderr_path.read_text(encoding="utf-8")


@pytest.fixture
def client(server: Serving) -> Iterator[Client]:
    """A client of the shared server."""
    with Client(server.target, timeout=60.0) as connected:
        yield connected
