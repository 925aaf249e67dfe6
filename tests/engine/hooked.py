"""What Transformers' own code gives, plain or steered by plain hooks, and programs to steer it by."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from saegis_server.engine.sites import site_module
from saegis_server.steering import rows
from saegis_server.steering.program import SiteProgram, SteeringProgram
from saegis_server.steering.rows import Norm, Phase, Probe, add
from saegis_server.steering.site import Site
from tests.engine import tiny
from tests.steering import cases, reference

#: Two best logits closer than this are a tie: either token is right.
TIE = 1e-4


def generate(model: PreTrainedModel, prompt: list[int], tokens: int) -> tuple[list[int], Tensor]:
    """Transformers' greedy answer, and the gap between the two best logits at each of its tokens."""
    ids = torch.tensor([prompt])
    output = model.generate(  # type: ignore[operator]
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        do_sample=False,
        output_scores=True,
        return_dict_in_generate=True,
    )
    best = torch.stack(output.scores)[:, 0].topk(2).values
    return output.sequences[0, len(prompt) :].tolist(), best[:, 0] - best[:, 1]


def differs(got: list[int], wanted: list[int], gaps: Tensor) -> bool:
    """Whether the answers differ at a token that was no tie."""
    for one, other, gap in zip(got, wanted, gaps.tolist(), strict=True):
        if one != other:
            return bool(gap > TIE)
    return False


def hook_program(model: PreTrainedModel, program: SteeringProgram) -> list[Any]:
    """Steer a model's own forward pass with plain hooks and the float64 loop."""
    handles = []

    passes: dict[int, int] = {}

    def steer(x: Tensor, rows_here: SiteProgram) -> Tensor:
        changed = x.clone()
        in_prompt = passes.setdefault(id(rows_here), 0) == 0
        passes[id(rows_here)] += 1
        for token in range(x.shape[1]):
            steered = reference.settled(rows_here, reference.vector(x[0, token]), in_prompt)
            changed[0, token] = torch.from_numpy(np.asarray(steered)).to(x.dtype)
        return changed

    for site in tiny.SITES:
        if (rows_here := program.sites.get(site)) is None:
            continue
        module, reads_input = site_module(model, site)

        def on_input(_: Any, args: Any, kwargs: Any, rows_here: SiteProgram = rows_here) -> Any:
            return (steer(args[0], rows_here), *args[1:]), kwargs

        def on_output(_: Any, __: Any, output: Any, rows_here: SiteProgram = rows_here) -> Any:
            if isinstance(output, tuple):
                return (steer(output[0], rows_here), *output[1:])
            return steer(output, rows_here)

        if reads_input:
            handles.append(module.register_forward_pre_hook(on_input, with_kwargs=True))
        else:
            handles.append(module.register_forward_hook(on_output))
    return handles


def random_program(seed: int, count: int) -> SteeringProgram:
    """A program of `count` rows, spread over the sites and the kinds of rows."""
    rng = torch.Generator().manual_seed(seed)
    sites = list(tiny.SITES)
    edits: dict[Site, list[rows.Edit]] = {site: [] for site in sites}
    rules: dict[Site, list[rows.Edit]] = {site: [] for site in sites}
    bans: dict[Site, tuple[rows.Edit, ...]] = {}
    for index in range(count):
        site = sites[int(torch.randint(len(sites), (1,), generator=rng))]
        kind = ("relu", "jumprelu", "gated", "direction")[index % 4]
        probe = cases.random_probe(rng, tiny.WIDTH, kind, Norm.NONE, f"{seed}:{index}")
        operation = cases.OPERATIONS[int(torch.randint(len(cases.OPERATIONS), (1,), generator=rng))]
        edit = cases.random_edit(rng, probe, operation)
        if index % 7 in (3, 5):
            kind = ("direction", "relu")[index % 2]
            to = cases.random_probe(rng, tiny.WIDTH, kind, Norm.NONE, f"{seed}:{index} to")
            edit = cases.random_redirect(rng, probe, to)
        target = rules if index % 5 == 0 and len(rules[site]) < 8 and cases.may_rule(edit) else edits
        target[site].append(edit)
    if count:
        bans[sites[seed % len(sites)]] = cases.correlated_bans(rng, 1 + seed % 2, tiny.WIDTH, 0.0, 1.5)
    return SteeringProgram(
        {
            site: SiteProgram(tuple(edits[site]), tuple(rules[site]), bans.get(site, ()))
            for site in sites
            if edits[site] or rules[site] or site in bans
        }
    )


def destructive(phase: Phase) -> SteeringProgram:
    """Adds so much that the squares in the norms overflow, and then their products."""
    huge = torch.full((tiny.WIDTH,), 3e38)
    edit = add(Probe("endless", huge, huge, linear=True), 1e6, phase=phase)
    return SteeringProgram({Site.parse("layers.1.resid_post"): SiteProgram(edits=(edit,))})
