"""The engines that are held to the suite; another one is an entry here, and nothing else."""

import copy
from collections.abc import Mapping
from functools import partial
from typing import cast

import pytest
from torch import nn
from transformers import PreTrainedModel

from saegis_server.engine.api import FirstToken, Limits
from saegis_server.sae.autoencoder import SparseAutoencoder
from saegis_server.steering.site import Site
from tests.engine import tiny
from tests.engine.cuda import DEVICE, needs_cuda
from tests.engine.in_vllm import HAS_VLLM, SECOND, in_vllm
from tests.engine.serving import Asked, Serving


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


#: In the environment of vLLM the engine on it, on either runner, eagerly, compiled, and shared by two ranks;
#: elsewhere the embedded one.
ENGINES = [pytest.param(in_vllm, id="vllm")] if HAS_VLLM else [pytest.param(embedded, id="torch")]
#: On the first runner the first two of these run one test quickly; all run all tests at their full size.
FURTHER: dict[str, Serving] = {}
BOTH = "compiled-ranks"
if HAS_VLLM:
    FURTHER["compiled"] = partial(in_vllm, compiled=True)
    if not SECOND:
        FURTHER["ranks"] = partial(in_vllm, ranks=2)
        FURTHER[BOTH] = partial(in_vllm, compiled=True, ranks=2)
    ENGINES += [pytest.param(each, id=f"vllm-{name}") for name, each in FURTHER.items()]
ON_CUDA = pytest.param(on_cuda, id="cuda", marks=needs_cuda)


@pytest.fixture(params=[*ENGINES, ON_CUDA])
def serving(request: pytest.FixtureRequest) -> Serving:
    """Makes an engine, each of those there are in turn."""
    return cast(Serving, request.param)


#: Models of `tiny` whose heads vLLM neither takes nor can have made wider: tests/engine/vllm/test_families.py
#: has them with others.
NARROW = ("qwen2", "gemma2", "olmo2", "gpt2", "gpt_neox")


def _is_refused(item: pytest.Item) -> bool:
    """Whether vLLM does not serve what a test asks for: narrow heads, and, on two ranks, SAEs that decide by
    rank."""
    on_ranks = "ranks]" in item.name and item.path.name == "test_ranks.py"
    return on_ranks or any(each in item.name for each in NARROW)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what vLLM refuses by name."""
    out = [item for item in items if HAS_VLLM and _is_refused(item)]
    config.hook.pytest_deselected(items=out)
    items[:] = [item for item in items if item not in out]
    for item in items:
        # The longest name, as one is the beginning of another.
        further = max((name for name in FURTHER if f"vllm-{name}" in item.name), key=len, default=None)
        quick = item.name.startswith("test_thirty_two_programs") and further != BOTH and not SECOND
        if further and not quick:
            item.add_marker(pytest.mark.slow)
