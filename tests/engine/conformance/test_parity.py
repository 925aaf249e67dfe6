"""Parity: what the engine writes is what Transformers' own `generate` writes, steered and unsteered."""

import pytest

from saegis_server.engine.api import SamplingParams
from tests.engine import tiny
from tests.engine.hooked import differs, generate, hook_program, random_program
from tests.engine.serving import Serving


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_writes_what_generate_writes(serving: Serving, family: str) -> None:
    model = tiny.model(family)
    prompts = [tiny.prompt_of(seed, length) for seed, length in enumerate((1, 2, 15, 16, 17, 40, 64))]
    wanted = [generate(model, prompt, 24) for prompt in prompts]
    with serving(model) as engine:
        answers = [engine.ask(prompt) for prompt in prompts]
        for answer, (tokens, gaps) in zip(answers, wanted, strict=True):
            assert not differs(answer.wait().tokens(), tokens, gaps)


def test_thirty_two_programs_at_once_write_what_each_writes_alone_and_what_hooks_write(
    serving: Serving,
) -> None:
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
    with serving(model, max_running=32) as engine:
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


def test_an_unsteered_request_keeps_its_bits_beside_steered_ones(serving: Serving) -> None:
    model = tiny.model()
    sampling = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True, logprobs=3)
    prompts = [tiny.prompt_of(seed, 12) for seed in range(4)]
    plain = serving(model)
    # Asked before the engines start, so that the batches of both are the same.
    answers = [plain.ask(prompt, sampling) for prompt in prompts]
    with plain:
        wanted = [answer.wait().outputs() for answer in answers]
    mixed = serving(tiny.model())
    answers = [mixed.ask(prompts[0], sampling)] + [
        mixed.ask(prompt, sampling, random_program(seed, 9))
        for seed, prompt in enumerate(prompts[1:], start=1)
    ]
    with mixed:
        got = [answer.wait().outputs() for answer in answers]
    assert got[0] == wanted[0]
    assert got[1] != wanted[1]
