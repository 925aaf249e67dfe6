"""Gemma 3 270M itself: what is served of a real checkpoint, against Transformers and against what is told.

SAEGIS_GEMMA names a folder with the checkpoint; without it the tests are skipped. With --log-cli-level=INFO
they print what they measure.
"""

import ctypes
import gc
import logging
import multiprocessing
import os
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from saegis_server.amounts import Portion
from saegis_server.engine.api import Limits, SamplingParams
from saegis_server.engine.torch.build import build_step, make_ready
from saegis_server.engine.torch.engine import TorchEngine
from saegis_server.engine.torch.loading import LoadedModel, load_model
from saegis_server.engine.torch.sizing import APART, Wishes, tensors_in
from saegis_server.engine.torch.step import SMALLEST, Extent, Step
from saegis_server.steering.rows import Norm
from saegis_server.steering.site import Site
from saegis_server.steering.table import Capacity
from tests.engine.serving import Asked

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.timeout(3600),
    pytest.mark.skipif("SAEGIS_GEMMA" not in os.environ, reason="SAEGIS_GEMMA names no folder"),
]
FOLDER = os.environ.get("SAEGIS_GEMMA", "")
PROMPTS = {
    "English": "The old lighthouse keeper opened the door and",
    "Spanish": "La historia de la ciudad comienza cuando",
    "French": "Pour préparer une bonne soupe à l'oignon, il faut",
    "German": "Die wichtigste Erfindung des neunzehnten Jahrhunderts war",
    "Russian": "Однажды утром маленькая девочка вышла из дома и",
    "Arabic": "تقع مدينة القاهرة على ضفاف نهر النيل و",
    "Hindi": "भारत की राजधानी दिल्ली में",
    "Chinese": "从前有一座山，山里有一座庙，",
    "Japanese": "日本の春は桜の花が咲き、",
    "Swahili": "Watoto wote wana haki ya kupata elimu, kwa sababu",
}
TOKENS, LENGTH = 128, 192
#: How many logits of each text are compared in bfloat16, which a CPU may have to emulate.
COMPARED = 32
#: How far bfloat16's logits lie from float32's: the root mean square, relative to the logits' deviation, at
#: most in the median of all places and at any of them.
BFLOAT16_MEDIAN, BFLOAT16_MOST = 0.04, 0.6
#: By how many MiB what a process takes may differ from what the start tells.
SLACK = 32
SITE = {Site.parse("layers.9.resid_post"): frozenset({Norm.NONE})}
LOG = logging.getLogger(__name__)


def step_of(loaded: LoadedModel) -> Step:
    """A step with a slot for every prompt, as a start makes it: compared with Transformers, and eager."""
    wishes = Wishes(count=len(PROMPTS), length=LENGTH)
    step = build_step(loaded, SITE, wishes, Capacity(), False, lambda *_: None)
    make_ready(step, lambda *_: None, False)
    return step


def prompts_of(loaded: LoadedModel) -> list[list[int]]:
    """The prompts as the model knows texts. Tokens are joined as they were when its vocabulary was made, in
    the order of their ids: the tokenizer that Transformers makes of a GGUF file knows no such order."""
    known = loaded.tokenizer.get_vocab()

    def tokens(text: str) -> list[int]:
        pieces = list(text.replace(" ", "▁"))
        while joined := [
            (known[pair], at) for at, pair in enumerate(map("".join, pairwise(pieces))) if pair in known
        ]:
            at = min(joined)[1]
            pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
        return [known[piece] for piece in pieces]

    assert loaded.bos_token_id is not None
    return [[loaded.bos_token_id, *tokens(text)] for text in PROMPTS.values()]


def answers_of(step: Step, loaded: LoadedModel, prompts: list[list[int]]) -> list[list[int]]:
    """What the engine writes greedily after all prompts at once, each read in chunks."""
    sampling = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True)
    engine = TorchEngine(
        step, loaded.tokenizer, loaded.eos_token_ids, len(prompts), Limits(prefill_chunk=8), None
    )
    with Asked(engine) as asking:
        asked = [asking.ask(prompt, sampling) for prompt in prompts]
        return [answer.wait(1800).tokens() for answer in asked]


@torch.inference_mode()
def chosen(model: PreTrainedModel, prompt: list[int], answer: list[int]) -> tuple[list[int], float]:
    """What Transformers would write next at each token of an answer, and how close the two best logits came.

    Where each is the answer's own token, Transformers writes that answer.
    """
    tokens = torch.tensor([[*prompt, *answer[:-1]]])
    logits = model(input_ids=tokens, use_cache=False, logits_to_keep=len(answer)).logits[0].float()
    best = logits.topk(2).values
    return logits.argmax(-1).tolist(), float((best[:, 0] - best[:, 1]).min())


class Served(NamedTuple):
    """What is served in float32, and what it writes greedily after the prompts."""

    loaded: LoadedModel
    step: Step
    prompts: list[list[int]]
    answers: list[list[int]]


