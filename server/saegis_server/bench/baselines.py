"""Baselines: the way people do it today, with Transformers alone."""

import time
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from saegis_server.bench.loads import NEW_TOKENS, ROWS
from saegis_server.engine.sites import Site, site_module
from saegis_server.sae.autoencoder import SparseAutoencoder


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

    def steer(module: nn.Module, args: object, output: Any) -> Any:
        x: Tensor = output[0] if isinstance(output, tuple) else output
        f = sae.encode(x)
        error = x - sae.decode(f, x)
        f[..., features] = 0.5
        steered = sae.decode(f, x) + error
        return (steered, *output[1:]) if isinstance(output, tuple) else steered

    module, _ = site_module(model, site)
    handle = module.register_forward_hook(steer)
    try:
        start = time.perf_counter()
        for prompt in prompts:
            generate(model, [prompt])
        return len(prompts) * NEW_TOKENS / (time.perf_counter() - start)
    finally:
        handle.remove()
