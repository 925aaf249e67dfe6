"""Parity: what the engine writes is what Transformers' own `generate` writes, steered and unsteered."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from saegis_server.engine.api import SamplingParams
from saegis_server.engine.sites import site_module
from saegis_server.steering import rows
from saegis_server.steering.program import SiteProgram, SteeringProgram
from saegis_server.steering.rows import Norm
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


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_writes_what_generate_writes(family: str) -> None:
    model = tiny.model(family)
    prompts = [tiny.prompt_of(seed, length) for seed, length in enumerate((1, 2, 15, 16, 17, 40, 64))]
    wanted = [generate(model, prompt, 24) for prompt in prompts]
    with tiny.RunningEngine(tiny.step(model)) as engine:
        answers = [engine.ask(prompt) for prompt in prompts]
        for answer, (tokens, gaps) in zip(answers, wanted, strict=True):
            assert not differs(answer.wait().tokens(), tokens, gaps)


def random_program(seed: int, count: int) -> SteeringProgram:
    """A program of `count` rows, spread over the sites and the kinds of rows."""
    rng = torch.Generator().manual_seed(seed)
    sites = [str(site) for site in tiny.SITES]
    edits: dict[str, list[rows.Edit]] = {name: [] for name in sites}
    rules: dict[str, list[rows.Edit]] = {name: [] for name in sites}
    bans: dict[str, tuple[rows.Edit, ...]] = {}
    for index in range(count):
        site = sites[int(torch.randint(len(sites), (1,), generator=rng))]
        kind = ("relu", "jumprelu", "gated", "direction")[index % 4]
        probe = cases.random_probe(rng, tiny.WIDTH, kind, Norm.NONE, f"{seed}:{index}")
        operation = cases.OPERATIONS[int(torch.randint(len(cases.OPERATIONS), (1,), generator=rng))]
        edit = cases.random_edit(rng, probe, operation)
        target = rules if index % 5 == 0 and len(rules[site]) < 8 and cases.may_rule(edit) else edits
        target[site].append(edit)
    if count:
        bans[sites[seed % len(sites)]] = cases.correlated_bans(rng, 1 + seed % 2, tiny.WIDTH, 0.0, 1.5)
    return SteeringProgram(
        {
            name: SiteProgram(tuple(edits[name]), tuple(rules[name]), bans.get(name, ()))
            for name in sites
            if edits[name] or rules[name] or name in bans
        }
    )


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
        if (rows_here := program.sites.get(str(site))) is None:
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


def test_thirty_two_programs_at_once_write_what_each_writes_alone_and_what_hooks_write() -> None:
    programs = [random_program(seed, seed) for seed in range(33)][:32]
    prompts = [tiny.prompt_of(100 + seed, 5 + 2 * seed) for seed in range(32)]
    model = tiny.model()
    hooked = []
    for program, prompt in zip(programs, prompts, strict=True):
        handles = hook_program(model, program)
        hooked.append(generate(model, prompt, 16))
        for handle in handles:
            handle.remove()
    sampling = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
    with tiny.RunningEngine(tiny.step(model, slots=32), max_running=32) as engine:
        alone = [
            engine.ask(prompt, sampling, program).wait().tokens()
            for prompt, program in zip(prompts, programs, strict=True)
        ]
        asked = [
            engine.ask(prompt, sampling, program) for prompt, program in zip(prompts, programs, strict=True)
        ]
        together = [answer.wait().tokens() for answer in asked]
    ties = 0
    for index, (tokens, gaps) in enumerate(hooked):
        assert not differs(together[index], tokens, gaps), f"program {index} against hooks"
        assert not differs(together[index], alone[index], gaps), f"program {index} against itself alone"
        ties += together[index] != tokens
    assert len({tuple(tokens) for tokens in together}) > 16, "the programs hardly changed the answers"
    assert ties <= 2


def test_an_unsteered_request_keeps_its_bits_beside_steered_ones() -> None:
    model = tiny.model()
    sampling = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True, logprobs=3)
    prompts = [tiny.prompt_of(seed, 12) for seed in range(4)]
    plain = tiny.RunningEngine(tiny.step(model))
    # Asked before the engines start, so that the batches of both are the same.
    answers = [plain.ask(prompt, sampling) for prompt in prompts]
    with plain:
        wanted = [answer.wait().outputs() for answer in answers]
    mixed = tiny.RunningEngine(tiny.step(tiny.model()))
    answers = [mixed.ask(prompts[0], sampling)] + [
        mixed.ask(prompt, sampling, random_program(seed, 9))
        for seed, prompt in enumerate(prompts[1:], start=1)
    ]
    with mixed:
        got = [answer.wait().outputs() for answer in answers]
    assert got[0] == wanted[0]
    assert got[1] != wanted[1]
