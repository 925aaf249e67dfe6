"""A server that has everything that metrics tell of, and a scrape of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import saegis
from tests.rpc.harness import Running, eventually, running
from tests.rpc.test_governor import BAN, write
from tests.telemetry.scrape import Scrape, scrape


@pytest.fixture
def full_server(tmp_path: Path) -> Iterator[Running]:
    """Policies in two modes, an audit log, a watched feature, and frequent samples of the SAE."""
    policies = {"bundles": [str(write(tmp_path, BAN)), str(write(tmp_path, "mode: audit\n" + BAN, "a"))]}
    audit = {"directory": str(tmp_path / "audit"), "fsync": "never"}
    with running(policies=policies, audit=audit, watch_features=["first:5"], sample_seconds=0.001) as server:
        yield server


@pytest.fixture
def full_scrape(full_server: Running) -> Scrape:
    """What that server tells after an answer."""
    with saegis.Client(full_server.target) as client:
        client.generate("the river", max_tokens=3, temperature=0.0)
        # A sample is taken while the answer is written, or soon after.
        eventually(lambda: bool(list(scrape(full_server).samples("saegis_sae_active_features_count"))))
        return scrape(full_server)
