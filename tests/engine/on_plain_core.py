"""The engine of vLLM on a plain core, for tests of any engine: on a model of `tiny`, in any environment."""

import copy
from collections.abc import Mapping

from transformers import PreTrainedModel

from saegis_server.engine.api import FirstToken, Limits
from saegis_server.engine.sites import widths_of
from saegis_server.engine.vllm.engine import VllmEngine
from saegis_server.engine.vllm.readings import APART
from saegis_server.engine.vllm.served import Served
from saegis_server.engine.vllm.steered import Steered
from saegis_server.sae.autoencoder import SparseAutoencoder
from saegis_server.steering.admitted import Room
from saegis_server.steering.site import Site
from saegis_server.steering.table import Capacity
from tests.engine import tiny
from tests.engine.plain_core import PlainCore
from tests.engine.serving import Asked

LENGTH = 160


def on_plain_core(
    model: PreTrainedModel,
    max_running: int = 8,
    limits: Limits | None = None,
    first_token: FirstToken | None = None,
    eos: int = tiny.EOS,
    ranked: Mapping[Site, SparseAutoencoder] | None = None,
) -> Asked:
    """The engine on vLLM, with the plain core in its place."""
    chosen = limits or Limits(prefill_chunk=16)
    served = plain_served(model, max_running, chosen.prefill_chunk, ranked)
    return Asked(VllmEngine(served, tiny.tokenizer(), (eos,), max_running, chosen, first_token))


def plain_served(
    model: PreTrainedModel,
    max_running: int,
    chunk: int,
    ranked: Mapping[Site, SparseAutoencoder] | None = None,
) -> Served:
    """What it serves: a copy of the model, hooked."""
    hooked = copy.deepcopy(model)
    rank = {site: [sae.ranked(model.device)] for site, sae in (ranked or {}).items()}
    known = {site: [each for each in own if each is not None] for site, own in rank.items()}
    norms = {site: norms | {each.norm for each in known.get(site, ())} for site, norms in tiny.SITES.items()}
    widths, capacity = widths_of(model), Capacity()
    steered = Steered(norms, widths, max_running + APART, capacity, "cpu", known)
    digests = frozenset((site, each.digest) for site, own in known.items() for each in own)
    room = Room(tuple(norms), widths, capacity, model.dtype, digests)
    core = PlainCore(hooked, steered, chunk)
    return Served(core, LENGTH, tiny.VOCABULARY, room, model.dtype, None, None, max_running)
