"""The engines that are held to the suite; another one is an entry here, and nothing else."""

import copy
from collections.abc import Mapping
from typing import cast

import pytest
from torch import nn
from transformers import PreTrainedModel

from saegis_server.engine.api import FirstToken, Limits
from saegis_server.sae.autoencoder import SparseAutoencoder
from saegis_server.steering.site import Site
from tests.engine import tiny
from tests.engine.cuda import DEVICE, needs_cuda
from tests.engine.serving import Asked, Serving
from tests.tiers import few


def embedded(
    model: PreTrainedModel,
    max_running: int = 8,
    limits: Limits | None = None,
    first_token: FirstToken | None = None,
    eos: int = tiny.EOS,
    ranked: Mapping[Site, SparseAutoencoder] | None = None,
) -> Asked:
    """The embedded engine, eagerly."""
    step = tiny.step(model, slots=max(2, max_running), ranked=ranked)
    return tiny.RunningEngine(step, max_running, limits, first_token, eos)


def one_by_one(
    model: PreTrainedModel,
    max_running: int = 8,
    limits: Limits | None = None,
    first_token: FirstToken | None = None,
    eos: int = tiny.EOS,
    ranked: Mapping[Site, SparseAutoencoder] | None = None,
) -> Asked:
    """The embedded engine with steps for each sequence alone."""
    step = tiny.step(model, slots=max(2, max_running), ranked=ranked)
    return tiny.RunningEngine(step, max_running, limits, first_token, eos, batch_invariant=True)


def on_cuda(
    model: PreTrainedModel,
    max_running: int = 8,
    limits: Limits | None = None,
    first_token: FirstToken | None = None,
    eos: int = tiny.EOS,
    ranked: Mapping[Site, SparseAutoencoder] | None = None,
) -> Asked:
    """The same on a CUDA device, beside the oracles, which stay on the CPU."""
    moved = copy.deepcopy(model)
    nn.Module.to(moved, DEVICE)
    return embedded(moved, max_running, limits, first_token, eos, ranked)


#: The quick tier does with the first.
ENGINES: dict[str, Serving] = {"torch": embedded, "torch-batch-invariant": one_by_one}
ON_CUDA = pytest.param(on_cuda, id="cuda", marks=needs_cuda)
EACH = [pytest.param(each, id=name) for name, each in ENGINES.items()]


@pytest.fixture(params=[*few(EACH, 1), ON_CUDA])
def serving(request: pytest.FixtureRequest) -> Serving:
    """Makes an engine, each of those there are in turn."""
    return cast(Serving, request.param)
