"""Memory that cannot be had: only the request that wanted it fails, and the engine goes on."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from saegis_server.engine.api import OutOfMemoryError, SamplingParams
from saegis_server.steering import rows
from saegis_server.steering.program import SiteProgram
from tests.engine import tiny
from tests.engine.guarded import READ_ONLY, SITES, probe

#: Runs where the process may not have more memory than it has, and a little.
_LIMITED = """
import resource
import torch
from tests.engine import tiny
from saegis_server.engine.api import Limits, OutOfMemoryError, SamplingParams

torch.set_num_threads(1)
model = tiny.model()
step = tiny.step(model, slots=2, length=6000)
with tiny.RunningEngine(step, 2, Limits(prefill_chunk=8192)) as engine:
    few = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    wanted = engine.ask([1, 2, 3], few).wait().tokens()
    engine.score([1, 2, 3]).result(60), engine.capture([1, 2, 3]).result(60)
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, resource.RLIM_INFINITY))
    long = [token % 250 for token in range(5000)]  # whose attention wants 400 MB a layer
    for attempt in range(2):
        failed = engine.ask(long, few).wait().failed.error
        assert isinstance(failed, OutOfMemoryError), failed
        for future in (engine.score(long), engine.capture(long)):
            assert isinstance(future.exception(60), OutOfMemoryError), future.exception()
        assert engine.ask([1, 2, 3], few).wait().tokens() == wanted
    assert engine.error is None
print("went on")
"""
GREEDY = SamplingParams(temperature=0.0, max_tokens=10, ignore_eos=True)


def test_what_a_request_cannot_have_it_fails_for_alone() -> None:
    """Of a real limit on the process: a prompt, a score and a capture that are too long, again and again."""
    done = subprocess.run([sys.executable, "-c", _LIMITED], capture_output=True, text=True, timeout=240)
    assert done.stdout.strip() == "went on", done.stderr


class Scarce:
    """A layer's hook that finds no memory where `lacks` says so of its input, as the allocators say it."""

    def __init__(self, step: Any, lacks: Callable[[torch.Tensor], bool]) -> None:
        self.lacks, self.failures = lacks, 0
        step.model.get_submodule("model.layers.1").register_forward_pre_hook(self)

    def __call__(self, _: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if self.lacks(inputs[0]):
            self.failures += 1
            if self.failures % 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")


def test_a_decode_step_without_memory_ends_the_requests_that_came_last_and_no_others() -> None:
    """As many as it takes; those who go on write, count and sample what they would have."""
    sampled = SamplingParams(temperature=0.9, seed=7, max_tokens=10, ignore_eos=True, frequency_penalty=1.0)
    step, steered = tiny.step(tiny.model()), {SITES[0]: SiteProgram(edits=(rows.add(probe(5), 3.0),))}
    program = type(READ_ONLY)(steered)
    asked = [(tiny.prompt_of(seed, 5 + seed), (GREEDY, sampled)[seed % 2]) for seed in range(4)]
    with tiny.RunningEngine(step) as engine:
        alone = [engine.ask(prompt, sampling, program).wait() for prompt, sampling in asked]
    scarce = Scarce(step, lambda x: x.shape[1] == 1 and x.shape[0] > 2)
    engine = tiny.RunningEngine(step)
    answers = [engine.ask(prompt, sampling, program) for prompt, sampling in asked]
    with engine:
        for answer, wanted in zip(answers[:2], alone, strict=False):
            assert answer.wait().tokens() == wanted.tokens()
            found, told = answer.finished.receipt.sites, wanted.finished.receipt.sites
            assert [site.tokens_edited for site in found] == [site.tokens_edited for site in told]
        assert all(isinstance(answer.wait().failed.error, OutOfMemoryError) for answer in answers[2:])
        assert scarce.failures == 2
        assert engine.ask(*asked[3], program).wait().tokens() == alone[3].tokens()
        assert engine.error is None


def test_a_prompt_without_memory_fails_its_request_and_leaves_nothing_behind() -> None:
    step = tiny.step(tiny.model())
    with tiny.RunningEngine(step) as engine:
        wanted = engine.ask([1, 2, 3], GREEDY, READ_ONLY).wait()
        Scarce(step, lambda x: x.shape[1] == 13)
        beside = engine.ask([1, 2, 3], GREEDY, READ_ONLY)
        many = SamplingParams(n=3, seed=1, max_tokens=5)
        assert isinstance(engine.ask(tiny.prompt_of(1, 13), many).wait().failed.error, OutOfMemoryError)
        assert beside.wait().tokens() == wanted.tokens()
        # A capture reads what the model does, untouched by the step that failed.
        site = next(iter(tiny.SITES))
        assert torch.equal(
            engine.capture([1, 2, 3]).result(30)[site], tiny.step(tiny.model()).capture([1, 2, 3])[site]
        )
