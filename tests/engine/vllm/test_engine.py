"""The engine's own: what it refuses by name, its seats, and that a seed is the same text on both engines."""

import importlib.util

import pytest
from pydantic import ValidationError

from saegis_server.engine.api import FieldError, SamplingParams
from saegis_server.engine.torch.schedule import Schedule
from saegis_server.engine.vllm.in_process import VllmMissingError, require_vllm
from saegis_server.rpc.server.config import ServerConfig
from tests.engine import tiny
from tests.engine.hooked import random_program
from tests.engine.in_vllm import HAS_VLLM, in_vllm
from tests.engine.on_plain_core import on_plain_core
from tests.engine.serving import Answer

make = in_vllm if HAS_VLLM else on_plain_core


def test_a_seed_gives_the_embedded_engines_text_steered_or_not() -> None:
    """Mixed: several programs at once, sampled and greedy, several answers to a prompt."""
    found: list[list[list[int]]] = []
    for engine in (make(tiny.model()), tiny.RunningEngine(tiny.step(tiny.model()))):
        with engine:
            answers: list[Answer] = []
            for seed in range(5):
                sampling = SamplingParams(
                    temperature=float(seed % 2), seed=seed, n=1 + seed % 3, max_tokens=6, ignore_eos=True
                )
                answers.append(
                    engine.ask(tiny.prompt_of(seed, 9 + seed), sampling, random_program(seed, 2 * seed))
                )
            texts = [
                [answer.wait().tokens(index) for index in range(1 + seed % 3)]
                for seed, answer in enumerate(answers)
            ]
            found.append([tokens for several in texts for tokens in several])
    assert found[0] == found[1]


def test_what_it_does_not_serve_is_refused_by_name() -> None:
    engine = make(tiny.model())
    with pytest.raises(
        FieldError, match=r"sampling.temperature: must be at most 2 on the vLLM engine, not 3"
    ):
        engine.ask([1, 2], SamplingParams(temperature=3.0))
    engine.stop()
    for name, value in (
        ("batch_invariant", True),
        ("usage_every", 5),
        ("device", "cuda"),
        ("dtype", "float16"),
    ):
        with pytest.raises(ValidationError, match=f"{name}: the vllm engine does not serve it"):
            ServerConfig.model_validate({"model": "m", "engine": "vllm", name: value})


@pytest.mark.skipif(HAS_VLLM, reason="vLLM is here")
def test_a_missing_vllm_is_told_with_what_to_do() -> None:
    with pytest.raises(VllmMissingError, match=r"needs vLLM, which cannot be imported .* docs/vllm.md"):
        require_vllm()
    assert importlib.util.find_spec("vllm") is None


def test_a_slot_is_a_sequences_own_until_it_leaves() -> None:
    """And the books say so."""
    engine = make(tiny.model(), max_running=3)
    with engine:
        answers = [
            engine.ask(tiny.prompt_of(seed, 5), SamplingParams(max_tokens=1 + seed)) for seed in range(7)
        ]
        engine.cancel("request-3")
        for answer in answers:
            answer.wait()
    seats = engine.engine._seats  # type: ignore[attr-defined]
    assert isinstance(seats, Schedule)
    seats.check()
