"""Baselines: the way people do it today, with Transformers alone."""

import time
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from saegis_lab.bench.loads import NEW_TOKENS, ROWS
from saegis_server.engine.torch.site_reading import edited
from saegis_server.sae.autoencoder import SparseAutoencoder
from saegis_server.steering.site import Site


def generate(model: PreTrainedModel, prompts: list[list[int]]) -> float:
    """Generated tokens a second of Transformers' `generate`, greedy, all prompts in one static batch."""
    ids = torch.tensor(prompts, device=model.device)
    run: Any = model.generate
    start = time.perf_counter()
    output = run(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    elapsed = time.perf_counter() - start
    if output.shape[1] != ids.shape[1] + NEW_TOKENS:
        raise RuntimeError(f"generate wrote {output.shape[1] - ids.shape[1]} tokens instead of {NEW_TOKENS}")
    return len(prompts) * NEW_TOKENS / elapsed


def generate_with_hooks(
    model: PreTrainedModel, site: Site, sae: SparseAutoencoder, prompts: list[list[int]]
) -> float:
    """The same, one request at a time, each steered by a forward hook that runs the whole SAE.

    The hook encodes, clamps ROWS features, decodes, and adds the SAE's error back.
    """
    features = torch.arange(ROWS)

    def steer(x: Tensor) -> Tensor:
        f = sae.encode(x)
        error = x - sae.decode(f, x)
        f[..., features] = 0.5
        return sae.decode(f, x) + error

    with edited(model, site, steer):
        start = time.perf_counter()
        for prompt in prompts:
            generate(model, [prompt])
        return len(prompts) * NEW_TOKENS / (time.perf_counter() - start)
