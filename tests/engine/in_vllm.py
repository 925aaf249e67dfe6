"""vLLM's engine for tests of any engine: on a model of `tiny`, a core for each model and number of slots."""

import hashlib
import importlib.util
import os
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from saegis_server.engine.api import FirstToken, Limits
from saegis_server.engine.torch.loading import LoadedModel
from saegis_server.engine.torch.sizing import Wishes
from saegis_server.sae.autoencoder import SparseAutoencoder
from saegis_server.steering.site import Site
from saegis_server.steering.table import Capacity
from tests.engine import tiny
from tests.engine.interpreted import interpret
from tests.engine.serving import Asked

if TYPE_CHECKING:
    from saegis_server.engine.vllm.served import Served

#: Whether there is a vLLM, in whose environment alone the engine on it is tried.
HAS_VLLM = importlib.util.find_spec("vllm") is not None
#: Whether its second runner is tried, by Triton's interpreter, in a process that asks vLLM for it.
SECOND = HAS_VLLM and os.environ.get("VLLM_USE_V2_MODEL_RUNNER") == "1"
if SECOND:
    interpret()
#: Tokens of a text, as in the embedded engine of these tests.
LENGTH = 160


def in_vllm(
    model: PreTrainedModel,
    max_running: int = 8,
    limits: Limits | None = None,
    first_token: FirstToken | None = None,
    eos: int = tiny.EOS,
    ranked: Mapping[Site, SparseAutoencoder] | None = None,
    compiled: bool = False,
    ranks: int = 1,
) -> Asked:
    """The engine on vLLM. A core is made once and forgets every prefix between two engines."""
    from saegis_server.engine.vllm.engine import VllmEngine
    from saegis_server.engine.vllm.in_process import CoreInProcess

    served = _served(_Model(model), max_running, tuple((ranked or {}).items()), compiled, ranks)
    chosen = limits or Limits(prefill_chunk=16)
    assert isinstance(served.core, CoreInProcess)
    served.core.read_at_most(chosen.prefill_chunk)
    served.core.forget_prefixes()
    return Asked(VllmEngine(served, tiny.tokenizer(), (eos,), max_running, chosen, first_token))


class _Model:
    """A model as the key of a cache: equal where all weights and the configuration are."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        state = hashlib.sha256(model.config.to_json_string().encode())
        for name, tensor in sorted(model.state_dict().items()):
            state.update(name.encode() + tensor.float().numpy().tobytes())
        self._key = state.hexdigest(), model.dtype

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Model) and self._key == other._key


@cache
def _served(
    key: _Model,
    max_running: int,
    ranked: tuple[tuple[Site, SparseAutoencoder], ...],
    compiled: bool,
    ranks: int,
) -> "Served":
    from saegis_server.engine.vllm.served import serve_in_vllm

    model = key.model
    rank = {site: [sae.ranked(torch.device("cpu"))] for site, sae in ranked}
    known = {site: [each for each in own if each is not None] for site, own in rank.items()}
    norms = {site: norms | {each.norm for each in known.get(site, ())} for site, norms in tiny.SITES.items()}
    loaded = LoadedModel("tiny", model, tiny.tokenizer(), "", (tiny.EOS,), 256)
    wishes = Wishes(count=max_running, length=LENGTH)
    served = serve_in_vllm(
        loaded, norms, wishes, Capacity(), lambda *_: None, ranked=known, compiled=compiled, ranks=ranks
    )
    served.keeps_core = True
    return served
