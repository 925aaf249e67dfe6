"""What a token costs a server over HTTP and over gRPC, at 32 streams at once, measured in turns."""

from __future__ import annotations

import os
import statistics
from pathlib import Path

import pytest

from saegis_lab.bench import faces
from tests.e2e.serving import Serving, serving, write_tiny_files

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(900)]
ROUNDS, MOST = 5, 1.1


def cpu_seconds(server: Serving) -> float:
    """What a server's process has computed so far. Unlike waiting, it hardly depends on what else runs."""
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measured(server: Serving, read: faces.Reader) -> float:
    """The seconds of the server's own that all streams took."""
    before = cpu_seconds(server)
    pieces = min(map(len, faces.read_all(read)))
    assert pieces > faces.ANSWER_TOKENS // 2, "what was told in few pieces measures little"
    return cpu_seconds(server) - before


def test_a_token_costs_hardly_more_over_http(tmp_path: Path) -> None:
    files = write_tiny_files(tmp_path)
    options = ("--http-port", "0", "--max-num-seqs", str(faces.STREAMS), "--compile", "never")
    with serving(tmp_path / "stderr", *files.options, *options) as server:
        over_http, over_grpc = faces.both(server.target, server.ready["http_port"])
        for read in (over_grpc, over_http):
            measured(server, read)
        rounds = [(measured(server, over_grpc), measured(server, over_http)) for _ in range(ROUNDS)]
        server.terminate()
        assert server.wait() == 0
    assert statistics.median(http / other for other, http in rounds) <= MOST, rounds
