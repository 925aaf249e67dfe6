"""What is sampled of the SAEs, against the SAEs on the same activations."""

import pytest
import torch

import saegis
from saegis_server.rpc.services.sae_sampler import MOST_ENCODED, MOST_READ, sample
from tests.rpc import tiny
from tests.rpc.harness import eventually, running
from tests.telemetry.scrape import scrape


def test_a_sampled_prompt_is_encoded_whole_without_its_first_token() -> None:
    text = tiny.TEXT * 4
    with running(sample_seconds=3600.0) as server, saegis.Client(server.target) as client:
        for _ in range(2):
            client.generate(text, max_tokens=2, temperature=0.0)
        services = server.services
        entries = services.catalog.entries
        eventually(
            lambda: len(list(scrape(server).samples("saegis_sae_active_features_count"))) == len(entries)
        )
        found = scrape(server)
        tokens = services.prompts.text(text)[:MOST_READ]
        activations = services.engine.capture(tokens).result()
    assert len(tokens) == MOST_READ
    for loaded in entries:
        x = activations[loaded.site][-MOST_ENCODED:].to(torch.float64)
        f = loaded.sae.encode(x)
        error = (x - loaded.sae.decode(f, x)).norm(dim=-1) / x.norm(dim=-1)
        for name, values in (("active_features", (f > 0).sum(-1)), ("reconstruction_error_ratio", error)):
            assert found.total(f"saegis_sae_{name}_count", sae=loaded.id) == MOST_ENCODED
            total = found.total(f"saegis_sae_{name}_sum", sae=loaded.id, site=str(loaded.site))
            assert total == pytest.approx(float(values.sum()), rel=1e-4)


def test_nothing_is_sampled_where_it_is_turned_off() -> None:
    with running() as server, saegis.Client(server.target) as client:
        client.generate("the river", max_tokens=2, temperature=0.0)
        eventually(server.is_idle)
        assert not list(scrape(server).samples("saegis_sae_active_features_count"))


def test_a_sample_is_the_same_however_many_tokens_are_encoded_at_once() -> None:
    sae, x = tiny.sae("s", 5), torch.randn(27, tiny.WIDTH, generator=torch.Generator().manual_seed(1))
    whole = sae.encode(x)
    found = sample(sae, x)
    assert found.active.tolist() == (whole > 0).sum(-1).tolist()
    error = (x - sae.decode(whole, x)).norm(dim=-1) / x.norm(dim=-1)
    assert torch.allclose(found.error.to(torch.float32), error, rtol=1e-4)
