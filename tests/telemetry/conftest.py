"""A scrape of a server that has everything that metrics tell of."""

from pathlib import Path

import pytest

import saegis
from tests.rpc.harness import eventually, running
from tests.rpc.test_governor import BAN, write
from tests.telemetry.scrape import Scrape, scrape


@pytest.fixture
def full_scrape(tmp_path: Path) -> Scrape:
    """Policies in two modes, an audit log, a watched feature, a sample of the SAE and an answer."""
    policies = {"bundles": [str(write(tmp_path, BAN)), str(write(tmp_path, "mode: audit\n" + BAN, "a"))]}
    audit = {"directory": str(tmp_path / "audit"), "fsync": "never"}
    with (
        running(policies=policies, audit=audit, watch_features=["first:5"], sample_seconds=0.001) as server,
        saegis.Client(server.target) as client,
    ):
        client.generate("the river", max_tokens=3, temperature=0.0)
        # A sample is taken while the answer is written, or soon after.
        eventually(lambda: bool(list(scrape(server).samples("saegis_sae_active_features_count"))))
        return scrape(server)