@pytest.fixture(scope="module")
def served() -> Served:
    loaded = load_model(FOLDER, "float32")
    prompts, step = prompts_of(loaded), step_of(loaded)
    return Served(loaded, step, prompts, answers_of(step, loaded, prompts))


def test_ten_languages_are_written_as_transformers_writes_them(served: Served) -> None:
    oracle = load_model(FOLDER, "float32").model
    oracle.set_attn_implementation("eager")
    for language, prompt, answer in zip(PROMPTS, served.prompts, served.answers, strict=True):
        wanted, gap = chosen(oracle, prompt, answer)
        written = served.loaded.tokenizer.decode(answer[:24])
        LOG.info("%s: two best logits %.2g apart at least: %r", language, gap, written)
        assert len(answer) == TOKENS
        assert answer == wanted, language


@torch.inference_mode()
def logits_of(step: Step, served: Served) -> Iterator[Tensor]:
    """The logits [rows, V] after each prompt and then, token by token, after the next of its answer."""
    read, prompts = [], served.prompts
    for slot, prompt in enumerate(prompts):
        step.slots.load(slot, prompt, SamplingParams(temperature=0.0), 0, (), {})
        read.append(step.prefill(slot, prompt, 0, Extent(SMALLEST, len(prompt)), False).logits)
    yield torch.cat(read)
    longest = max(map(len, prompts))
    for place in range(COMPARED - 1):
        step.slots.state.token[: len(prompts)] = torch.tensor([answer[place] for answer in served.answers])
        yield step.decode(Extent(len(prompts), longest + place + 1), len(prompts), False).logits


@torch.inference_mode()
def test_the_logits_in_bfloat16_are_near(served: Served) -> None:
    """Of the same texts, float32's own, read as they are while they are written. Transformers' own code in
    bfloat16, which reads each at once, is no nearer."""
    wanted, half = torch.stack(list(logits_of(served.step, served)), 1), load_model(FOLDER, "bfloat16")
    half.model.set_attn_implementation("eager")
    read: list[Tensor] = []
    for prompt, answer in zip(served.prompts, served.answers, strict=True):
        tokens = torch.tensor([[*prompt, *answer[: COMPARED - 1]]])
        read.append(half.model(input_ids=tokens, use_cache=False, logits_to_keep=COMPARED).logits[0])
    theirs = torch.stack(read).float()
    found = torch.stack(list(logits_of(step_of(half), served)), 1)
    ours, by_theirs = off_by(wanted, found), off_by(wanted, theirs)
    for name, off in (("served", ours), ("Transformers", by_theirs)):
        ends = [f"{float(off.quantile(share)):.3g}" for share in (0.5, 0.99, 1.0)]
        LOG.info("bfloat16, %s: off by %s in the median, in 99 of 100, at most", name, ", ".join(ends))
    same = (found.argmax(-1) == wanted.argmax(-1)).float().mean()
    LOG.info("bfloat16: %.1f %% of %d choices are the same", 100 * same, ours.numel())
    assert ours.median() <= BFLOAT16_MEDIAN
    assert ours.max() <= BFLOAT16_MOST
    assert ours.median() <= 1.5 * by_theirs.median()


def off_by(wanted: Tensor, found: Tensor) -> Tensor:
    """How far logits [..., V] are off, in the deviation of those that are wanted."""
    return (found - wanted).pow(2).mean(-1).sqrt() / wanted.std(-1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_memory_is_what_the_start_tells(dtype: str) -> None:
    """In a process of its own, all of whose slots' memory is written, as long texts in all slots would."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        takes, told = pool.submit(grown, dtype).result()
    (amount,) = re.findall(r"tokens: ([0-9.]+) MiB of the", told)
    LOG.info("%s: %s; the process has grown by %.1f MiB", dtype, told.partition(" of the")[0], takes / 2**20)
    assert abs(takes / 2**20 - float(amount)) <= SLACK


def grown(dtype: str) -> tuple[int, str]:
    """By how many bytes this process grows while slots are made, warmed up and written, and what is told."""
    loaded, told = load_model(FOLDER, dtype), list[str]()
    with torch.inference_mode():
        loaded.model(input_ids=torch.tensor([prompts_of(loaded)[0]]))
    before, wishes = resident(), Wishes(memory=Portion(size=1000 * 2**20))
    step = build_step(loaded, SITE, wishes, Capacity(), False, lambda line, *_: told.append(line))
    make_ready(step, lambda *_: None, False)
    apart = [step.slots.cache.apart(step.slots.max_length) for _ in range(APART)]
    with torch.inference_mode():
        for tensor in tensors_in([step.slots, apart]):
            tensor.copy_(tensor.clone())
    return resident() - before, told[0]


def resident() -> int:
    """The bytes of memory that this process has, but for its files and for what it has freed."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    (kilobytes,) = re.findall(r"RssAnon:\s+([0-9]+) kB", Path("/proc/self/status").read_text())
    return int(kilobytes) * 1024
